//! What headers say, are refused for, and become.

use super::*;
use crate::HeaderCopy::{Primary, Secondary};
use crate::material::random;
use block_crypt::{Argon2Cost, Argon2Kind, Cipher, CipherMode, IvGen};
use proptest::prelude::*;
use std::sync::LazyLock;

const USUAL: CipherSpec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
const QUICK: KdfCost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 3 };
const ARGON: KdfCost = KdfCost::Argon2 { kind: Argon2Kind::Id, cost: Argon2Cost { time: 1, memory: 32, lanes: 2 } };
const ANY: u32 = u32::MAX;

fn new(spec: CipherSpec, is_detached: bool) -> NewHeader2 {
    let (uuid, label) = ("b9cdd2fd-9c66-4ab2-a5c4-64c4ff2c11f8".to_owned(), "moon".to_owned());
    NewHeader2 { spec, sector: 4096, hash: Hash::Sha256, uuid, label, digest_iterations: 5, is_detached }
}

fn key_for(spec: CipherSpec) -> Secret {
    let mut key = Secret::zeroed(spec.key_len());
    random(1)(key.expose_mut()).expect("it cannot fail");
    key
}

fn made(spec: CipherSpec) -> (Header2, Secret) {
    let key = key_for(spec);
    (new(spec, false).header(&key, random(2)).expect("it can be made"), key)
}

/// The usual header with a slot for `moon`, which has number 2.
fn with_slot() -> &'static Header2 {
    static IT: LazyLock<Header2> = LazyLock::new(|| {
        let (header, key) = made(USUAL);
        header.seal(2, b"moon", &key, QUICK, random(3)).expect("it can be sealed").header
    });
    &IT
}

fn area(header: &Header2) -> Vec<u8> {
    [Primary, Secondary].map(|copy| header.bytes(copy, random(copy as u64)).expect("it has room")).concat()
}

fn parse(area: &[u8]) -> Result<Header2, LuksError> {
    Header2::parse(area, false)
}

/// The checksums of both copies are made right again.
fn mended(area: &mut [u8]) {
    let size = area.len() / 2;
    for copy in area.chunks_mut(size) {
        copy[448..512].fill(0);
        let sum = Hash::Sha256.digest(&[copy]);
        copy[448..480].copy_from_slice(&sum);
    }
}

/// The usual header with other metadata.
fn with_text(text: &str) -> Vec<u8> {
    let mut area = area(with_slot());
    for copy in area.chunks_mut(NEW_SIZE) {
        copy[4096..].fill(0);
        copy[4096..4096 + text.len()].copy_from_slice(text.as_bytes());
    }
    mended(&mut area);
    area
}

fn text_of(header: &Header2) -> String {
    String::from_utf8(header.text().expect("it has room")).expect("JSON is UTF-8")
}

/// The usual metadata with one place changed.
fn changed(from: &str, to: &str) -> Result<Header2, LuksError> {
    let text = text_of(with_slot());
    assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
    parse(&with_text(&text.replacen(from, to, 1)))
}

#[test]
fn a_new_header_lies_as_the_fields_program_lays_it() {
    let (header, key) = made(USUAL);
    assert_eq!((header.place(Primary), header.place(Secondary)), (0..16384, 16384..32768));
    assert_eq!((header.segment().offset, header.segment().len, header.segment().sector), (16 << 20, None, 4096));
    assert_eq!((header.uuid().len(), header.label(), header.subsystem(), header.seqid()), (36, "moon", "", 1));
    assert_eq!((header.spec(), header.spec_for(64), header.hash()), (None, Ok(USUAL), Hash::Sha256));
    assert!(header.is_key(&key) == Ok(true) && header.is_key(&Secret::zeroed(64)) == Ok(false));
    assert_eq!(parse(&area(&header)), Ok(header.clone()));
    let sealed = header.seal(0, b"moon", &key, QUICK, random(3)).expect("it can be sealed").header;
    let slot = &sealed.slots()[&0];
    assert_eq!((slot.area.clone(), slot.material()), (32768..290_816, 32768..288_768));
    assert_eq!((sealed.spec(), sealed.seqid()), (Some(USUAL), 2));
    let detached = new(USUAL, true).header(&key, random(2)).expect("it can be made");
    assert_eq!(detached.segment().offset, 0);
    assert_eq!(Header2::parse(&area(&detached), true), Ok(detached.clone()));
    let told = parse(&area(&detached)).expect_err("the data is in the header").to_string();
    assert_eq!(told, "LUKS header payload offset is out of range: 0");
}

