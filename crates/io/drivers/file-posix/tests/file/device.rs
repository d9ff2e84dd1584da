//! Block devices: a loop device over a file, where this host lets us have one.

use crate::common::{create, dir, filled, graph, open, options, pool, read};
use block_common::{Errno, IoError, Preallocation, RequestFlags};
use block_file_posix::{FileAccess, FileError, FileKind, FilePosixOptions, HostKind};
use block_io::Driver;
use block_testkit::bed::{Way, block_on, skipped};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, given back when this is dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(test: &str, over: &Path, more: &[&str]) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).args(more).arg(over).output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Self(String::from_utf8(made.stdout).expect("a name").trim_end().into()))
            }
            _ => {
                skipped(test, "no loop device to be had");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let given_back = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(given_back.is_ok_and(|status| status.success()), "the loop device {} stays", self.0.display());
    }
}

fn device(path: &Path, access: FileAccess, direct: bool) -> FilePosixOptions {
    FilePosixOptions { kind: HostKind::Device, access, direct, ..FilePosixOptions::new(path) }
}

/// What a guest's disk is made of: the block sizes, and a geometry where there is one.
#[test]
fn a_device_tells_its_blocks() {
    let dir = dir();
    let file = dir.path().join("image");
    create(&file, 4 << 20);
    let Some(held) = Loop::new("a_device_tells_its_blocks", &file, &["--sector-size", "4096"]) else { return };
    let (engine, _) = open(device(&held.0, FileAccess::ReadOnly, false)).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    let blocks = block_on(opened.root.probe_block_sizes()).expect("told");
    assert_eq!((blocks.logical, blocks.physical), (4096, 4096));
    // Loop devices have no heads; the numbers of a disk that has them multiply to something.
    match block_on(opened.root.probe_geometry()) {
        Ok(geometry) => assert!(geometry.heads > 0 && geometry.sectors > 0, "{geometry:?}"),
        Err(error) => assert_eq!(error, IoError::UNSUPPORTED),
    }
    opened.close();
}

#[test]
fn a_file_is_no_device() {
    let dir = dir();
    let file = dir.path().join("image");
    create(&file, 4 << 20);
    let (engine, _) = open(options(&file, false)).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    assert_eq!(block_on(opened.root.probe_block_sizes()), Err(IoError::UNSUPPORTED));
    assert_eq!(block_on(opened.root.probe_geometry()), Err(IoError::UNSUPPORTED));
    opened.close();
}

#[test]
fn a_block_device_is_read_written_zeroed_and_discarded() {
    let dir = dir();
    let file = dir.path().join("image");
    create(&file, 4 << 20);
    let Some(held) = Loop::new("a_block_device_is_read_written_zeroed_and_discarded", &file, &[]) else { return };
    assert_eq!(block_on(block_file_posix::kind(&held.0, &pool())), HostKind::Device);
    for way in Way::ALL {
        for direct in [false, true] {
            let options = FilePosixOptions { engine: way.engine, ..device(&held.0, FileAccess::ReadWrite, direct) };
            let (engine, _) = open(options).expect("opened");
            assert_eq!(engine.format_name(), "host_device");
            let limits = engine.limits();
            assert_eq!((limits.request_alignment, limits.discard_alignment), (if direct { 512 } else { 1 }, 512));
            let opened = graph(way, engine);
            let root = &opened.root;
            assert_eq!(root.length(), Ok(4 << 20));
            block_on(root.write(0, filled(4 << 20, 7), RequestFlags::empty())).0.expect("written");
            block_on(root.flush()).expect("flushed");
            let blocks = || std::fs::metadata(&file).expect("looked at").blocks() * 512;
            let full = blocks();
            block_on(root.discard(0, 2 << 20)).expect("discarded");
            assert!(blocks() < full || full < 4 << 20, "the discard did not reach the file");
            block_on(root.zero(2 << 20, 65_536, RequestFlags::NO_FALLBACK)).expect("zeroed");
            block_on(root.zero(3 << 20, 65_536, RequestFlags::MAY_UNMAP)).expect("zeroed");
            assert_eq!(read(root, 2 << 20, 65_536), vec![0; 65_536]);
            assert_eq!(read(root, 3 << 20, 65_536), vec![0; 65_536]);
            assert_eq!(read(root, (3 << 20) + 65_536, 4096), vec![7; 4096]);
            // A device has the length that it has.
            assert_eq!(block_on(root.truncate(1 << 20, Preallocation::Off)), Ok(()));
            assert_eq!(block_on(root.refresh_length()), Ok(4 << 20));
            let grown = block_on(root.truncate(8 << 20, Preallocation::Off));
            assert_eq!(grown, Err(IoError::host(Errno::EINVAL.raw())));
            opened.close();
        }
    }
}

#[test]
fn a_device_conforms_every_way() {
    let dir = dir();
    let file = dir.path().join("image");
    create(&file, 2 << 20);
    let Some(held) = Loop::new("a_device_conforms_every_way", &file, &[]) else { return };
    for way in Way::ALL {
        for direct in [false, true] {
            let options = FilePosixOptions { engine: way.engine, ..device(&held.0, FileAccess::ReadWrite, direct) };
            let (engine, _) = open(options).expect("opened");
            let opened = graph(way, engine);
            run_everywhere(&opened.root, &ConformanceOptions { resizable: false, ..ConformanceOptions::default() });
            let second = way.thread();
            let threads = vec![opened.thread.handle(), second.handle()];
            let options = ModelOptions { threads, requests: 2000, ..ModelOptions::default() };
            block_on(model::run(&opened.root, options)).expect("the model agrees");
            opened.close();
        }
    }
}

#[test]
fn each_driver_takes_what_it_is_for() {
    let dir = dir();
    let file = dir.path().join("image");
    create(&file, 1 << 20);
    let refused = open(device(&file, FileAccess::ReadOnly, false)).expect_err("a regular file");
    let words = format!("'host_device' driver requires '{}' to be either a character or block device", file.display());
    assert_eq!(refused.to_string(), words);
    assert_eq!(block_on(block_file_posix::kind(&file, &pool())), HostKind::File);
    assert_eq!(block_on(block_file_posix::kind(dir.path().join("nothing"), &pool())), HostKind::File);
    // A device that has nothing to store can be flushed and closed all the same.
    let (engine, _) = open(device(Path::new("/dev/null"), FileAccess::ReadWrite, false)).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    assert_eq!((opened.root.length(), block_on(opened.root.flush())), (Ok(0), Ok(())));
    opened.close();
    let Some(held) = Loop::new("each_driver_takes_what_it_is_for", &file, &["--read-only"]) else { return };
    let refused = open(FilePosixOptions::new(&held.0)).expect_err("a device");
    assert!(matches!(refused, FileError::NotRegular { kind: FileKind::BlockDevice, .. }));
    assert_eq!(refused.to_string(), format!("'file' driver requires '{}' to be a regular file", held.0.display()));
    // One that does not take writes is refused for them at once, although the host would open it.
    let refused = open(device(&held.0, FileAccess::ReadWrite, false)).expect_err("it is read-only");
    assert_eq!(refused.to_string(), "The device is not writable: Permission denied");
    open(device(&held.0, FileAccess::ReadOnly, false)).expect("it can be read");
}

#[test]
fn sets_of_descriptors_are_refused_by_name() {
    let refused = open(FilePosixOptions::new("/dev/fdset/3")).expect_err("there are none");
    assert_eq!(refused.to_string(), "Could not open '/dev/fdset/3': sets of file descriptors are not supported");
}
