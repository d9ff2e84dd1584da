//! Which chunks of a node were written since they were last looked at: one atomic bit each, set from any thread.
//!
//! Setting is what writers do, before a write starts and once more when it is over; clearing is what one copier does, before it
//! reads. So a bit that is clear means that the copier's read came after the write (rule req-4). Names are the graph's business, and keeping
//! bits is the formats'.

use crate::node::{ChangeKind, WriteObserver};
use block_common::GuestRange;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// The most chunks: a bit for each makes 512 MiB.
const CHUNKS_MAX: u64 = 1 << 32;

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
    /// When `granularity` is not a power of two, or so small that [`DirtyBitmap::try_new`] would fail: that is the caller's bug.
    pub fn new(length: u64, granularity: u64) -> Self {
        Self::try_new(length, granularity).expect("a granularity that suits the length")
    }

    /// As [`DirtyBitmap::new`]; `None` when there would be more than 2^32 chunks, or there is no memory for their bits.
    ///
    /// # Panics
    /// When `granularity` is not a power of two.
    pub fn try_new(length: u64, granularity: u64) -> Option<Self> {
        assert!(granularity.is_power_of_two(), "a granularity of {granularity} bytes is not a power of two");
        let chunks = Some(length.div_ceil(granularity)).filter(|chunks| *chunks <= CHUNKS_MAX)?;
        let (count, mut words) = (chunks.div_ceil(64) as usize, Vec::new());
        words.try_reserve_exact(count).ok()?;
        words.resize_with(count, || AtomicU64::new(0));
        Some(Self { length, shift: granularity.trailing_zeros(), words: words.into(), dirty: AtomicU64::new(0) })
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

    /// How many bytes the dirty chunks have, the last one counted as a whole.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_chunks() << self.shift
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

    /// Every chunk is clean from now on.
    #[doc(alias = "bdrv_clear_dirty_bitmap")]
    pub fn clear_all(&self) {
        for word in &self.words {
            let before = word.swap(0, Ordering::AcqRel);
            self.dirty.fetch_sub(u64::from(before.count_ones()), Ordering::AcqRel);
        }
    }

    /// The bits of the chunks from `chunk` on, one bit each, the first in the lowest bit of the first byte. What lies past the end is clear.
    ///
    /// # Panics
    /// When `chunk` is no multiple of 64.
    pub fn bits_from(&self, chunk: u64, bytes: &mut [u8]) {
        let first = Self::first_word(chunk);
        for (index, bytes) in bytes.chunks_mut(8).enumerate() {
            let word = self.words.get(first + index).map_or(0, |word| word.load(Ordering::Acquire));
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
    }

    /// Every chunk is dirty whose bit is set in `bytes`, which are as for [`DirtyBitmap::bits_from`].
    ///
    /// # Panics
    /// When `chunk` is no multiple of 64.
    pub fn set_bits_from(&self, chunk: u64, bytes: &[u8]) {
        let first = Self::first_word(chunk);
        // There are no chunks behind the last.
        let (last, rest) = (self.words.len().saturating_sub(1), self.chunks() % 64);
        for ((index, word), bytes) in self.words.iter().enumerate().skip(first).zip(bytes.chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            let mut bits = u64::from_le_bytes(eight);
            if index == last && rest > 0 {
                bits &= u64::MAX >> (64 - rest);
            }
            if bits != 0 {
                let before = word.fetch_or(bits, Ordering::AcqRel);
                self.dirty.fetch_add(u64::from((bits & !before).count_ones()), Ordering::AcqRel);
            }
        }
    }

    fn first_word(chunk: u64) -> usize {
        assert!(chunk.is_multiple_of(64), "chunk {chunk} begins no word");
        (chunk / 64) as usize
    }

    /// Every chunk is dirty that touches a dirty chunk of `other`, whose chunks may have another size.
    #[doc(alias = "bdrv_dirty_bitmap_merge_internal")]
    pub fn merge(&self, other: &Self) {
        let mut at = 0;
        while let Some(start) = other.next_dirty(at, |_| true) {
            at = other.next_clean(start).unwrap_or(other.chunks());
            let bytes = other.bytes(&(start..at));
            self.set_chunks(bytes.start >> self.shift..bytes.end.div_ceil(self.granularity()));
        }
    }

    /// The first clean chunk from `chunk` on.
    pub fn next_clean(&self, chunk: u64) -> Option<u64> {
        let mut at = chunk;
        while at < self.chunks() {
            let rest = !self.word(at).load(Ordering::Acquire) >> (at % 64);
            if rest != 0 {
                at += u64::from(rest.trailing_zeros());
                return (at < self.chunks()).then_some(at);
            }
            at = (at / 64 + 1) * 64;
        }
        None
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
    fn before(&self, _kind: ChangeKind, range: GuestRange) {
        self.set(range);
    }

    fn after(&self, _kind: ChangeKind, range: GuestRange) {
        self.set(range);
    }
}

/// A dirty bitmap that has the length of its node, whatever becomes of that. What a node grows by is dirty: it may have shrunk before.
pub struct NodeBitmap {
    bitmap: RwLock<DirtyBitmap>,
    /// It could not follow its node: there is no telling what is dirty.
    lost: AtomicBool,
}

impl NodeBitmap {
    /// A clean bitmap; `None` as for [`DirtyBitmap::try_new`].
    ///
    /// # Panics
    /// When `granularity` is not a power of two.
    pub fn try_new(length: u64, granularity: u64) -> Option<Self> {
        let bitmap = DirtyBitmap::try_new(length, granularity)?;
        Some(Self { bitmap: RwLock::new(bitmap), lost: AtomicBool::new(false) })
    }

    /// A bitmap of which nothing is known but its granularity: whoever was to keep its bits did not.
    ///
    /// # Panics
    /// When `granularity` is not a power of two.
    pub fn lost(granularity: u64) -> Self {
        Self { bitmap: RwLock::new(DirtyBitmap::new(0, granularity)), lost: AtomicBool::new(true) }
    }

    /// Look at it, or set and clear bits. Writers to the node wait meanwhile only if they change its length.
    pub fn with<T>(&self, look: impl FnOnce(&DirtyBitmap) -> T) -> T {
        look(&self.read())
    }

    /// Whether there was no memory when the node grew. Nothing can be said of what is dirty then.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The node has `len` bytes. What it grew by is `dirty`.
    pub fn resize(&self, len: u64, dirty: bool) {
        if self.is_lost() || self.read().length() == len {
            return;
        }
        let mut bitmap = self.bitmap.write().unwrap_or_else(PoisonError::into_inner);
        self.exchange(&mut bitmap, len, dirty);
    }

    fn exchange(&self, bitmap: &mut DirtyBitmap, len: u64, dirty: bool) {
        let old = bitmap.length();
        let Some(new) = DirtyBitmap::try_new(len, bitmap.granularity()) else {
            self.lost.store(true, Ordering::Release);
            return;
        };
        new.merge(bitmap);
        if dirty && len > old {
            new.set_chunks(old >> new.shift..new.chunks());
        }
        *bitmap = new;
    }

    /// `range` is dirty; if it ends past the end, the node is about to grow.
    fn mark(&self, range: GuestRange) {
        if self.is_lost() {
            return;
        }
        {
            let bitmap = self.read();
            if range.end() <= bitmap.length() {
                return bitmap.set(range);
            }
        }
        let mut bitmap = self.bitmap.write().unwrap_or_else(PoisonError::into_inner);
        if range.end() > bitmap.length() {
            self.exchange(&mut bitmap, range.end(), true);
        }
        bitmap.set(range);
    }

    fn read(&self) -> RwLockReadGuard<'_, DirtyBitmap> {
        self.bitmap.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteObserver for NodeBitmap {
    fn before(&self, _kind: ChangeKind, range: GuestRange) {
        self.mark(range);
    }

    fn after(&self, _kind: ChangeKind, range: GuestRange) {
        self.mark(range);
    }

    fn resized(&self, len: u64) {
        self.resize(len, true);
    }
}

/// A bitmap that is kept with its node's image: what a format has to know of it. Clones share their bits.
#[derive(Clone, Debug)]
pub struct KeptBitmap {
    /// Its name, unique within the image.
    pub name: String,
    /// The size of a chunk in bytes.
    pub granularity: u64,
    /// Whether it records what is written, from opening on.
    pub recording: bool,
    /// Its bits; [lost](NodeBitmap::is_lost) ones are not stored.
    pub bits: std::sync::Arc<NodeBitmap>,
}

impl fmt::Debug for NodeBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
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

    #[test]
    fn bits_are_given_away_and_taken_back() {
        let bitmap = DirtyBitmap::new(200 * 64, 64);
        for chunk in [0, 9, 63, 64, 130, 199] {
            bitmap.set_chunks(chunk..chunk + 1);
        }
        let mut bytes = [0xff; 40];
        bitmap.bits_from(0, &mut bytes);
        assert_eq!((bytes[0], bytes[1], bytes[7], bytes[8], bytes[16], bytes[24]), (1, 2, 0x80, 1, 4, 0x80));
        assert_eq!(bytes[25..], [0; 15]);
        let other = DirtyBitmap::new(200 * 64, 64);
        other.set_bits_from(0, &bytes);
        other.set_bits_from(0, &bytes);
        assert_eq!(dirty(&other), [0, 9, 63, 64, 130, 199]);
        // In parts, which need not be whole words, and with bits of chunks that there are not.
        let other = DirtyBitmap::new(200 * 64, 64);
        other.set_bits_from(128, &[4, 0, 0]);
        other.set_bits_from(192, &[0xff; 100]);
        assert_eq!(dirty(&other), [130, 192, 193, 194, 195, 196, 197, 198, 199]);
        let mut byte = [0];
        other.bits_from(192, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    #[test]
    fn a_bitmap_that_would_take_too_much_memory_is_none() {
        assert!(DirtyBitmap::try_new(1 << 62, 512).is_none());
        let bitmap = NodeBitmap::try_new(1000, 512).expect("it is small");
        assert!(!bitmap.is_lost());
        bitmap.resized(1 << 62);
        assert!(bitmap.is_lost());
    }
}
