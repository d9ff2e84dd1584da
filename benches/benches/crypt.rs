//! Encryption of sectors in memory, with 512-byte sectors: modes that this project's tools make, and others.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use block_crypt::{CipherSpec, SectorCipher};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn crypt(c: &mut Criterion) {
    let mut group = c.benchmark_group("crypt");
    for (family, mode, key_len) in [
        ("aes", "xts-plain64", 64),
        ("aes", "cbc-essiv:sha256", 32),
        ("serpent", "xts-plain64", 64),
        ("twofish", "xts-plain64", 64),
    ] {
        let spec = CipherSpec::from_luks(family, mode, key_len).expect("it is known");
        let key: Vec<u8> = (0..key_len).map(|i| i as u8).collect();
        let ciphers = [("", SectorCipher::new(spec, &key)), ("-portable", SectorCipher::portable(spec, &key))];
        for (name, cipher) in ciphers {
            let cipher = cipher.expect("the key fits");
            for len in [512, 16 << 10] {
                let mut data = vec![0; len];
                group.throughput(Throughput::Bytes(len as u64));
                let name = format!("{family}-{mode}{name}-{len}");
                group.bench_function(format!("{name}-encrypt"), |b| {
                    b.iter(|| cipher.encrypt(1, SectorCipher::UNIT, &mut data))
                });
                group.bench_function(format!("{name}-decrypt"), |b| {
                    b.iter(|| cipher.decrypt(1, SectorCipher::UNIT, &mut data))
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, crypt);
criterion_main!(benches);
