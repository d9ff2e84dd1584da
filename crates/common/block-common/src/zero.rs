//! Whether data is zeroes: asked of every byte that is converted, compared or written with zero detection.

/// Whether all of `data` is zeroes. Data that is not most often shows it in its first bytes.
pub fn is_zero(data: &[u8]) -> bool {
    let (head, blocks) = data.split_at(data.len() % 64);
    // Without a branch inside a block, so that the compiler can use wide registers.
    let zero = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    zero(head) && blocks.chunks_exact(64).all(zero)
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
}
