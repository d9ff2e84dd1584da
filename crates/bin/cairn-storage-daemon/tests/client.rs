//! A client that nobody of this project wrote drives every command: qemu.qmp, from the Python package index.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and look at files"
)]

mod beside;

use beside::{OURS, image, in_time};
use block_testkit::bed::skipped;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGE: &str = "qemu.qmp==0.0.6";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/drive.py");
/// How long fetching the package may take.
const FETCH_SECONDS: &str = "60";

/// A Python that has the package; it is kept beside the build's other results. Otherwise, why there is none.
fn python() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE.replace("==", "-"));
    let python = home.join("bin/python");
    let has_package = || run(Command::new(&python).args(["-c", "import qemu.qmp"]));
    if has_package().is_ok() {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    let mut pip = Command::new(&python);
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1"];
    run(pip.args(quiet).args(["--timeout", FETCH_SECONDS, PACKAGE]))?;
    has_package().map(|()| python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it failed").to_owned()),
    }
}

#[test]
fn a_strangers_client_drives_every_command() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            return skipped("a_strangers_client_drives_every_command", &format!("{PACKAGE} cannot be had: {why}"));
        }
    };
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("a_strangers_client_drives_every_command", "qemu-img is not installed");
    }
    let dir = tempfile::tempdir().expect("a directory");
    image(dir.path(), "create -q -f qcow2 a.qcow2 1M");
    for (name, len) in [("b.qcow2", 0), ("d.qcow2", 0), ("d.raw", 0), ("c.iso", 1 << 20)] {
        std::fs::File::create(dir.path().join(name)).and_then(|file| file.set_len(len)).expect("a file");
    }
    let mut daemon = Command::new(OURS);
    daemon.current_dir(dir.path()).args(["--chardev", "socket,id=m,path=s,server=on,wait=off", "--monitor", "m"]);
    let mut daemon = daemon.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(OURS);
    let end = Instant::now() + Duration::from_secs(60);
    while !dir.path().join("s").exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let client = Command::new(python).current_dir(dir.path()).args([SCRIPT, "s"]).stdin(Stdio::null()).output();
    let client = client.expect("a client");
    if !client.status.success() {
        // It does not end by itself then.
        let _ = daemon.kill();
    }
    let daemon = in_time(daemon);
    let (said, why) = (String::from_utf8_lossy(&client.stdout), String::from_utf8_lossy(&client.stderr));
    assert!(client.status.success(), "{said}{why}{}", String::from_utf8_lossy(&daemon.stderr));
    assert!(daemon.status.success() && said.ends_with(" commands\n"), "{daemon:?} {said}");
}
