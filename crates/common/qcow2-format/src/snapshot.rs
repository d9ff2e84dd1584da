//! The table of internal snapshots (specification: "Snapshots"): entries of different lengths, one behind the other.

use crate::Version;
use crate::bytes::{take, u32_at, u64_at};

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// Extra data that this project knows: the VM state's size in 64 bits, the disk's size, the count of instructions.
const KNOWN: usize = 24;
/// "Not known", as the count of instructions has it.
const NO_ICOUNT: u64 = u64::MAX;

/// A snapshot, as its entry describes it. Not checked: the L1 table may be anywhere, of any size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 table lies.
    pub l1_offset: u64,
    /// Entries of that table.
    pub l1_size: u32,
    /// Its id: a number in most cases, unique within the image.
    pub id: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
    /// When it was taken, in seconds since 1970.
    pub date_seconds: u32,
    /// And nanoseconds.
    pub date_nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of the VM's state, which stand behind the virtual disk. 0: there is none.
    pub vm_state_size: u64,
    /// Bytes of the virtual disk at that time. Version 2 may leave it out: then it is that of today.
    pub disk_size: Option<u64>,
    /// Instructions that the guest had executed, where they were counted.
    pub icount: Option<u64>,
    /// Bytes of extra data in the entry as it was read, or 0.
    pub extra_size: u32,
    /// Extra data behind what this project knows. Kept as it is.
    pub extra: Vec<u8>,
}

/// Why bytes are no table of snapshots. The texts are the field's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There are not enough bytes for the entry, which needs so many.
    #[error("snapshot table entry needs {0} bytes")]
    Short(usize),
    /// More extra data than anybody needs.
    #[error("Too much extra metadata in snapshot table entry")]
    Extra(u32),
    /// All entries together are too long.
    #[error("Snapshot table is too big")]
    TableLarge,
}

impl Snapshot {
    /// The longest table, in bytes.
    pub const TABLE_MAX: u64 = 64 << 20;
    /// The most extra data that an entry may have, in bytes.
    pub const EXTRA_MAX: u32 = 1024;