#[test]
fn what_cannot_be_made_is_refused() {
    let key = key_for(USUAL);
    let told = |new: NewHeader2, key: &Secret| new.header(key, random(2)).expect_err("refused").to_string();
    let usual = || new(USUAL, false);
    let label = NewHeader2 { label: "x".repeat(48), ..usual() };
    assert_eq!(told(label, &key), "LUKS header label is not NUL terminated");
    let uuid = NewHeader2 { uuid: "x\0y".to_owned(), ..usual() };
    assert_eq!(told(uuid, &key), "LUKS header uuid is not NUL terminated");
    let sector = NewHeader2 { sector: 1536, ..usual() };
    assert_eq!(told(sector, &key), "LUKS2 metadata 'segments.0.sector_size' is out of range: 1536");
    let digest = NewHeader2 { digest_iterations: 0, ..usual() };
    assert_eq!(told(digest, &key), "The parameters of PBKDF2 are out of range");
    assert_eq!(told(usual(), &Secret::zeroed(32)), LuksError::KeyLength(32).to_string());
}

#[test]
fn what_is_sealed_is_unlocked_with_its_password_only() {
    for (spec, cost) in [
        (USUAL, QUICK),
        (USUAL, ARGON),
        // A key whose material is no whole number of sectors.
        (CipherSpec { cipher: Cipher::Aes192, mode: CipherMode::Cbc, iv: Some(IvGen::Plain64) }, QUICK),
        (CipherSpec { cipher: Cipher::Serpent128, mode: CipherMode::Cbc, iv: Some(IvGen::Essiv(Hash::Sha256)) }, ARGON),
    ] {
        let (header, key) = made(spec);
        assert_eq!(header.unlock(3, b"moon", &[], ANY), Ok(None), "it has none");
        let sealed = header.seal(3, b"moon", &key, cost, random(9)).expect("it can be sealed");
        let header = parse(&area(&sealed.header)).expect("it is one");
        assert_eq!(header, sealed.header);
        let (material, place) = (sealed.material.expose(), header.material(3).expect("it has a key"));
        assert_eq!(material.len() as u64, place.end - place.start);
        assert_eq!(header.unlock(3, b"moon", material, ANY), Ok(Some(key.clone())));
        assert_eq!(header.unlock(3, b"noon", material, ANY), Ok(None));
        let mut other = material.to_vec();
        other[12_345] ^= 1;
        assert_eq!(header.unlock(3, b"moon", &other, ANY), Ok(None));
        assert_eq!(header.unlock(3, b"moon", &material[1..], ANY), Err(LuksError::Material(3)));
        let memory = if cost == ARGON { 32 } else { 0 };
        assert!(header.unlock(3, b"moon", material, memory).is_ok());
        if let Some(limit) = cost.memory().checked_sub(1) {
            let told = header.unlock(3, b"moon", material, limit).expect_err("too much");
            assert_eq!(told, LuksError::SlotMemory { slot: 3, memory: 32, limit });
        }
    }
}

