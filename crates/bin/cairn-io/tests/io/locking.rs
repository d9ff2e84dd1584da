//! Images that another process holds, Cairn's or QEMU's: either refuses what the other holds, in the same words (rule perm-5).

use crate::support::{NAME, Ran, ours, run, theirs};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// How an image is held: the arguments of the program that does it.
const READ_WRITE: &[&str] = &["-f", "raw", "image"];
const READ_ONLY: &[&str] = &["-r", "-f", "raw", "image"];

/// A program that holds an image open until it is told otherwise.
pub(crate) struct Holder {
    child: Child,
    stdin: ChildStdin,
}

impl Holder {
    /// Returns when the image is open.
    pub(crate) fn new(program: &Path, dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.arg0(NAME).args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"length\n").expect("it reads commands");
        let answer = BufReader::new(child.stdout.take().expect("a pipe")).lines().next();
        let answer = answer.expect("it answers").expect("text");
        assert!(answer.contains("MiB"), "the image is not open: {answer}");
        Self { child, stdin }
    }

    /// Let it end as it should.
    pub(crate) fn quit(mut self) {
        self.stdin.write_all(b"quit\n").expect("it reads commands");
        assert!(self.child.wait().expect("it ends").success());
    }

    /// Let it die.
    fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it ends");
    }
}

/// A directory with an image of one MiB.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::File::create(dir.path().join("image")).and_then(|file| file.set_len(1 << 20)).expect("an image");
    dir
}

/// `driver=file` with these options, and with nothing shared: a format above it that writes is what keeps others away.
fn described(options: &str) -> String {
    format!("driver=raw,file.driver=file,file.filename=image{options}")
}

fn refused(ran: &Ran, lock: &str) {
    let stderr = format!(
        "qemu-io: can't open device image: Failed to get {lock} lock\nIs another process using the image [image]?\n"
    );
    assert_eq!(*ran, Ran { status: 1, stdout: String::new(), stderr });
}

/// Holds byte-range locks as a program would that takes and keeps what `bytes` say.
fn hold(dir: &Path, bytes: &[i64]) -> std::fs::File {
    let file = std::fs::File::open(dir.join("image")).expect("opened");
    for byte in bytes {
        let (l_type, l_whence) = (libc::F_RDLCK as i16, libc::SEEK_SET as i16);
        let lock = libc::flock { l_type, l_whence, l_start: *byte, l_len: 1, l_pid: 0 };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("locked");
    }
    file
}

#[test]
fn perm_5_either_program_refuses_what_a_format_holds() {
    // What a format that writes holds: consistent reads, writing, resizing; and it shares neither of the last two.
    let dir = directory();
    let held = hold(dir.path(), &[100, 101, 103, 201, 203]);
    for program in [Some(ours()), theirs()].into_iter().flatten() {
        let open = |args: &[&str]| run(&program, dir.path(), &[args, &["-c", "length"]].concat(), b"");
        refused(&open(READ_WRITE), "\"write\"");
        // Raw images share everything, so reading one that somebody else writes is allowed.
        assert_eq!(open(READ_ONLY).stdout, "1 MiB\n");
        let unlocked = described(",file.locking=off");
        assert_eq!(open(&["--image-opts", &unlocked]).stdout, "1 MiB\n");
        for wrong in ["locking=maybe", "drop-cache=perhaps"] {
            assert_eq!(open(&["--image-opts", &described(&format!(",file.{wrong}"))]).status, 1);
        }
    }
    drop(held);
    let held = hold(dir.path(), &[200]);
    for program in [Some(ours()), theirs()].into_iter().flatten() {
        let open = |args: &[&str]| run(&program, dir.path(), &[args, &["-c", "length"]].concat(), b"");
        refused(&open(READ_ONLY), "\"consistent read\"");
    }
    drop(held);
}

#[test]
fn perm_5_images_that_are_shared_are_shared_between_programs() {
    let dir = directory();
    let programs: Vec<_> = [Some(ours()), theirs()].into_iter().flatten().collect();
    for holder in &programs {
        for held in [READ_WRITE, READ_ONLY] {
            let holding = Holder::new(holder, dir.path(), held);
            for program in &programs {
                for wanted in [READ_WRITE, READ_ONLY] {
                    let ran = run(program, dir.path(), &[wanted, &["-c", "length"]].concat(), b"");
                    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (0, "1 MiB\n", ""));
                }
            }
            holding.quit();
        }
    }
}

