//! Another header in the place of the one that an image has, so that a power cut leaves one of both.
//!
//! A disk writes one sector whole or not at all; the fields at fixed places lie in the first, and what they lead to may lie in others. So
//! what is new there is written where the old header has nothing, before the sector that leads to it.

use crate::{FormatError, Header};
use std::ops::Range;

const SECTOR: usize = 512;

/// One write of several: where in the file, and what.
pub type HeaderWrite = (u64, Vec<u8>);

impl Header {
    /// The writes that let this header stand where `cluster`, an image's first, has another one. What each of them writes must be on disk
    /// before the next one begins: then the image has the old header or this one at any time, at most without the names of its features.
    ///
    /// Two things have no place apart from the old: a name in a cluster in which both do not fit, and extensions of more than a sector, names
    /// of features aside. They are written in place.
    ///
    /// # Errors
    /// What is wrong with the old one, and [`FormatError::BackingLong`] when the new one does not fit into a cluster.
    pub fn rewrite(&self, cluster: &[u8]) -> Result<Vec<HeaderWrite>, FormatError> {
        let old = Self::parse(cluster)?;
        self.to_bytes()?;
        let old_name = Self::name_range(cluster);
        let old_extensions = 0..Self::extensions_end(cluster).min(cluster.len());
        let old_end = old_extensions.end.max(old_name.end);
        let (mut head, mut brief) = (self.head(true), self.head(false));
        let name = self.backing_file.as_deref().unwrap_or_default();
        let size = self.geometry.cluster_size() as usize;
        let place = if name.is_empty() {
            0
        } else if name == old.backing_file.as_deref().unwrap_or_default() && old_name.start >= head.len() {
            old_name.start
        } else {
            let is_free = |at: usize| {
                let new = at..at + name.len();
                new.end <= size && (new.end <= SECTOR || !overlap(&new, &old_extensions) && !overlap(&new, &old_name))
            };
            let behind = [0, old_extensions.end, old_end].map(|end| head.len().max(end).next_multiple_of(8));
            behind.into_iter().find(|at| is_free(*at)).unwrap_or(head.len())
        };
        let is_apart = place + name.len() > SECTOR;
        for bytes in [&mut head, &mut brief] {
            Self::put_name(bytes, place, name.len());
            if !is_apart && !name.is_empty() {
                bytes.resize(place, 0);
                bytes.extend(name);
            }
        }
        // What the cluster is to be in the end; of what is not needed any more, nothing stays.
        let mut wanted = vec![0; head.len().max(place + name.len()).max(old_end)];
        wanted[..head.len()].copy_from_slice(&head);
        wanted[place..place + name.len()].copy_from_slice(if name.is_empty() { &[] } else { name });
        if wanted.len() <= SECTOR {
            return Ok(vec![(0, wanted)]);
        }
        let mut writes = Writes { now: cluster.to_vec(), writes: Vec::new() };
        writes.now.resize(writes.now.len().max(wanted.len()), 0);
        if is_apart {
            writes.put(place, name);
        }
        let tail = head.get(SECTOR..).unwrap_or_default();
        if writes.now.get(SECTOR..SECTOR + tail.len()) != Some(tail) && brief.len() <= SECTOR {
            writes.put(0, &brief);
        }
        writes.put(SECTOR, tail);
        writes.put(0, &head[..head.len().min(SECTOR)]);
        writes.put(0, &wanted);
        Ok(writes.writes)
    }
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The writes so far, and what the cluster is after them.
struct Writes {
    now: Vec<u8>,
    writes: Vec<HeaderWrite>,
}

impl Writes {
    /// Nothing that is there already is written.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let there = &mut self.now[at..at + bytes.len()];
        if there != bytes {
            there.copy_from_slice(bytes);
            self.writes.push((at as u64, bytes.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AutoclearFeatures, BitmapsExtension, Extension, Geometry, RefcountBits, Version, feature_names};
    use proptest::prelude::*;

    prop_compose! {
        fn header()(
            is_v3 in prop::bool::weighted(0.8),
            cluster_bits in prop::sample::select(vec![9u32, 12, 16]),
            name in prop::option::of(prop::collection::vec(1u8..255, 1..1023)),
            format in prop::option::of(prop::collection::vec(b'a'..=b'z', 1..15)),
            features in any::<bool>(),
            bitmaps in prop::option::of(1u64..9),
            unknown in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..3),
        ) -> Header {
            let version = if is_v3 { Version::V3 } else { Version::V2 };
            let bitmaps = bitmaps.filter(|_| is_v3);
            let place = |n| BitmapsExtension { count: 1, directory_size: 32, directory_offset: n << 21 };
            let unknown = unknown.into_iter().enumerate();
            Header {
                version,
                geometry: Geometry::new(cluster_bits, false).expect("a size"),
                size: 1 << 20,
                crypt_method: 0,
                l1_size: Geometry::new(cluster_bits, false).expect("a size").l1_entries_for(1 << 20) as u32,
                l1_offset: 1 << 21,
                refcount_table_offset: 1 << 22,
                refcount_table_clusters: 1,
                snapshots: 0,
                snapshots_offset: 0,
                incompatible: Default::default(),
                compatible: Default::default(),
                autoclear: if bitmaps.is_some() { AutoclearFeatures::BITMAPS } else { Default::default() },
                refcount_bits: RefcountBits::DEFAULT,
                compression: Default::default(),
                more: Vec::new(),
                backing_file: name,
                backing_format: format,
                data_file: None,
                crypto: None,
                features: if is_v3 && features { feature_names() } else { Vec::new() },
                bitmaps: bitmaps.map(place),
                has_stale_bitmaps: false,
                unknown: unknown.map(|(i, data)| Extension { kind: 7 + i as u32, data }).collect(),
            }
        }
    }

    fn without_names(header: &Header) -> Header {
        Header { features: Vec::new(), ..header.clone() }
    }

    /// Clusters that both names fit into, and extensions that fit into a sector.
    fn can_be_apart(header: &Header) -> bool {
        header.geometry.cluster_bits() >= 12 && header.head(false).len() <= SECTOR
    }

    /// The cluster with those of the sectors of a write that `mask` says.
    fn torn(cluster: &[u8], (at, bytes): &HeaderWrite, mask: u64) -> Vec<u8> {
        let mut torn = cluster.to_vec();
        for (i, byte) in bytes.iter().enumerate() {
            let place = *at as usize + i;
            if mask >> (place / SECTOR) & 1 != 0 {
                torn[place] = *byte;
            }
        }
        torn
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

        // Scenario: one header after another is written into a cluster, and the power goes after each write, with any of its sectors written.
        #[test]
        fn qcow2_1_a_torn_header_is_the_old_one_or_the_new_one(
            headers in prop::collection::vec(header(), 2..5),
            masks in prop::collection::vec(any::<u64>(), 8),
        ) {
            let geometry = headers[0].geometry;
            let mut cluster = vec![0; geometry.cluster_size() as usize];
            let mut last: Option<Header> = None;
            for mut header in headers {
                header.geometry = geometry;
                header.l1_size = geometry.l1_entries_for(1 << 20) as u32;
                let Ok(first) = header.to_bytes() else { continue };
                let Some(old) = last.replace(header.clone()) else {
                    cluster[..first.len()].copy_from_slice(&first);
                    continue;
                };
                for write in header.rewrite(&cluster).expect("a header") {
                    for mask in &masks {
                        let parsed = Header::parse(&torn(&cluster, &write, *mask));
                        if can_be_apart(&old) && can_be_apart(&header) {
                            let parsed = without_names(&parsed.expect("a header"));
                            prop_assert!(parsed == without_names(&old) || parsed == without_names(&header));
                        }
                    }
                    cluster = torn(&cluster, &write, !0);
                }
                prop_assert_eq!(Header::parse(&cluster), Ok(header.clone()));
                // Nothing else is left.
                let end = Header::name_range(&cluster).end.max(Header::extensions_end(&cluster));
                prop_assert!(cluster[end..].iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn what_does_not_change_is_not_written() {
        let base = Header { backing_file: Some(vec![b'x'; 600]), ..plain() };
        let mut cluster = base.to_bytes().expect("it fits");
        cluster.resize(65536, 0);
        assert_eq!(base.rewrite(&cluster), Ok(Vec::new()));
        // One sector, and the name where it is.
        let changed = Header { size: 4 << 20, ..base };
        let writes = changed.rewrite(&cluster).expect("a header");
        assert_eq!(writes.iter().map(|(at, bytes)| (*at, bytes.len())).collect::<Vec<_>>(), [(0, SECTOR)]);
    }

    fn plain() -> Header {
        let mut bytes = vec![0; 65536];
        let header = Header {
            version: Version::V3,
            geometry: Geometry::new(16, false).expect("64 KiB"),
            size: 1 << 20,
            crypt_method: 0,
            l1_size: 1,
            l1_offset: 0x30000,
            refcount_table_offset: 0x10000,
            refcount_table_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: Default::default(),
            compatible: Default::default(),
            autoclear: Default::default(),
            refcount_bits: RefcountBits::DEFAULT,
            compression: Default::default(),
            more: Vec::new(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            crypto: None,
            features: feature_names(),
            bitmaps: None,
            has_stale_bitmaps: false,
            unknown: Vec::new(),
        };
        let first = header.to_bytes().expect("it fits");
        bytes[..first.len()].copy_from_slice(&first);
        Header::parse(&bytes).expect("a header")
    }
}
