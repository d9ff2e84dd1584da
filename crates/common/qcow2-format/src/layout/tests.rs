//! Images are laid out and then read back as a stranger would: header, tables, counts.

use super::*;
use crate::L2Kind;
use proptest::prelude::*;

/// A file as the steps make it, in pieces that hold something other than zeroes.
#[derive(Default)]
struct File {
    bytes: Vec<u8>,
    space: Option<(u64, u64)>,
}

fn make(layout: &Layout) -> File {
    let mut file = File::default();
    let grow = |file: &mut File, end: u64| {
        let len = file.bytes.len().max(end as usize);
        file.bytes.resize(len, 0);
    };
    for step in layout.steps() {
        match step {
            Step::Space { offset, len } => {
                assert!(file.bytes.is_empty(), "it comes first");
                grow(&mut file, offset + len);
                file.space = Some((offset, len));
            }
            Step::Write { offset, bytes } => {
                let end = offset as usize + bytes.len();
                grow(&mut file, end as u64);
                file.bytes[offset as usize..end].copy_from_slice(&bytes);
            }
            Step::Zeroes { offset, len } => {
                grow(&mut file, offset + len);
                file.bytes[offset as usize..(offset + len) as usize].fill(0);
            }
            Step::Length(len) => {
                assert!(file.bytes.len() as u64 <= len, "nothing lies behind the end");
                grow(&mut file, len);
            }
        }
    }
    assert_eq!(file.bytes.len() as u64, layout.length());
    file
}

fn number(bytes: &[u8], at: u64) -> u64 {
    bytes.get(at as usize..at as usize + 8).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("8 bytes")))
}

/// Everything that the header leads to is counted once, nothing else is, and every guest cluster is where it should be.
fn check(image: NewImage) {
    let layout = Layout::new(image.clone()).expect("an image");
    let File { bytes, space } = make(&layout);
    let header = Header::parse(&bytes[..layout.geometry.cluster_size() as usize]).expect("a header");
    assert_eq!((header.size, header.version), (layout.size(), image.version));
    let geometry = header.geometry;
    let size = geometry.cluster_size();
    let mut used = vec![0u64; bytes.len().div_ceil(size as usize)];
    let mut count = |offset: u64, len: u64| {
        assert!(geometry.is_aligned(offset));
        (0..geometry.clusters_for(len)).for_each(|i| used[(offset / size + i) as usize] += 1);
    };
    count(0, size);
    let table_bytes = u64::from(header.refcount_table_clusters) * size;
    count(header.refcount_table_offset, table_bytes);
    let blocks: Vec<_> = (0..table_bytes / 8).map(|i| number(&bytes, header.refcount_table_offset + i * 8)).collect();
    blocks.iter().filter(|block| **block != 0).for_each(|block| count(*block, size));
    count(header.l1_offset, u64::from(header.l1_size) * 8);
    let mut guest = 0;
    for l1 in (0..u64::from(header.l1_size)).map(|i| L1Entry::from_raw(number(&bytes, header.l1_offset + i * 8))) {
        let Some(table) = l1.table() else { continue };
        count(table, size);
        for i in 0..geometry.l2_entries() {
            let entry = L2Entry::from_raw(number(&bytes, table + i * geometry.l2_entry_size()));
            match (entry.kind_in_data_file(&geometry), image.data_file.is_some()) {
                (L2Kind::Data(offset), true) => assert_eq!(offset, guest * size),
                (L2Kind::Data(offset), false) => {
                    count(offset, size);
                    if let Some((start, len)) = space {
                        assert!(offset >= start && offset + size <= start + len);
                    }
                }
                (L2Kind::Unallocated, _) => continue,
                (other, _) => panic!("{other:?}"),
            }
            guest += 1;
        }
    }
    let method = match &image.encryption {
        None => 0,
        Some(Encryption::Aes) => 1,
        Some(Encryption::Luks { .. }) => 2,
    };
    assert_eq!((header.crypt_method, header.crypto.is_some()), (method, method == 2));
    if let (Some((offset, len)), Some(Encryption::Luks { len: asked, bytes: given })) =
        (header.crypto, &image.encryption)
    {
        assert_eq!(len, *asked);
        count(offset, len);
        let there = &bytes[offset as usize..(offset + geometry.clusters_for(len) * size) as usize];
        assert!(there.starts_with(given) && there[given.len()..].iter().all(|byte| *byte == 0));
    }
    let has_tables = image.allocate != Allocate::Nothing || image.data_file_raw;
    assert_eq!(guest, if has_tables { geometry.clusters_for(header.size) } else { 0 });
    let counts = 1 << header.refcount_bits.block_bits(geometry.cluster_bits());
    for (i, used) in used.iter().enumerate() {
        let block = blocks.get(i / counts).copied().unwrap_or(0);
        let counted = match block {
            0 => 0,
            block => header.refcount_bits.get(&bytes[block as usize..(block + size) as usize], i % counts),
        };
        assert_eq!(counted, *used, "cluster {i}");
    }
}

