//! What there is to tell of an image: its header, snapshots and bitmaps, as values with names, and in the field's words.
//!
//! Nothing but the image's file is looked at, and of that no guest data: neither a backing file nor a data file nor a key is needed. Opening nodes
//! and laying out JSON is the caller's business.

use crate::bitmaps::tell_of_stale;
use crate::check::{CheckError, Image, Storage};
use crate::image::Qcow2Control;
use block_common::HumanSize;
use block_io::Req;
use block_qcow2_format::{
    AutoclearFeatures, Bitmap, BitmapFlags, CompatibleFeatures, CompressionType, Header, IncompatibleFeatures,
    Snapshot, SnapshotError, Version,
};
use std::fmt::Write;

/// How often the list of snapshots is read anew when it has changed meanwhile.
const TABLE_TRIES: usize = 8;

/// A value that has a name, or stands in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InfoValue {
    /// Words.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// Several.
    List(Vec<InfoValue>),
    /// Several with names, which are those of the field's JSON.
    Map(Vec<(&'static str, InfoValue)>),
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The header.
    pub header: Header,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Persistent bitmaps, if they are as of the last write.
    pub bitmaps: Vec<Bitmap>,
}

impl ImageInfo {
    /// Read what is told of the image in `file`.
    ///
    /// # Errors
    /// What makes the image one that nobody can open, or the file's error.
    pub async fn read(file: Storage<'_>) -> Result<Self, CheckError> {
        let image = Image::open(file).await?;
        let header = image.header().await?;
        tell_of_stale(&header);
        let snapshots = snapshots(&image, &header).await?;
        let bitmaps = match header.bitmaps {
            None => Vec::new(),
            Some(extension) => {
                // The header's parser has bounded it.
                let directory = image.read(extension.directory_offset, extension.directory_size).await?;
                Bitmap::parse_directory(&directory, &extension, &header.geometry)?
            }
        };
        Ok(Self { header, snapshots, bitmaps })
    }

    /// Where the machine's state begins in the image's addresses, in bytes.
    pub fn vm_state_offset(&self) -> u64 {
        let geometry = &self.header.geometry;
        geometry.l1_entries_for(self.header.size) * geometry.cluster_size() * geometry.l2_entries()
    }

    /// Whether guest data is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.header.crypt_method != 0
    }

    /// Whether the image was not closed by whoever wrote to it last.
    pub fn is_dirty(&self) -> bool {
        self.header.incompatible.contains(IncompatibleFeatures::DIRTY)
    }

    /// "Format specific information", in its order.
    pub fn specific(&self) -> InfoValue {
        use InfoValue::{Flag, Map, Number};
        let header = &self.header;
        let is_v3 = header.version == Version::V3;
        let compression = match header.compression {
            CompressionType::Zlib => "zlib",
            CompressionType::Zstd => "zstd",
        };
        let mut all =
            vec![("compat", text(if is_v3 { "1.1" } else { "0.10" })), ("compression-type", text(compression))];
        if is_v3 {
            all.push(("lazy-refcounts", Flag(header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS))));
        }
        if !self.bitmaps.is_empty() {
            all.push(("bitmaps", InfoValue::List(self.bitmaps.iter().map(bitmap).collect())));
        }
        all.push(("refcount-bits", Number(header.refcount_bits.bits().into())));
        match header.crypt_method {
            0 => {}
            1 => all.push(("encrypt", Map(vec![("format", text("aes"))]))),
            _ => all.push(("encrypt", Map(vec![("format", text("luks"))]))),
        }
        if header.incompatible.contains(IncompatibleFeatures::DATA_FILE) {
            if let Some(name) = &header.data_file {
                all.push(("data-file", text(&String::from_utf8_lossy(name))));
            }
            all.push(("data-file-raw", Flag(header.autoclear.contains(AutoclearFeatures::DATA_FILE_RAW))));
        }
        if is_v3 {
            all.push(("corrupt", Flag(header.incompatible.contains(IncompatibleFeatures::CORRUPT))));
            all.push(("extended-l2", Flag(header.geometry.is_extended())));
        }
        Map(all)
    }

    /// The snapshots as values.
    pub fn snapshot_values(&self) -> Vec<InfoValue> {
        let value = |snapshot: &Snapshot| {
            use InfoValue::Number;
            let clock = snapshot.vm_clock_nanoseconds;
            let mut all = Vec::new();
            all.extend(snapshot.icount.map(|icount| ("icount", Number(icount))));
            all.push(("vm-clock-nsec", Number(clock % SECOND)));
            all.push(("name", text(&String::from_utf8_lossy(&snapshot.name))));
            all.push(("date-sec", Number(snapshot.date_seconds.into())));
            all.push(("date-nsec", Number(snapshot.date_nanoseconds.into())));
            all.push(("vm-clock-sec", Number(clock / SECOND)));
            all.push(("id", text(&String::from_utf8_lossy(&snapshot.id))));
            all.push(("vm-state-size", Number(snapshot.vm_state_size)));
            InfoValue::Map(all)
        };
        self.snapshots.iter().map(value).collect()
    }

    /// The snapshots as a table with a line each, behind one with the columns' names; `date` makes a date and a time of seconds since 1970.
    pub fn snapshot_table(&self, date: impl Fn(u32) -> String) -> String {
        let row = |[id, tag, size, date, clock, icount]: [&str; 6]| {
            format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
        };
        let mut table = row(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
        for snapshot in &self.snapshots {
            let (ms, seconds) =
                (snapshot.vm_clock_nanoseconds % SECOND / 1_000_000, snapshot.vm_clock_nanoseconds / SECOND);
            let clock = format!("{:04}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60);
            table += &row([
                &String::from_utf8_lossy(&snapshot.id),
                &String::from_utf8_lossy(&snapshot.name),
                &HumanSize(snapshot.vm_state_size).to_string(),
                &date(snapshot.date_seconds),
                &clock,
                &snapshot.icount.map_or("--".into(), |icount| icount.to_string()),
            ]);
        }
        table
    }
}

const SECOND: u64 = 1_000_000_000;

fn text(words: &str) -> InfoValue {
    InfoValue::Text(words.into())
}

fn bitmap(bitmap: &Bitmap) -> InfoValue {
    let names = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
    let flags = names.into_iter().filter(|(flag, _)| bitmap.flags.contains(*flag)).map(|(_, name)| text(name));
    InfoValue::Map(vec![
        ("flags", InfoValue::List(flags.collect())),
        ("name", text(&bitmap.name_text())),
        ("granularity", InfoValue::Number(bitmap.granularity())),
    ])
}

async fn snapshots(image: &Image<'_>, header: &Header) -> Result<Vec<Snapshot>, CheckError> {
    let mut len = (u64::from(header.snapshots) * 128).max(4096);
    loop {
        let bytes = image.read(header.snapshots_offset, len.min(Snapshot::TABLE_MAX)).await?;
        match Snapshot::parse_table(&bytes, header.snapshots) {
            Ok((snapshots, _)) => return Ok(snapshots),
            Err(SnapshotError::Short(_)) if len < Snapshot::TABLE_MAX => len *= 4,
            Err(SnapshotError::Extra(_)) => return Err(CheckError::SnapshotExtra(extra_at(&bytes, header.snapshots))),
            Err(_) => return Err(CheckError::SnapshotsLarge),
        }
    }
}

/// Which entry has too much extra data.
fn extra_at(bytes: &[u8], count: u32) -> u32 {
    let mut at = 0;
    for index in 0..count {
        match Snapshot::parse(bytes.get(at..).unwrap_or_default()) {
            Ok((_, len)) => at += len,
            Err(_) => return index,
        }
    }
    count
}

impl Qcow2Control {
    /// What the open image says of itself. `req` is a token on its node; other requests may be under way, and snapshots come and go.
    ///
    /// # Errors
    /// As [`ImageInfo::read`].
    #[doc(alias = "bdrv_get_info")]
    #[doc(alias = "bdrv_get_specific_info")]
    pub async fn info(&self, req: &Req) -> Result<ImageInfo, CheckError> {
        for _ in 1..TABLE_TRIES {
            let (info, is_current) = self.info_now(req).await;
            if is_current {
                return info;
            }
        }
        self.info_now(req).await.0
    }

    /// What there is to tell, and whether that was true all the time: the header and the bitmaps are in memory, and the list of snapshots lies where
    /// the header says, which is somewhere else, with other bytes in its old place, as soon as one is taken or deleted.
    async fn info_now(&self, req: &Req) -> (Result<ImageInfo, CheckError>, bool) {
        let place = |header: &Header| (header.snapshots, header.snapshots_offset);
        let (header, bitmaps) = (self.header(), self.0.bitmaps().stored().to_vec());
        let snapshots = match header.snapshots {
            0 => Ok(Vec::new()),
            _ => match Image::open(Storage::Edge(req, &self.0.file)).await {
                Ok(image) => snapshots(&image, &header).await,
                Err(error) => Err(error),
            },
        };
        let is_current = place(&header) == place(&self.header());
        (snapshots.map(|snapshots| ImageInfo { header, snapshots, bitmaps }), is_current)
    }
}

impl InfoValue {
    /// As the field's tools lay it out for people: a line for each value, behind `indent` for each level.
    pub fn to_text(&self, indent: usize) -> String {
        let mut all = String::new();
        self.write(&mut all, indent);
        all
    }

    fn write(&self, to: &mut String, indent: usize) {
        let mut put = |name: String, value: &Self| {
            let _ = write!(to, "{:indent$}{name}:", "", indent = indent * 4);
            match value {
                // A String takes whatever is written to it.
                Self::Text(words) => drop(writeln!(to, " {words}")),
                Self::Number(number) => drop(writeln!(to, " {number}")),
                Self::Flag(flag) => drop(writeln!(to, " {flag}")),
                Self::List(_) | Self::Map(_) => {
                    to.push('\n');
                    value.write(to, indent + 1);
                }
            }
        };
        match self {
            Self::List(list) => list.iter().enumerate().for_each(|(index, value)| put(format!("[{index}]"), value)),
            Self::Map(map) => map.iter().for_each(|(name, value)| put(name.replace('-', " "), value)),
            Self::Text(_) | Self::Number(_) | Self::Flag(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_qcow2_format::Geometry;

    /// A new image's header, as `qemu-img create -o compat=…` makes it.
    fn info(version: Version) -> ImageInfo {
        let mut bytes = vec![0; 65536];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        for (at, value) in [(4, 3), (20, 16), (36, 1), (56, 1), (96, 4), (100, 104)] {
            bytes[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        }
        for (at, value) in [(24, 1 << 20), (40, 0x30000), (48, 0x10000)] {
            bytes[at..at + 8].copy_from_slice(&u64::to_be_bytes(value));
        }
        let header = Header::parse(&bytes).expect("a header");
        ImageInfo { header: Header { version, ..header }, snapshots: Vec::new(), bitmaps: Vec::new() }
    }

    /// Scenario: what qemu-img 10.0.2 printed for images with these features.
    #[test]
    fn images_are_described_in_the_fields_words() {
        let v2 = "    compat: 0.10\n    compression type: zlib\n    refcount bits: 16\n";
        assert_eq!(info(Version::V2).specific().to_text(1), v2);
        let v3 = "    compat: 1.1\n    compression type: zlib\n    lazy refcounts: false\n    refcount bits: 16\n    \
                  corrupt: false\n    extended l2: false\n";
        assert_eq!(info(Version::V3).specific().to_text(1), v3);
        let mut all = info(Version::V3);
        all.header.geometry = Geometry::new(16, true).expect("64 KiB");
        all.header.compression = CompressionType::Zstd;
        all.header.compatible = CompatibleFeatures::LAZY_REFCOUNTS;
        all.header.incompatible = IncompatibleFeatures::DATA_FILE | IncompatibleFeatures::CORRUPT;
        all.header.data_file = Some(b"d.raw".to_vec());
        all.header.autoclear = AutoclearFeatures::DATA_FILE_RAW;
        all.header.crypt_method = 1;
        let bitmap = |name: &str, granularity_bits, flags| Bitmap {
            table_offset: 0x10000,
            table_size: 1,
            flags,
            granularity_bits,
            name: name.into(),
        };
        all.bitmaps =
            vec![bitmap("a", 16, BitmapFlags::IN_USE | BitmapFlags::AUTO), bitmap("bee", 12, BitmapFlags::empty())];
        let lines = "    compat: 1.1\n    compression type: zstd\n    lazy refcounts: true\n    bitmaps:\n        \
                     [0]:\n            flags:\n                [0]: in-use\n                [1]: auto\n            \
                     name: a\n            granularity: 65536\n        [1]:\n            flags:\n            name: \
                     bee\n            granularity: 4096\n    refcount bits: 16\n    encrypt:\n        format: aes\n    \
                     data file: d.raw\n    data file raw: true\n    corrupt: true\n    extended l2: true\n";
        assert_eq!(all.specific().to_text(1), lines);
    }

    /// Scenario: the table that qemu-img 10.0.2 printed.
    #[test]
    fn snapshots_are_listed_in_the_fields_columns() {
        let mut image = info(Version::V3);
        let one = Snapshot {
            id: b"1".to_vec(),
            name: b"one".to_vec(),
            vm_state_size: 1_234_567,
            vm_clock_nanoseconds: (360_061 * SECOND) + 345_000_000,
            ..Snapshot::default()
        };
        let name = b"a long name for a snapshot, longer than the column".to_vec();
        let two = Snapshot { id: b"2".to_vec(), name, icount: Some(12345), ..Snapshot::default() };
        image.snapshots = vec![one, two];
        let table = "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n\
                     1       one              1.18 MiB 2026-11-22 22:51:57  0100:01:01.345         --\n\
                     2       a long name for a snapshot, longer than the column      0 B 2026-11-22 22:51:57  \
                     0000:00:00.000      12345\n";
        assert_eq!(image.snapshot_table(|_| "2026-11-22 22:51:57".into()), table);
        let InfoValue::Map(values) = &image.snapshot_values()[0] else { panic!("a map") };
        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["vm-clock-nsec", "name", "date-sec", "date-nsec", "vm-clock-sec", "id", "vm-state-size"]);
        assert_eq!(values[4], ("vm-clock-sec", InfoValue::Number(360_061)));
    }
}
