//! Random sections, reopens, attachments and limits over throttled nodes under load, with a clock that stands still: all that is begun ends (rule drain-5).

use crate::bed::{Bed, none, run};
use block_gs::{NodeRef, RootRef};
use block_testkit::{Rng, seed};
use std::collections::VecDeque;
use std::rc::Rc;

/// `mem` ← `t` ← `mid` ← `u`, and `t` is used from beside as well.
async fn graph(bed: &Bed) -> Vec<NodeRef> {
    let mut nodes = vec![bed.mem("mem").await];
    for json in [
        r#"{"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "mem"}"#,
        r#"{"driver": "raw", "node-name": "mid", "file": "t"}"#,
        r#"{"driver": "throttle", "node-name": "u", "throttle-group": "h", "file": "mid"}"#,
        r#"{"driver": "raw", "node-name": "beside", "file": "t"}"#,
    ] {
        nodes.push(bed.add(json).await);
    }
    nodes
}

#[test]
fn drain_5_whatever_is_begun_ends() {
    let seed = seed();
    eprintln!("CAIRN_SEED={seed}");
    for round in 0..6 {
        run(async |bed| sections(bed, Rng::new(seed + round)).await);
    }
}

async fn sections(bed: Rc<Bed>, mut rng: Rng) {
    let second = block_throttle::ThrottleGroup::with_clock(bed.group.limits(), bed.clock.clone());
    bed.gs.add_throttle_group("h", second.clone()).expect("it is new");
    let nodes = graph(&bed).await;
    let mut roots: Vec<RootRef> = Vec::new();
    for at in [1, 2, 3, 3, 4] {
        roots.push(bed.root("root", &nodes[at]).await);
    }
    let mut waiting = Vec::new();
    let mut guards = VecDeque::new();
    for _ in 0..150 {
        let node = &nodes[rng.below(0..nodes.len() as u64) as usize];
        let root = &roots[rng.below(0..roots.len() as u64) as usize];
        match rng.below(0..16) {
            0..5 => waiting.push(bed.requests(root)),
            5 => drop(bed.gs.drain(node).await),
            6 | 7 => guards.push_back(bed.gs.drain(node).await),
            8 => drop(guards.pop_front()),
            9 => drop(guards.pop_back()),
            // Given up half-way.
            10 => drop(bed.gs.drain(node)),
            11 => {
                let group = if rng.below(0..2) == 0 { "g" } else { "h" };
                let at = &nodes[if rng.below(0..2) == 0 { 1 } else { 3 }];
                bed.reopen(at, &format!(r#"{{"throttle-group": "{group}"}}"#)).await.expect("it is reopened");
            }
            12 => bed.gs.attach_root(root, Some(node)).await.expect("it attaches"),
            13 => drop(bed.gs.drain_root(root).await),
            14 => bed.full(),
            _ => {
                let group = if rng.below(0..2) == 0 { "g" } else { "h" };
                bed.gs.set_throttle_limits(group, none()).expect("they change");
                if rng.below(0..2) == 0 {
                    second.set_limits(bed.group.limits());
                }
            }
        }
        if rng.below(0..3) == 0 {
            bed.pause().await;
        }
    }
    guards.clear();
    // Who is left goes with the end.
    bed.full();
    drop(nodes);
    bed.gs.close_all().await.expect("it ends");
    drop(roots);
    for done in waiting {
        done.join().await;
    }
    assert_eq!((bed.group.waiting(), second.waiting()), (0, 0));
}