    /// The entry that `bytes` begin with, and how many bytes it takes, those up to the next one included.
    ///
    /// # Errors
    /// [`SnapshotError::Short`] with the number of bytes that it takes, or [`SnapshotError::Extra`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), SnapshotError> {
        let extra_size = u32_at(bytes, 36);
        if bytes.len() >= FIXED && extra_size > Self::EXTRA_MAX {
            return Err(SnapshotError::Extra(extra_size));
        }
        Self::parse_any(bytes)
    }

    /// As [`Snapshot::parse`], but extra data past [`Snapshot::EXTRA_MAX`] is left out.
    ///
    /// # Errors
    /// [`SnapshotError::Short`], or [`SnapshotError::TableLarge`] when one entry is longer than a table may be.
    pub fn parse_any(bytes: &[u8]) -> Result<(Self, usize), SnapshotError> {
        if bytes.len() < FIXED {
            return Err(SnapshotError::Short(FIXED));
        }
        let u16_at = |at| usize::from(u16::from_be_bytes(take(bytes, at)));
        let (id_size, name_size, extra_size) = (u16_at(12), u16_at(14), u32_at(bytes, 36));
        if u64::from(extra_size) > Self::TABLE_MAX {
            return Err(SnapshotError::TableLarge);
        }
        let id_at = FIXED + extra_size as usize;
        let end = id_at + id_size + name_size;
        let len = end.next_multiple_of(8);
        if bytes.len() < end {
            return Err(SnapshotError::Short(len));
        }
        let kept = &bytes[FIXED..FIXED + extra_size.min(Self::EXTRA_MAX) as usize];
        let known = |at: usize| (kept.len() >= at + 8).then(|| u64_at(kept, at));
        let snapshot = Self {
            l1_offset: u64_at(bytes, 0),
            l1_size: u32_at(bytes, 8),
            id: bytes[id_at..id_at + id_size].to_vec(),
            name: bytes[id_at + id_size..end].to_vec(),
            date_seconds: u32_at(bytes, 16),
            date_nanoseconds: u32_at(bytes, 20),
            vm_clock_nanoseconds: u64_at(bytes, 24),
            vm_state_size: known(0).unwrap_or_else(|| u32_at(bytes, 32).into()),
            disk_size: known(8),
            icount: known(16).filter(|icount| *icount != NO_ICOUNT),
            extra_size,
            extra: kept.get(KNOWN..).unwrap_or_default().to_vec(),
        };
        Ok((snapshot, len))
    }

    /// The `count` entries of a table, and the bytes that they take.
    ///
    /// # Errors
    /// That of the entry that is wrong.
    pub fn parse_table(bytes: &[u8], count: u32) -> Result<(Vec<Self>, usize), SnapshotError> {
        let (mut snapshots, mut at) = (Vec::new(), 0);
        for _ in 0..count {
            let (snapshot, len) = Self::parse(bytes.get(at..).unwrap_or_default())?;
            snapshots.push(snapshot);
            at += len;
            if at as u64 > Self::TABLE_MAX {
                return Err(SnapshotError::TableLarge);
            }
        }
        Ok((snapshots, at))
    }

    /// Whether the entry has all that an image of this version has to tell (specification: version 3 needs the disk's size).
    pub fn is_complete(&self, version: Version) -> bool {
        version == Version::V2 || self.disk_size.is_some()
    }

    /// The bytes of the entry, up to where the next one begins.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut extra = self.vm_state_size.to_be_bytes().to_vec();
        if let Some(size) = self.disk_size {
            extra.extend(size.to_be_bytes());
            extra.extend(self.icount.unwrap_or(NO_ICOUNT).to_be_bytes());
            extra.extend(&self.extra);
        }
        let mut bytes = self.l1_offset.to_be_bytes().to_vec();
        bytes.extend(self.l1_size.to_be_bytes());
        for text in [&self.id, &self.name] {
            bytes.extend((text.len().min(u16::MAX.into()) as u16).to_be_bytes());
        }
        bytes.extend(self.date_seconds.to_be_bytes());
        bytes.extend(self.date_nanoseconds.to_be_bytes());
        bytes.extend(self.vm_clock_nanoseconds.to_be_bytes());
        // The field of 32 bits is for programs that do not know the one of 64.
        bytes.extend(u32::try_from(self.vm_state_size).unwrap_or(0).to_be_bytes());
        bytes.extend((extra.len() as u32).to_be_bytes());
        bytes.extend(extra);
        for text in [&self.id, &self.name] {
            bytes.extend(text.iter().take(u16::MAX.into()));
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            l1_offset: 0xa0000,
            l1_size: 1,
            id: b"1".to_vec(),
            name: b"one".to_vec(),
            date_seconds: 1_795_385_218,
            date_nanoseconds: 29_664_000,
            vm_clock_nanoseconds: 5,
            vm_state_size: 1 << 33,
            disk_size: Some(64 << 20),
            icount: Some(7),
            extra_size: 24,
            extra: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut other = Snapshot { extra: vec![9; 8], extra_size: 32, icount: None, ..snapshot() };
        other.name = b"another".to_vec();
        let bytes = [snapshot().to_bytes(), other.to_bytes()].concat();
        assert_eq!(Snapshot::parse_table(&bytes, 2), Ok((vec![snapshot(), other], bytes.len())));
        assert_eq!(bytes.len() % 8, 0);
    }

    /// Scenario: the bytes that qemu-img 10.0.2 wrote for `snapshot -c one`.
    #[test]
    fn the_fields_own_entry_is_understood() {
        let mut bytes = vec![0; 72];
        bytes[5] = 0x0a;
        bytes[11] = 1;
        (bytes[13], bytes[15], bytes[39]) = (1, 3, 24);
        bytes[52] = 4;
        bytes[64..68].copy_from_slice(b"1one");
        let (snapshot, len) = Snapshot::parse(&bytes).expect("an entry");
        assert_eq!((snapshot.l1_offset, snapshot.l1_size, len), (0xa0000, 1, 72));
        assert_eq!((&*snapshot.id, &*snapshot.name), (&b"1"[..], &b"one"[..]));
        assert_eq!((snapshot.disk_size, snapshot.icount, snapshot.vm_state_size), (Some(64 << 20), Some(0), 0));
        assert!(snapshot.is_complete(Version::V3));
    }

    /// Scenario: an entry of the first days, which has no extra data.
    #[test]
    fn old_entries_lack_the_disks_size() {
        let mut bytes = vec![0; 48];
        (bytes[13], bytes[15], bytes[35]) = (1, 1, 9);
        bytes[40..42].copy_from_slice(b"1x");
        let (snapshot, len) = Snapshot::parse(&bytes).expect("an entry");
        assert_eq!((snapshot.vm_state_size, snapshot.disk_size, len), (9, None, 48));
        assert!(snapshot.is_complete(Version::V2) && !snapshot.is_complete(Version::V3));
        let again = Snapshot::parse(&snapshot.to_bytes()).expect("an entry").0;
        assert_eq!(again, Snapshot { extra_size: 8, ..snapshot });
    }

    #[test]
    fn trust_3_absurd_sizes_are_refused() {
        let mut bytes = snapshot().to_bytes();
        assert_eq!(Snapshot::parse(&bytes[..39]), Err(SnapshotError::Short(40)));
        assert_eq!(Snapshot::parse(&bytes[..60]), Err(SnapshotError::Short(72)));
        bytes[38] = 5;
        assert_eq!(Snapshot::parse(&bytes), Err(SnapshotError::Extra(0x518)));
        assert_eq!(Snapshot::parse_any(&bytes), Err(SnapshotError::Short(1352)));
        bytes.resize(1352, 1);
        let (cut, len) = Snapshot::parse_any(&bytes).expect("an entry");
        assert_eq!((cut.extra.len(), cut.extra_size, len), (1000, 0x518, 1352));
        bytes[36] = 0xff;
        assert_eq!(Snapshot::parse_any(&bytes), Err(SnapshotError::TableLarge));
    }

    proptest! {
        #[test]
        fn trust_3_no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), small in any::<bool>()) {
            let mut bytes = bytes;
            if small && bytes.len() > 40 {
                bytes[36..39].fill(0);
                bytes[12] = 0;
                bytes[14] = 0;
            }
            let _ = Snapshot::parse_table(&bytes, 3);
            if let Ok((snapshot, _)) = Snapshot::parse_any(&bytes)
                && snapshot.disk_size.is_some()
            {
                let again = Snapshot::parse_any(&snapshot.to_bytes()).expect("its own bytes").0;
                prop_assert_eq!(again.id, snapshot.id);
                prop_assert_eq!(again.extra, snapshot.extra);
                prop_assert_eq!(again.icount, snapshot.icount);
            }
        }
    }
}
