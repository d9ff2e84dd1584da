//! L2 tables in memory, in slices: read without a lock, changed under a short one.
//!
//! A slice that is in memory is what counts; the disk has what the last flush took there. Readers find slices in an array of places by
//! number alone; that array is a shortcut to the map behind the mutex, which everything that loads, changes, or lets go of slices goes
//! through. So a slice that is being changed cannot be let go of meanwhile, and who changes one that was let go of is told.
//!
//! A reader may still look at a slice that was let go of. It has pinned the node before, so nothing that the slice names is reused before
//! it is done (see `Req::epoch_passed`).

use arc_swap::{ArcSwapOption, Guard};
use block_qcow2_format::{L2Entry, SubclusterBits};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A slice is written in parts of at least this many bytes.
const PART_MIN: usize = 4096;

/// Part of an L2 table.
#[derive(Debug)]
pub(crate) struct Slice {
    index: u64,
    /// Entries as numbers; with subclusters two for each.
    words: Box<[AtomicU64]>,
    words_each: usize,
    /// Odd while an entry of two words is being changed.
    version: AtomicU64,
    used: AtomicBool,
    /// A bit for each part that was changed since it was taken to be written.
    dirty: AtomicU64,
    /// Something of it is not on stable storage.
    unstable: AtomicBool,
}

/// An L2 entry; without subclusters the bits say nothing.
pub(crate) type Entry = (L2Entry, SubclusterBits);

impl Slice {
    fn part_words(&self) -> usize {
        (self.words.len() / 64).max(PART_MIN / 8).min(self.words.len())
    }

    /// Its number: which of all slices that the virtual disk has.
    #[inline]
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// The entry at `at`, or `None` while it is being changed.
    #[inline]
    pub(crate) fn try_get(&self, at: usize) -> Option<Entry> {
        // Sequentially consistent, as changes are: a request that pinned the node after a cluster was retired must not find it here.
        if self.words_each == 1 {
            return Some((L2Entry::from_raw(self.words[at].load(Ordering::SeqCst)), SubclusterBits::default()));
        }
        let before = self.version.load(Ordering::SeqCst);
        let entry = self.words[2 * at].load(Ordering::SeqCst);
        let bits = self.words[2 * at + 1].load(Ordering::SeqCst);
        let is_one = before.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == before;
        is_one.then(|| (L2Entry::from_raw(entry), SubclusterBits::from_raw(bits)))
    }

    /// The entry at `at`. For those whom a change keeps waiting a moment at most.
    pub(crate) fn get(&self, at: usize) -> Entry {
        loop {
            match self.try_get(at) {
                Some(entry) => return entry,
                None => std::hint::spin_loop(),
            }
        }
    }

    /// It was of use.
    #[inline]
    pub(crate) fn touch(&self) {
        // Written only when it says something new: the line is shared by all readers.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether all of it is on stable storage.
    #[inline]
    pub(crate) fn is_stable(&self) -> bool {
        !self.unstable.load(Ordering::SeqCst)
    }

    /// Under the map's lock.
    fn set(&self, at: usize, (entry, bits): Entry) {
        self.unstable.store(true, Ordering::SeqCst);
        if self.words_each == 1 {
            self.words[at].store(entry.raw(), Ordering::SeqCst);
        } else {
            self.version.fetch_add(1, Ordering::SeqCst);
            self.words[2 * at].store(entry.raw(), Ordering::SeqCst);
            self.words[2 * at + 1].store(bits.raw(), Ordering::SeqCst);
            self.version.fetch_add(1, Ordering::SeqCst);
        }
        let part = at * self.words_each / self.part_words();
        self.dirty.fetch_or(1 << part, Ordering::SeqCst);
    }

    /// The parts that were changed, as bytes with their places in the slice; from now on they count as written.
    fn take_dirty(&self) -> Vec<(u64, Vec<u8>)> {
        let dirty = self.dirty.swap(0, Ordering::SeqCst);
        let part_words = self.part_words();
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, words) in self.words.chunks(part_words).enumerate().filter(|(number, _)| dirty >> number & 1 != 0)
        {
            let place = (number * part_words * 8) as u64;
            let bytes = words.iter().flat_map(|word| word.load(Ordering::SeqCst).to_be_bytes());
            match parts.last_mut() {
                Some((at, before)) if *at + before.len() as u64 == place => before.extend(bytes),
                _ => parts.push((place, bytes.collect())),
            }
        }
        parts
    }

    fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst) != 0
    }
}

#[derive(Debug, Default)]
struct Map {
    slices: HashMap<u64, Arc<Slice>>,
    /// In the order in which the hand of the clock comes by.
    clock: VecDeque<u64>,
    dirty: usize,
}

/// As many slices as a power of two.
type Places = Box<[ArcSwapOption<Slice>]>;

/// The most slices, as a power of two.
const SLICES_MAX_BITS: usize = 20;

#[derive(Debug)]
pub(crate) struct SliceCache {
    /// By the number of places, as a power of two; made when first used.
    fast: [OnceLock<Places>; SLICES_MAX_BITS + 1],
    fast_bits: AtomicUsize,
    map: Mutex<Map>,
    words: AtomicUsize,
    words_each: usize,
    slices_max: AtomicUsize,
}

/// A slice's parts that are to be written.
#[derive(Debug)]
pub(crate) struct DirtySlice {
    slice: Arc<Slice>,
    dirty: u64,
    pub(crate) parts: Vec<(u64, Vec<u8>)>,
}

impl DirtySlice {
    /// The slice's number.
    pub(crate) fn index(&self) -> u64 {
        self.slice.index
    }
}

impl SliceCache {
    /// Slices of `slice_bytes` bytes with entries of `entry_bytes`; `bytes_max` bytes of them at most, but two at least.
    pub(crate) fn new(slice_bytes: usize, entry_bytes: usize, bytes_max: u64) -> Self {
        let cache = Self {
            fast: [const { OnceLock::new() }; SLICES_MAX_BITS + 1],
            fast_bits: AtomicUsize::new(0),
            map: Mutex::default(),
            words: AtomicUsize::new(0),
            words_each: entry_bytes / 8,
            slices_max: AtomicUsize::new(0),
        };
        cache.reshape(slice_bytes, bytes_max);
        cache
    }

    /// Let go of everything, and have room for other slices from now on: see [`SliceCache::new`]. Nothing is in flight, and nothing changed.
    pub(crate) fn reshape(&self, slice_bytes: usize, bytes_max: u64) {
        self.clear();
        let slices_max = usize::try_from(bytes_max / slice_bytes as u64).unwrap_or(usize::MAX);
        let slices_max = slices_max.clamp(2, 1 << SLICES_MAX_BITS);
        let bits = slices_max.next_power_of_two().trailing_zeros() as usize;
        self.fast[bits].get_or_init(|| std::iter::repeat_with(ArcSwapOption::empty).take(1 << bits).collect());
        self.fast_bits.store(bits, Ordering::Release);
        self.words.store(slice_bytes / 8, Ordering::Relaxed);
        self.slices_max.store(slices_max, Ordering::Relaxed);
    }

