//! Snapshots of images with compressed clusters, several of which share a cluster of the file.

use crate::bed::{Image, buf, open, storage};
use block_common::{IoError, RequestFlags};
use block_qcow2::{NewSnapshot, Qcow2Options, SnapshotFailure};
use block_qcow2_format::IncompatibleFeatures;
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};

const CLUSTER: u64 = 1 << 16;

fn take(image: &mut Image, name: &str) -> Result<(), SnapshotFailure> {
    let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
    block_on(image.alone(|req, control| async move { control.create_snapshot(&req, new).await }))
}

fn pack(image: &Image, cluster: u64, byte: u8) {
    let data = buf(&[byte; CLUSTER as usize]);
    block_on(image.root.write(cluster * CLUSTER, data, RequestFlags::WRITE_COMPRESSED)).0.expect("written");
}

// Scenario: a snapshot is applied, and the cluster that compressed data went to last is nobody's. Somebody else gets it. Further compressed data goes
// elsewhere.
#[test]
fn qcow2_3_compressed_data_does_not_go_on_in_a_cluster_that_an_applied_snapshot_has_freed() {
    let thread = io_thread(false);
    let file = storage(Format::new(1 << 20).bytes());
    let mut image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    // There is a table already, so the first cluster that is freed is that of the data.
    image.write(15 * CLUSTER, &[9; 512]);
    take(&mut image, "a").expect("there is room");
    pack(&image, 0, 1);
    block_on(image.alone(|req, control| async move { control.apply_snapshot(&req, b"a").await })).expect("it is there");
    (1..5).for_each(|cluster| image.write(cluster * CLUSTER, &[cluster as u8; CLUSTER as usize]));
    (5..9).for_each(|cluster| pack(&image, cluster, cluster as u8));
    for cluster in 1..9 {
        assert!(image.read(cluster * CLUSTER, CLUSTER as usize).iter().all(|byte| u64::from(*byte) == cluster));
    }
    image.close().expect("closes");
    let report = inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
    assert_eq!(report.leaks, 0);
}

// Scenario: counts of two bits, and a cluster that two compressed clusters share: with a snapshot it would be named four times.
#[test]
fn a_snapshot_for_which_counts_are_too_narrow_is_refused_and_that_is_all() {
    let thread = io_thread(false);
    let file = storage(Format { refcount_order: 1, ..Format::new(1 << 20) }.bytes());
    let mut image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    pack(&image, 0, 1);
    pack(&image, 1, 2);
    assert_eq!(take(&mut image, "a"), Err(SnapshotFailure::Io(IoError::INVALID)));
    assert!(!image.control.header().incompatible.contains(IncompatibleFeatures::CORRUPT));
    image.write(2 * CLUSTER, &[3; 512]);
    image.close().expect("closes");
    let report = inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
    assert_eq!((report.leaks, report.snapshots.len()), (0, 0));
}