#[test]
fn images_of_all_kinds_count_what_they_use() {
    let image = NewImage { size: 1 << 20, ..NewImage::default() };
    check(image.clone());
    check(NewImage { size: 0, ..image.clone() });
    check(NewImage { size: 1000, allocate: Allocate::Tables, ..image.clone() });
    check(NewImage { version: Version::V2, ..image.clone() });
    check(NewImage { extended_l2: true, allocate: Allocate::Space, ..image.clone() });
    check(NewImage { size: 0, allocate: Allocate::Space, ..image.clone() });
    let luks = |len, given| Some(Encryption::Luks { len, bytes: vec![0xa5; given] });
    for allocate in [Allocate::Nothing, Allocate::Tables, Allocate::Space] {
        check(NewImage { encryption: luks(0x1f_9000, 5000), allocate, ..image.clone() });
        check(NewImage { encryption: luks(65536, 65536), allocate, size: 0, ..image.clone() });
        check(NewImage { encryption: Some(Encryption::Aes), allocate, ..image.clone() });
    }
    let small = NewImage { cluster_size: 512, refcount_bits: 64, ..image };
    // A table that has to move for the header alone.
    check(NewImage { encryption: luks(0x1f_9000, 592), version: Version::V3, ..small.clone() });
    // Tables that have to move, several times.
    check(NewImage { size: 10 << 20, allocate: Allocate::Tables, ..small.clone() });
    check(NewImage { size: 10 << 20, allocate: Allocate::Space, ..small.clone() });
    check(NewImage { size: 10 << 30, ..small.clone() });
    check(NewImage { data_file: Some(b"data".to_vec()), data_file_raw: true, ..small });
}

/// Where qemu-img 10.0.2 puts the tables: in the old one's place, at the end, between the data.
#[test]
fn places_are_those_of_the_fields_tools() {
    let small = NewImage { cluster_size: 512, size: 10 << 20, ..NewImage::default() };
    let places = |image: NewImage| {
        let layout = Layout::new(image).expect("an image");
        let header = Header::parse(&layout.header).expect("a header");
        (header.refcount_table_offset / 512, header.refcount_table_clusters, layout.length())
    };
    assert_eq!(places(NewImage { allocate: Allocate::Tables, ..small.clone() }), (16641, 2, 20948 * 512));
    assert_eq!(places(NewImage { allocate: Allocate::Space, ..small.clone() }), (89, 2, 20890 * 512));
    let wide = NewImage { refcount_bits: 64, ..small };
    assert_eq!(places(NewImage { allocate: Allocate::Tables, ..wide.clone() }), (16453, 7, 21209 * 512));
    assert_eq!(places(NewImage { size: 128 << 30, ..wide }), (65617, 25, 66605 * 512));
    let plain = Layout::new(NewImage { size: 1 << 20, ..NewImage::default() }).expect("an image");
    assert_eq!(plain.length(), 0x30008);
}