    fn places(&self) -> &[ArcSwapOption<Slice>] {
        self.fast[self.fast_bits.load(Ordering::Acquire)].get().map_or(&[], |places| places)
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn place(&self, index: u64) -> &ArcSwapOption<Slice> {
        let places = self.places();
        &places[index as usize & (places.len() - 1)]
    }

    /// The slice with this number, if it is found at once. What comes out may be another one.
    #[inline]
    pub(crate) fn fast(&self, index: u64) -> Guard<Option<Arc<Slice>>> {
        self.place(index).load()
    }

    /// The slice with this number, if it is in memory.
    pub(crate) fn get(&self, index: u64) -> Option<Arc<Slice>> {
        let slice = self.map().slices.get(&index).cloned()?;
        slice.touch();
        self.place(index).store(Some(slice.clone()));
        Some(slice)
    }

    /// Take in what was read of a slice. If it is in memory by now, that one counts.
    pub(crate) fn insert(&self, index: u64, bytes: &[u8]) -> Arc<Slice> {
        let mut map = self.map();
        if let Some(slice) = map.slices.get(&index) {
            return slice.clone();
        }
        let words =
            bytes.chunks_exact(8).map(|word| AtomicU64::new(u64::from_be_bytes(word.try_into().unwrap_or_default())));
        let mut words: Vec<AtomicU64> = words.collect();
        words.resize_with(self.words.load(Ordering::Relaxed), AtomicU64::default);
        let slice = Arc::new(Slice {
            index,
            words: words.into(),
            words_each: self.words_each,
            version: AtomicU64::new(0),
            used: AtomicBool::new(true),
            dirty: AtomicU64::new(0),
            unstable: AtomicBool::new(false),
        });
        self.make_room(&mut map);
        map.slices.insert(index, slice.clone());
        map.clock.push_back(index);
        self.place(index).store(Some(slice.clone()));
        slice
    }

    /// Let go of slices that are on disk and were not used lately, while there are too many. Changed ones stay: see [`SliceCache::is_crowded`].
    fn make_room(&self, map: &mut Map) {
        let mut looks = 2 * map.clock.len();
        while map.slices.len() >= self.slices_max.load(Ordering::Relaxed) && looks > 0 {
            looks -= 1;
            let Some(index) = map.clock.pop_front() else { return };
            let Some(slice) = map.slices.get(&index) else { continue };
            if slice.used.swap(false, Ordering::Relaxed) || !slice.is_stable() {
                map.clock.push_back(index);
            } else {
                self.forget(map, index);
            }
        }
    }

    fn forget(&self, map: &mut Map, index: u64) {
        map.slices.remove(&index);
        let place = self.place(index);
        if place.load().as_ref().is_some_and(|slice| slice.index == index) {
            place.store(None);
        }
    }

    /// Let go of everything that is on disk and was not used since the last time.
    pub(crate) fn clean(&self) {
        let mut map = self.map();
        let is_idle = |slice: &Slice| !slice.used.swap(false, Ordering::Relaxed) && slice.is_stable();
        let idle: Vec<u64> = map.slices.values().filter(|slice| is_idle(slice)).map(|slice| slice.index).collect();
        idle.into_iter().for_each(|index| self.forget(&mut map, index));
        let Map { slices, clock, .. } = &mut *map;
        clock.retain(|index| slices.contains_key(index));
    }

    /// Let go of everything. Nothing is in flight.
    pub(crate) fn clear(&self) {
        let mut map = self.map();
        *map = Map::default();
        self.places().iter().for_each(|place| place.store(None));
    }

    /// Change entries of a slice. `None` when it is not in memory.
    pub(crate) fn update<T>(&self, index: u64, change: impl FnOnce(&mut SliceUpdate<'_>) -> T) -> Option<T> {
        let mut map = self.map();
        let slice = map.slices.get(&index)?.clone();
        let was_dirty = slice.is_dirty();
        let changed = change(&mut SliceUpdate(&slice));
        if !was_dirty && slice.is_dirty() {
            map.dirty += 1;
        }
        Some(changed)
    }

    /// Whether so many slices are changed that it is time to write them.
    pub(crate) fn is_crowded(&self) -> bool {
        let map = self.map();
        map.dirty * 2 > self.slices_max.load(Ordering::Relaxed)
    }

    /// Whether anything was changed since it was written.
    pub(crate) fn has_dirty(&self) -> bool {
        self.map().dirty > 0
    }

    /// What was changed. It counts as written from now on, but not as stable.
    pub(crate) fn take_dirty(&self) -> Vec<DirtySlice> {
        let mut map = self.map();
        map.dirty = 0;
        let mut dirty: Vec<_> = map.slices.values().filter(|slice| slice.is_dirty()).cloned().collect();
        dirty.sort_unstable_by_key(|slice| slice.index);
        let take = |slice: Arc<Slice>| {
            let dirty = slice.dirty.load(Ordering::SeqCst);
            let parts = slice.take_dirty();
            DirtySlice { slice, dirty, parts }
        };
        dirty.into_iter().map(take).collect()
    }

    /// What was taken is on stable storage, or is not and counts as changed again.
    pub(crate) fn written(&self, taken: &[DirtySlice], done: bool) {
        let mut map = self.map();
        for DirtySlice { slice, dirty, .. } in taken {
            match (slice.is_dirty(), done) {
                (false, true) => slice.unstable.store(false, Ordering::SeqCst),
                (true, true) => {}
                (was_dirty, false) => {
                    slice.dirty.fetch_or(*dirty, Ordering::SeqCst);
                    map.dirty += usize::from(!was_dirty);
                }
            }
        }
        self.make_room(&mut map);
    }
}

/// A slice that may be changed.
pub(crate) struct SliceUpdate<'a>(&'a Slice);

impl SliceUpdate<'_> {
    pub(crate) fn get(&self, at: usize) -> Entry {
        self.0.get(at)
    }

    pub(crate) fn set(&mut self, at: usize, entry: Entry) {
        self.0.set(at, entry);
    }
}
