//! Big-endian numbers, as all of the format's are.

/// Up to `N` bytes at `at`; zeroes stand for what is not there.
pub(crate) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(there) = bytes.get(at..) {
        let n = there.len().min(N);
        out[..n].copy_from_slice(&there[..n]);
    }
    out
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    take::<1>(bytes, at)[0]
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(take(bytes, at))
}
