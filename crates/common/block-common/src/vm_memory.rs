//! Guest memory of VMMs that use the `vm-memory` crate: [`VmMemory`] makes it a [`GuestMemory`].
//!
//! Nothing is mapped or unmapped here. Memory with a dirty bitmap is deliberately not taken: requests write to it behind
//! `vm-memory`'s back, and a bitmap that misses them is worse than none.

#![allow(
    unsafe_code,
    reason = "implements an unsafe trait: the memory is vm-memory's, and the SAFETY line says what it promises"
)]

use crate::{GuestMemory, GuestMemoryError, Segment};
use std::fmt;
use std::ptr::NonNull;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion as _};

/// The protection of memory that can be read and written: `PROT_READ | PROT_WRITE` of `mmap(2)`.
const PROT_READ_WRITE: i32 = 1 | 2;

/// A region is not both readable and writable, so the kernel and we could fault on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest memory at {address:#x} is not readable and writable")]
pub struct VmMemoryError {
    /// The region's guest-physical address, in bytes.
    pub address: u64,
}

/// A snapshot of a VMM's memory map. It keeps its regions mapped; a map that changes needs a new one.
pub struct VmMemory(GuestMemoryMmap<()>);

impl VmMemory {
    /// The regions of `memory`. `GuestMemoryMmap` is counted inside: clone it, or the one a `GuestMemoryAtomic` holds.
    ///
    /// # Errors
    /// [`VmMemoryError`] names a region that is not both readable and writable.
    pub fn new(memory: GuestMemoryMmap<()>) -> Result<Self, VmMemoryError> {
        for region in memory.iter() {
            if region.get_mmap().prot() & PROT_READ_WRITE != PROT_READ_WRITE {
                return Err(VmMemoryError { address: region.start_addr().0 });
            }
        }
        Ok(Self(memory))
    }
}

// SAFETY: `get_slices` hands out addresses inside regions that `self.0` counts and therefore keeps mapped for as long as the
// value exists; `new` has checked that they are mapped readable and writable.
unsafe impl GuestMemory for VmMemory {
    fn segments(&self, address: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
        let unmapped = GuestMemoryError { address, len };
        for slice in GuestMemoryBackend::get_slices(&self.0, GuestAddress(address), len) {
            let slice = slice.map_err(|_| unmapped)?;
            let base = NonNull::new(slice.ptr_guard_mut().as_ptr()).ok_or(unmapped)?;
            report(Segment { base, len: slice.len() });
        }
        Ok(())
    }
}

impl fmt::Debug for VmMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmMemory({} regions)", self.0.num_regions())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemoryRef;
    use std::sync::Arc;
    use vm_memory::Bytes as _;

    #[test]
    fn ranges_across_regions_become_segments_and_outlive_the_map() {
        let map =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096), (GuestAddress(4096), 4096)]).expect("maps");
        let memory = VmMemory::new(map.clone()).expect("readable and writable");
        let buf = GuestMemoryRef::new(Arc::new(memory)).buf(&[(4090, 12), (0, 0)]).expect("mapped");
        buf.copy_from_slice(0, b"hello, guest");
        let mut seen = [0; 12];
        map.read_slice(&mut seen, GuestAddress(4090)).expect("mapped");
        assert_eq!(&seen, b"hello, guest");
        drop(map);
        buf.copy_to_slice(0, &mut seen);
        assert_eq!((&seen, buf.segments().len()), (b"hello, guest", 2));
    }

    #[test]
    fn holes_are_refused() {
        let map =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096), (GuestAddress(8192), 4096)]).expect("maps");
        let guest = GuestMemoryRef::new(Arc::new(VmMemory::new(map).expect("readable and writable")));
        for (address, len) in [(4090, 12), (4096, 1), (12288, 1), (u64::MAX, 2), (8192, usize::MAX)] {
            assert_eq!(guest.buf(&[(address, len)]).err(), Some(GuestMemoryError { address, len }), "{address}+{len}");
        }
    }
}
