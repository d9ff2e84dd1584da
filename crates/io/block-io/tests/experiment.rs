//! x
#![allow(clippy::disallowed_methods, reason = "tests")]
#![allow(unsafe_code, reason = "x")]
mod common;
use block_common::*;
use block_io::*;
use common::*;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

#[test]
fn odirect_event() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let fd = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let home = thread();
    let (file, _control) = host_file(fd, FileEngine::Ring, 512);
    let s = stack(&home.handle(), Host { file, fast: true, limits: Limits::NONE, length: None }, 1 << 20);
    let root = s.root.root();
    let mut q = Queue::new().unwrap();
    let mut done = Vec::new();
    for i in 0..20u64 {
        q.submit(&root, Request::read(4096 * i, buf(4096, 0)), i);
        q.kick();
        let mut polls = 0;
        loop {
            if q.reap(&mut done) > 0 {
                break;
            }
            let mut fds =
                [libc::pollfd { fd: std::os::fd::AsRawFd::as_raw_fd(&q.event()), events: libc::POLLIN, revents: 0 }];
            let n = unsafe { libc::poll(fds.as_mut_ptr(), 1, 2000) };
            assert!(n == 1, "poll timed out at {i}");
            q.acknowledge();
            polls += 1;
        }
        println!("{i}: polls {polls}");
    }
    let _ = Duration::ZERO;
}
#[test]
fn ring_there() {
    println!("ring: {}", ring_available());
    let home = thread();
    let state = MemState::fast(4096);
    let s = mem(&home.handle(), &state);
    println!("{:?}", block_on(s.root.root().read(0, buf(512, 1))));
}
#[test]
fn thread_odirect() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let fd = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let home = IoThread::spawn(IoThreadOptions { poll_max: Duration::ZERO, ..IoThreadOptions::named("home") }).unwrap();
    let (file, _control) = host_file(fd, FileEngine::Ring, 512);
    let s = stack(&home.handle(), Host { file, fast: true, limits: Limits::NONE, length: None }, 1 << 20);
    let root = s.root.root();
    for i in 0..20u64 {
        let t = std::time::Instant::now();
        block_on(root.read(4096 * i, buf(4096, 0))).0.unwrap();
        println!("{:?}", t.elapsed());
    }
}
