//! Who owns which bytes of the disk, and what they hold: so that several kinds of load share clusters and never a byte.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The disk's length in bytes.
pub(crate) const DISK: u64 = 8 << 20;
/// The part of the model, from the start of the disk.
pub(crate) const MODEL: u64 = 2 << 20;
/// What one block holds has one owner.
pub(crate) const BLOCK: u64 = 4096;
pub(crate) const SECTOR: u64 = 512;

/// Stamps of what is there from the start.
const BASE: u64 = 1;
/// Not a stamp: zeroes.
pub(crate) const ZEROES: u64 = 0;
/// The first stamp that a load uses.
pub(crate) const FIRST: u64 = 2;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What stands at `offset` (a multiple of eight bytes) after the write called `stamp`.
pub(crate) fn fill(stamp: u64, offset: u64, bytes: &mut [u8]) {
    if stamp == ZEROES {
        return bytes.fill(0);
    }
    for (word, at) in bytes.chunks_mut(8).zip((offset..).step_by(8)) {
        word.copy_from_slice(&mix(stamp ^ mix(at)).to_le_bytes()[..word.len()]);
    }
}

pub(crate) fn filled(stamp: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    fill(stamp, offset, &mut bytes);
    bytes
}

/// The disk as it is before anybody writes.
pub(crate) fn base() -> Vec<u8> {
    filled(BASE, 0, DISK)
}

/// The blocks behind the model's part, dealt in turn: every cluster has some of each owner.
fn dealt(owner: u64, owners: u64) -> impl Iterator<Item = u64> {
    (MODEL / BLOCK..DISK / BLOCK).filter(move |block| block % owners == owner).map(|block| block * BLOCK)
}

/// The blocks of one of the two queues, by their offsets.
pub(crate) fn queue_blocks(queue: u64) -> Vec<u64> {
    dealt(queue, 4).collect()
}

/// Blocks that are written once, by requests that may be dropped.
#[derive(Debug)]
pub(crate) struct OnceBlocks {
    offsets: Vec<u64>,
    next: AtomicUsize,
    /// Offset, and the stamp that must stand there in the end.
    written: Mutex<Vec<(u64, u64)>>,
}

impl OnceBlocks {
    pub(crate) fn new() -> Self {
        let offsets = dealt(2, 4).chain(dealt(3, 4)).collect();
        Self { offsets, next: AtomicUsize::new(0), written: Mutex::default() }
    }

    /// A block that nobody has had.
    pub(crate) fn take(&self) -> Option<u64> {
        self.offsets.get(self.next.fetch_add(1, Ordering::Relaxed)).copied()
    }

    /// It was started to write, or was not.
    pub(crate) fn note(&self, offset: u64, stamp: Option<u64>) {
        self.written.lock().expect("nobody panics with it").push((offset, stamp.unwrap_or(BASE)));
    }

    /// What must stand where.
    pub(crate) fn expected(&self) -> Vec<(u64, u64)> {
        self.written.lock().expect("nobody panics with it").clone()
    }
}

/// What each sector of a block must hold.
#[derive(Clone, Debug)]
pub(crate) struct BlockModel {
    pub(crate) offset: u64,
    stamps: [u64; (BLOCK / SECTOR) as usize],
}

impl BlockModel {
    pub(crate) fn new(offset: u64) -> Self {
        Self { offset, stamps: [BASE; (BLOCK / SECTOR) as usize] }
    }

    pub(crate) fn set(&mut self, first: u64, sectors: u64, stamp: u64) {
        self.stamps[first as usize..(first + sectors) as usize].fill(stamp);
    }

    /// Compare what was read from sector `first` on.
    pub(crate) fn check(&self, first: u64, bytes: &[u8]) -> Result<(), String> {
        for (sector, number) in bytes.chunks(SECTOR as usize).zip(first..) {
            let (offset, stamp) = (self.offset + number * SECTOR, self.stamps[number as usize]);
            if sector != filled(stamp, offset, SECTOR) {
                return Err(format!(
                    "the sector at {offset:#x} does not hold stamp {stamp:#x}: {}",
                    what(offset, sector)
                ));
            }
        }
        Ok(())
    }
}

/// What a sector with wrong data looks like.
pub(crate) fn what(offset: u64, sector: &[u8]) -> String {
    if sector.iter().all(|byte| *byte == 0) {
        return "zeroes".into();
    }
    if sector == filled(BASE, offset, sector.len() as u64) {
        return "what was there at first".into();
    }
    format!("{:02x?}…", &sector[..8])
}
