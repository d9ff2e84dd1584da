//! Who observes a node's writes sees all of them, whoever makes them and whichever way they take.

mod support;

use block_common::{AlignedBuf, ParentKind, Perm, PermPair, RequestFlags};
use block_io::{DirtyBitmap, Request, WriteObserver};
use block_testkit::{MemOptions, MemStorage, Rng};
use std::sync::Arc;
use support::{Layer, open};

const LEN: u64 = 1 << 20;
const CHUNK: u64 = 4096;

/// Scenario: two users write to a disk all the time, one of them through a filter. A bitmap comes and goes on the disk. What differs
/// from what the disk was when the bitmap had come is dirty, and what is not dirty does not differ.
#[test]
fn req_4_a_bitmap_misses_nothing_that_is_written() {
    let layer = Layer::new();
    let storage = MemStorage::new(MemOptions::new(LEN));
    storage.set_logging(false);
    layer.add_storage("disk", &storage);
    layer.main.run(async {
        let gs = &layer.gs;
        let disk = open(gs, "mem,storage=disk,node-name=disk").await.expect("opens");
        let filter = open(gs, "toy-filter,file=disk").await.expect("opens");
        let perm = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all());
        let (above, beside) = (
            gs.new_root("above", ParentKind::Export, perm, &gs.main_io()),
            gs.new_root("beside", ParentKind::Export, perm, &gs.main_io()),
        );
        gs.attach_root(&above, Some(&filter)).await.expect("attaches");
        gs.attach_root(&beside, Some(&disk)).await.expect("attaches");
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writers = [above.io().clone(), beside.io().clone()].map(|root| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut rng = Rng::new(root.name().len() as u64);
                let (mut queue, mut done, mut sent) = (block_io::Queue::new().expect("a queue"), Vec::new(), 0u64);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let at = rng.below(0..LEN / 512 - 16) * 512;
                    let mut data = AlignedBuf::zeroed(rng.below(1..16) as usize * 512, 512);
                    data.fill(sent as u8 | 1);
                    queue.submit(&root, Request::write(at, data.into_io(), RequestFlags::empty()), sent);
                    sent += 1;
                    while queue.pending() > 8 {
                        queue.wait(&mut done, None);
                    }
                }
                while queue.pending() > 0 {
                    queue.wait(&mut done, None);
                }
                assert!(done.iter().all(|one| one.done.result == Ok(())));
                sent
            })
        });
        for _ in 0..40 {
            let bitmap = Arc::new(DirtyBitmap::new(LEN, CHUNK));
            let observer: Arc<dyn WriteObserver> = bitmap.clone();
            gs.observe(&disk, observer.clone()).await.expect("there");
            // From here on every write is seen.
            let before = storage.bytes(0, LEN as usize);
            let section = gs.drain(&disk).await;
            let after = storage.bytes(0, LEN as usize);
            for chunk in 0..LEN / CHUNK {
                let range = (chunk * CHUNK) as usize..((chunk + 1) * CHUNK) as usize;
                assert!(before[range.clone()] == after[range] || bitmap.is_dirty(chunk), "chunk {chunk}");
            }
            gs.unobserve(&disk, &observer);
            drop(section);
            gs.main().sleep(std::time::Duration::from_millis(1)).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent: Vec<u64> = writers.into_iter().map(|writer| writer.join().expect("no panic")).collect();
        assert!(sent.iter().all(|sent| *sent > 0));
        drop((above, beside, filter, disk));
        gs.close_all().await.expect("closes");
    });
}