/// The bytes of the image that somebody has locked.
fn locks(dir: &Path) -> Vec<i64> {
    let file = std::fs::File::open(dir.join("image")).expect("opened");
    let locked = |byte: &i64| {
        let (l_type, l_whence) = (libc::F_WRLCK as i16, libc::SEEK_SET as i16);
        let mut found = libc::flock { l_type, l_whence, l_start: *byte, l_len: 1, l_pid: 0 };
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_GETLK(&mut found)).expect("asked");
        i32::from(found.l_type) != libc::F_UNLCK
    };
    (100..300).filter(locked).collect()
}

/// What `blkdebug` is told to take and not to share is what it holds, in both programs.
#[test]
fn perm_3_permissions_that_blkdebug_is_told_to_take_reach_the_file() {
    let dir = directory();
    let node = "driver=blkdebug,image.driver=file,image.filename=image";
    for (options, read_only, held) in [
        ("", false, &[100, 101][..]),
        (",take-child-perms.0=write", false, &[100, 101]),
        (",take-child-perms.0=write,image.read-only=off", true, &[100, 101]),
        (",take-child-perms.0=resize,take-child-perms.1=write-unchanged", false, &[100, 101, 102, 103]),
        (",unshare-child-perms.0=consistent-read", true, &[100, 200]),
        (",unshare-child-perms.0=write,unshare-child-perms.1=resize", false, &[100, 101, 201, 203]),
    ] {
        for program in [Some(ours()), theirs()].into_iter().flatten() {
            let node = format!("{node}{options}");
            let mode = if read_only { &["-r"][..] } else { &[] };
            let holding = Holder::new(&program, dir.path(), &[mode, &["--image-opts", &node]].concat());
            assert_eq!(locks(dir.path()), held, "{} {node}", program.display());
            holding.quit();
        }
    }
    for program in [Some(ours()), theirs()].into_iter().flatten() {
        let open = |options: &str| {
            let node = format!("{node}{options}");
            run(&program, dir.path(), &["-r", "--image-opts", "-c", "length", &node], b"")
        };
        for wrong in ["take-child-perms.0=bogus", "unshare-child-perms.0=graph-mod", "take-child-perms.1=write"] {
            let ran = open(&format!(",{wrong}"));
            assert!(ran.status == 1 && ran.stderr.starts_with("qemu-io: can't open: "), "{wrong}: {ran:?}");
        }
        let ran = open(",take-child-perms.0=write");
        assert!(ran.status == 1 && ran.stderr.contains("is read-only"), "{ran:?}");
    }
}

#[test]
fn perm_5_what_cairn_holds_qemu_sees_and_it_ends_with_the_process() {
    let dir = directory();
    let locks = || locks(dir.path());
    for program in [Some(ours()), theirs()].into_iter().flatten() {
        let holding = Holder::new(&program, dir.path(), READ_WRITE);
        assert_eq!(locks(), [100, 101], "{}", program.display());
        holding.quit();
        assert_eq!(locks(), [0; 0]);
        let holding = Holder::new(&program, dir.path(), READ_ONLY);
        assert_eq!(locks(), [100]);
        holding.kill();
        assert_eq!(locks(), [0; 0]);
        let holding = Holder::new(&program, dir.path(), &["--image-opts", &described(",file.locking=off")]);
        assert_eq!(locks(), [0; 0]);
        holding.quit();
    }
}

#[test]
fn perm_5_a_qcow2_image_that_qemu_writes_is_left_alone_until_it_dies() {
    let (dir, Some(qemu)) = (directory(), theirs()) else { return };
    let mut made = Command::new("qemu-img");
    made.args(["create", "-q", "-f", "qcow2", "image", "1M"]).current_dir(dir.path());
    assert!(made.status().is_ok_and(|status| status.success()), "qemu-img comes with qemu-io");
    let holding = Holder::new(&qemu, dir.path(), &["-f", "qcow2", "image"]);
    let open = |args: &[&str]| run(&ours(), dir.path(), &[args, &["-c", "quit"]].concat(), b"");
    refused(&open(READ_WRITE), "\"write\"");
    assert_eq!(open(&["-r", "-U", "-f", "raw", "image"]).status, 0);
    holding.kill();
    assert_eq!(open(READ_WRITE).status, 0);
    // And the other way round: the raw image shares everything, the qcow2 image does not share writing.
    std::fs::File::options()
        .write(true)
        .open(dir.path().join("image"))
        .and_then(|file| file.set_len(1 << 20))
        .expect("longer");
    let holding = Holder::new(&ours(), dir.path(), READ_WRITE);
    for args in [&["-f", "qcow2", "image"][..], &["-r", "-f", "qcow2", "image"]] {
        refused(&run(&qemu, dir.path(), &[args, &["-c", "quit"]].concat(), b""), "shared \"write\"");
    }
    holding.quit();
    assert_eq!(run(&qemu, dir.path(), &["-f", "qcow2", "-c", "quit", "image"], b"").status, 0);
}
