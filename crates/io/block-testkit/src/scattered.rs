//! Buffers in many pieces, as guests have them.

#![allow(unsafe_code, reason = "implements an unsafe trait: the block says what keeps the memory alive")]

use block_common::{AlignedBuf, GuestMemory, GuestMemoryError, GuestMemoryRef, IoBuf, Segment};
use std::ptr::NonNull;
use std::sync::Arc;

/// Pieces of memory, held as buffers; addresses count through them in order.
struct Pieces(Vec<IoBuf>);

// SAFETY: the segments are those of the buffers in `self.0`, which own their memory, are never cut or dropped while the
// value exists, and hand out no reference to it.
unsafe impl GuestMemory for Pieces {
    fn segments(&self, address: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
        let unmapped = GuestMemoryError { address, len };
        let (mut skip, mut left) = (usize::try_from(address).map_err(|_| unmapped)?, len);
        for piece in &self.0 {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let n = (piece.len() - skip).min(left);
            piece.slice(skip, n).segments().iter().for_each(|segment| report(*segment));
            (skip, left) = (0, left - n);
            if left == 0 {
                return Ok(());
            }
        }
        if left == 0 { Ok(()) } else { Err(unmapped) }
    }
}

/// A buffer that consists of pieces of these lengths in bytes, each beginning `skew` bytes after a multiple of 4096.
pub fn scattered(lens: &[usize], skew: usize) -> IoBuf {
    let pieces = lens.iter().map(|len| AlignedBuf::zeroed(len + skew, 4096).into_io().slice(skew, *len)).collect();
    let starts = lens.iter().scan(0, |at, len| {
        *at += len;
        Some((*at - len) as u64)
    });
    let ranges: Vec<_> = starts.zip(lens.iter().copied()).collect();
    let memory = GuestMemoryRef::new(Arc::new(Pieces(pieces)));
    memory.buf(&ranges).expect("the ranges are those of the pieces")
}

const _: fn() = || {
    // What the SAFETY line relies on: a segment is an address, not a reference.
    fn is_plain<T: Copy + 'static>() {}
    is_plain::<NonNull<u8>>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_one_buffer() {
        let buf = scattered(&[3, 0, 10, 512], 5);
        assert_eq!((buf.len(), buf.segments().len()), (525, 3));
        buf.copy_from_slice(1, b"across pieces");
        let mut seen = [0; 13];
        buf.copy_to_slice(1, &mut seen);
        assert_eq!(&seen, b"across pieces");
        assert!(!buf.is_aligned(8));
    }
}