/// Where qemu-img 10.0.2 puts the header of the encryption: behind all that is allocated.
#[test]
fn the_encryption_header_comes_last() {
    let encryption = Some(Encryption::Luks { len: 0x1f_9000, bytes: vec![1; 592] });
    let places = |image: NewImage| {
        let layout = Layout::new(NewImage { encryption: encryption.clone(), ..image }).expect("an image");
        let header = Header::parse(&layout.header).expect("a header");
        let (crypto, len) = header.crypto.expect("a header for keys");
        assert_eq!(len, 0x1f_9000);
        (header.l1_offset, header.refcount_table_offset, header.refcount_table_clusters, crypto, layout.length())
    };
    let image = NewImage { size: 1 << 20, ..NewImage::default() };
    assert_eq!(places(image.clone()), (0x30000, 0x10000, 1, 0x40000, 2_359_296));
    assert_eq!(places(NewImage { version: Version::V2, ..image.clone() }).3, 0x40000);
    let with = |allocate| NewImage { allocate, ..image.clone() };
    assert_eq!(places(with(Allocate::Tables)), (0x30000, 0x10000, 1, 0x15_0000, 3_473_408));
    assert_eq!(places(with(Allocate::Space)), (0x30000, 0x40000, 1, 0x15_0000, 3_473_408));
    let sized = |cluster_size| NewImage { cluster_size, ..image.clone() };
    assert_eq!(places(sized(512)), (0x600, 0x200, 1, 0x800, 2_078_208));
    assert_eq!(places(sized(4096)), (0x3000, 0x1000, 1, 0x4000, 2_084_864));
    assert_eq!(places(sized(2 << 20)), (0x60_0000, 0x20_0000, 1, 0x80_0000, 10_485_760));
    let wide = NewImage { refcount_bits: 64, ..sized(512) };
    assert_eq!(places(wide), (0x600, 0x20_8400, 2, 0x800, 2_131_968));
    let small = NewImage { size: 10 << 20, ..sized(512) };
    let with = |allocate| NewImage { allocate, ..small.clone() };
    assert_eq!(places(with(Allocate::Tables)), (0x600, 0x82_0200, 2, 0xa3_a800, 12_802_048));
    assert_eq!(places(with(Allocate::Space)), (0x600, 0xb200, 2, 0xa3_3400, 12_772_352));
    assert_eq!(places(NewImage { size: 0, ..image }), (0, 0x10000, 1, 0x30000, 2_293_760));
}

#[test]
fn more_than_the_encryption_header_has_is_refused() {
    let encryption = Some(Encryption::Luks { len: 591, bytes: vec![0; 592] });
    let error = Layout::new(NewImage { size: 1 << 20, encryption, ..NewImage::default() }).expect_err("refused");
    assert_eq!(error, LayoutError::EncryptionHeader { got: 592, len: 591 });
}

#[test]
fn what_cannot_be_is_refused_in_the_fields_words() {
    let refused = |image: NewImage| Layout::new(image).expect_err("refused").to_string();
    let image = NewImage { size: 1 << 20, ..NewImage::default() };
    let size = "Cluster size must be a power of two between 512 and 2048k";
    for cluster_size in [0, 256, 1000, 4 << 20, u64::MAX] {
        assert_eq!(refused(NewImage { cluster_size, ..image.clone() }), size);
    }
    let width = "Refcount width must be a power of two and may not exceed 64 bits";
    for refcount_bits in [0, 3, 128, u64::MAX] {
        assert_eq!(refused(NewImage { refcount_bits, ..image.clone() }), width);
    }
    let too_big = "The image size is too large (try using a larger cluster size)";
    for size in [u64::MAX, i64::MAX as u64, 3 << 61, (1 << 61) + 1] {
        assert_eq!(refused(NewImage { size, cluster_size: 2 << 20, ..image.clone() }), too_big);
    }
    let v2 = NewImage { version: Version::V2, ..image.clone() };
    assert_eq!(
        refused(NewImage { lazy_refcounts: true, ..v2.clone() }),
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    );
    assert_eq!(
        refused(NewImage { refcount_bits: 8, ..v2 }),
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"
    );
    let long = NewImage { backing_file: Some(vec![b'a'; 1024]), backing_format: Some(b"raw".to_vec()), ..image };
    assert!(refused(long.clone()).ends_with("' with format 'raw': Invalid argument"));
    let no_room = NewImage { backing_file: Some(vec![b'a'; 500]), cluster_size: 512, ..long };
    assert!(refused(no_room).ends_with("' with format 'raw': No space left on device"));
}

