//! Looking for zeroes in data. Pure functions on bytes.

use std::ops::Range;

/// Whether all of `data` is zeroes. Data that is not most often shows it in its first bytes.
pub fn is_zero(data: &[u8]) -> bool {
    let (head, blocks) = data.split_at(data.len() % 64);
    // Without a branch inside a block, so that the compiler can use wide registers.
    let zero = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    zero(head) && blocks.chunks_exact(64).all(zero)
}

/// Cut `data`, which begins at `offset` of an image, into runs that are worth writing (`false`) and runs of zeroes (`true`).
/// Edges between runs are multiples of `sparse` bytes, rounded down to a power of two; a run of zeroes inside `data`
/// that is shorter than `sparse` belongs to its neighbours.
pub(crate) fn runs(data: &[u8], offset: u64, sparse: u64) -> Vec<(bool, Range<usize>)> {
    let grid = 1u64 << sparse.max(1).ilog2();
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let block = (grid - (offset + at as u64) % grid) as usize;
        let end = data.len().min(at + block);
        push(&mut runs, is_zero(&data[at..end]), at..end);
        at = end;
    }
    let last = runs.len().saturating_sub(1);
    let mut joined = Vec::new();
    for (at, (zero, run)) in runs.into_iter().enumerate() {
        let inside = at > 0 && at < last;
        push(&mut joined, zero && !(inside && (run.len() as u64) < sparse), run);
    }
    joined
}

/// Add a run, or make the last one longer.
fn push(runs: &mut Vec<(bool, Range<usize>)>, zero: bool, run: Range<usize>) {
    match runs.last_mut() {
        Some((last, range)) if *last == zero => range.end = run.end,
        _ => runs.push((zero, run)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_found_anywhere() {
        for len in [0, 1, 63, 64, 65, 511, 4096, 5000] {
            let mut data = vec![0; len];
            assert!(is_zero(&data));
            for at in [0, len / 2, len.saturating_sub(1)].into_iter().filter(|at| *at < len) {
                data[at] = 1;
                assert!(!is_zero(&data), "{at} of {len}");
                data[at] = 0;
            }
        }
    }

    fn check(pattern: &str, offset: u64, sparse: u64, expected: &str) {
        let data: Vec<u8> = pattern.bytes().flat_map(|b| [u8::from(b == b'x'); 512]).collect();
        let mut found = String::new();
        for (zero, run) in runs(&data, offset, sparse) {
            found.extend(std::iter::repeat_n(if zero { '.' } else { 'x' }, run.len() / 512));
        }
        assert_eq!(found, expected, "{pattern} at {offset}, {sparse}");
    }

    #[test]
    fn runs_follow_the_grid() {
        check("x.......x.......", 0, 4096, "xxxxxxxxxxxxxxxx");
        check("x...............", 0, 4096, "xxxxxxxx........");
        check(".......x........", 0, 4096, "xxxxxxxx........");
        check("x..x", 0, 512, "x..x");
        check("x..x", 0, 1536, "xxxx");
        check("..x.", 0, 1024, "..xx");
        check("....xx", 1024, 4096, "xxxxxx");
    }
}
