//! Reference counts in memory: as wide as the image's, in pages, and only those pages that have one that is not zero.

use super::{CheckError, MEMORY_MAX};
use block_qcow2_format::RefcountBits;
use std::collections::HashMap;

/// Counts of clusters. A page has the layout of as many bytes of a reference count block.
#[derive(Clone)]
pub(super) struct Counts {
    bits: RefcountBits,
    page_bytes: usize,
    /// The binary logarithm of how many counts a page has.
    page_bits: u32,
    index: HashMap<u64, u32>,
    pages: Vec<Box<[u8]>>,
    /// Where the last look found what: references come in runs.
    last: Option<(u64, u32)>,
}

impl Counts {
    /// All zero, for clusters of `1 << cluster_bits` bytes. A block has a whole number of pages.
    pub(super) fn new(bits: RefcountBits, cluster_bits: u32) -> Self {
        let page_bytes_bits = cluster_bits.min(12);
        let page_bits = bits.block_bits(page_bytes_bits);
        Self { bits, page_bytes: 1 << page_bytes_bits, page_bits, index: HashMap::new(), pages: Vec::new(), last: None }
    }

    /// Bytes of a page.
    pub(super) fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// The binary logarithm of how many counts a page has.
    pub(super) fn page_bits(&self) -> u32 {
        self.page_bits
    }

    /// The count of `cluster`.
    #[inline]
    pub(super) fn get(&mut self, cluster: u64) -> u64 {
        let Some(page) = self.find(cluster >> self.page_bits) else { return 0 };
        self.bits.get(&self.pages[page], self.within(cluster))
    }

    /// Let the count of `cluster` be `count`, or as much as there can be.
    ///
    /// # Errors
    /// [`CheckError::TooLarge`]
    pub(super) fn set(&mut self, cluster: u64, count: u64) -> Result<(), CheckError> {
        let page = self.page_mut(cluster >> self.page_bits)?;
        let at = self.within(cluster);
        self.bits.set(&mut self.pages[page], at, count.min(self.bits.max()));
        Ok(())
    }

    /// Count `cluster` so many times more. By how much that is more than a count can be.
    ///
    /// # Errors
    /// [`CheckError::TooLarge`]
    #[inline]
    pub(super) fn add(&mut self, cluster: u64, times: u64) -> Result<u64, CheckError> {
        let page = self.page_mut(cluster >> self.page_bits)?;
        let at = self.within(cluster);
        let page = &mut self.pages[page];
        let old = self.bits.get(page, at);
        let new = old.saturating_add(times).min(self.bits.max());
        self.bits.set(page, at, new);
        Ok(times - (new - old))
    }

    /// The numbers of all pages that there are, in order. Page `n` begins with the count of cluster `n << page_bits`.
    pub(super) fn keys(&self) -> Vec<u64> {
        let mut keys: Vec<_> = self.index.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// A page, if there is one.
    pub(super) fn page(&self, key: u64) -> Option<&[u8]> {
        self.index.get(&key).map(|page| &*self.pages[*page as usize])
    }

    /// Take `bytes` as the page `key`.
    ///
    /// # Errors
    /// [`CheckError::TooLarge`]
    pub(super) fn put(&mut self, key: u64, bytes: &[u8]) -> Result<(), CheckError> {
        let page = self.page_mut(key)?;
        self.pages[page].copy_from_slice(bytes);
        Ok(())
    }

    fn within(&self, cluster: u64) -> usize {
        (cluster & ((1 << self.page_bits) - 1)) as usize
    }

    #[inline]
    fn find(&mut self, key: u64) -> Option<usize> {
        if let Some((last, page)) = self.last
            && last == key
        {
            return Some(page as usize);
        }
        let page = *self.index.get(&key)?;
        self.last = Some((key, page));
        Some(page as usize)
    }

    #[inline]
    fn page_mut(&mut self, key: u64) -> Result<usize, CheckError> {
        if let Some(page) = self.find(key) {
            return Ok(page);
        }
        // Of the two sets of counts that a check has, each may take a part; the rest is for lists.
        let page = u32::try_from(self.pages.len()).map_err(|_| CheckError::TooLarge)?;
        if u64::from(page) * (self.page_bytes as u64 + 64) > MEMORY_MAX / 8 * 3 {
            return Err(CheckError::TooLarge);
        }
        self.pages.push(vec![0; self.page_bytes].into());
        self.index.insert(key, page);
        self.last = Some((key, page));
        Ok(page as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_where_they_are_not_zero() {
        for order in 0..=6 {
            let bits = RefcountBits::new(order).expect("a width");
            let mut counts = Counts::new(bits, 9);
            assert_eq!(counts.page_bytes(), 512);
            let far = 1 << 45;
            assert_eq!((counts.get(far), counts.keys().len()), (0, 0));
            assert_eq!(counts.add(far, 1), Ok(0));
            assert_eq!(counts.add(3, 1), Ok(0));
            assert_eq!((counts.get(far), counts.get(3), counts.get(4), counts.keys().len()), (1, 1, 0, 2));
            // No count wraps.
            assert_eq!(counts.add(3, bits.max()), Ok(1));
            assert_eq!(counts.get(3), bits.max());
            assert_eq!(counts.keys(), [0, far >> counts.page_bits()]);
        }
    }
}
