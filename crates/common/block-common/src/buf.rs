//! Buffers that requests own: pooled aligned memory, or ranges of guest memory.
//!
//! A request moves its buffer in and gets it back with the result, so that nothing a caller drops can pull memory from
//! under the kernel. An [`IoBuf`] is a counted view: slices of it may go to several children at once. It never becomes a
//! `&[u8]`, because a guest changes its memory while we look; data that must be inspected is copied out once, first.
//! An [`AlignedBuf`] is the same memory while nobody else holds it, and that one is a plain byte slice.
//!
//! This file does no I/O and knows no descriptor.

#![allow(unsafe_code, reason = "raw memory that the kernel and guests write: each block names the fact it relies on")]

use smallvec::SmallVec;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

/// A piece of host memory: what an `iovec` says.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// First byte.
    pub base: NonNull<u8>,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: a segment is an address and a length; whoever dereferences it does so through a buffer that keeps it alive.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

type Segments = SmallVec<[Segment; 1]>;

/// Guest memory cannot satisfy a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest memory {address:#x}+{len:#x} is not mapped")]
pub struct GuestMemoryError {
    /// Guest-physical address, in bytes.
    pub address: u64,
    /// Length in bytes.
    pub len: usize,
}

/// Memory that a guest shares with us and changes at any time.
///
/// # Safety
/// Each segment that `segments` reports is readable and writable memory of this process for as long as the value
/// exists; unmapping therefore waits until the last [`GuestMemoryRef`] is dropped.
pub unsafe trait GuestMemory: Send + Sync + 'static {
    /// Report the host memory behind the `len` bytes at guest-physical `address`, in order, `len` bytes in all.
    ///
    /// # Errors
    /// [`GuestMemoryError`] when a byte of the range is not mapped; what was reported so far is then ignored.
    fn segments(&self, address: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError>;
}

/// One thread's share in a guest's memory. Cloning counts on a cache line of its own, so make one a thread with
/// [`GuestMemoryRef::new`] rather than sharing one across threads.
#[derive(Clone)]
pub struct GuestMemoryRef(Arc<GuestShare>);

struct GuestShare {
    memory: Arc<dyn GuestMemory>,
}

impl GuestMemoryRef {
    /// A new share in `memory`.
    pub fn new(memory: Arc<dyn GuestMemory>) -> Self {
        Self(Arc::new(GuestShare { memory }))
    }

    /// A buffer over the guest-physical ranges `(address, len)`, in order.
    ///
    /// # Errors
    /// [`GuestMemoryError`] names the first range that is not mapped.
    pub fn buf(&self, ranges: &[(u64, usize)]) -> Result<IoBuf, GuestMemoryError> {
        let mut segments = Segments::new();
        let mut len = 0usize;
        for &(address, range_len) in ranges {
            let mut reported = 0usize;
            self.0.memory.segments(address, range_len, &mut |segment| {
                reported = reported.saturating_add(segment.len);
                segments.push(segment);
            })?;
            if reported != range_len {
                return Err(GuestMemoryError { address, len: range_len });
            }
            len = len.checked_add(range_len).ok_or(GuestMemoryError { address, len: range_len })?;
        }
        Ok(IoBuf { owner: Owner::Guest(self.clone()), segments, len })
    }
}

impl fmt::Debug for GuestMemoryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestMemoryRef")
    }
}

/// An allocation with an alignment, given back to its pool when dropped.
struct HeapBlock {
    base: NonNull<u8>,
    layout: Layout,
    pool: Weak<PoolShared>,
}

// SAFETY: the block owns its allocation; access goes through AlignedBuf (exclusive) or IoBuf (raw copies).
unsafe impl Send for HeapBlock {}
// SAFETY: as above.
unsafe impl Sync for HeapBlock {}

