//! The first act: a disk image goes through every command of cairn-img that works on raw images.
//!
//! The disk has a partition table and one partition with a file system, which holds this repository's sources and the programs built from
//! them. What comes out in the end is taken apart again and checked by e2fsck.

use crate::disk;
use crate::tools::{Act, Tools, built, same_bytes};
use anyhow::{Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const DISK: u64 = 512 * MIB;
/// The partition's place on the disk.
const PART: (u64, u64) = (MIB, 448 * MIB);
/// How often the sources are in the file system.
const COPIES: usize = 16;

/// Play the act in `dir`.
///
/// # Errors
/// A command failed, or did something else than it should.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let files = plant(&dir.join("tree"))?;
    disk::format(&dir.join("tree"), &dir.join("fs.raw"), PART.1)?;
    std::fs::remove_dir_all(dir.join("tree"))?;
    println!(
        "an ext4 file system of {} MiB with {files} files: this repository {COPIES} times, and its programs",
        PART.1 >> 20
    );
    let tools = Tools::new(dir)?;
    make_disk(&tools)?;
    look(&tools)?;
    copy(&tools, dir)?;
    change(&tools)?;
    take_apart(&tools, dir)
}

/// Make the tree of files that the file system holds. Returns how many there are.
fn plant(tree: &Path) -> Result<usize> {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = 0;
    for number in 0..COPIES {
        for part in ["benches", "crates", "docs", "tests", "xtask"] {
            files += copy_tree(&repo.join(part), &tree.join(format!("cairn-{number}")).join(part))?;
        }
    }
    for program in ["cairn-img", "cairn-io"] {
        std::fs::copy(built(program)?, tree.join(program))?;
        files += 1;
    }
    Ok(files)
}

fn copy_tree(from: &Path, to: &Path) -> Result<usize> {
    std::fs::create_dir_all(to)?;
    let mut files = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        if kind.is_dir() && name != "target" {
            files += copy_tree(&entry.path(), &to.join(name))?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(name))?;
            files += 1;
        }
    }
    Ok(files)
}

