//! Devices that are stood for, and their media, through the monitor. The words are those that QEMU's system emulator (10.0.2) says of an `ide-cd`, a `floppy` and a
//! `scsi-hd` in the same places; qemu-storage-daemon has no devices.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and make files"
)]

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon, with a disk, two raw images and the empty drives `cd0` and `fd0`.
struct Daemon {
    child: Child,
    to: ChildStdin,
    from: Receiver<String>,
    events: Vec<Value>,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        for (name, len) in [("disk.raw", 4 << 20), ("cd.iso", 2 << 20), ("other.raw", 1 << 20)] {
            std::fs::File::create(dir.path().join(name)).and_then(|file| file.set_len(len)).expect("a file");
        }
        let options = [
            "--blockdev=raw,node-name=n,file.driver=file,file.filename=disk.raw",
            "--blockdev=raw,node-name=iso,file.driver=file,file.filename=cd.iso,read-only=on",
            "--blockdev=raw,node-name=b,file.driver=file,file.filename=other.raw",
            "--device=disk,id=hd0,drive=n,werror=stop",
            "--device=driver=cd,id=cd0",
            r#"--device={"driver": "floppy", "id": "fd0"}"#,
            "--chardev=stdio,id=m",
            "--monitor=m",
            "--chardev=socket,id=g,path=guest.sock,server=on,wait=off",
            "--monitor=g",
        ];
        let mut child = Command::new(env!("CARGO_BIN_EXE_cairn-storage-daemon"))
            .current_dir(dir.path())
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the daemon");
        let (to, from) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (lines, told) = channel();
        std::thread::spawn(move || {
            BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| lines.send(line).ok())
        });
        let mut daemon = Self { child, to, from: told, events: Vec::new(), dir };
        assert!(daemon.line().get("QMP").is_some());
        daemon.done("qmp_capabilities", &json!({}));
        daemon
    }

    fn line(&mut self) -> Value {
        let line = self.from.recv_timeout(PATIENCE).expect("the daemon answers");
        serde_json::from_str(&line).expect("JSON")
    }

    /// The answer to a command; events before it are kept.
    fn answer(&mut self, command: &str, arguments: &Value) -> Value {
        writeln!(self.to, "{}", json!({ "execute": command, "arguments": arguments })).expect("it reads");
        loop {
            let line = self.line();
            if line.get("event").is_none() {
                return line;
            }
            self.events.push(json!([line["event"], line["data"]]));
        }
    }

    fn done(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = self.answer(command, arguments);
        answer.get("return").unwrap_or_else(|| panic!("{command} {arguments}: {answer}")).clone()
    }

    fn refused(&mut self, command: &str, arguments: &Value, desc: &str) {
        let answer = self.answer(command, arguments);
        assert_eq!(answer["error"]["desc"], desc, "{command} {arguments}: {answer}");
    }

    fn not_found(&mut self, command: &str, arguments: &Value, name: &str) {
        let answer = self.answer(command, arguments);
        let error = json!({ "class": "DeviceNotFound", "desc": format!("Device '{name}' not found") });
        assert_eq!(answer["error"], error, "{command} {arguments}");
    }

    /// What was told since the last call, each event before the answer to what brought it about.
    fn told(&mut self, expected: &[Value]) {
        assert_eq!(std::mem::take(&mut self.events), expected);
    }

    /// Wait until a job that was created is over, and well, and dismiss it.
    fn concluded(&mut self, job: &str) {
        let is_end = |event: &Value| event[1]["id"] == job && event[1]["status"] == "concluded";
        while !self.events.iter().any(is_end) {
            let line = self.line();
            self.events.push(json!([line["event"], line["data"]]));
        }
        self.events.clear();
        let jobs = self.done("query-jobs", &json!({}));
        assert!(jobs.as_array().is_some_and(|jobs| jobs.iter().all(|job| job.get("error").is_none())), "{jobs}");
        self.done("job-dismiss", &json!({ "id": job }));
        self.events.clear();
    }

    fn quit(mut self) {
        self.done("quit", &json!({}));
        assert!(self.child.wait().expect("a child").success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn moved(open: bool) -> Value {
    json!(["DEVICE_TRAY_MOVED", { "device": "", "tray-open": open, "id": "cd0" }])
}

#[test]
fn media_are_exchanged_as_in_the_field() {
    let mut daemon = Daemon::start();
    let cd = json!({ "id": "cd0" });
    let hd = json!({ "id": "hd0" });
    let fd = json!({ "id": "fd0" });
    let put = |id: &str, node: &str| json!({ "id": id, "node-name": node });
    daemon.refused("blockdev-open-tray", &hd, "Device 'hd0' is not removable");
    daemon.not_found("blockdev-open-tray", &json!({ "id": "nope" }), "nope");
    daemon.refused("blockdev-open-tray", &json!({}), "Need exactly one of 'device' and 'id'");
    daemon.done("blockdev-open-tray", &fd);
    daemon.done("blockdev-close-tray", &fd);
    daemon.refused("blockdev-remove-medium", &cd, "Tray of device 'cd0' is not open");
    daemon.done("blockdev-open-tray", &cd);
    daemon.done("blockdev-open-tray", &cd);
    daemon.refused("blockdev-insert-medium", &put("cd0", "nope"), "Node 'nope' not found");
    daemon.done("blockdev-insert-medium", &put("cd0", "iso"));
    daemon.refused("blockdev-insert-medium", &put("cd0", "iso"), "Node 'iso' is already in use");
    daemon.refused("blockdev-insert-medium", &put("cd0", "b"), "There already is a medium in the device");
    daemon.done("blockdev-close-tray", &cd);
    daemon.done("blockdev-close-tray", &cd);
    daemon.told(&[moved(true), moved(false)]);
    daemon.refused("blockdev-remove-medium", &cd, "Tray of device 'cd0' is not open");
    daemon.refused("blockdev-insert-medium", &put("cd0", "b"), "Tray of the device is not open");
    daemon.refused("blockdev-del", &json!({ "node-name": "iso" }), "Node iso is in use");
    daemon.done("eject", &cd);
    daemon.done("eject", &cd);
    daemon.refused("eject", &hd, "Device 'hd0' is not removable");
    daemon.refused("eject", &json!({ "id": "cd0", "device": "x" }), "Need exactly one of 'device' and 'id'");
    daemon.not_found("eject", &json!({ "device": "x" }), "x");
    daemon.refused("blockdev-remove-medium", &hd, "Device 'hd0' is not removable");
    daemon.refused("blockdev-insert-medium", &put("hd0", "iso"), "Device is not removable");
    daemon.done("blockdev-remove-medium", &cd);
    daemon.done("blockdev-insert-medium", &put("fd0", "b"));
    daemon.refused("blockdev-insert-medium", &put("fd0", "iso"), "There already is a medium in the device");
    daemon.done("blockdev-remove-medium", &fd);
    daemon.done("blockdev-remove-medium", &fd);
    daemon.refused("blockdev-insert-medium", &put("cd0", "n"), "Node 'n' is already in use");
    daemon.told(&[moved(true)]);
    daemon.done("blockdev-del", &json!({ "node-name": "iso" }));
    daemon.quit();
}

#[test]
fn a_medium_is_changed_in_one_step() {
    let mut daemon = Daemon::start();
    let change = |id: &str, file: &str, format: &str, mode: &str| json!({ "id": id, "filename": file, "format": format, "read-only-mode": mode });
    daemon.done("blockdev-change-medium", &json!({ "id": "cd0", "filename": "cd.iso" }));
    daemon.told(&[moved(true), moved(false)]);
    daemon.done("blockdev-del", &json!({ "node-name": "b" }));
    daemon.done("blockdev-change-medium", &change("cd0", "other.raw", "raw", "read-write"));
    daemon.refused(
        "blockdev-change-medium",
        &json!({ "id": "cd0", "filename": "nope" }),
        "Could not open 'nope': No such file or directory",
    );
    daemon.refused("blockdev-change-medium", &change("cd0", "cd.iso", "nope", "retain"), "Unknown driver 'nope'");
    daemon.refused(
        "blockdev-change-medium",
        &change("cd0", "cd.iso", "raw", "nope"),
        "Parameter 'read-only-mode' does not accept value 'nope'",
    );
    daemon.refused(
        "blockdev-change-medium",
        &change("hd0", "cd.iso", "raw", "retain"),
        "Device 'hd0' is not removable",
    );
    daemon.refused("blockdev-change-medium", &json!({ "filename": "cd.iso" }), "Need exactly one of 'device' and 'id'");
    daemon.quit();
}

#[test]
fn a_guests_lock_is_respected_until_somebody_forces_it() {
    let mut daemon = Daemon::start();
    let act = |act: &str| json!({ "id": "cd0", "act": act });
    daemon.done("blockdev-change-medium", &json!({ "id": "cd0", "filename": "cd.iso" }));
    daemon.done("x-guest-act", &act("lock"));
    let locked = "Device 'cd0' is locked and force was not specified, wait for tray to open and try again";
    daemon.refused("eject", &json!({ "id": "cd0" }), locked);
    daemon.refused("x-guest-act", &act("open-tray"), "The guest has locked the medium in device 'cd0'");
    daemon.done("x-guest-act", &act("unlock"));
    daemon.done("x-guest-act", &act("open-tray"));
    daemon.done("x-guest-act", &act("close-tray"));
    daemon.done("x-guest-act", &act("lock"));
    daemon.told(&[true, false, true, false].map(moved));
    daemon.done("eject", &json!({ "id": "cd0", "force": true }));
    daemon.told(&[moved(true)]);
    daemon.quit();
}

#[test]
fn devices_come_and_go() {
    let mut daemon = Daemon::start();
    let device = |driver: &str, id: &str, drive: Value| json!({ "driver": driver, "id": id, "drive": drive });
    daemon.refused("device_add", &json!({ "driver": "nope", "id": "c1" }), "'nope' is not a valid device model name");
    daemon.refused("device_add", &json!({ "id": "c1" }), "Parameter 'driver' is missing");
    let conflict = "Permission conflict on node 'n': permissions 'write' are both required by block device 'hd0' (uses node 'n' as 'root' \
                    child) and unshared by block device 'c1' (uses node 'n' as 'root' child).";
    daemon.refused("device_add", &device("cd", "c1", "n".into()), conflict);
    daemon.refused("device_add", &device("cd", "c1", "nope".into()), "Property 'cd.drive' can't find value 'nope'");
    daemon.refused("device_add", &json!({ "driver": "disk", "id": "c1" }), "drive property not set");
    let odd = "parameter logical_block_size must be a power of 2 between 512 and 2097152";
    daemon.refused("device_add", &json!({ "driver": "cd", "id": "c1", "logical_block_size": 700 }), odd);
    daemon.refused(
        "device_add",
        &json!({ "driver": "cd", "id": "c1", "rerror": "nope" }),
        "Parameter 'rerror' does not accept value 'nope'",
    );
    daemon.refused("device_add", &json!({ "driver": "cd", "id": "c1", "nope": 1 }), "Property 'cd.nope' not found");
    daemon.done("device_add", &device("cd", "c1", "iso".into()));
    daemon.refused("device_add", &json!({ "driver": "cd", "id": "c1" }), "Duplicate device ID 'c1'");
    daemon.not_found("device_del", &json!({ "id": "c2" }), "c2");
    daemon.done("device_del", &json!({ "id": "c1" }));
    daemon.not_found("device_del", &json!({ "id": "c1" }), "c1");
    let gone = json!(["DEVICE_DELETED", { "device": "c1", "path": "/machine/peripheral/c1" }]);
    daemon.told(&[gone]);
    let io = json!({ "id": "io" });
    daemon.done("object-add", &json!({ "qom-type": "iothread", "id": "io" }));
    daemon.refused(
        "device_add",
        &json!({ "driver": "cd", "id": "c1", "iothread": "nope" }),
        "Cannot find iothread nope",
    );
    daemon.done("device_add", &json!({ "driver": "cd", "id": "c1", "iothread": "io", "drive": "iso" }));
    daemon.refused("object-del", &io, "object 'io' is in use, can not be deleted");
    daemon.done("device_del", &json!({ "id": "c1" }));
    daemon.done("object-del", &io);
    daemon.done("blockdev-del", &json!({ "node-name": "iso" }));
    daemon.quit();
}

/// What a guest asks its device for: counted, limited to its medium, without a medium behind an open tray, and with the device's permissions alone.
#[test]
fn guests_make_requests_through_their_devices() {
    let mut daemon = Daemon::start();
    let guest = |daemon: &mut Daemon, line: &str| {
        let said = daemon.done("human-monitor-command", &json!({ "command-line": format!("qemu-io -d {line}") }));
        said.as_str().expect("text").to_owned()
    };
    for (line, said) in [
        (r#"hd0 "write -q -P 7 64k 8k""#, ""),
        (r#"hd0 "write -q -z 66k 512""#, ""),
        (r#"hd0 "read -q -P 7 64k 2k""#, ""),
        (r#"hd0 "read -q -P 7 0 4k""#, "Pattern verification failed at offset 0, 4096 bytes\r\n"),
        (r#"hd0 flush"#, ""),
        (r#"hd0 "write -q 4M 4k""#, "write failed: Input/output error\r\n"),
        (r#"hd0 length"#, "4 MiB\r\n"),
        (r#"hd0 "truncate 8M""#, "The device does not have the permission for that\r\n"),
        (r#"cd0 "read -q 0 4k""#, "read failed: No medium found\r\n"),
        (r#"nope "read -q 0 4k""#, "Error: Device 'nope' not found\r\n"),
    ] {
        assert_eq!(guest(&mut daemon, line), said, "{line}");
    }
    let stats = daemon.done("query-blockstats", &json!({}));
    let hd = &stats[0]["stats"];
    let counted = ["rd_operations", "wr_operations", "wr_bytes", "flush_operations", "invalid_wr_operations"];
    assert_eq!(counted.map(|key| hd[key].as_u64()), [2, 2, 8704, 1, 1].map(Some), "{stats}");
    assert_eq!(stats[1]["stats"]["invalid_rd_operations"], 1);
    daemon.done("blockdev-change-medium", &json!({ "id": "cd0", "filename": "cd.iso" }));
    assert_eq!(guest(&mut daemon, r#"cd0 "read -q -P 0 0 4k""#), "");
    daemon.done("x-guest-act", &json!({ "id": "cd0", "act": "open-tray" }));
    assert_eq!(guest(&mut daemon, r#"cd0 "read -q 0 4k""#), "read failed: No medium found\r\n");
    // A device is not closed by those who use it.
    assert_eq!(guest(&mut daemon, r#"hd0 "read -q -P 7 64k 2k""#), "");
    daemon.quit();
}

/// A guest's request waits until somebody says `cont`. Meanwhile its device gets another I/O thread, and the one that it had is deleted: the request goes where the device is.
#[test]
fn a_request_that_waits_goes_where_its_device_goes() {
    let mut daemon = Daemon::start();
    let fails = json!({ "event": "none", "iotype": "write", "errno": 28, "once": true });
    let node = json!({ "driver": "blkdebug", "node-name": "bd", "image": { "driver": "null-co", "size": 1 << 20 }, "inject-error": [fails] });
    daemon.done("object-add", &json!({ "qom-type": "iothread", "id": "io" }));
    daemon.done("blockdev-add", &node);
    let device = json!({ "driver": "disk", "id": "hd1", "drive": "bd", "iothread": "io", "werror": "stop" });
    daemon.done("device_add", &device);
    let mut guest = UnixStream::connect(daemon.dir.path().join("guest.sock")).expect("it listens");
    guest.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let write =
        r#"{"execute": "human-monitor-command", "arguments": {"command-line": "qemu-io -d hd1 \"write -q 0 4k\""}}"#;
    let hello = r#"{"execute": "qmp_capabilities"}"#;
    writeln!(guest, "{hello}\n{write}").expect("it reads");
    while daemon.events.iter().all(|event| event[0] != "BLOCK_IO_ERROR") {
        let line = daemon.line();
        daemon.events.push(json!([line["event"], line["data"]]));
    }
    daemon.done("x-blockdev-set-iothread", &json!({ "node-name": "bd", "iothread": null, "force": true }));
    daemon.done("object-del", &json!({ "id": "io" }));
    daemon.done("cont", &json!({}));
    let lines = BufReader::new(guest).lines().map_while(Result::ok);
    let answer = lines.filter(|line| line.contains("return")).nth(1).expect("an answer");
    assert_eq!(answer, r#"{"return": ""}"#);
    daemon.quit();
}

/// A disk gets longer under its guest, which sees it with its next request; a floppy does not.
#[test]
fn a_disk_gets_another_length_while_it_is_used() {
    let mut daemon = Daemon::start();
    daemon.done("block_resize", &json!({ "node-name": "n", "size": 8 << 20 }));
    let line = json!({ "command-line": r#"qemu-io -d hd0 "write -q 6M 4k""# });
    assert_eq!(daemon.done("human-monitor-command", &line), "");
    daemon.done("blockdev-insert-medium", &json!({ "id": "fd0", "node-name": "b" }));
    let conflict = "Permission conflict on node 'b': permissions 'resize' are both required by an unnamed block device (uses node 'b' as 'root' child) and unshared by \
                    block device 'fd0' (uses node 'b' as 'root' child).";
    daemon.refused("block_resize", &json!({ "node-name": "b", "size": 8 << 20 }), conflict);
    daemon.quit();
}

#[test]
fn limits_and_histograms_are_set_and_refused() {
    let mut daemon = Daemon::start();
    let limits = |id: &str, iops: u64, read: u64| json!({ "id": id, "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": iops, "iops_rd": read, "iops_wr": 0 });
    daemon.done("block_set_io_throttle", &limits("hd0", 100, 0));
    let both = "bps/iops/max total values and read/write values cannot be used at the same time";
    daemon.refused("block_set_io_throttle", &limits("hd0", 100, 10), both);
    daemon.refused("block_set_io_throttle", &limits("fd0", 100, 0), "Device has no medium");
    daemon.not_found("block_set_io_throttle", &limits("nope", 100, 0), "nope");
    daemon.done("block_set_io_throttle", &limits("hd0", 0, 0));
    daemon.done("block-latency-histogram-set", &json!({ "id": "hd0", "boundaries": [10, 50, 100] }));
    daemon.refused(
        "block-latency-histogram-set",
        &json!({ "id": "hd0", "boundaries": [10, 5, 100] }),
        "Device 'hd0' set read boundaries fail",
    );
    daemon.not_found("block-latency-histogram-set", &json!({ "id": "nope" }), "nope");
    let stats = daemon.done("query-blockstats", &json!({}));
    let devices: Vec<_> = stats.as_array().expect("a list").iter().map(|one| one["qdev"].clone()).collect();
    assert_eq!(devices, ["hd0", "cd0", "fd0"]);
    assert_eq!(stats[0]["node-name"], "n");
    let bins = json!({ "boundaries": [10, 50, 100], "bins": [0, 0, 0, 0] });
    assert_eq!(stats[0]["stats"]["rd_latency_histogram"], bins);
    assert_eq!(stats[1]["stats"].get("rd_latency_histogram"), None);
    daemon.done("block-latency-histogram-set", &json!({ "id": "hd0" }));
    assert_eq!(daemon.done("query-blockstats", &json!({}))[0]["stats"].get("rd_latency_histogram"), None);
    daemon.done("cont", &json!({}));
    daemon.quit();
}

#[test]
fn nodes_are_found_by_their_devices() {
    let mut daemon = Daemon::start();
    let (q, overlay) = ("q.qcow2", "over.qcow2");
    daemon
        .done("blockdev-create", &json!({ "job-id": "f", "options": { "driver": "file", "filename": q, "size": 0 } }));
    daemon.concluded("f");
    daemon.done("blockdev-add", &json!({ "driver": "file", "node-name": "f", "filename": q }));
    let options = json!({ "driver": "qcow2", "file": "f", "size": 1 << 20 });
    daemon.done("blockdev-create", &json!({ "job-id": "q", "options": options }));
    daemon.concluded("q");
    daemon.done("blockdev-add", &json!({ "driver": "qcow2", "node-name": "q", "file": "f" }));
    daemon.done("device_add", &json!({ "driver": "disk", "id": "hd1", "drive": "q" }));

    // An argument of its own for each of the two: the device counts, if there is one.
    let size = |device: &str, size: u64| json!({ "device": device, "node-name": "nope", "size": size });
    daemon.done("block_resize", &size("hd1", 2 << 20));
    daemon.refused("block_resize", &size("x", 2 << 20), "Cannot find device='x' nor node-name='nope'");
    daemon.refused("block_resize", &json!({ "size": 0 }), "Cannot find device='' nor node-name=''");
    daemon.refused("block_resize", &json!({ "device": "q", "size": 0 }), "Cannot find device='q' nor node-name=''");
    daemon.refused("block_resize", &size("cd0", 2 << 20), "Device 'cd0' has no medium");
    daemon.refused(
        "block_resize",
        &json!({ "device": 1, "size": 0 }),
        "Invalid parameter type for 'device', expected: string",
    );
    let named = daemon.done("query-named-block-nodes", &json!({ "flat": true }));
    let of = |named: &Value, name: &str| {
        named.as_array().and_then(|all| all.iter().find(|one| one["node-name"] == name).cloned()).expect(name)
    };
    assert_eq!(of(&named, "q")["image"]["virtual-size"], 2 << 20);

    // One argument for both.
    let snapshot = |device: &str, name: &str| json!({ "device": device, "name": name });
    for command in ["blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync"] {
        daemon.refused(command, &snapshot("cd0", "s"), "Device 'cd0' has no medium");
        daemon.refused(command, &snapshot("nope", "s"), "Cannot find device='nope' nor node-name='nope'");
    }
    daemon.done("blockdev-snapshot-internal-sync", &snapshot("hd1", "s"));
    let actions = |device: &str| json!({ "actions": [{ "type": "blockdev-snapshot-internal-sync", "data": snapshot(device, "t") }] });
    daemon.done("transaction", &actions("hd1"));
    daemon.refused("transaction", &actions("fd0"), "Device 'fd0' has no medium");
    assert_eq!(daemon.done("blockdev-snapshot-delete-internal-sync", &snapshot("hd1", "s"))["name"], "s");
    daemon.done("blockdev-snapshot-delete-internal-sync", &snapshot("q", "t"));
    let bitmap = |node: &str| json!({ "node": node, "name": "b" });
    daemon.done("block-dirty-bitmap-add", &bitmap("hd1"));
    daemon.refused("block-dirty-bitmap-add", &bitmap("q"), "Bitmap already exists: b");
    daemon.refused("block-dirty-bitmap-add", &bitmap("cd0"), "Device 'cd0' has no medium");
    daemon.refused("block-dirty-bitmap-clear", &bitmap("cd0"), "Device 'cd0' has no medium");
    daemon.refused("block-dirty-bitmap-clear", &bitmap("x"), "Node 'x' not found");
    daemon.done("transaction", &json!({ "actions": [{ "type": "block-dirty-bitmap-remove", "data": bitmap("hd1") }] }));

    // The overlay of a device's medium becomes its medium, and needs no name.
    let sync = |device: &str| json!({ "device": device, "snapshot-file": overlay });
    daemon.refused("blockdev-snapshot-sync", &sync("cd0"), "Device 'cd0' has no medium");
    daemon.refused("blockdev-snapshot-sync", &sync("q"), "Cannot find device='q' nor node-name=''");
    daemon.done("blockdev-snapshot-sync", &sync("hd1"));
    let stats = daemon.done("query-blockstats", &json!({}));
    let top =
        stats.as_array().and_then(|all| all.iter().find(|one| one["qdev"] == "hd1")).expect("hd1")["node-name"].clone();
    assert!(top.as_str().is_some_and(|name| name.starts_with('#')), "{top}");
    let change = |device: &str| json!({ "device": device, "image-node-name": top, "backing-file": "other" });
    daemon.done("change-backing-file", &change("hd1"));
    daemon.refused("change-backing-file", &change("fd0"), "Device 'fd0' has no medium");
    daemon.refused("change-backing-file", &change("nope"), "Cannot find device='nope' nor node-name='nope'");
    let named = daemon.done("query-named-block-nodes", &json!({ "flat": true }));
    assert_eq!(of(&named, top.as_str().expect("a name"))["image"]["backing-filename"], "other");
    let put = |node: &str, overlay: &str| json!({ "node": node, "overlay": overlay });
    let third = json!({ "job-id": "o", "options": { "driver": "qcow2", "file": "of", "size": 2 << 20 } });
    let file = json!({ "job-id": "of", "options": { "driver": "file", "filename": "third.qcow2", "size": 0 } });
    daemon.done("blockdev-create", &file);
    daemon.concluded("of");
    daemon.done("blockdev-add", &json!({ "driver": "file", "node-name": "of", "filename": "third.qcow2" }));
    daemon.done("blockdev-create", &third);
    daemon.concluded("o");
    daemon.done("blockdev-add", &json!({ "driver": "qcow2", "node-name": "third", "file": "of", "backing": null }));
    daemon.refused("blockdev-snapshot", &put("cd0", "third"), "Device 'cd0' has no medium");
    daemon.refused("blockdev-snapshot", &put("hd1", "fd0"), "Device 'fd0' has no medium");
    daemon.done("blockdev-snapshot", &put("hd1", "third"));
    daemon.quit();
}
