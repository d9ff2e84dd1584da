//! The third act: a daemon whose disks are overlaid, reopened, limited and made longer, and whose CD is changed, while guests use them.
//!
//! Everything goes through QMP: what the operator does, and the requests of the guests. What they wrote is in the chains of images in the end, which cairn-img and
//! qemu-img take apart; nothing of cairn-storage-daemon is linked here.

use crate::disk::{self, FILE_SYSTEM, SCRATCH};
use crate::hands::{BLOCK, Hand, Hands, Made, Part, Totals, socket};
use crate::qmp::{Client, Daemon, Leash};
use crate::tools::built;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the load runs between what happens to it.
const BREATH: Duration = Duration::from_millis(300);
/// Threads that write to the first disk, and to the second; one more writes to both.
const HANDS: (usize, usize) = (5, 2);
/// The second disk, in bytes.
const LOG: usize = 64 << 20;
/// What the first disk gets more.
const MORE: usize = 16 << 20;
/// Requests a second, while there is a limit, and how long that is.
const LIMIT: (u64, Duration) = (200, Duration::from_millis(500));
const MEDIUM: usize = 2 << 20;

/// The daemon's files that stay, one per image.
const IMAGES: [&str; 5] = ["disk.qcow2", "over.qcow2", "top.qcow2", "log.qcow2", "log-top.qcow2"];

/// Play the act in `dir`.
///
/// # Errors
/// A command, a request or a check failed.
pub(crate) fn run(dir: &Path, seed: u64, leash: &Leash) -> Result<()> {
    let contents = make_images(dir)?;
    let before = files(dir)?;
    let daemon = Daemon::start(&built("cairn-storage-daemon")?, dir, &arguments(), leash)?;
    let mut operator = Hand::new(daemon.connect("qmp.sock")?);
    println!("daemon    process {}, {} monitors on sockets, objects, nodes and devices made", daemon.id, SOCKETS);
    println!("devices   hd0 -> limited (throttle) -> disk (qcow2); hd1 -> log (qcow2); cd0 -> one (raw)");
    let (parts, pair) = parts();
    let begin = Instant::now();
    let hands = Hands::start(&daemon, parts, pair, FILE_SYSTEM as usize, seed)?;
    std::thread::sleep(BREATH);
    let base = change(&mut operator, dir)?;
    std::thread::sleep(BREATH);
    let mut totals = hands.stop()?;
    let elapsed = begin.elapsed();
    totals.add(&operator);
    tell_load(&totals, elapsed);
    check_counts(operator.client(), &totals.made)?;
    operator.client().run("object-del", json!({ "id": "io0" })).context("hd0 is on io1")?;
    operator.client().run("quit", json!({}))?;
    daemon.ended().context("after quit")?;
    ensure!(std::fs::read(dir.join("disk.qcow2"))? == base, "disk.qcow2 was written to after the snapshot");
    let expected: BTreeSet<_> = before.into_iter().chain(IMAGES.map(str::to_owned)).collect();
    let left = files(dir)?;
    ensure!(left == expected, "the daemon leaves {left:?} instead of {expected:?}");
    println!("quit      it ended with status 0; its sockets are gone, and nothing is left but the images");
    verify(dir, contents, &totals)
}

