//! Any metadata of a LUKS2 header, and any changes of its bytes, with a right checksum: nothing panics or takes memory, what is understood is written as it was read, its keys lie
//! apart, and slots come and go.
#![no_main]

use block_crypt::{Argon2Cost, Argon2Kind, Cipher, CipherMode, CipherSpec, Hash, IvGen, Secret};
use block_luks_format::{Header2, HeaderCopy, KdfCost, LuksError, NewHeader2};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Bytes of a copy, and of what is before its metadata.
const SIZE: usize = 16 << 10;
const BINARY: usize = 4096;
/// Where a copy's checksum is.
const CHECKSUM: std::ops::Range<usize> = 448..512;
/// The most that is computed here.
const QUICK: u64 = 1000;

/// Metadata instead of the usual one; pieces of metadata that are replaced (behind which `:` or `,`, how many bytes, by what); bytes that are changed (of which copy, where, to what).
type Input = (Option<Vec<u8>>, Vec<(u8, u8, Vec<u8>)>, Vec<(bool, u16, u8)>);

fn none(_: &mut [u8]) -> Result<(), LuksError> {
    Ok(())
}

/// Both copies of a header with two slots.
static USUAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let spec = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Plain64) };
    let (uuid, label) = ("00000000-0000-0000-0000-000000000000".to_owned(), String::new());
    let new =
        NewHeader2 { spec, sector: 512, hash: Hash::Sha256, uuid, label, digest_iterations: 1, is_detached: false };
    let mut header = new.header(&Secret::zeroed(16), none).expect("it can be made");
    let argon2 = Argon2Cost { time: 1, memory: 8, lanes: 1 };
    for cost in
        [KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1 }, KdfCost::Argon2 { kind: Argon2Kind::Id, cost: argon2 }]
    {
        let slot = header.free_slot().expect("there is one");
        header = header.seal(slot, b"", &Secret::zeroed(16), cost, none).expect("it can be sealed").header;
    }
    [HeaderCopy::Primary, HeaderCopy::Secondary].map(|copy| header.bytes(copy, none).expect("it has room")).concat()
});

/// What is made of it. The first copy has a right checksum, and the second one may have.
fn area((metadata, pieces, changes): Input, is_second_right: bool) -> Vec<u8> {
    let mut area = USUAL.clone();
    let end = area[BINARY..SIZE].iter().position(|byte| *byte == 0).expect("it has an end");
    let mut text = metadata.unwrap_or_else(|| area[BINARY..BINARY + end].to_vec());
    for (mark, len, piece) in pieces {
        let marks = text.iter().enumerate().filter(|(_, byte)| b":,".contains(byte)).map(|(at, _)| at + 1);
        let Some(at) = marks.clone().nth(usize::from(mark) % marks.count().max(1)) else { break };
        let end = text.len().min(at + usize::from(len));
        text.splice(at..end, piece);
    }
    text.truncate(SIZE - BINARY);
    for copy in area.chunks_mut(SIZE) {
        copy[BINARY..].fill(0);
        copy[BINARY..BINARY + text.len()].copy_from_slice(&text);
    }
    for (is_second, at, byte) in changes {
        area[usize::from(is_second) * SIZE + usize::from(at) % SIZE] = byte;
    }
    for copy in area.chunks_mut(SIZE).take(1 + usize::from(is_second_right)) {
        copy[CHECKSUM].fill(0);
        let sum = Hash::Sha256.digest(&[copy]);
        copy[CHECKSUM][..sum.len()].copy_from_slice(&sum);
    }
    area
}

fn check(header: &Header2, is_detached: bool) {
    let copies = [HeaderCopy::Primary, HeaderCopy::Secondary].map(|copy| header.bytes(copy, none));
    if let [Ok(first), Ok(second)] = copies {
        let again = Header2::parse(&[first, second].concat(), is_detached).expect("it was read before");
        assert_eq!((again.slots(), again.segment(), again.stale()), (header.slots(), header.segment(), None));
    }
    let mut areas: Vec<_> = header.slots().values().map(|slot| slot.area.clone()).collect();
    areas.sort_by_key(|area| area.start);
    assert!(areas.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(areas.iter().all(|area| area.start >= header.place(HeaderCopy::Secondary).end));
    assert!(is_detached || areas.iter().all(|area| area.end <= header.segment().offset));
    assert!(header.order_to_try().iter().all(|slot| header.slots()[slot].is_for_disk));
}

fuzz_target!(|input: (bool, bool, Input)| {
    let (is_detached, is_second_right, input) = input;
    let area = area(input, is_second_right);
    assert!(Header2::wanted(&area).is_none_or(|wanted| wanted > area.len() && wanted <= Header2::AREA_MAX));
    let Ok(header) = Header2::parse(&area, is_detached) else { return };
    check(&header, is_detached);
    for (number, slot) in header.slots() {
        let steps = match slot.kdf.cost {
            KdfCost::Pbkdf2 { iterations, .. } => iterations.into(),
            KdfCost::Argon2 { cost, .. } => u64::from(cost.time) * u64::from(cost.memory),
        };
        let place = slot.material();
        assert!(place.end <= slot.area.end && place.end - place.start <= 512 * 4000);
        assert!(slot.kdf.cost.memory() <= 4 << 20 && steps <= 1 << 32);
        if steps <= QUICK && u64::from(header.digest_iterations()) <= QUICK {
            let material = vec![0; (place.end - place.start) as usize];
            assert_eq!(header.unlock(*number, b"password", &material, 1000), Ok(None));
            assert!(header.unlock(*number, b"password", &material[1..], 1000).is_err());
        }
        if let Ok(less) = header.remove(*number) {
            assert!(!less.slots().contains_key(number));
            check(&less, is_detached);
        }
    }
    let cost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1 };
    let key_len = header.spec().map_or(16, |spec| spec.key_len());
    let slot = header.free_slot().unwrap_or(0);
    let key = Secret::zeroed(key_len);
    if let Ok(sealed) = header.seal(slot, b"password", &key, cost, none) {
        check(&sealed.header, is_detached);
        // What was put there comes out again, if the digest is that of the key.
        if u64::from(header.digest_iterations()) <= QUICK {
            let found = sealed.header.unlock(slot, b"password", sealed.material.expose(), 1000);
            let found = found.expect("it is as long as it should be");
            assert_eq!(found.is_some(), header.is_key(&key).expect("the header was checked"));
            assert!(found.is_none_or(|found| found == key));
        }
    }
});
