//! The log's format, that of Linux's dm-log-writes: a superblock, and entries one behind the other, in sectors of the log's own size. All numbers are little endian.
//!
//! | superblock | bytes | | entry | bytes |
//! |---|---|---|---|---|
//! | magic | 0–7 | | first sector of the disk | 0–7 |
//! | version | 8–15 | | how many sectors | 8–15 |
//! | how many entries | 16–23 | | flags | 16–23 |
//! | sector size | 24–27 | | bytes of data in the entry itself | 24–31 |
//!
//! Either fills a sector with zeroes. Behind an entry that is no discard stand its sectors.

/// The first bytes of a log.
const MAGIC: u64 = 0x6a_7366_7773_6872;
/// The one version there is.
const VERSION: u64 = 1;
/// Nothing but the superblock, without what fills its sector.
pub(crate) const SUPER_LEN: usize = 28;
/// An entry without what fills its sector.
pub(crate) const ENTRY_LEN: usize = 32;

/// What an entry marks: everything before it is on stable storage.
pub(crate) const FLUSH: u64 = 1;
/// What an entry marks: the sectors were discarded.
pub(crate) const DISCARD: u64 = 4;

/// The size of a log's sectors in bytes, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorSize(u32);

impl SectorSize {
    /// What a log has if nobody says otherwise.
    pub const DEFAULT: Self = Self(512);

    /// This size, if a log can have it.
    ///
    /// # Errors
    /// [`LogError::SectorSize`].
    pub fn new(bytes: u64) -> Result<Self, LogError> {
        match u32::try_from(bytes) {
            Ok(size @ 512..=0x80_0000) if size.is_power_of_two() => Ok(Self(size)),
            _ => Err(LogError::SectorSize(bytes)),
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.into()
    }
}

/// What is wrong with a log, or with what is asked of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It is no log.
    #[error("Invalid log superblock magic")]
    Magic,
    /// Another version.
    #[error("Unsupported log version {0}")]
    Version(u64),
    /// No log has such sectors.
    #[error("Invalid log sector size {0}")]
    SectorSize(u64),
    /// Zero entries between two updates.
    #[error("Invalid log superblock update interval 0")]
    Interval,
    /// Fewer entries are there than the superblock says.
    #[error("Invalid log: it ends before entry {0}")]
    Ends(u64),
}

/// The superblock of a log with `entries` entries.
pub(crate) fn superblock(entries: u64, sector: SectorSize) -> [u8; SUPER_LEN] {
    let mut bytes = [0; SUPER_LEN];
    for (at, number) in [MAGIC, VERSION, entries].into_iter().enumerate() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes[24..].copy_from_slice(&sector.0.to_le_bytes());
    bytes
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// How many entries a log has, and its sectors' size.
pub(crate) fn parse_superblock(bytes: &[u8; SUPER_LEN]) -> Result<(u64, SectorSize), LogError> {
    if number(bytes, 0) != MAGIC {
        return Err(LogError::Magic);
    }
    match number(bytes, 8) {
        VERSION => {}
        other => return Err(LogError::Version(other)),
    }
    let sector = SectorSize::new(number(bytes, 20) >> 32)?;
    Ok((number(bytes, 16), sector))
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sector: u64,
    pub(crate) count: u64,
    pub(crate) flags: u64,
}

impl Entry {
    pub(crate) fn encode(self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        for (at, number) in [self.sector, self.count, self.flags].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// How long the entry that begins with `bytes` is, its sectors included. `None` if no log is that long.
    pub(crate) fn len_of(bytes: &[u8; ENTRY_LEN], sector: SectorSize) -> Option<u64> {
        let count = if number(bytes, 16) & DISCARD == 0 { number(bytes, 8) } else { 0 };
        count.checked_add(1)?.checked_mul(sector.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_are_read_as_they_are_written() {
        for size in [512, 4096, 8 << 20] {
            let size = SectorSize::new(size).expect("a size");
            assert_eq!(parse_superblock(&superblock(7, size)), Ok((7, size)));
        }
        for size in [0, 1, 511, 513, 3072, 16 << 20, 1 << 32, u64::MAX] {
            assert_eq!(SectorSize::new(size), Err(LogError::SectorSize(size)));
        }
        let mut bytes = superblock(7, SectorSize::DEFAULT);
        bytes[8] = 2;
        assert_eq!(parse_superblock(&bytes), Err(LogError::Version(2)));
        bytes[0] = 2;
        assert_eq!(parse_superblock(&bytes), Err(LogError::Magic));
    }

    #[test]
    fn an_entry_has_its_sectors_unless_they_are_discarded() {
        let len = |count, flags| Entry::len_of(&Entry { sector: 9, count, flags }.encode(), SectorSize::DEFAULT);
        assert_eq!((len(8, 0), len(0, FLUSH), len(8, DISCARD)), (Some(4608), Some(512), Some(512)));
        assert_eq!((len(u64::MAX, 0), len(1 << 60, 0)), (None, None));
    }
}