/// The files that there are.
fn files(dir: &Path) -> Result<BTreeSet<String>> {
    let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn img(dir: &Path, program: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let output = command.current_dir(dir).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {}", program.display()))?;
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    ensure!(output.status.success(), "{} {}: {}", program.display(), args.join(" "), String::from_utf8_lossy(&said));
    Ok(())
}

/// The disks, and two media. Returns what is on the first disk.
fn make_images(dir: &Path) -> Result<Vec<u8>> {
    let contents = disk::make(dir, &dir.join("disk.raw"))?;
    let ours = built("cairn-img")?;
    img(dir, &ours, &["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"])?;
    img(dir, &ours, &["create", "-q", "-f", "qcow2", "log.qcow2", &LOG.to_string()])?;
    img(dir, &ours, &["create", "-q", "-f", "qcow2", "-b", "log.qcow2", "-F", "qcow2", "log-top.qcow2"])?;
    std::fs::remove_file(dir.join("disk.raw"))?;
    std::fs::remove_dir_all(dir.join("tree"))?;
    for (name, byte) in [("one.iso", 1), ("two.iso", 2)] {
        std::fs::write(dir.join(name), vec![byte; MEDIUM])?;
    }
    Ok(contents)
}

/// One for the operator, and one for each hand.
const SOCKETS: usize = 1 + HANDS.0 + HANDS.1 + 1;

fn arguments() -> Vec<String> {
    let mut args = [
        "--object=iothread,id=io0",
        "--object=iothread,id=io1",
        "--object=throttle-group,id=limits",
        "--blockdev=file,node-name=disk-file,filename=disk.qcow2",
        "--blockdev=qcow2,node-name=disk,file=disk-file",
        "--blockdev=throttle,node-name=limited,throttle-group=limits,file=disk",
        "--blockdev=qcow2,node-name=log,file.driver=file,file.filename=log.qcow2",
        "--blockdev=raw,node-name=one,read-only=on,file.driver=file,file.filename=one.iso",
        "--device=disk,id=hd0,drive=limited,iothread=io0",
        "--device=disk,id=hd1,drive=log,iothread=io1",
        "--device=cd,id=cd0,drive=one,iothread=io1",
        "--chardev=socket,id=qmp,path=qmp.sock,server=on,wait=off",
        "--monitor=qmp",
    ]
    .map(str::to_owned)
    .to_vec();
    for number in 0..SOCKETS - 1 {
        let path = socket(number);
        args.push(format!("--chardev=socket,id=guest-{number},path={path},server=on,wait=off"));
        args.push(format!("--monitor=guest-{number}"));
    }
    args
}

/// What each hand writes. The last block of each disk is of the one that writes to both.
fn parts() -> (Vec<Part>, [Part; 2]) {
    let split = |device, begin: usize, end: usize, count: usize| {
        let blocks = (end - begin) / BLOCK - 1;
        let each = blocks / count;
        let parts =
            (0..count).map(move |number| Part { device, start: begin + number * each * BLOCK, blocks: vec![0; each] });
        (parts, Part { device, start: end - BLOCK, blocks: vec![0] })
    };
    let (begin, end) = (FILE_SYSTEM as usize, (FILE_SYSTEM + SCRATCH) as usize);
    let (first, first_block) = split("hd0", begin, end, HANDS.0);
    let (second, second_block) = split("hd1", 0, LOG, HANDS.1);
    (first.chain(second).collect(), [first_block, second_block])
}

/// Everything that the operator does under the load. Returns the bytes of the first image when it has been overlaid.
fn change(operator: &mut Hand, dir: &Path) -> Result<Vec<u8>> {
    limit(operator.client())?;
    reopen(operator.client())?;
    move_thread(operator.client())?;
    let base = snapshot(operator.client(), dir)?;
    change_medium(operator)?;
    snapshot_both(operator.client())?;
    resize(operator)?;
    reopen_backing(operator.client())?;
    Ok(base)
}

/// Have `command` carried out, and say how long that took.
fn timed(client: &mut Client, command: &str, arguments: Value) -> Result<Duration> {
    let begin = Instant::now();
    client.run(command, arguments)?;
    Ok(begin.elapsed())
}

/// What `query-named-block-nodes` tells of a node.
fn node(client: &mut Client, name: &str) -> Result<Value> {
    let nodes = client.run("query-named-block-nodes", json!({ "flat": true }))?;
    let found = nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["node-name"] == name));
    found.cloned().with_context(|| format!("no node is called '{name}'"))
}

