//! Every single request of the engine to its file fails once, with EIO or ENOSPC.

use crate::bed::{NONE, buf, open, storage};
use block_common::{IoError, RequestFlags};
use block_qcow2::Qcow2Options;
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};

/// Scenario: writes, zeroes, discards, compressed writes, a change of length, flushes; the `nth` request to the file fails. Whatever
/// fails then, the image is valid, requests that succeeded are read back, and after it everything works again.
#[test]
fn qcow2_4_what_fails_leaves_the_image_valid() {
    let thread = io_thread(true);
    let kinds = [
        Format { cluster_bits: 12, ..Format::new(4 << 20) },
        Format { cluster_bits: 14, extended: true, ..Format::new(4 << 20) },
    ];
    for format in kinds {
        for errno in [5, 28] {
            for nth in 0.. {
                let file = storage(format.bytes());
                let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
                file.fail_nth(None, nth, IoError::host(errno));
                let mut model = vec![Some(0u8); 4 << 20];
                let mut failed = 0;
                let steps: [(u64, u64, u8); 9] = [
                    (0, 5000, 1),
                    (512, 512, 2),
                    (1 << 20, 300_000, 3),
                    (0, 65536, 0),
                    (2 << 20, 16384, 4),
                    (3 << 20, 32768, 5),
                    (3 << 20, 16384, 0xd),
                    (2 << 20, 4096, 6),
                    (0, 0, 0),
                ];
                for (offset, len, value) in steps {
                    let range = offset as usize..(offset + len) as usize;
                    let result = match value {
                        0 if len == 0 => block_on(image.root.flush()),
                        0 => block_on(image.root.zero(offset, len, RequestFlags::MAY_UNMAP)),
                        0xd => block_on(image.root.discard(offset, len)),
                        4 => {
                            block_on(image.root.write(
                                offset,
                                buf(&vec![4; len as usize]),
                                RequestFlags::WRITE_COMPRESSED,
                            ))
                            .0
                        }
                        _ => block_on(image.root.write(offset, buf(&vec![value; len as usize]), NONE)).0,
                    };
                    let value = if value == 0xd { 0 } else { value };
                    match result {
                        Ok(()) => model[range].fill(Some(value)),
                        Err(error) => {
                            assert_eq!(error, IoError::host(errno), "step {value}, request {nth}");
                            failed += 1;
                            model[range].fill(None);
                        }
                    }
                }
                let passed = failed == 0 && {
                    // Was there such a request at all?
                    let before = file.log().len() as u64;
                    before <= nth
                };
                file.clear_script();
                let check = |guest: &[u8]| {
                    for (at, wanted) in model.iter().enumerate() {
                        assert!(
                            wanted.is_none_or(|wanted| guest[at] == wanted),
                            "byte {at:#x} is {:#x}, not {wanted:?}; request {nth}",
                            guest[at]
                        );
                    }
                };
                check(&image.read(0, 4 << 20));
                block_on(image.root.flush()).expect("flushed");
                let cut = inspect(&file.power_cut(|_, _| false), &[])
                    .unwrap_or_else(|error| panic!("{format:?} {nth}: {error}"));
                check(&cut.guest);
                image.close().expect("closes");
                let report = inspect(&file.bytes(0, file.len() as usize), &[]);
                check(&report.unwrap_or_else(|error| panic!("{format:?} {nth}: {error}")).guest);
                if passed {
                    assert!(nth > 10, "{format:?}: only {nth} requests");
                    break;
                }
            }
        }
    }
}
