//! Any bytes as a LUKS header, and any changes of one: nothing panics, what is understood is written as it was read, and lies apart; no slot takes a key that is not the disk's.
#![no_main]

use block_crypt::{Cipher, CipherMode, CipherSpec, Hash, IvGen, Secret};
use block_luks_format::{Header1, LuksError, NewHeader1, SlotState};
use libfuzzer_sys::fuzz_target;

/// The most iterations that are computed here.
const ITERATIONS: u32 = 100;

fn usual() -> Header1 {
    let spec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
    let uuid = "00000000-0000-0000-0000-000000000000".to_owned();
    let new = NewHeader1 { spec, hash: Hash::Sha256, uuid, digest_iterations: 1, is_detached: false };
    new.header(&Secret::zeroed(64), |_| Ok::<(), LuksError>(())).expect("it can be made")
}

fuzz_target!(|input: (bool, bool, Vec<u8>)| {
    let (is_detached, is_whole, input) = input;
    let bytes = if is_whole {
        input
    } else {
        let mut bytes = usual().bytes();
        for change in input.chunks_exact(3) {
            bytes[usize::from(u16::from_le_bytes([change[0], change[1]])) % Header1::LEN] = change[2];
        }
        bytes.to_vec()
    };
    let Ok(header) = Header1::parse(&bytes, is_detached) else { return };
    assert_eq!(Header1::parse(&header.bytes(), is_detached), Ok(header.clone()));
    for slot in 0..Header1::SLOTS {
        let place = header.material(slot);
        assert!(place.end - place.start <= 64 * 4000);
        assert!(is_detached || place.end <= header.payload_offset());
        let SlotState::Enabled { iterations, .. } = header.slots[slot].state else { continue };
        if iterations <= ITERATIONS && header.digest_iterations <= ITERATIONS {
            let material = vec![0; (place.end - place.start) as usize];
            assert_eq!(header.unlock(slot, b"password", &material), Ok(None));
            // Too little of it, as where a file ends, is told.
            assert!(header.unlock(slot, b"password", &material[1..]).is_err());
        }
    }
    opened(&header);
});

/// A key that is put into the first slot comes out of it again, whatever else the header says, if the digest is that of the key.
fn opened(header: &Header1) {
    if header.digest_iterations > ITERATIONS {
        return;
    }
    let mut header = header.clone();
    let key = Secret::zeroed(header.spec.key_len());
    let Ok(sealed) = header.seal(0, b"password", &key, 1, |_| Ok::<(), LuksError>(())) else { return };
    header.slots[0].state = sealed.state;
    let is_key = header.is_key(&key).expect("the header was checked");
    let found = header.unlock(0, b"password", sealed.material.expose()).expect("it is as long as it should be");
    assert_eq!(found.is_some(), is_key);
    assert!(found.is_none_or(|found| found == key));
    // Material with a changed byte leads to no key, or with the digest of another one to that.
    let mut material = sealed.material.expose().to_vec();
    material[0] ^= 1;
    assert_eq!(header.unlock(0, b"password", &material), Ok(None));
}