/// What `query-blockstats` tells of a device.
fn stats(client: &mut Client, device: &str) -> Result<Value> {
    let all = client.run("query-blockstats", json!({}))?;
    let found = all.as_array().and_then(|all| all.iter().find(|one| one["qdev"] == device));
    Ok(found.with_context(|| format!("no device is called '{device}'"))?["stats"].clone())
}

fn count(stats: &Value, key: &str) -> u64 {
    stats[key].as_u64().unwrap_or(u64::MAX)
}

fn limit(client: &mut Client) -> Result<()> {
    let set = |rate: u64| json!({ "path": "/objects/limits", "property": "limits", "value": { "iops-total": rate } });
    let counted = |client: &mut Client| {
        let stats = stats(client, "hd0")?;
        anyhow::Ok((count(&stats, "rd_operations") + count(&stats, "wr_operations"), Instant::now()))
    };
    client.run("qom-set", set(LIMIT.0))?;
    let (before, begin) = counted(client)?;
    std::thread::sleep(LIMIT.1);
    let (after, end) = counted(client)?;
    client.run("qom-set", set(0))?;
    let made = after - before;
    // What a tenth of a second may bring comes at once, and what was under way is not held up.
    let most = (LIMIT.0 as f64 * ((end - begin).as_secs_f64() + 0.1)) as u64 + SOCKETS as u64;
    ensure!((1..=most).contains(&made), "{made} requests passed a limit that lets {most} through");
    println!("limits    {} requests a second for {:?}: {made} were made; lifted again", LIMIT.0, LIMIT.1);
    Ok(())
}

fn reopen(client: &mut Client) -> Result<()> {
    let options = json!([{ "driver": "qcow2", "node-name": "disk", "file": "disk-file", "detect-zeroes": "on", "l2-cache-size": 65536 }]);
    let took = timed(client, "blockdev-reopen", json!({ "options": options }))?;
    let told = node(client, "disk")?;
    ensure!(told["detect_zeroes"] == "on", "'disk' looks for zeroes: {}", told["detect_zeroes"]);
    println!("reopened  'disk' in {took:.1?}: zeroes are looked for, the cache of L2 tables has 64 KiB");
    Ok(())
}

fn move_thread(client: &mut Client) -> Result<()> {
    let why = client.refused("object-del", json!({ "id": "io0" }))?;
    let to = json!({ "node-name": "limited", "iothread": "io1", "force": true });
    let took = timed(client, "x-blockdev-set-iothread", to)?;
    println!("moved     hd0 from I/O thread io0 to io1 in {took:.1?}; before, io0 could not go: {why}");
    Ok(())
}

fn snapshot(client: &mut Client, dir: &Path) -> Result<Vec<u8>> {
    let over = json!({ "node-name": "disk", "snapshot-file": "over.qcow2", "snapshot-node-name": "over" });
    let took = timed(client, "blockdev-snapshot-sync", over)?;
    let told = node(client, "disk")?;
    ensure!(told["ro"] == true, "'disk' may still be written to");
    println!("snapshot  over.qcow2 was made and put on 'disk' in {took:.1?}; 'disk' is read-only now");
    Ok(std::fs::read(dir.join("disk.qcow2"))?)
}

fn change_medium(operator: &mut Hand) -> Result<()> {
    let act = |act: &str| json!({ "id": "cd0", "act": act });
    let cd = || json!({ "id": "cd0" });
    operator.read("cd0", 0, MEDIUM, Some(1))?;
    let client = operator.client();
    client.run("x-guest-act", act("lock"))?;
    let why = client.refused("eject", cd())?;
    println!("media     the guest has locked its tray; eject: {why}");
    client.run("x-guest-act", act("unlock"))?;
    client.run("blockdev-open-tray", cd())?;
    tray(client, true)?;
    let said = client.guest("cd0", "read -q 0 4096")?;
    ensure!(said == "read failed: No medium found", "the guest reads from an open tray: {said}");
    client.run("blockdev-remove-medium", cd())?;
    let file = json!({ "driver": "file", "filename": "two.iso" });
    client.run("blockdev-add", json!({ "driver": "raw", "node-name": "two", "read-only": true, "file": file }))?;
    client.run("blockdev-insert-medium", json!({ "id": "cd0", "node-name": "two" }))?;
    client.run("blockdev-close-tray", cd())?;
    tray(client, false)?;
    client.run("blockdev-del", json!({ "node-name": "one" }))?;
    operator.read("cd0", 0, MEDIUM, Some(2))?;
    println!(
        "media     unlocked: tray open (event), the guest finds no medium; tray closed (event), it reads the other one"
    );
    Ok(())
}