fn nothing(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// A file that the next command makes anew.
fn without(name: &str) -> impl Fn(&Path) -> std::io::Result<()> {
    move |folder: &Path| match std::fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The options that describe the partition of the disk called `name`.
fn partition(name: &str) -> String {
    format!("driver=raw,offset={},size={},file.driver=file,file.filename={name}", PART.0, PART.1)
}

/// A table with one Linux partition.
fn write_table(disk: &Path) -> std::io::Result<()> {
    let mut sector = [0; 512];
    let entry = &mut sector[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&((PART.0 / 512) as u32).to_le_bytes());
    entry[12..16].copy_from_slice(&((PART.1 / 512) as u32).to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    File::options().write(true).open(disk)?.write_all_at(&sector, 0)
}

fn make_disk(tools: &Tools) -> Result<()> {
    tools.play(&Act {
        title: "create the disk",
        args: &["create", "-f", "raw", "disk.raw", "512M"],
        status: 0,
        output: Some("disk.raw"),
        before: &without("disk.raw"),
    })?;
    tools.everywhere(|folder| write_table(&folder.join("disk.raw")))?;
    let target = partition("disk.raw");
    tools.play(&Act {
        title: "convert -n the file system into its partition",
        args: &["convert", "-f", "raw", "-n", "--target-image-opts", "../fs.raw", &target],
        status: 0,
        output: Some("disk.raw"),
        before: &nothing,
    })
}

/// Both look at the same file.
const SOURCE: &str = "../cairn/disk.raw";

fn look(tools: &Tools) -> Result<()> {
    let looks: [(&str, &[&str]); 3] = [
        ("info", &["info", "-f", "raw", "--output=json", SOURCE]),
        ("map", &["map", "-f", "raw", "--output=json", SOURCE]),
        ("measure", &["measure", "-f", "raw", "-O", "raw", SOURCE]),
    ];
    for (title, args) in looks {
        tools.play(&Act { title, args, status: 0, output: None, before: &nothing })?;
    }
    Ok(())
}

fn copy(tools: &Tools, dir: &Path) -> Result<()> {
    let source = tools.folder().join("disk.raw");
    let copies: [(&str, &[&str]); 5] = [
        ("convert", &["convert", "-f", "raw", "-O", "raw", SOURCE, "copy.raw"]),
        ("convert -S 512", &["convert", "-S", "512", "-f", "raw", "-O", "raw", SOURCE, "copy.raw"]),
        ("convert -S 0 (every hole is written)", &["convert", "-S", "0", "-f", "raw", "-O", "raw", SOURCE, "copy.raw"]),
        ("convert -C (the host copies)", &["convert", "-C", "-f", "raw", "-O", "raw", SOURCE, "copy.raw"]),
        ("convert -W -m 16", &["convert", "-W", "-m", "16", "-f", "raw", "-O", "raw", SOURCE, "copy.raw"]),
    ];
    for (title, args) in copies {
        let output = Some("copy.raw");
        tools.play(&Act { title, args, status: 0, output, before: &without("copy.raw") })?;
        same_bytes(&tools.folder().join("copy.raw"), &source)?;
    }
    let again = ["convert", "-n", "-f", "raw", "-O", "raw", SOURCE, "copy.raw"];
    let output = Some("copy.raw");
    tools.play(&Act { title: "convert -n over what is there", args: &again, status: 0, output, before: &nothing })?;
    same_bytes(&tools.folder().join("copy.raw"), &source)?;
    let several = ["convert", "-f", "raw", "-O", "raw", "../fs.raw", SOURCE, "both.raw"];
    tools.play(&Act {
        title: "convert two images into one",
        args: &several,
        status: 0,
        output: Some("both.raw"),
        before: &without("both.raw"),
    })?;
    tools.everywhere(without("both.raw"))?;
    let compare = ["compare", "-f", "raw", "-F", "raw", SOURCE, "copy.raw"];
    tools.play(&Act { title: "compare", args: &compare, status: 0, output: None, before: &nothing })?;
    let dd = ["dd", "-f", "raw", "-O", "raw", "bs=1M", "skip=1", "count=449", &format!("if={SOURCE}"), "of=part.raw"];
    tools.play(&Act {
        title: "dd the partition out of the disk",
        args: &dd,
        status: 0,
        output: Some("part.raw"),
        before: &without("part.raw"),
    })?;
    same_bytes(&tools.folder().join("part.raw"), &dir.join("fs.raw"))?;
    tools.everywhere(without("part.raw"))
}

fn change(tools: &Tools) -> Result<()> {
    let shorten = |folder: &Path| File::options().write(true).open(folder.join("copy.raw"))?.set_len(DISK);
    tools.play(&Act {
        title: "resize the copy",
        args: &["resize", "-f", "raw", "copy.raw", "+64M"],
        status: 0,
        output: Some("copy.raw"),
        before: &shorten,
    })?;
    let commands = ["write -P 90 520M 1M", "read -P 90 520M 1M", "flush"];
    let mut cairn_io = Command::new(built("cairn-io")?);
    cairn_io.args(["-f", "raw"]).args(commands.iter().flat_map(|command| ["-c", command])).arg("copy.raw");
    let wrote = cairn_io.current_dir(tools.folder()).output()?;
    if !wrote.status.success() || String::from_utf8_lossy(&wrote.stdout).contains("verification failed") {
        bail!("cairn-io: {}{}", String::from_utf8_lossy(&wrote.stdout), String::from_utf8_lossy(&wrote.stderr));
    }
    println!("{:<44} and read back", "cairn-io wrote behind the copy's old end");
    let compare = ["compare", "-f", "raw", "-F", "raw", SOURCE, "../cairn/copy.raw"];
    tools.play(&Act { title: "compare finds what differs", args: &compare, status: 1, output: None, before: &nothing })
}

fn take_apart(tools: &Tools, dir: &Path) -> Result<()> {
    let source = partition("copy.raw");
    let args = ["convert", "--image-opts", "-O", "raw", &source, "part.raw"];
    tools.play(&Act {
        title: "convert the copy's partition to a file",
        args: &args,
        status: 0,
        output: Some("part.raw"),
        before: &without("part.raw"),
    })?;
    let part = tools.folder().join("part.raw");
    same_bytes(&part, &dir.join("fs.raw"))?;
    disk::check(&part)?;
    println!("\nverified: the partition of the copy is what was put into the disk, and e2fsck finds it clean");
    Ok(())
}