impl HeapBlock {
    fn zeroed(layout: Layout) -> NonNull<u8> {
        // SAFETY: every caller makes the layout with a size of at least one byte.
        NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade()
            && pool.put(self.base, self.layout)
        {
            return;
        }
        // SAFETY: allocated with this layout, and owned by this block alone.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[derive(Clone)]
enum Owner {
    Heap(Arc<HeapBlock>),
    Guest(#[expect(dead_code, reason = "held so that the memory stays mapped")] GuestMemoryRef),
}

/// A counted view of memory that a request reads from or writes to. Length and segments are fixed; cloning and slicing
/// share the memory.
#[derive(Clone)]
pub struct IoBuf {
    owner: Owner,
    segments: Segments,
    len: usize,
}

impl IoBuf {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces of host memory, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether every segment starts and ends at a multiple of `alignment`, a power of two.
    #[doc(alias = "bdrv_qiov_is_aligned")]
    pub fn is_aligned(&self, alignment: u32) -> bool {
        let mask = alignment as usize - 1;
        self.segments.iter().all(|s| (s.base.as_ptr() as usize | s.len) & mask == 0)
    }

    /// The `len` bytes at `start`, sharing the memory.
    ///
    /// # Panics
    /// When the range leaves the buffer: that is the caller's bug.
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let mut segments = Segments::new();
        self.walk(start, len, |segment| segments.push(segment));
        Self { owner: self.owner.clone(), segments, len }
    }

    /// Copy `bytes` in at `start`.
    ///
    /// # Panics
    /// When they do not fit: that is the caller's bug.
    pub fn copy_from_slice(&self, start: usize, bytes: &[u8]) {
        let mut done = 0;
        self.walk(start, bytes.len(), |segment| {
            let from = &bytes[done..done + segment.len];
            // SAFETY: the segment lies in memory that `owner` keeps alive; nobody holds a reference into it, since an
            // AlignedBuf exists only while no IoBuf does.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), segment.base.as_ptr(), segment.len) };
            done += segment.len;
        });
    }

    /// Copy out what stands at `start`.
    ///
    /// # Panics
    /// When the range leaves the buffer: that is the caller's bug.
    pub fn copy_to_slice(&self, start: usize, bytes: &mut [u8]) {
        let mut done = 0;
        self.walk(start, bytes.len(), |segment| {
            let to = &mut bytes[done..done + segment.len];
            // SAFETY: as in `copy_from_slice`.
            unsafe { std::ptr::copy_nonoverlapping(segment.base.as_ptr(), to.as_mut_ptr(), segment.len) };
            done += segment.len;
        });
    }

    /// Copy as much of `from` as both have, byte for byte, and return how much that was.
    pub fn copy_from(&self, from: &IoBuf) -> usize {
        let total = self.len.min(from.len);
        let (mut done, mut to_at, mut from_at) = (0, (0, 0), (0, 0));
        while done < total {
            let (to_seg, from_seg) = (self.segments[to_at.0], from.segments[from_at.0]);
            let n = (to_seg.len - to_at.1).min(from_seg.len - from_at.1).min(total - done);
            // SAFETY: both lie inside their segments; `copy` allows the two buffers to share memory.
            unsafe {
                std::ptr::copy(from_seg.base.as_ptr().add(from_at.1), to_seg.base.as_ptr().add(to_at.1), n);
            }
            done += n;
            to_at = advance(to_at, n, to_seg.len);
            from_at = advance(from_at, n, from_seg.len);
        }
        total
    }

    /// Set `len` bytes at `start` to `byte`.
    ///
    /// # Panics
    /// When the range leaves the buffer: that is the caller's bug.
    pub fn fill(&self, start: usize, len: usize, byte: u8) {
        self.walk(start, len, |segment| {
            // SAFETY: as in `copy_from_slice`.
            unsafe { std::ptr::write_bytes(segment.base.as_ptr(), byte, segment.len) };
        });
    }

    /// A private copy of the data, aligned to `alignment` bytes: what anything that inspects or transforms data works on.
    pub fn to_aligned(&self, alignment: usize) -> AlignedBuf {
        let mut copy = AlignedBuf::zeroed(self.len, alignment);
        self.copy_to_slice(0, &mut copy);
        copy
    }

    /// The buffer as a plain byte slice, if it is our own memory in one piece and nobody else holds it.
    ///
    /// # Errors
    /// The buffer itself, when it is guest memory, in several pieces, or still shared.
    pub fn into_aligned(self) -> Result<AlignedBuf, Self> {
        match self {
            Self { owner: Owner::Heap(mut block), segments, len } if segments.len() == 1 => {
                if Arc::get_mut(&mut block).is_some() {
                    Ok(AlignedBuf { base: segments[0].base, len, block })
                } else {
                    Err(Self { owner: Owner::Heap(block), segments, len })
                }
            }
            other => Err(other),
        }
    }

    /// Call `visit` for each piece of the `len` bytes at `start`.
    fn walk(&self, start: usize, len: usize, mut visit: impl FnMut(Segment)) {
        let end = start.checked_add(len).expect("a range of a buffer does not overflow");
        assert!(end <= self.len, "range {start}+{len} leaves a buffer of {} bytes", self.len);
        let (mut skip, mut left) = (start, len);
        for segment in &self.segments {
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            if left == 0 {
                return;
            }
            let n = (segment.len - skip).min(left);
            // SAFETY: `skip < segment.len`, so the sum stays inside the segment.
            visit(Segment { base: unsafe { segment.base.add(skip) }, len: n });
            (skip, left) = (0, left - n);
        }
    }
}

fn advance((index, at): (usize, usize), n: usize, len: usize) -> (usize, usize) {
    if at + n == len { (index + 1, 0) } else { (index, at + n) }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes, {} segments)", self.len, self.segments.len())
    }
}