fn tray(client: &mut Client, is_open: bool) -> Result<()> {
    let told = client.event("DEVICE_TRAY_MOVED")?;
    ensure!(told["id"] == "cd0" && told["tray-open"] == is_open, "DEVICE_TRAY_MOVED tells {told}");
    Ok(())
}

/// Both disks at one moment.
fn snapshot_both(client: &mut Client) -> Result<()> {
    let file = json!({ "driver": "file", "filename": "log-top.qcow2" });
    client.run("blockdev-add", json!({ "driver": "qcow2", "node-name": "log-top", "file": file, "backing": null }))?;
    let actions = json!([
        { "type": "blockdev-snapshot-sync", "data": { "node-name": "over", "snapshot-file": "top.qcow2", "snapshot-node-name": "top" } },
        { "type": "blockdev-snapshot", "data": { "node": "log", "overlay": "log-top" } },
    ]);
    let aborted = json!([actions[1], { "type": "abort", "data": {} }]);
    let why = client.refused("transaction", json!({ "actions": aborted }))?;
    let took = timed(client, "transaction", json!({ "actions": actions }))?;
    println!(
        "together  overlays on both disks at one moment, in {took:.1?}; one that was aborted before did nothing: {why}"
    );
    Ok(())
}

fn resize(operator: &mut Hand) -> Result<()> {
    let old = (FILE_SYSTEM + SCRATCH) as usize;
    let took = timed(operator.client(), "block_resize", json!({ "node-name": "limited", "size": old + MORE }))?;
    operator.read("hd0", old, MORE, Some(0))?;
    operator.write("hd0", old + MORE - TAIL.0, TAIL.0, TAIL.1)?;
    println!("resized   hd0 to {} MiB in {took:.1?}; its guest writes to the new end", (old + MORE) >> 20);
    Ok(())
}

/// What the operator writes to the new end: how many bytes, and which.
const TAIL: (usize, u8) = (1 << 20, 77);

fn reopen_backing(client: &mut Client) -> Result<()> {
    let options = json!([
        { "driver": "file", "node-name": "disk-file", "filename": "disk.qcow2", "read-only": true, "cache": { "no-flush": true } },
        { "driver": "qcow2", "node-name": "disk", "file": "disk-file", "read-only": true },
    ]);
    let took = timed(client, "blockdev-reopen", json!({ "options": options }))?;
    let told = node(client, "disk-file")?;
    ensure!(told["ro"] == true && told["cache"]["no-flush"] == true, "the file is open otherwise: {told}");
    let write = json!({ "command-line": "qemu-io disk \"write -q 0 4096\"" });
    let said = client.run("human-monitor-command", write)?;
    ensure!(said == "Block node is read-only\r\n", "a write to 'disk' comes to {said}");
    println!(
        "reopened  'disk', which is two below now, and its file in {took:.1?}: no flushes; nobody can write to it"
    );
    Ok(())
}

fn tell_load(totals: &Totals, elapsed: Duration) {
    let mut all = crate::hands::Counts::default();
    totals.made.values().for_each(|counts| all += *counts);
    let count = all.reads + all.writes + all.flushes;
    println!(
        "load      {} reads, {} writes, {} flushes through {} conversations, {:.0} a second, slowest {:.1?}; what was read of theirs was checked",
        all.reads,
        all.writes,
        all.flushes,
        SOCKETS - 1,
        count as f64 / elapsed.as_secs_f64(),
        totals.slowest
    );
}

