// A job's body copies one disk to another on its home thread, obeys its orders, and needs nothing of the graph for it:
// roots to read and write through were given to it.
// (Review: bodies run where their job lives, and must not count on the main loop. The counterpart of
// `job_run_names_the_graph`.)

use crate::disk::{Disk, buf};
use block_common::{Perm, RequestFlags};
use block_copy::{CopyOptions, JobControl, copy};
use block_testkit::bed;

#[test]
fn a_body_copies_on_its_home_thread() {
    let source = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    let target = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    bed::block_on(source.root.write(65536, buf(4096, 7), RequestFlags::empty())).0.expect("writes");
    let (from, to) = (source.root.clone(), target.root.clone());
    let run = source.root.home().run(async move {
        let mut control = JobControl::unattended();
        copy(from, to, CopyOptions::default(), &mut control).await
    });
    assert!(bed::block_on(run).is_some_and(|copied| copied.is_ok()));
    assert_eq!(target.storage.bytes(65536, 4096), [7; 4096]);
    assert_eq!(target.storage.bytes(0, 4096), [0; 4096]);
    source.close();
    target.close();
}
