//! Which chunks of a node were written since they were last looked at: one atomic bit each, set from any thread.
//!
//! Setting is what writers do, before a write starts and once more when it is over; clearing is what one copier does, before it
//! reads. So a bit that is clear means that the copier's read came after the write (rule req-4). Nothing here is persistent.

use crate::node::WriteObserver;
use block_common::GuestRange;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A dirty bitmap over `length` bytes in chunks of a power of two.
pub struct DirtyBitmap {
    length: u64,
    shift: u32,
    words: Box<[AtomicU64]>,
    /// How many bits are set, as of no particular moment.
    dirty: AtomicU64,
}

impl DirtyBitmap {
    /// A clean bitmap. `granularity` is the size of a chunk in bytes.
    ///
    /// # Panics
    /// When `granularity` is not a power of two: that is the caller's bug.
    pub fn new(length: u64, granularity: u64) -> Self {
        assert!(granularity.is_power_of_two(), "a granularity of {granularity} bytes is not a power of two");
        let chunks = length.div_ceil(granularity);
        let words = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { length, shift: granularity.trailing_zeros(), words, dirty: AtomicU64::new(0) }
    }

    /// How many bytes it is about.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The size of a chunk in bytes.
    pub fn granularity(&self) -> u64 {
        1 << self.shift
    }

    /// How many chunks there are. The last may be shorter than the others.
    pub fn chunks(&self) -> u64 {
        self.length.div_ceil(self.granularity())
    }

    /// How many chunks are dirty, as of no particular moment.
    pub fn dirty_chunks(&self) -> u64 {
        self.dirty.load(Ordering::Acquire)
    }

    /// The bytes of `chunks`.
    pub fn bytes(&self, chunks: &Range<u64>) -> Range<u64> {
        (chunks.start << self.shift).min(self.length)..(chunks.end << self.shift).min(self.length)
    }

    /// Whether a chunk is dirty.
    pub fn is_dirty(&self, chunk: u64) -> bool {
        self.word(chunk).load(Ordering::Acquire) & bit(chunk) != 0
    }

    /// Every chunk that `range` touches is dirty.
    pub fn set(&self, range: GuestRange) {
        if !range.is_empty() {
            self.set_chunks(range.offset().0 >> self.shift..range.end().div_ceil(self.granularity()));
        }
    }

    /// Every chunk is dirty.
    pub fn set_all(&self) {
        self.set_chunks(0..self.chunks());
    }

    /// These chunks are dirty, as far as they exist.
    pub fn set_chunks(&self, chunks: Range<u64>) {
        let end = chunks.end.min(self.chunks());
        let mut at = chunks.start;
        while at < end {
            let next = end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (next - at))) << (at % 64);
            // The release makes the write that this tells of visible to whoever clears the bit; see `clear`.
            let before = self.word(at).fetch_or(mask, Ordering::AcqRel);
            self.dirty.fetch_add(u64::from((mask & !before).count_ones()), Ordering::AcqRel);
            at = next;
        }
    }

    /// A chunk is clean from now on; tells whether it was dirty. What is read after this call holds every write whose bit it
    /// cleared.
    pub fn clear(&self, chunk: u64) -> bool {
        let was_dirty = self.word(chunk).fetch_and(!bit(chunk), Ordering::AcqRel) & bit(chunk) != 0;
        if was_dirty {
            self.dirty.fetch_sub(1, Ordering::AcqRel);
        }
        was_dirty
    }

    /// The first dirty chunk from `chunk` on for which `wanted` holds.
    pub fn next_dirty(&self, chunk: u64, wanted: impl Fn(u64) -> bool) -> Option<u64> {
        let mut at = chunk;
        while at < self.chunks() {
            let rest = self.word(at).load(Ordering::Acquire) >> (at % 64);
            if rest == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            at += u64::from(rest.trailing_zeros());
            if wanted(at) {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    fn word(&self, chunk: u64) -> &AtomicU64 {
        &self.words[(chunk / 64) as usize]
    }
}

const fn bit(chunk: u64) -> u64 {
    1 << (chunk % 64)
}

/// A bitmap on a node: dirty too early is safe, dirty too late is not.
impl WriteObserver for DirtyBitmap {
    fn before(&self, range: GuestRange) {
        self.set(range);
    }

    fn after(&self, range: GuestRange) {
        self.set(range);
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtyBitmap({} of {} chunks of {} bytes)", self.dirty_chunks(), self.chunks(), self.granularity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_common::IoResult;
    use std::sync::Arc;

    fn dirty(bitmap: &DirtyBitmap) -> Vec<u64> {
        let found: Vec<_> = (0..bitmap.chunks()).filter(|chunk| bitmap.is_dirty(*chunk)).collect();
        assert_eq!(bitmap.dirty_chunks(), found.len() as u64);
        let mut scanned = Vec::new();
        while let Some(chunk) = bitmap.next_dirty(scanned.last().map_or(0, |last| last + 1), |_| true) {
            scanned.push(chunk);
        }
        assert_eq!(scanned, found);
        found
    }

    fn range(offset: u64, len: u64) -> GuestRange {
        let range: IoResult<_> = GuestRange::new(offset, len);
        range.expect("a range")
    }

    #[test]
    fn a_range_dirties_every_chunk_that_it_touches() {
        let bitmap = DirtyBitmap::new(1000, 64);
        assert_eq!(bitmap.chunks(), 16);
        bitmap.set(range(63, 2));
        assert_eq!(dirty(&bitmap), [0, 1]);
        bitmap.set(range(128, 0));
        bitmap.set(range(192, 64));
        bitmap.set(range(999, 100));
        assert_eq!(dirty(&bitmap), [0, 1, 3, 15]);
        assert_eq!(bitmap.bytes(&(15..16)), 960..1000);
        assert!(bitmap.clear(3) && !bitmap.clear(3));
        assert_eq!(dirty(&bitmap), [0, 1, 15]);
    }

    #[test]
    fn scanning_crosses_words_and_skips_what_is_not_wanted() {
        let bitmap = DirtyBitmap::new(64 * 300, 64);
        bitmap.set_chunks(60..70);
        bitmap.set_chunks(299..500);
        assert_eq!(bitmap.next_dirty(61, |_| true), Some(61));
        assert_eq!(bitmap.next_dirty(0, |chunk| chunk > 65), Some(66));
        assert_eq!(bitmap.next_dirty(70, |_| true), Some(299));
        assert_eq!(bitmap.next_dirty(300, |_| true), None);
        bitmap.set_all();
        assert_eq!(dirty(&bitmap).len(), 300);
        assert!(dirty(&DirtyBitmap::new(0, 512)).is_empty());
    }

    #[test]
    fn counting_holds_under_concurrent_setting_and_clearing() {
        let bitmap = Arc::new(DirtyBitmap::new(64 * 100, 64));
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let bitmap = bitmap.clone();
                std::thread::spawn(move || {
                    for round in 0..5000 {
                        let chunk = (round * 7 + thread * 13) % 100;
                        match thread {
                            0 => {
                                let _ = bitmap.clear(chunk);
                            }
                            _ => bitmap.set_chunks(chunk..chunk + 2),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        dirty(&bitmap);
    }
}