/// What the daemon has counted is what was asked for.
fn check_counts(client: &mut Client, made: &Made) -> Result<()> {
    for (device, counts) in made {
        let told = stats(client, device)?;
        let expected = [
            ("rd_operations", counts.reads),
            ("rd_bytes", counts.read_bytes),
            ("wr_operations", counts.writes),
            ("wr_bytes", counts.write_bytes),
            ("flush_operations", counts.flushes),
            ("failed_rd_operations", 0),
            ("failed_wr_operations", 0),
            ("invalid_wr_operations", 0),
            // The one that found no medium.
            ("invalid_rd_operations", u64::from(*device == "cd0")),
        ];
        for (key, should) in expected {
            let is = count(&told, key);
            if is != should {
                bail!("query-blockstats tells {key} {is} of {device} instead of {should}");
            }
        }
    }
    println!("stats     query-blockstats has every request of {} devices, and every byte", made.len());
    Ok(())
}

fn verify(dir: &Path, mut contents: Vec<u8>, totals: &Totals) -> Result<()> {
    contents.resize(contents.len() + MORE, 0);
    totals.apply("hd0", &mut contents);
    let tail = contents.len() - TAIL.0;
    contents[tail..].fill(TAIL.1);
    let mut log = vec![0; LOG];
    totals.apply("hd1", &mut log);
    let (ours, theirs) = (built("cairn-img")?, Path::new("qemu-img"));
    let has_theirs = Command::new(theirs).arg("--version").stdout(Stdio::null()).status().is_ok();
    let who = if has_theirs { "cairn-img and qemu-img" } else { "cairn-img (qemu-img is not here)" };
    for (top, raw, should) in [("top.qcow2", "hd0.raw", &contents), ("log-top.qcow2", "hd1.raw", &log)] {
        img(dir, &ours, &["convert", "-f", "qcow2", "-O", "raw", top, raw])?;
        disk::compare(&dir.join(raw), should).with_context(|| format!("{top} and what is below it"))?;
        if has_theirs {
            img(dir, theirs, &["compare", "-q", "-f", "raw", "-F", "qcow2", raw, top])?;
        }
    }
    println!(
        "verified  all {} bytes of the two chains are what was written, as {who} read them",
        contents.len() + log.len()
    );
    for image in IMAGES {
        img(dir, &ours, &["check", "-q", "-f", "qcow2", image])?;
        if has_theirs {
            img(dir, theirs, &["check", "-q", "-f", "qcow2", image])?;
        }
    }
    println!("verified  {who} find nothing wrong with the {} images", IMAGES.len());
    same_moment(dir, &ours)?;
    disk::check(&dir.join("hd0.raw"))?;
    println!("verified  e2fsck finds the file system in the chain clean");
    Ok(())
}

/// A guest wrote each number to the first disk and then to the second: what is below the overlays of one transaction shows them at one moment.
fn same_moment(dir: &Path, ours: &Path) -> Result<()> {
    let mut numbers = [0; 2];
    for ((image, part), number) in ["over.qcow2", "log.qcow2"].into_iter().zip(parts().1).zip(&mut numbers) {
        img(dir, ours, &["convert", "-f", "qcow2", "-O", "raw", image, "then.raw"])?;
        let then = std::fs::read(dir.join("then.raw"))?;
        let block = then.get(part.start..part.start + BLOCK).context("the last block of a disk")?;
        *number = block[0];
        ensure!(block.iter().all(|byte| byte == number), "{image} has half of a write");
    }
    let [first, second] = numbers;
    ensure!(first.wrapping_sub(second) <= 1, "the transaction caught hd0 at number {first} and hd1 at {second}");
    println!("verified  the transaction caught one moment: number {first} on hd0, {second} on hd1");
    Ok(())
}
