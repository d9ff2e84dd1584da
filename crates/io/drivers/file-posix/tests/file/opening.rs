//! Opening, creating and reopening files, and what is said when it fails.

use crate::common::{dir, filled, graph, open, options, pool};
use block_common::{Errno, Perm, PermPair, Preallocation, RequestFlags};
use block_file_posix::{FileAccess, FileError, FileKind, FilePosixModes, FilePosixOptions};
use block_io::{NodeControl, RootControl};
use block_testkit::bed::{Way, block_on, skipped};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const NONE: RequestFlags = RequestFlags::empty();

fn refused(path: &Path) -> FileError {
    match open(options(path, false)) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn check(path: &Path, words: &str, errno: Errno) {
    let error = refused(path);
    assert_eq!((error.to_string(), error.errno()), (words.to_owned(), errno));
}

#[test]
fn a_file_that_cannot_be_opened_is_named_with_the_reason() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let missing = at("missing");
    check(&missing, &format!("Could not open '{}': No such file or directory", missing.display()), Errno::ENOENT);
    let eisdir = Errno::from_raw(rustix::io::Errno::ISDIR.raw_os_error());
    check(dir.path(), &format!("Could not open '{}': Is a directory", dir.path().display()), eisdir);
    std::fs::write(at("file"), "x").expect("written");
    let below = at("file/x");
    let error = refused(&below);
    assert_eq!(error.to_string(), format!("Could not open '{}': Not a directory", below.display()));
    symlink(at("loop"), at("loop")).expect("a link");
    assert!(matches!(refused(&at("loop")), FileError::Open { .. }));
    let with_zero = Path::new("a\0b");
    assert!(matches!(refused(with_zero), FileError::Open { .. }));
}

#[test]
fn what_is_no_regular_file_is_refused_without_being_opened() {
    let dir = dir();
    let zero = "'file' driver requires '/dev/zero' to be a regular file";
    check(Path::new("/dev/zero"), zero, Errno::EINVAL);
    // Opening a pipe would wait for its other end.
    let pipe = dir.path().join("pipe");
    if Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
        check(&pipe, &format!("'file' driver requires '{}' to be a regular file", pipe.display()), Errno::EINVAL);
    } else {
        skipped("what_is_no_regular_file_is_refused_without_being_opened", "no mkfifo");
    }
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    if let Some(device) = devices.map(|entry| Path::new("/dev").join(entry.file_name())).find(|path| path.exists()) {
        assert!(matches!(refused(&device), FileError::NotRegular { kind: FileKind::BlockDevice, .. }));
    }
}

#[test]
fn what_the_host_does_not_permit_is_refused_with_its_reason() {
    // Not even the superuser may write to a program that runs.
    let this = std::env::current_exe().expect("a path");
    let error = refused(&this);
    assert_eq!(error.to_string(), format!("Could not open '{}': Text file busy", this.display()));
    open(FilePosixOptions::new(&this)).expect("reading is allowed");

    let dir = dir();
    let path = dir.path().join("image");
    crate::common::create(&path, 1 << 20);
    let mut permissions = std::fs::metadata(&path).expect("looked at").permissions();
    permissions.set_readonly(true);
    std::fs::set_permissions(&path, permissions).expect("changed");
    // The superuser may write to it.
    if let Err(error) = open(options(&path, false)) {
        assert_eq!(error.to_string(), format!("Could not open '{}': Permission denied", path.display()));
    }
}

#[test]
fn a_descriptor_can_be_handed_in() {
    let dir = dir();
    let path = dir.path().join("image");
    crate::common::create(&path, 1 << 20);
    let both = || std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("opened");
    let read_only: OwnedFd = std::fs::File::open(&path).expect("opened").into();
    let with = |fd: OwnedFd| FilePosixOptions { fd: Some(fd), ..options(Path::new("fd:7"), false) };
    let error = open(with(read_only)).expect_err("it cannot be written");
    assert_eq!(error.to_string(), "Could not open 'fd:7': its file descriptor is not open for reading and writing");
    let device: OwnedFd = std::fs::File::open("/dev/zero").expect("opened").into();
    let as_read_only = FilePosixOptions { access: FileAccess::ReadOnly, ..with(device) };
    assert!(matches!(open(as_read_only), Err(FileError::NotRegular { .. })));

    let (engine, mut control) = open(with(both().into())).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    block_on(opened.root.write(0, filled(512, 7), NONE)).0.expect("written");
    assert_eq!(std::fs::read(&path).expect("read")[..512], [7; 512]);
    // Its path is but a name, and it can be reopened all the same.
    let reopened = block_on(control.prepare(FilePosixModes { access: FileAccess::ReadOnly, ..control.modes() }))
        .expect("prepared");
    assert!(format!("{reopened:?} {control:?}").contains("ReadOnly"));
    opened.close();
    let closed = block_on(control.prepare(FilePosixModes { access: FileAccess::ReadOnly, ..control.modes() }));
    assert!(closed.is_err(), "a closed file was reopened");
    let _ = &mut control;

    // O_DIRECT is set on the descriptor.
    let direct = FilePosixOptions { direct: true, ..with(both().into()) };
    if let Some((engine, _)) = crate::common::open_or_skip("a_descriptor_can_be_handed_in", direct) {
        let opened = graph(Way::ALL[0], engine);
        assert!(opened.root.limits().expect("limits").request_alignment > 1);
        opened.close();
    }
}