#[test]
fn slots_come_and_go() {
    // Keys are short, so that there is little to compute.
    let (header, key) = made(CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Plain64) });
    let seal = |header: &Header2, slot| header.seal(slot, b"moon", &key, QUICK, random(slot.into()));
    let mut full = header.clone();
    while let Some(slot) = full.free_slot() {
        full = seal(&full, slot).expect("there is room for all").header;
    }
    assert_eq!((full.slots().len(), full.order_to_try(), full.seqid()), (32, (0..32).collect(), 33));
    assert_eq!(seal(&full, 7).expect_err("it is in use"), LuksError::SlotInUse(7));
    assert_eq!(seal(&full, 32).expect_err("there is none"), LuksError::SlotNumber(32));
    let less = full.remove(7).expect("it is there");
    assert_eq!((less.free_slot(), less.material(7), less.seqid()), (Some(7), None, 34));
    assert_eq!(less.remove(7), Err(LuksError::SlotNumber(7)));
    let moved = seal(&less, 7).expect("there is room").header;
    let last = full.material(31).expect("it is there").start;
    assert!(moved.material(7).expect("it is there").start > last, "a copy on the disk may speak of the place it had");
    let less = parse(&area(&less)).expect("now none does");
    let again = seal(&less, 7).expect("there is room").header;
    assert_eq!(again.material(7), full.material(7), "the first place that is free is its own");
    assert_eq!(parse(&area(&again)), Ok(again));
    let short = header.seal(0, b"moon", &Secret::zeroed(24), QUICK, random(1)).expect("nobody says how long it is");
    assert_eq!(seal(&short.header, 1).expect_err("now a slot does"), LuksError::KeyLength(16));
    let wrong = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 0 };
    let told = header.seal(0, b"moon", &key, wrong, random(1)).expect_err("it is no cost").to_string();
    assert_eq!(told, "LUKS2 metadata 'keyslots.0.kdf.iterations' is out of range: 0");
    let mut last = header.clone();
    last.fields.seqid = u64::MAX;
    assert!(matches!(last.remove(0), Err(LuksError::SlotNumber(0))));
    assert!(matches!(seal(&last, 0), Err(LuksError::Range { field: "sequence number", .. })));
}

