//! Runs of zeroes in data. Pure functions on bytes.

use block_common::is_zero;
use std::ops::Range;

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