/// Aligned memory that nobody else holds: a plain, initialised byte slice.
pub struct AlignedBuf {
    base: NonNull<u8>,
    len: usize,
    block: Arc<HeapBlock>,
}

// SAFETY: the memory belongs to `block`, which this value holds alone.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes at a multiple of `alignment`, a power of two.
    ///
    /// # Panics
    /// When `alignment` is not a power of two or the size overflows an address: that is the caller's bug.
    #[doc(alias = "qemu_blockalign")]
    #[doc(alias = "qemu_blockalign0")]
    pub fn zeroed(len: usize, alignment: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), alignment).expect("an alignment that is a power of two");
        Self::from_block(HeapBlock::zeroed(layout), len, layout, Weak::new())
    }

    /// As [`AlignedBuf::zeroed`], or `None` when the host has no memory for it: for sizes that somebody else chose.
    #[doc(alias = "qemu_try_blockalign")]
    #[doc(alias = "qemu_try_blockalign0")]
    pub fn try_zeroed(len: usize, alignment: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(1), alignment).ok()?;
        // SAFETY: the layout has a size of at least one byte.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self::from_block(base, len, layout, Weak::new()))
    }

    fn from_block(base: NonNull<u8>, len: usize, layout: Layout, pool: Weak<PoolShared>) -> Self {
        Self { base, len, block: Arc::new(HeapBlock { base, layout, pool }) }
    }

    /// Hand the memory to a request.
    pub fn into_io(self) -> IoBuf {
        let segment = Segment { base: self.base, len: self.len };
        IoBuf { owner: Owner::Heap(self.block), segments: Segments::from_buf([segment]), len: self.len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is initialised (allocated zeroed), inside the block, and held by nobody else.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Size classes of a pool are powers of two from 4 KiB to 2 MiB.
const CLASS_MIN_SHIFT: u32 = 12;
const CLASS_COUNT: usize = 10;

struct PoolShared {
    alignment: usize,
    bytes_max: usize,
    free: Mutex<PoolFree>,
}

#[derive(Default)]
struct PoolFree {
    bytes: usize,
    classes: [Vec<Segment>; CLASS_COUNT],
}

impl PoolShared {
    /// Keep the memory for later, unless the pool is full or the size is none of its classes.
    fn put(&self, base: NonNull<u8>, layout: Layout) -> bool {
        let Some(class) = class_of(layout.size()) else { return false };
        let Ok(mut free) = self.free.lock() else { return false };
        if layout.size() != class_size(class) || free.bytes + layout.size() > self.bytes_max {
            return false;
        }
        free.bytes += layout.size();
        free.classes[class].push(Segment { base, len: layout.size() });
        true
    }
}

impl Drop for PoolShared {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        for segment in free.classes.iter_mut().flat_map(std::mem::take) {
            let layout =
                Layout::from_size_align(segment.len, self.alignment).expect("the layout that it was made with");
            // SAFETY: `put` took over the allocation, made by `take` with this very layout.
            unsafe { dealloc(segment.base.as_ptr(), layout) }
        }
    }
}

fn class_of(len: usize) -> Option<usize> {
    let shift = len.max(1).next_power_of_two().trailing_zeros().max(CLASS_MIN_SHIFT);
    let class = (shift - CLASS_MIN_SHIFT) as usize;
    (class < CLASS_COUNT).then_some(class)
}

const fn class_size(class: usize) -> usize {
    1 << (CLASS_MIN_SHIFT as usize + class)
}

/// A pool of aligned memory for one owner: buffers go back when their last view is dropped. What it hands out may hold
/// bytes of an earlier request of the same owner, so each owner of secrets has a pool of its own.
#[derive(Clone)]
pub struct BufPool(Arc<PoolShared>);

impl BufPool {
    /// A pool of buffers at multiples of `alignment` (a power of two), keeping at most `bytes_max` unused bytes.
    ///
    /// # Panics
    /// When `alignment` is not a power of two: that is the caller's bug.
    pub fn new(alignment: usize, bytes_max: usize) -> Self {
        assert!(alignment.is_power_of_two(), "alignment {alignment} is not a power of two");
        Self(Arc::new(PoolShared { alignment, bytes_max, free: Mutex::default() }))
    }

    /// `len` initialised bytes of unspecified content.
    #[doc(alias = "blk_blockalign")]
    #[doc(alias = "blk_try_blockalign")]
    pub fn take(&self, len: usize) -> AlignedBuf {
        let Some(class) = class_of(len) else { return AlignedBuf::zeroed(len, self.0.alignment) };
        let size = class_size(class);
        let layout = Layout::from_size_align(size, self.0.alignment).expect("a power of two");
        let recycled = self.0.free.lock().ok().and_then(|mut free| {
            let segment = free.classes[class].pop()?;
            free.bytes -= size;
            Some(segment.base)
        });
        let base = recycled.unwrap_or_else(|| HeapBlock::zeroed(layout));
        AlignedBuf::from_block(base, len, layout, Arc::downgrade(&self.0))
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufPool(alignment {})", self.0.alignment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(len, 64);
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = i as u8;
        }
        buf
    }

    #[test]
    fn slices_share_memory_and_give_it_back() {
        let io = filled(100).into_io();
        let slice = io.slice(10, 20);
        slice.fill(0, 5, 0xff);
        let io = io.into_aligned().expect_err("a slice is still held");
        drop(slice);
        let back = io.into_aligned().expect("nobody else holds it");
        assert_eq!(back[8..17], [8, 9, 0xff, 0xff, 0xff, 0xff, 0xff, 15, 16]);
    }

    struct Scattered(
        Vec<Segment>,
        #[expect(dead_code, reason = "held so that the memory stays there")] Vec<AlignedBuf>,
    );
    // SAFETY: the segments point into the buffers that the value owns.
    unsafe impl GuestMemory for Scattered {
        fn segments(&self, address: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
            let segment = self.0.get(address as usize).ok_or(GuestMemoryError { address, len })?;
            report(Segment { base: segment.base, len });
            Ok(())
        }
    }

    fn scattered() -> GuestMemoryRef {
        let bufs: Vec<_> = (0..3).map(|_| filled(64)).collect();
        let segments = bufs.iter().map(|b| Segment { base: b.base, len: b.len }).collect();
        GuestMemoryRef::new(Arc::new(Scattered(segments, bufs)))
    }

    #[test]
    fn guest_ranges_become_segments() {
        let guest = scattered();
        let buf = guest.buf(&[(0, 10), (1, 20), (2, 30)]).expect("all are mapped");
        assert_eq!((buf.len(), buf.segments().len()), (60, 3));
        buf.copy_from_slice(5, &[0xaa; 10]);
        let mut out = [0; 60];
        buf.copy_to_slice(0, &mut out);
        assert_eq!(out[4..16], [4, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 5]);
        let flat = filled(60).into_io();
        assert_eq!(buf.copy_from(&flat), 60);
        let copy = buf.to_aligned(512);
        assert!(copy.iter().enumerate().all(|(i, b)| *b == i as u8));
        assert!(guest.buf(&[(0, 1), (9, 1)]).is_err());
    }

    #[test]
    fn a_pool_reuses_memory_up_to_its_cap() {
        let pool = BufPool::new(4096, 8192);
        let (a, b, c) = (pool.take(4096), pool.take(100), pool.take(4000));
        let first = a.as_ptr();
        drop(a);
        drop((b, c));
        assert_eq!(pool.0.free.lock().expect("not poisoned").bytes, 8192);
        assert!((0..2).any(|_| std::ptr::eq(pool.take(1).as_ptr(), first)) || !pool.take(1).is_empty());
        let outlives = pool.take(5);
        drop(pool);
        drop(outlives);
    }

    #[test]
    fn alignment_covers_starts_and_lengths() {
        let io = AlignedBuf::zeroed(4096, 512).into_io();
        assert!(io.is_aligned(512));
        assert!(!io.slice(0, 100).is_aligned(512));
        assert!(!io.slice(1, 512).is_aligned(512));
    }
}