/// What nobody here knows stays where it was, and what says of a slot that it is there goes with it.
#[test]
fn what_is_not_known_is_kept() {
    let text = text_of(with_slot())
        .replace(
            r#""tokens":{}"#,
            r#""tokens":{"5":{"type":"strange","keyslots":["2"],"z":[1,{"a":null}],"b":"\u00e4"}}"#,
        )
        .replace(
            r#""config":{"#,
            r#""config":{"flags":["allow-discards"],"requirements":{"mandatory":[],"optional":["x"]},"#,
        )
        .replace(r#""key_size":64,"af""#, r#""key_size":64,"new":-1,"priority":2,"af""#);
    let header = parse(&with_text(&text)).expect("it makes sense");
    assert_eq!(text_of(&header), text.replace("\\u00e4", "ä"));
    assert_eq!(header.slots()[&2].priority, Priority::Prefer);
    let less = text_of(&header.remove(2).expect("it is there"));
    assert!(less.contains(r#""keyslots":{}"#) && less.contains(r#""type":"strange","keyslots":[],"z":[1,{"#), "{less}");
    assert!(
        less.contains(r#""flags":["allow-discards"]"#) && less.contains(r#""keyslots":[],"segments":["0"]"#),
        "{less}"
    );
    // Nothing that a token has is shown.
    let token = header.seal(0, b"x", &Secret::zeroed(64), QUICK, random(1)).expect("it can be sealed").header;
    assert!(!format!("{token:?}").contains("strange") && text_of(&token).contains("strange"));
}

#[test]
fn slots_are_tried_in_the_order_of_their_priority() {
    let (mut header, key) = made(USUAL);
    for slot in 0..4 {
        header = header.seal(slot, b"moon", &key, QUICK, random(4)).expect("it can be sealed").header;
    }
    header.json["keyslots"]["2"]["priority"] = 2.into();
    header.json["keyslots"]["0"]["priority"] = 0.into();
    header.json["keyslots"]["1"]["priority"] = 1.into();
    // A key that is no disk's.
    header.json["digests"]["0"]["keyslots"] = json!(["2", "1", "0"]);
    header.json["digests"]["1"] = json!({ "type": "other", "keyslots": ["3"], "segments": [] });
    let header = parse(&area(&header)).expect("it makes sense");
    assert_eq!(header.order_to_try(), [2, 1]);
    assert!(!header.slots()[&3].is_for_disk && header.slots()[&0].is_for_disk);
    assert_eq!(header.unlock(3, b"moon", &[], ANY), Ok(None));
    let less = header.remove(3).expect("it is there");
    assert!(less.json["digests"].get("1").is_none(), "what its digest was for is gone");
    assert_eq!(less.slots().len(), 3);
}

#[test]
fn the_newer_good_copy_counts_and_the_other_is_written_first() {
    let (old, key) = made(USUAL);
    let new = old.seal(0, b"moon", &key, QUICK, random(3)).expect("it can be sealed").header;
    let (old_area, new_area) = (area(&old), area(&new));
    let half = NEW_SIZE;
    let broken = |area: &[u8], at: usize| {
        let mut area = area.to_vec();
        area[at] ^= 1;
        area
    };
    let told = |area: &[u8]| parse(area).map(|header| (header.seqid(), header.stale(), header.order()));
    let (first, second) = ([Primary, Secondary], [Secondary, Primary]);
    assert_eq!(told(&new_area), Ok((2, None, first)));
    // The power failed between the copies, or while one was written.
    assert_eq!(told(&[&new_area[..half], &old_area[half..]].concat()), Ok((2, Some(Secondary), second)));
    assert_eq!(told(&[&old_area[..half], &new_area[half..]].concat()), Ok((2, Some(Primary), first)));
    for at in [0, 9, 30, 90, 150, 300, 450, 460, 5000, half - 1] {
        assert_eq!(told(&broken(&new_area, at)), Ok((2, Some(Primary), first)), "at {at}");
        assert_eq!(told(&broken(&new_area, half + at)), Ok((2, Some(Secondary), second)), "at {at}");
        assert!(told(&broken(&broken(&new_area, at), half + at)).is_err(), "at {at}");
    }
    // Another version is no broken copy of this one.
    assert_eq!(told(&broken(&new_area, 7)), Err(LuksError::Version(3)));
    assert_eq!(told(&broken(&new_area, half + 7)), Ok((2, Some(Secondary), second)));
    // The same number, and something else: the primary one counts.
    let mut other = old.clone();
    other.fields.label = "noon".to_owned();
    assert_eq!(told(&[&old_area[..half], &area(&other)[half..]].concat()), Ok((1, Some(Secondary), second)));
    assert_eq!(parse(&broken(&new_area, 5000)).expect("one is good").slots(), new.slots());
    // What mends it is the stale copy alone.
    let mut mended = broken(&new_area, 77);
    let header = parse(&mended).expect("one is good");
    let bytes = header.bytes(Primary, random(8)).expect("it has room");
    mended[..half].copy_from_slice(&bytes);
    assert_eq!(parse(&mended), Ok(new));
}

/// The power fails while a copy is written, whatever the copies were before: there is always a good one, with what was true before or what is now.
#[test]
fn a_power_cut_leaves_a_readable_header() {
    let old = with_slot();
    let earlier = area(&made(USUAL).0);
    let (good, half) = (area(old), NEW_SIZE);
    let broken = vec![0xff; half];
    for start in [
        good.clone(),
        [&good[..half], &earlier[half..]].concat(),
        [&earlier[..half], &good[half..]].concat(),
        [&good[..half], &broken].concat(),
        [&broken, &good[half..]].concat(),
    ] {
        let mut disk = start;
        let new = parse(&disk).expect("one is good").remove(2).expect("it is there");
        for copy in new.order() {
            let bytes = new.bytes(copy, random(11)).expect("it has room");
            let at = new.place(copy).start as usize;
            for written in (0..half).step_by(512).chain([1, 20, 450, 460, 4097]) {
                let mut torn = disk.clone();
                torn[at..at + written].copy_from_slice(&bytes[..written]);
                let slots = parse(&torn).expect("one is good").slots;
                assert!(slots == old.slots || slots.is_empty(), "{copy:?} up to {written}");
            }
            disk[at..at + half].copy_from_slice(&bytes);
            assert!(parse(&disk).expect("one is good").slots.is_empty(), "what is written counts");
        }
        assert_eq!(parse(&disk).map(|header| (header.stale(), header.seqid())), Ok((None, 3)));
    }
}

#[test]
fn as_much_is_wanted_as_there_can_be() {
    let good = area(with_slot());
    let mut long = good.clone();
    long.resize(Header2::AREA_MAX, 0);
    assert_eq!(Header2::wanted(&[]), Some(4096));
    assert_eq!(Header2::wanted(&good[..4096]), Some(32768));
    assert_eq!(Header2::wanted(&good), None);
    // The beginning is broken: all places are looked at.
    for at in [0, 9] {
        let mut broken = long.clone();
        broken[at] ^= 1;
        assert_eq!(Header2::wanted(&broken[..4096]), Some(Header2::AREA_MAX));
        assert_eq!(Header2::wanted(&broken), None);
        assert_eq!(parse(&broken).map(|header| header.stale()), Ok(Some(Primary)));
    }
    // It says another size that there is: at 32 KiB there is nothing.
    let mut broken = long.clone();
    broken[14] = 0x80;
    assert_eq!(Header2::wanted(&broken[..4096]), Some(65536));
    assert_eq!(Header2::wanted(&broken[..65536]), None, "it was found within these");
    broken[16384] = 0;
    assert_eq!(Header2::wanted(&broken[..65536]), Some(Header2::AREA_MAX));
    assert_eq!(parse(&broken), Err(LuksError::Checksum));
    // Another version is not looked behind.
    long[7] = 1;
    assert_eq!((Header2::wanted(&long[..4096]), parse(&long)), (None, Err(LuksError::Version(1))));
    assert_eq!(parse(&good[..100]), Err(LuksError::Short(100)));
    assert_eq!(parse(&good[..20000]), parse(&good[..16384]), "the second copy is cut off");
    assert_eq!(parse(&vec![0; 1 << 20]), Err(LuksError::Magic));
}

#[test]
fn copies_of_every_size_are_found() {
    for shift in 14..=22 {
        let size = 1usize << shift;
        let mut header = with_slot().clone();
        header.fields.size = size;
        header.json["config"]["json_size"] = (size - 4096).to_string().into();
        header.json["segments"]["0"]["offset"] = (64 << 20).to_string().into();
        header.json["keyslots"]["2"]["area"]["offset"] = (2 * size).to_string().into();
        let mut area = area(&header);
        assert!(parse(&area).is_ok(), "{size}");
        area[..512].fill(0);
        let found = parse(&area).expect("the second copy is good");
        assert_eq!((found.stale(), found.place(Secondary).start), (Some(Primary), size as u64));
    }
}

#[test]
fn fields_that_make_no_sense_are_refused_by_name() {
    let told = |at: usize, bytes: &[u8]| {
        let mut area = area(with_slot());
        for copy in area.chunks_mut(NEW_SIZE) {
            copy[at..at + bytes.len()].copy_from_slice(bytes);
        }
        mended(&mut area);
        parse(&area).expect_err("it makes no sense").to_string()
    };
    assert_eq!(told(0, b"M"), "Volume is not in LUKS format");
    assert_eq!(told(6, &[0, 3]), "LUKS version 3 is not supported");
    assert_eq!(told(8, &[0xff; 8]), "LUKS header size is out of range: 18446744073709551615");
    assert_eq!(told(24, &[b'x'; 48]), "LUKS header label is not NUL terminated");
    assert_eq!(told(24, &[0xff, 0]), "LUKS header label is not NUL terminated");
    assert_eq!(told(72, b"sha512"), "Algorithm 'sha512' for a header's checksum is not supported");
    assert_eq!(told(72, "sh\u{e4}\x1b\0".as_bytes()), "Algorithm 'sh??' for a header's checksum is not supported");
    assert_eq!(told(168, &[b'x'; 40]), "LUKS header uuid is not NUL terminated");
    assert_eq!(told(208, &[b'x'; 48]), "LUKS header subsystem is not NUL terminated");
    assert_eq!(told(256, &[0, 0, 0, 0, 0, 0, 1, 0]), "LUKS header offset is out of range: 256");
    assert_eq!(told(4096, &[b' '; NEW_SIZE - 4096]), "LUKS header metadata is not NUL terminated");
    assert_eq!(told(4096, b"x"), "LUKS2 metadata 'the JSON text' is missing or malformed");
}

#[test]
fn metadata_that_makes_no_sense_is_refused_by_name() {
    let missing = |path: &str| format!("LUKS2 metadata '{path}' is missing or malformed");
    let range = |path: &str, value: u64| format!("LUKS2 metadata '{path}' is out of range: {value}");
    let unknown = |path: &str, name: &str| format!("LUKS2 metadata '{path}' is '{name}', which is not supported");
    let slot = |path: &str| format!("keyslots.2{path}");
    let cases = [
        (r#""keyslots":{"2""#, r#""keyslots":{"32""#, missing("keyslots")),
        (r#""keyslots":{"2""#, r#""keyslots":{"02""#, missing("keyslots")),
        (r#""tokens":{}"#, r#""token":{}"#, missing("tokens")),
        (r#""tokens":{}"#, r#""tokens":{"32":{}}"#, missing("tokens")),
        (r#""tokens":{}"#, r#""tokens":[]"#, missing("tokens")),
        (r#""tokens":{}"#, r#""tokens":{"0":{"type":"x"}}"#, missing("tokens.0.keyslots")),
        (r#""tokens":{}"#, r#""tokens":{"0":{"type":"x","keyslots":["1"]}}"#, missing("tokens.0.keyslots")),
        (r#""luks2""#, r#""reencrypt""#, unknown(&slot(".type"), "reencrypt")),
        (r#""luks2""#, "7", missing(&slot(".type"))),
        (r#""luks2""#, r#""a b""#, missing(&slot(".type"))),
        (r#""key_size":64,"af""#, r#""key_size":0,"af""#, range(&slot(".key_size"), 0)),
        (r#""key_size":64,"af""#, r#""key_size":-1,"af""#, missing(&slot(".key_size"))),
        (r#""key_size":64,"af""#, r#""key_size":48,"priority":3,"af""#, range(&slot(".priority"), 3)),
        (r#""key_size":64,"af""#, r#""key_size":63,"af""#, "Algorithm 'aes-248' for a cipher is not supported".into()),
        (r#""key_size":64}"#, r#""key_size":4294967360}"#, range(&slot(".area.key_size"), 4_294_967_360)),
        (r#""luks1""#, r#""luks3""#, unknown(&slot(".af.type"), "luks3")),
        ("4000", "4001", range(&slot(".af.stripes"), 4001)),
        (r#""raw""#, r#""journal""#, unknown(&slot(".area.type"), "journal")),
        (r#""32768""#, r#""32256""#, "Keyslot 2 is overlapping with the LUKS header".into()),
        (r#""32768""#, r#""32769""#, range(&slot(".area.offset"), 32769)),
        (r#""32768""#, r#""+32768""#, missing(&slot(".area.offset"))),
        (r#""32768""#, "32768", missing(&slot(".area.offset"))),
        (r#""32768""#, r#""16777216""#, "Keyslot 2 is outside of the keyslots area".into()),
        (r#""32768""#, r#""18446744073709551104""#, range(&slot(".area.size"), 258_048)),
        (r#""258048""#, r#""255999""#, range(&slot(".area.size"), 255_999)),
        (r#""258048""#, r#""18446744073709551616""#, missing(&slot(".area.size"))),
        (r#""pbkdf2","hash":"sha256","iterations":3,"#, r#""scrypt","#, unknown(&slot(".kdf.type"), "scrypt")),
        (r#""iterations":3"#, r#""iterations":0"#, range(&slot(".kdf.iterations"), 0)),
        (r#""iterations":3"#, r#""iterations":1073741825"#, range(&slot(".kdf.iterations"), 1_073_741_825)),
        (r#""iterations":3"#, r#""iterations":1e3"#, missing(&slot(".kdf.iterations"))),
        (r#""sha256","iterations":3"#, r#""md5","iterations":3"#, "Algorithm 'md5' for a hash is not supported".into()),
        (r#""crypt""#, r#""linear""#, unknown("segments.0.type", "linear")),
        (
            r#""crypt""#,
            r#""crypt","integrity":{"type":"hmac(sha256)"}"#,
            unknown("segments.0.integrity.type", "hmac(sha256)"),
        ),
        (r#""crypt""#, r#""crypt","flags":["in-reencryption"]"#, unknown("segments.0.flags", "in-reencryption")),
        (r#""16777216""#, r#""16777215""#, range("segments.0.offset", 16_777_215)),
        (r#""16777216""#, r#""16773120""#, "LUKS header payload offset is out of range: 16773120".into()),
        (r#""16777216""#, r#""9223372036854775808""#, range("segments.0.offset", 1 << 63)),
        (r#""dynamic""#, r#""9223372036854771712""#, range("segments.0.offset", 16 << 20)),
        (r#""dynamic""#, r#""0""#, range("segments.0.size", 0)),
        (r#""dynamic""#, r#""512""#, range("segments.0.size", 512)),
        (r#""dynamic""#, r#""static""#, missing("segments.0.size")),
        (r#""iv_tweak":"0""#, r#""iv_tweak":0"#, missing("segments.0.iv_tweak")),
        ("4096}", "8192}", range("segments.0.sector_size", 8192)),
        ("4096}", "0}", range("segments.0.sector_size", 0)),
        (r#""segments":{"0""#, r#""segments":{"1""#, missing("segments")),
        (r#""segments":{"0""#, r#""segments":{"1":{},"0""#, missing("segments")),
        (r#""segments":["0"]"#, r#""segments":[]"#, missing("digests")),
        (r#""segments":["0"]"#, r#""segments":[0]"#, missing("digests.0.segments")),
        (r#""keyslots":["2"]"#, r#""keyslots":["1"]"#, missing("digests.0.keyslots")),
        (r#""keyslots":["2"]"#, r#""keyslots":["02"]"#, missing("digests.0.keyslots")),
        (r#""keyslots":["2"]"#, r#""keyslots":[]"#, missing("digests")),
        (r#""digests":{"#, r#""digests":{"1":{"keyslots":["2"],"segments":[]},"#, missing("digests.0.keyslots")),
        (r#""digests":{"#, r#""digests":{"1":{"keyslots":[],"segments":["0"]},"#, missing("digests")),
        (r#""iterations":5"#, r#""iterations":4294967295"#, range("digests.0.iterations", u32::MAX.into())),
        (r#""digest":""#, r#""digest":"="#, missing("digests.0.digest")),
        (r#""12288""#, r#""12289""#, range("config.json_size", 12289)),
        (r#""16744448""#, r#""16744449""#, range("config.keyslots_size", 16_744_449)),
        (r#""16744448""#, r#""134221824""#, range("config.keyslots_size", 134_221_824)),
        (
            r#""config":{"#,
            r#""config":{"requirements":{"mandatory":["online-reencrypt-v2"]},"#,
            unknown("config.requirements.mandatory", "online-reencrypt-v2"),
        ),
        (r#""config":{"#, r#""config":{"requirements":["offline-reencrypt"],"#, missing("config.requirements")),
    ];
    for (from, to, text) in cases {
        assert_eq!(changed(from, to).expect_err(to).to_string(), text, "{from} to {to}");
    }
}

#[test]
fn what_argon2_asks_for_is_bounded() {
    let (header, key) = made(USUAL);
    let text = text_of(&header.seal(2, b"moon", &key, ARGON, random(3)).expect("it can be sealed").header);
    let told = |to: &str| {
        let from = r#""time":1,"memory":32,"cpus":2"#;
        parse(&with_text(&text.replace(from, to))).map(drop).map_err(|error| error.to_string())
    };
    let range =
        |name: &str, value: u64| Err(format!("LUKS2 metadata 'keyslots.2.kdf.{name}' is out of range: {value}"));
    assert_eq!(told(r#""time":1024,"memory":4194304,"cpus":4"#), Ok(()));
    assert_eq!(told(r#""time":1025,"memory":4194304,"cpus":4"#), range("time", 1025));
    assert_eq!(told(r#""time":4,"memory":4194305,"cpus":4"#), range("memory", 4_194_305));
    assert_eq!(told(r#""time":4,"memory":31,"cpus":4"#), range("memory", 31));
    assert_eq!(told(r#""time":0,"memory":32,"cpus":4"#), range("time", 0));
    assert_eq!(told(r#""time":4,"memory":32,"cpus":0"#), range("cpus", 0));
    assert_eq!(told(r#""time":4,"memory":32,"cpus":65"#), range("cpus", 65));
    assert_eq!(told(r#""time":4294967296,"memory":32,"cpus":1"#), range("time", 1 << 32));
}

#[test]
fn slots_that_lie_in_each_other_are_refused() {
    let (header, key) = made(USUAL);
    let mut header = header.seal(1, b"moon", &key, QUICK, random(3)).expect("it can be sealed").header;
    header = header.seal(5, b"moon", &key, QUICK, random(3)).expect("it can be sealed").header;
    header.json["keyslots"]["5"]["area"]["offset"] = "36864".into();
    assert_eq!(parse(&area(&header)), Err(LuksError::SlotsOverlap(1, 5)));
}

/// A text as large as one can be, of what costs most: it is refused before it costs anything.
#[test]
fn metadata_that_costs_memory_is_refused_before_it_is_parsed() {
    let (header, _) = made(USUAL);
    for piece in ["[", "[],", "0,", "{\"\":"] {
        let mut header = header.clone();
        header.fields.size = 4 << 20;
        let text = format!("{{\"a\":{}", piece.repeat(((4 << 20) - 5000) / piece.len()));
        let bytes = binary::bytes(&header.fields, text.as_bytes(), Primary, &[0; 64]);
        assert_eq!(parse(&bytes), Err(LuksError::MetadataSize), "and not that it is no JSON");
    }
    // What is in strings does not count.
    let text = text_of(&header)
        .replace(r#""tokens":{}"#, r#""tokens":{"0":{"type":"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"[","keyslots":[]}}"#);
    assert!(parse(&with_text(&text)).is_ok());
}

proptest! {
    #[test]
    fn any_changes_of_bytes_are_read_or_refused(
        changes in prop::collection::vec((0usize..5600, any::<u8>()), 1..6), is_right: bool, is_detached: bool,
    ) {
        let mut area = area(with_slot());
        for copy in area.chunks_mut(NEW_SIZE) {
            changes.iter().for_each(|(at, byte)| copy[*at] = *byte);
        }
        if is_right {
            mended(&mut area);
        }
        let _ = Header2::wanted(&area);
        if let Ok(header) = Header2::parse(&area, is_detached) {
            let again = [Primary, Secondary].map(|copy| header.bytes::<LuksError>(copy, |_| Ok(())).expect("it was there"));
            prop_assert_eq!(Header2::parse(&again.concat(), is_detached), Ok(header));
        }
    }

    #[test]
    fn any_number_is_read_or_refused(which in 0usize..12, value: u64, shift in 0u32..64) {
        let names = ["key_size", "stripes", "offset", "size", "iterations", "sector_size", "iv_tweak", "json_size", "keyslots_size", "time", "memory", "cpus"];
        static IT: LazyLock<Header2> = LazyLock::new(|| {
            with_slot().seal(0, b"a", &key_for(USUAL), ARGON, random(3)).expect("it can be sealed").header
        });
        let mut json = Value::Object(IT.json.clone());
        for pointer in ["/keyslots/0", "/keyslots/0/af", "/keyslots/0/area", "/keyslots/0/kdf", "/keyslots/2/kdf", "/segments/0", "/digests/0", "/config"] {
            let value = value >> shift;
            match json.pointer_mut(pointer).and_then(|it| it.get_mut(names[which])) {
                Some(Value::String(text)) => *text = value.to_string(),
                Some(number) => *number = value.into(),
                None => {}
            }
        }
        if let Ok(header) = parse(&with_text(&json.to_string())) {
            for slot in header.slots().values() {
                prop_assert!(slot.kdf.cost.memory() <= 4 << 20);
                prop_assert!(slot.area.start >= 32768 && slot.area.end <= header.segment().offset);
                prop_assert!(slot.material().end <= slot.area.end);
            }
        }
    }
}
