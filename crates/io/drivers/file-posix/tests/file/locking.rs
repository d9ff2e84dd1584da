//! Locks between descriptors of one file, as other processes see them (rule perm-5). What QEMU makes of them is tested with the programs.

use crate::common::{create, dir, filled, graph, open, options};
use block_common::{Errno, OnOffAuto, Perm, PermPair, Preallocation, RequestFlags};
use block_file_posix::{FileAccess, FileError, FilePosix, FilePosixControl, FilePosixModes, FilePosixOptions};
use block_io::{NodeControl, RootControl};
use block_testkit::bed::{Way, block_on};
use std::fs::File;
use std::path::Path;

const READ: Perm = Perm::CONSISTENT_READ;
const WRITE: Perm = Perm::WRITE;
const RESIZE: Perm = Perm::RESIZE;

/// Reads and writes, and lets others read.
fn writer() -> PermPair {
    PermPair::new(READ | WRITE, READ | Perm::WRITE_UNCHANGED)
}

fn reader() -> PermPair {
    PermPair::new(READ, Perm::all())
}

fn opened(path: &Path) -> (FilePosix, FilePosixControl) {
    open(options(path, false)).expect("opened")
}

fn take(control: &mut FilePosixControl, perm: PermPair) -> Result<(), String> {
    control.prepare_perm(perm).map_err(|error| error.to_string())?;
    control.commit_perm();
    Ok(())
}

/// The bytes of the file that somebody has locked, as a stranger sees them.
fn locked(path: &Path) -> Vec<i64> {
    let file = File::open(path).expect("opened");
    (0..300).filter(|byte| is_locked(&file, *byte)).collect()
}

fn is_locked(file: &File, byte: i64) -> bool {
    let (l_type, l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    let mut found = libc::flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 };
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_GETLK(&mut found)).expect("asked");
    i32::from(found.l_type) != libc::F_UNLCK
}

#[test]
fn perm_5_each_permission_has_its_two_bytes() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let (_engine, mut control) = opened(&path);
    let mut check = |perm, shared, bytes: &[i64]| {
        take(&mut control, PermPair::new(perm, shared)).expect("nobody else is there");
        assert_eq!(locked(&path), bytes, "{perm} sharing {shared}");
    };
    check(Perm::empty(), Perm::all(), &[]);
    check(READ, Perm::all(), &[100]);
    check(WRITE, Perm::all(), &[101]);
    check(Perm::WRITE_UNCHANGED, Perm::all(), &[102]);
    check(RESIZE, Perm::all(), &[103]);
    check(Perm::empty(), !READ, &[200]);
    check(Perm::empty(), !WRITE, &[201]);
    check(Perm::empty(), !Perm::WRITE_UNCHANGED, &[202]);
    check(Perm::empty(), !RESIZE, &[203]);
    check(Perm::all(), Perm::empty(), &[100, 101, 102, 103, 200, 201, 202, 203]);
    check(READ | WRITE, READ | Perm::WRITE_UNCHANGED, &[100, 101, 201, 203]);
    check(Perm::empty(), Perm::all(), &[]);
}

#[test]
fn perm_5_two_users_get_along_or_the_second_is_refused() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let sets: Vec<Perm> = (0..16).map(Perm::from_bits_truncate).collect();
    let (_one, mut first) = opened(&path);
    let (_two, mut second) = opened(&path);
    for perm in &sets {
        for shared in &sets {
            let held = PermPair::new(*perm, *shared);
            take(&mut first, held).expect("nobody else is there");
            let before = locked(&path);
            for wanted in [writer(), reader(), PermPair::EXCLUSIVE, PermPair::new(RESIZE, !WRITE)] {
                let result = take(&mut second, wanted);
                let (had, kept) = (wanted.denied_by(held), held.denied_by(wanted));
                let expected = match (had.names().next(), kept.names().next()) {
                    (Some(perm), _) => Err(format!("Failed to get \"{perm}\" lock")),
                    (None, Some(perm)) => Err(format!("Failed to get shared \"{perm}\" lock")),
                    (None, None) => Ok(()),
                };
                assert_eq!(result, expected, "{wanted} beside {held}");
                if result.is_err() {
                    assert_eq!(locked(&path), before, "a refusal leaves locks");
                }
                take(&mut second, PermPair::NONE).expect("that needs nothing");
            }
            take(&mut first, PermPair::NONE).expect("that needs nothing");
        }
    }
}

