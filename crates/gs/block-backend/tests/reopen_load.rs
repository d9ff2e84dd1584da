//! Reopening nodes whose users are at work, in other I/O threads than the node's own, and beside a job: what may change does, under load; what may not is refused
//! in the field's words and leaves everything as it was. Every byte is compared with a model.

#![allow(clippy::disallowed_methods, reason = "tests prepare files behind the driver's back")]

use block_backend::{Backend, BackendOptions};
use block_backend_io::BackendSettings;
use block_common::{Options, Perm, PermPair};
use block_copy::MirrorOptions;
use block_drivers::NewImage;
use block_gs::{GlobalOptions, GlobalState, JoinHandle, LeftOut, MainLoop, NodeRef};
use block_io::IoThread;
use block_jobs::{CopyJob, JobOptions, JobRegistry, JobStatus};
use block_testkit::bed::io_thread;
use block_testkit::model::{self, ModelOptions, ModelReport};
use std::cell::Cell;
use std::rc::Rc;

const SIZE: u64 = 2 << 20;

struct Bed {
    gs: GlobalState,
    dir: tempfile::TempDir,
    threads: [IoThread; 2],
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Bed>) -> F) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    block_drivers::register_all(&gs);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let bed = Rc::new(Bed { gs: gs.clone(), dir, threads: [io_thread(true), io_thread(false)] });
    main.run(async {
        test(bed).await;
        gs.close_all().await.expect("everything closes");
    });
}

/// Random requests against the model, until they are over.
struct Load {
    is_over: Rc<Cell<bool>>,
    task: JoinHandle<Result<ModelReport, String>>,
}

impl Load {
    async fn finish(self) {
        let report = self.task.join().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.failed, 0, "{report:?}");
    }
}

