//! Disk images: made with mke2fs, compared byte for byte, checked with e2fsck.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the file system.
pub(crate) const FILE_SYSTEM: u64 = 96 << 20;
/// Bytes behind it, which the devices write.
pub(crate) const SCRATCH: u64 = 64 << 20;

/// A program that Debian keeps where only root's PATH looks.
fn program(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { name.into() }
}

/// Make a file system of `len` bytes at `path` that holds the files of `tree`.
pub(crate) fn format(tree: &Path, path: &Path, len: u64) -> Result<()> {
    let made = Command::new(program("mke2fs"))
        .args(["-q", "-F", "-t", "ext4", "-L", "cairn", "-d"])
        .args([tree.as_os_str(), path.as_os_str()])
        .arg(format!("{}k", len >> 10))
        .output()
        .context("running mke2fs (Debian package e2fsprogs)")?;
    if !made.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}

/// Make an image at `path` with a file system that holds some files. Returns its bytes.
pub(crate) fn make(dir: &Path, path: &Path) -> Result<Vec<u8>> {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("deeper"))?;
    for number in 0..200u32 {
        let text = format!("file {number}\n").repeat(number as usize * 40 + 1);
        std::fs::write(tree.join(format!("file-{number}.txt")), &text)?;
        std::fs::write(tree.join("deeper").join(format!("{number}.bin")), text.as_bytes().repeat(3))?;
    }
    format(&tree, path, FILE_SYSTEM)?;
    File::options().write(true).open(path)?.set_len(FILE_SYSTEM + SCRATCH)?;
    Ok(std::fs::read(path)?)
}

/// Compare the file at `path` with what it must hold.
pub(crate) fn compare(path: &Path, contents: &[u8]) -> Result<()> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != contents.len() as u64 {
        bail!("the copy has {} bytes instead of {}", file.metadata()?.len(), contents.len());
    }
    let mut piece = vec![0; 1 << 20];
    for (number, expected) in contents.chunks(piece.len()).enumerate() {
        let piece = &mut piece[..expected.len()];
        file.read_exact(piece)?;
        if let Some(at) = piece.iter().zip(expected).position(|(is, should)| is != should) {
            bail!("the copy differs at byte {}", number * (1 << 20) + at);
        }
    }
    Ok(())
}

/// Let e2fsck look at the file system at the start of `path`.
pub(crate) fn check(path: &Path) -> Result<()> {
    let checked = Command::new(program("e2fsck")).arg("-fn").arg(path).output().context("running e2fsck")?;
    if !checked.status.success() {
        bail!("e2fsck: {}", String::from_utf8_lossy(&checked.stdout));
    }
    Ok(())
}
