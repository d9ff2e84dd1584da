//! The state of a machine: stored beside the disk, kept by snapshots, never seen as a part of the disk; and places for what a disk gets more.

use crate::bed::{Image, alone, buf, open, storage};
use block_common::{AlignedBuf, IoError, Preallocation};
use block_io::IoThread;
use block_qcow2::{NewSnapshot, Qcow2Options};
use block_qcow2_format::Version;
use block_testkit::MemStorage;
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};

const DISK: u64 = 1 << 20;

fn plain(thread: &IoThread, file: &MemStorage) -> Image {
    open(thread, file, None, Qcow2Options::default()).expect("opens")
}

fn state(image: &Image, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
    let loaded = block_on(image.root.load_vmstate(offset, AlignedBuf::zeroed(len, 4096).into_io()));
    loaded.map(|buf| buf.to_aligned(1).to_vec())
}

fn all(file: &MemStorage) -> Vec<u8> {
    file.bytes(0, file.len() as usize)
}

fn formats() -> [Format; 8] {
    let format = Format::new(DISK);
    [
        Format { cluster_bits: 9, ..format },
        Format { cluster_bits: 12, version: Version::V2, ..format },
        Format { cluster_bits: 14, extended: true, ..format },
        format,
        Format { crypt_method: 1, ..format },
        Format { crypt_method: 2, cluster_bits: 9, ..format },
        Format { crypt_method: 2, cluster_bits: 12, version: Version::V2, ..format },
        Format { crypt_method: 2, cluster_bits: 14, extended: true, ..format },
    ]
}

// Scenario: a machine stores its state, a snapshot is taken, the machine goes on, and later goes back.
#[test]
fn snapshots_keep_the_state_of_a_machine() {
    let thread = io_thread(true);
    for format in formats() {
        let file = storage(format.bytes());
        let image = plain(&thread, &file);
        image.write(DISK - 4096, &[1; 4096]);
        block_on(image.root.save_vmstate(0, buf(&[7; 70_000]))).expect("stored");
        block_on(image.root.save_vmstate(3 << 20, buf(&[8; 1000]))).expect("stored");
        assert!(state(&image, 0, 70_000) == Ok(vec![7; 70_000]) && state(&image, 3 << 20, 1000) == Ok(vec![8; 1000]));
        assert_eq!(state(&image, 1 << 20, 4096), Ok(vec![0; 4096]));
        assert!(image.read(0, 1 << 20)[..(DISK - 4096) as usize].iter().all(|byte| *byte == 0));
        image.close().expect("closes");
        let size = (3 << 20) + 1000;
        let new = NewSnapshot { name: b"s".to_vec(), vm_state_size: size, ..NewSnapshot::default() };
        alone(&thread, &file, |req, control| async move { control.create_snapshot(&req, new).await }).expect("taken");
        // The snapshot has it, the disk does not.
        let image = plain(&thread, &file);
        assert!(state(&image, 0, 70_000) == Ok(vec![0; 70_000]));
        block_on(image.root.save_vmstate(0, buf(&[9; 512]))).expect("stored");
        image.close().expect("closes");
        alone(&thread, &file, |req, control| async move { control.apply_snapshot(&req, b"s").await }).expect("applied");
        let image = plain(&thread, &file);
        assert!(state(&image, 0, 70_000) == Ok(vec![7; 70_000]) && state(&image, 3 << 20, 1000) == Ok(vec![8; 1000]));
        assert_eq!(image.read(DISK as usize as u64 - 4096, 4096), [1; 4096]);
        image.close().expect("closes");
        alone(&thread, &file, |req, control| async move { control.delete_snapshot(&req, b"s").await })
            .expect("deleted");
        // Nothing of it comes into view when the disk grows to where it was (rule trunc-1).
        let image = plain(&thread, &file);
        block_on(image.root.truncate(64 << 20, Preallocation::Off)).expect("grows");
        assert!(image.read(DISK, 63 << 20).iter().all(|byte| *byte == 0));
        assert!(state(&image, 0, 70_000) == Ok(vec![0; 70_000]));
        image.close().expect("closes");
        assert_eq!(inspect(&all(&file), &[]).expect("an image").leaks, 0);
    }
}

// Scenario: any request fails while a disk gets places for what it has more, or the power does. It has its old length or its new one, and zeroes.
#[test]
fn trunc_1_what_fails_while_places_are_given_leaves_the_disk_as_it_was() {
    let thread = io_thread(true);
    for format in formats() {
        for how in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            for nth in 0.. {
                let file = storage(format.bytes());
                let image = plain(&thread, &file);
                image.write(DISK - 4096, &[1; 4096]);
                block_on(image.root.flush()).expect("flushed");
                let before = file.log().len() as u64;
                file.fail_nth(None, before + nth, IoError::host(28));
                let grown = block_on(image.root.truncate(DISK + 300 * 512, how));
                let is_over = file.log().len() as u64 <= before + nth;
                file.clear_script();
                let len = block_on(image.root.refresh_length()).expect("a length");
                assert_eq!(
                    len,
                    if grown.is_ok() { DISK + 300 * 512 } else { DISK },
                    "{format:?}, {how}, request {nth}"
                );
                assert!(image.read(DISK, (len - DISK) as usize).iter().all(|byte| *byte == 0));
                image.close().expect("closes");
                let report = inspect(&all(&file), &[]);
                let report = report.unwrap_or_else(|error| panic!("{format:?}, {how}, request {nth}: {error}"));
                assert!(grown.is_err() || report.guest[DISK as usize..].iter().all(|byte| *byte == 0));
                assert!(report.guest[DISK as usize - 4096..DISK as usize].iter().all(|byte| *byte == 1));
                if is_over {
                    assert!(grown.is_ok() && nth > 1, "only {nth} requests");
                    assert_eq!(report.leaks, 0, "{format:?}, {how}");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_state_has_no_place_in_a_data_file_or_past_all_addresses() {
    let thread = io_thread(true);
    let file = storage(Format { cluster_bits: 9, ..Format::new(DISK) }.bytes());
    let image = plain(&thread, &file);
    assert_eq!(block_on(image.root.save_vmstate(u64::MAX - 5, buf(&[1; 512]))).expect_err("refused").errno().raw(), 27);
    assert_eq!(block_on(image.root.save_vmstate(1 << 62, buf(&[1; 512]))).expect_err("refused").errno().raw(), 27);
    assert!(state(&image, u64::MAX - 5, 512).is_err());
    image.close().expect("closes");
    let image = crate::bed::open_for(&thread, &file, None, Qcow2Options::default(), true).expect("opens");
    assert!(block_on(image.root.save_vmstate(0, buf(&[1; 512]))).is_err());
    assert_eq!(state(&image, 0, 512), Ok(vec![0; 512]));
    image.close().expect("closes");
}