impl Bed {
    async fn image(&self, name: &str, format: &str) -> NodeRef {
        let path = self.dir.path().join(name).display().to_string();
        let new = NewImage::parse(&self.gs, format, &path, &format!("size={SIZE}")).await.expect("options");
        new.create(&self.gs).await.expect("created");
        let file = format!(r#"{{"driver": "file", "filename": "{path}"}}"#);
        let text = format!(r#"{{"driver": "{format}", "node-name": "{name}", "file": {file}}}"#);
        self.gs.open(Options::parse_json(&text).expect("options")).await.expect("it opens")
    }

    /// A backend whose slow requests run in one of the threads.
    async fn backend(&self, name: &str, thread: usize, perm: Perm, node: &NodeRef) -> Backend {
        let perm = PermPair::new(Perm::CONSISTENT_READ | perm, Perm::all());
        let (home, settings) = (self.threads[thread].handle(), BackendSettings::default());
        let options = BackendOptions { name: name.into(), perm, home, settings };
        Backend::with_node(&self.gs, options, node).await.expect("nobody is in the way")
    }

    fn load(&self, backend: &Backend, requests: u64) -> Load {
        let threads = self.threads.iter().map(IoThread::handle).collect();
        let options = ModelOptions { requests, len: SIZE, threads, ..ModelOptions::default() };
        let (io, is_over) = (backend.io().root().clone(), Rc::new(Cell::new(false)));
        let over = is_over.clone();
        let task = self.gs.main().spawn(async move {
            let report = model::run(&io, options).await;
            over.set(true);
            report
        });
        Load { is_over, task }
    }

    async fn reopen(&self, node: &str, text: &str) -> Result<(), String> {
        let node = self.gs.find_node(node).expect("it is there");
        let changes = Options::parse_json(text).expect("options");
        self.gs.reopen(&node, changes, LeftOut::Stays).await.map_err(|error| error.report())
    }

    /// What is refused says so and changes nothing.
    async fn refused(&self, node: &str, text: &str, words: &str) {
        let shape = || {
            let line = |node: block_gs::NodeInfo| {
                format!("{} {:?} {:?} {:?}", node.name, node.children, node.parents, node.common)
            };
            self.gs.nodes().into_iter().map(line).collect::<Vec<_>>()
        };
        let before = shape();
        assert_eq!(self.reopen(node, text).await, Err(words.into()), "{text}");
        assert_eq!(shape(), before, "{text} was refused, and changed something");
    }
}

/// What may change on an image that is written.
const ALLOWED: [&str; 6] = [
    r#"{"cache": {"no-flush": true}}"#,
    r#"{"discard": "unmap", "detect-zeroes": "unmap"}"#,
    r#"{"lazy-refcounts": true, "l2-cache-size": 65536}"#,
    r#"{"cache": {"no-flush": false}}"#,
    r#"{"detect-zeroes": "off", "discard": "ignore"}"#,
    r#"{"lazy-refcounts": false}"#,
];

#[test]
fn reopen_1_a_node_whose_users_live_in_other_io_threads_is_reopened_under_load() {
    run(async |bed| {
        let node = bed.image("disk", "qcow2").await;
        let writer = bed.backend("writer", 0, Perm::WRITE, &node).await;
        let reader = bed.backend("reader", 1, Perm::empty(), &node).await;
        let load = bed.load(&writer, 6000);
        let mut rounds = 0;
        while !load.is_over.get() {
            bed.reopen("disk", ALLOWED[rounds % ALLOWED.len()]).await.expect("it may change");
            let writers = "Read-only block node 'disk' cannot support read-write users";
            bed.refused("disk", r#"{"read-only": true}"#, writers).await;
            bed.refused("disk", r#"{"driver": "raw"}"#, "Cannot change the option 'driver'").await;
            // From thread to thread, so that the next one meets users who have just moved.
            writer.set_home(&bed.threads[rounds % 2].handle()).await;
            let buf = block_common::AlignedBuf::zeroed(4096, 4096).into_io();
            reader.io().root().read(0, buf).await.0.expect("it is read");
            rounds += 1;
        }
        load.finish().await;
        assert!(rounds > 3, "the load was over after {rounds} rounds");
        writer.close().await.expect("nobody else holds it");
        bed.reopen("disk", r#"{"read-only": true}"#).await.expect("nobody writes any more");
        reader.close().await.expect("nobody else holds it");
        drop(node);
    });
}

#[test]
fn reopen_3_a_node_that_a_job_copies_is_reopened_under_load() {
    run(async |bed| {
        let [source, target] = [bed.image("source", "qcow2").await, bed.image("target", "qcow2").await];
        let writer = bed.backend("writer", 0, Perm::WRITE, &source).await;
        // It follows the disk until it is told to complete.
        let copy = CopyJob {
            filter: Some("top".parse().expect("a name")),
            home: Some(bed.threads[1].handle()),
            options: MirrorOptions { rounds_max: None, ..MirrorOptions::default() },
            ..CopyJob::new("source", "target")
        };
        let job = JobRegistry::start(&bed.gs, JobOptions::new("copy"), copy).await.expect("it starts");
        let load = bed.load(&writer, 5000);
        let mut rounds = 0;
        while !load.is_over.get() {
            for node in ["source", "target"] {
                bed.reopen(node, ALLOWED[rounds % ALLOWED.len()]).await.expect("it may change");
                let writers = format!("Read-only block node '{node}' cannot support read-write users");
                bed.refused(node, r#"{"read-only": true}"#, &writers).await;
            }
            let frozen = "Cannot change frozen 'file' link from 'top' to 'source'";
            bed.refused("top", r#"{"file": "target"}"#, frozen).await;
            let cycle = "Making 'top' a backing child of 'source' would create a cycle";
            bed.refused("source", r#"{"backing": "top"}"#, cycle).await;
            rounds += 1;
        }
        load.finish().await;
        assert!(rounds > 3, "the load was over after {rounds} rounds");
        job.reached(|status| status == JobStatus::Ready).await;
        job.complete().expect("it is ready");
        job.ended().await.expect("a good end");
        assert!(writer.node().is_some_and(|node| node.same(&target)));
        let [mut copied, mut there] = [vec![0; SIZE as usize], vec![0; SIZE as usize]];
        for (node, bytes) in [(&source, &mut there), (&target, &mut copied)] {
            let reader = bed.backend("", 0, Perm::empty(), node).await;
            let buf = block_common::AlignedBuf::zeroed(SIZE as usize, 4096).into_io();
            let (read, buf) = reader.io().root().read(0, buf).await;
            read.expect("it is read");
            buf.expect("the buffer").copy_to_slice(0, bytes);
            reader.close().await.expect("nobody else holds it");
        }
        assert!(copied == there, "the copy is not what was copied");
        writer.close().await.expect("nobody else holds it");
        drop((source, target));
    });
}