#[test]
fn creating_empties_what_is_there_and_gives_it_its_size() {
    let dir = dir();
    let path = dir.path().join("image");
    std::fs::write(&path, "old content").expect("written");
    let create = |path: &Path, size, mode| block_on(block_file_posix::create(path, size, mode, &pool()));
    create(&path, 4096, Preallocation::Off).expect("created");
    assert_eq!(std::fs::read(&path).expect("read"), vec![0; 4096]);
    create(&path, 100_000, Preallocation::Full).expect("created");
    create(&path, 100_000, Preallocation::Falloc).expect("created");
    assert_eq!(std::fs::metadata(&path).expect("looked at").len(), 100_000);

    let words = |result: Result<(), FileError>| result.expect_err("refused").to_string();
    let name = path.display();
    let inside = dir.path().join("missing/image");
    let missing = words(create(&inside, 0, Preallocation::Off));
    assert_eq!(missing, format!("Could not create '{}': No such file or directory", inside.display()));
    let directory = words(create(dir.path(), 0, Preallocation::Off));
    assert_eq!(directory, format!("Could not create '{}': Is a directory", dir.path().display()));
    let mode = words(create(&path, 0, Preallocation::Metadata));
    assert_eq!(mode, "Unsupported preallocation mode: metadata");
    let large = words(create(&path, u64::MAX / 2, Preallocation::Off));
    assert_eq!(large, format!("Could not resize file '{name}': File too large"));
}

#[test]
fn space_that_is_not_there_leaves_the_length() {
    let dir = dir();
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).expect("a directory");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(&mount).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return skipped("space_that_is_not_there_leaves_the_length", "no right to mount a small file system");
    }
    let path = mount.join("image");
    let outcome = std::panic::catch_unwind(|| {
        crate::common::create(&path, 4096);
        let (engine, _) = open(options(&path, false)).expect("opened");
        let opened = graph(Way::ALL[0], engine);
        for mode in [Preallocation::Falloc, Preallocation::Full] {
            let result = block_on(opened.root.truncate(8 << 20, mode));
            assert_eq!(result.map_err(|error| error.errno()), Err(Errno::ENOSPC), "{mode}");
            assert_eq!(block_on(opened.root.refresh_length()), Ok(4096), "{mode}");
        }
        // Without preallocation there is no space needed; a write finds out, half-way.
        block_on(opened.root.truncate(8 << 20, Preallocation::Off)).expect("truncated");
        let result = block_on(opened.root.write(0, filled(4 << 20, 7), NONE)).0;
        assert_eq!(result.map_err(|error| error.errno()), Err(Errno::ENOSPC));
        opened.close();
        let words = |mode| {
            let created = block_on(block_file_posix::create(mount.join("new"), 8 << 20, mode, &pool()));
            created.expect_err("no space").to_string()
        };
        let name = mount.join("new").display().to_string();
        assert_eq!(
            words(Preallocation::Falloc),
            format!("Could not preallocate new data of '{name}': No space left on device")
        );
        assert_eq!(
            words(Preallocation::Full),
            format!("Could not write zeros for preallocation of '{name}': No space left on device")
        );
    });
    let unmounted = Command::new("umount").arg(&mount).status();
    assert!(unmounted.is_ok_and(|status| status.success()), "the small file system stays mounted");
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn perm_3_a_reopen_exchanges_the_descriptor() {
    // Read-only at first; made writable, although the path leads elsewhere by then; and back.
    let dir = dir();
    for way in Way::ALL {
        let path = dir.path().join(format!("image-{way:?}"));
        crate::common::create(&path, 1 << 20);
        let options = FilePosixOptions { engine: way.engine, ..FilePosixOptions::new(&path) };
        let (engine, mut control) = open(options).expect("opened");
        let thread = way.thread();
        let pair = PermPair { perm: Perm::all(), shared: Perm::all() };
        let mut node = NodeControl::shell("file");
        node.install(Box::new(engine), 1 << 20, true);
        let root_control = RootControl::new("root", &thread.handle(), pair, Some(&node.target()));
        let root = root_control.root();
        let write = |byte| block_on(root.write(0, filled(512, byte), NONE)).0;
        assert_eq!(write(1).map_err(|error| error.errno()), Err(Errno::EPERM));
        // Were the node wrong about it, the descriptor would still refuse.
        node.set_read_only(false);
        assert_eq!(write(1).map_err(|error| error.errno()), Err(Errno::EBADF));
        node.set_read_only(true);

        let moved = dir.path().join(format!("moved-{way:?}"));
        std::fs::rename(&path, &moved).expect("moved");
        crate::common::create(&path, 1 << 20);
        for access in [FileAccess::ReadWrite, FileAccess::ReadOnly] {
            let prepared = block_on(control.prepare(FilePosixModes { access, ..control.modes() })).expect("prepared");
            node.set_quiesced(true);
            block_on(node.idle());
            control.commit(prepared, &node.proof().expect("quiesced and idle"));
            node.set_read_only(access == FileAccess::ReadOnly);
            node.set_quiesced(false);
            assert_eq!(control.access(), access);
            assert_eq!(write(2).is_ok(), access == FileAccess::ReadWrite);
        }
        assert_eq!(std::fs::read(&moved).expect("read")[..512], [2; 512]);
        assert_eq!(std::fs::read(&path).expect("read")[..512], [0; 512]);
        drop((root_control, node));
    }
}