/// Scenario: the backing file's format has a name that no image can have.
#[test]
fn the_name_of_a_format_is_cut() {
    let (file, format) = (Some(b"b".to_vec()), Some(b"copy-before-write".to_vec()));
    let image = NewImage { size: 1 << 20, backing_file: file, backing_format: format, ..NewImage::default() };
    let layout = Layout::new(image).expect("an image");
    let header = Header::parse(&layout.header).expect("a header");
    assert_eq!(header.backing_format.as_deref(), Some(&b"copy-before-wri"[..]));
}

/// Scenario: a terabyte with all its tables, made piece by piece.
#[test]
fn pieces_are_small() {
    let image = NewImage { size: 1 << 40, allocate: Allocate::Tables, ..NewImage::default() };
    let layout = Layout::new(image).expect("an image");
    let (mut steps, mut bytes_max) = (0, 0);
    for step in layout.steps() {
        steps += 1;
        if let Step::Write { bytes, .. } = step {
            bytes_max = bytes_max.max(bytes.len());
        }
    }
    assert!(steps > 2048 && bytes_max == 65536, "{steps} steps, up to {bytes_max} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_image_counts_what_it_uses(
        cluster_bits in 9u32..17,
        order in 0u32..7,
        clusters in 0u64..3000,
        odd in 0u64..3,
        allocate in 0..3,
        extended in any::<bool>(),
        data_file in any::<bool>(),
        crypto in 0u64..200_000,
    ) {
        let allocate = [Allocate::Nothing, Allocate::Tables, Allocate::Space][allocate as usize];
        // Some megabytes at most are made.
        let clusters = clusters >> (cluster_bits - 9);
        check(NewImage {
            size: (clusters << cluster_bits) + odd * 512,
            cluster_size: 1 << cluster_bits,
            refcount_bits: 1 << order,
            extended_l2: extended && cluster_bits >= 14,
            data_file: data_file.then(|| b"data".to_vec()),
            allocate,
            encryption: crypto
                .checked_sub(100_000)
                .map(|len| Encryption::Luks { len: len + 1, bytes: vec![7; (len / 2) as usize] }),
            ..NewImage::default()
        });
    }

    #[test]
    fn trust_3_no_options_panic(
        size in prop_oneof![any::<u64>(), 0u64..1 << 40],
        cluster_size in prop_oneof![1 => any::<u64>(), 9 => (8u32..23).prop_map(|bits| 1 << bits)],
        refcount_bits in prop_oneof![1 => any::<u64>(), 9 => (0u32..8).prop_map(|order| 1 << order)],
        version_2 in any::<bool>(),
        extended_l2 in any::<bool>(),
        lazy_refcounts in any::<bool>(),
        data_file_raw in any::<bool>(),
        names in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..1200)), 3),
    ) {
        let image = NewImage {
            version: if version_2 { Version::V2 } else { Version::V3 },
            // Raw data files have tables for everything: not for exabytes here.
            size: if data_file_raw { size % (1 << 32) } else { size },
            cluster_size,
            refcount_bits,
            extended_l2,
            lazy_refcounts,
            data_file: names[0].clone(),
            data_file_raw,
            backing_file: names[1].clone(),
            backing_format: names[2].clone(),
            ..NewImage::default()
        };
        if let Ok(layout) = Layout::new(image) {
            prop_assert!(Header::parse(&layout.header).is_ok());
        }
    }
}
