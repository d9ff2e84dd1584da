//! Files of data that no file system can leave out: written, synced, and removed with the folder that they are in.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const PIECE: usize = 1 << 20;

/// A file of data.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// How many bytes it has.
    pub len: u64,
}

impl DataFile {
    /// A file called `name` in `dir`, with `len` bytes that look random, on the disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(dir: &Path, name: &str, len: u64) -> Result<Self> {
        let path = dir.join(name);
        let context = || format!("cannot write {}", path.display());
        let mut file = File::create(&path).with_context(context)?;
        let mut piece = vec![0; PIECE];
        let mut left = len;
        while left > 0 {
            let part = left.min(PIECE as u64) as usize;
            fill(&mut piece[..part], left);
            file.write_all(&piece[..part]).with_context(context)?;
            left -= part as u64;
        }
        file.sync_all().with_context(context)?;
        Ok(Self { path, len })
    }
}

/// Fill `bytes` with what looks random and depends on `seed`.
pub fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

/// Read the file once, so that it is in the page cache.
///
/// # Errors
/// The file cannot be read.
pub fn warm(path: &Path) -> Result<()> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut piece = vec![0; PIECE];
    while file.read(&mut piece).with_context(context)? > 0 {}
    Ok(())
}