#[test]
fn perm_5_what_is_prepared_adds_and_what_follows_takes_away() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let (_engine, mut control) = opened(&path);
    take(&mut control, writer()).expect("nobody else is there");
    assert_eq!(locked(&path), [100, 101, 201, 203]);
    for commit in [false, true] {
        control.prepare_perm(PermPair::new(RESIZE, !RESIZE)).expect("nobody else is there");
        assert_eq!(locked(&path), [100, 101, 103, 201, 203], "until it is decided, both hold");
        if commit {
            control.commit_perm();
            assert_eq!(locked(&path), [103, 203]);
        } else {
            control.abort_perm();
            assert_eq!(locked(&path), [100, 101, 201, 203]);
        }
    }
}

#[test]
fn perm_5_closing_the_file_releases_it() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    for way in Way::ALL {
        let (engine, mut control) = opened(&path);
        take(&mut control, writer()).expect("nobody else is there");
        let opened = graph(way, engine);
        assert_eq!(locked(&path), [100, 101, 201, 203]);
        opened.close();
        assert_eq!(locked(&path), [0; 0], "although its control half is still there");
        take(&mut control, writer()).expect("there is nothing to lock any more");
        assert_eq!(locked(&path), [0; 0]);
    }
    // An engine that is dropped without a close keeps nothing either.
    let (engine, mut control) = opened(&path);
    take(&mut control, writer()).expect("nobody else is there");
    drop((engine, control));
    assert_eq!(locked(&path), [0; 0]);
}

#[test]
fn perm_5_locks_outlive_an_exchange_of_the_descriptor() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let (engine, mut control) = opened(&path);
    take(&mut control, writer()).expect("nobody else is there");
    let thread = Way::ALL[0].thread();
    let mut node = NodeControl::shell("file");
    node.install(Box::new(engine), 4096, false);
    let _root = RootControl::new("root", &thread.handle(), PermPair::NONE, Some(&node.target()));
    for access in [FileAccess::ReadOnly, FileAccess::ReadWrite] {
        let prepared = block_on(control.prepare(FilePosixModes { access, ..control.modes() })).expect("prepared");
        assert_eq!(locked(&path), [100, 101, 201, 203]);
        node.set_quiesced(true);
        block_on(node.idle());
        control.commit(prepared, &node.proof().expect("quiesced and idle"));
        node.set_quiesced(false);
        assert_eq!(locked(&path), [100, 101, 201, 203]);
    }
    // And are let go as they would have been.
    take(&mut control, reader()).expect("that is less");
    assert_eq!(locked(&path), [100]);
}

#[test]
fn perm_5_a_file_that_is_not_to_be_locked_is_not() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let (_engine, mut other) = opened(&path);
    take(&mut other, PermPair::EXCLUSIVE).expect("nobody else is there");
    let without = FilePosixOptions { locking: OnOffAuto::Off, ..options(&path, false) };
    let (_free, mut free) = open(without).expect("opened");
    take(&mut free, PermPair::EXCLUSIVE).expect("it looks at no locks");
    let with = FilePosixOptions { locking: OnOffAuto::On, ..options(&path, false) };
    let (_bound, mut bound) = open(with).expect("this host has locks");
    let refused = bound.prepare_perm(reader()).expect_err("somebody else has it");
    assert_eq!(refused.to_string(), "Failed to get \"consistent read\" lock");
    assert_eq!(refused.hint(), Some(format!("Is another process using the image [{}]?", path.display())));
    assert_eq!(refused.errno(), Errno::EAGAIN);
}

#[test]
fn perm_5_a_descriptor_that_was_handed_in_is_locked_too() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let handed = File::options().read(true).write(true).open(&path).expect("opened").into();
    // There is no path to it any more.
    let moved = dir.path().join("moved");
    std::fs::rename(&path, &moved).expect("moved");
    let (_engine, mut control) = open(FilePosixOptions { fd: Some(handed), ..options(&path, false) }).expect("adopted");
    take(&mut control, writer()).expect("nobody else is there");
    assert_eq!(locked(&moved), [100, 101, 201, 203]);
}

#[test]
fn perm_5_a_file_in_use_is_not_created_anew() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let (_engine, mut control) = opened(&path);
    let created = || block_on(block_file_posix::create(&path, 8192, Preallocation::Off, &crate::common::pool()));
    let length = || std::fs::metadata(&path).expect("looked at").len();
    for (perm, words) in [
        (writer(), "Failed to get \"write\" lock"),
        (PermPair::new(READ, !RESIZE), "Failed to get \"resize\" lock"),
        (PermPair::new(RESIZE, Perm::all()), "Failed to get shared \"resize\" lock"),
    ] {
        take(&mut control, perm).expect("nobody else is there");
        let refused = created().expect_err("it is in use");
        assert_eq!(refused.to_string(), words);
        assert!(matches!(refused, FileError::Locked { .. }));
        assert_eq!(length(), 4096, "it was left alone");
    }
    // Who only reads, and minds nothing, is in nobody's way.
    take(&mut control, reader()).expect("that is less");
    created().expect("nobody minds");
    assert_eq!((length(), locked(&path)), (8192, vec![100]));
}

#[test]
fn perm_5_a_foreign_lock_is_reported_by_its_byte() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let stranger = File::options().read(true).write(true).open(&path).expect("opened");
    let (l_type, l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
    let whole = libc::flock { l_type, l_whence, l_start: 101, l_len: 1, l_pid: 0 };
    nix::fcntl::fcntl(&stranger, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).expect("locked");
    let (_engine, mut control) = opened(&path);
    assert_eq!(take(&mut control, writer()), Err("Failed to lock byte 101".into()));
    drop(stranger);
    assert_eq!(locked(&path), [0; 0]);
}

/// A file that is written as needed, in a graph of one node that takes writes.
fn as_needed(path: &Path) -> (FilePosixControl, crate::common::Opened) {
    let options = FilePosixOptions { access: FileAccess::AsNeeded, ..options(path, false) };
    let (engine, control) = open(options).expect("opened");
    (control, graph(Way::ALL[0], engine))
}

#[test]
fn perm_3_a_file_is_open_for_writing_while_somebody_writes() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4096);
    let (mut control, opened) = as_needed(&path);
    let write =
        || block_on(opened.root.write(0, filled(512, 1), RequestFlags::empty())).0.map_err(|error| error.errno());
    assert_eq!(write(), Err(Errno::EBADF), "nobody said that somebody would");
    control.prepare_perm(writer()).expect("it may be written");
    control.abort_perm();
    assert_eq!((write(), locked(&path)), (Err(Errno::EBADF), vec![]));
    take(&mut control, writer()).expect("it may be written");
    assert_eq!(write(), Ok(()));
    // A refusal takes away nothing that there is.
    let (_other, mut other) = self::opened(&path);
    take(&mut other, PermPair::new(READ, !RESIZE)).expect("they get along");
    assert!(take(&mut control, PermPair::new(RESIZE, Perm::all())).is_err());
    assert_eq!(write(), Ok(()));
    take(&mut control, reader()).expect("that is less");
    assert_eq!((write(), locked(&path)), (Err(Errno::EBADF), vec![100, 203]));
    opened.close();
}

#[test]
fn perm_3_a_file_that_cannot_be_written_is_told_to_who_would_write() {
    // Not even the superuser may write to a program that runs.
    let this = std::env::current_exe().expect("a path");
    let (mut control, opened) = as_needed(&this);
    take(&mut control, reader()).expect("it can be read");
    let refused = control.prepare_perm(writer()).expect_err("it runs");
    assert_eq!(refused.to_string(), format!("Could not open '{}': Text file busy", this.display()));
    assert_eq!(crate::common::read(&opened.root, 0, 4), b"\x7fELF");
    assert!(!locked(&this).contains(&101), "the refused lock stays");
    opened.close();
}

#[test]
fn perm_3_requests_go_on_while_the_access_changes() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 1 << 20);
    for way in Way::ALL {
        let options = FilePosixOptions { access: FileAccess::AsNeeded, engine: way.engine, ..options(&path, false) };
        let (engine, mut control) = open(options).expect("opened");
        let opened = graph(way, engine);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        assert_eq!(crate::common::read(&opened.root, 4096, 65_536), vec![0; 65_536]);
                    }
                });
            }
            for _ in 0..200 {
                take(&mut control, writer()).expect("it may be written");
                take(&mut control, reader()).expect("that is less");
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        opened.close();
    }
}
