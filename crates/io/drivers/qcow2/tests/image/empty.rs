//! Emptying an image: what is below it shows everywhere, its snapshots stay, and its file becomes short, whatever goes wrong meanwhile.

use crate::bed::{Image, buf, open, storage};
use block_common::{IoError, RequestFlags};
use block_io::IoThread;
use block_qcow2::{NewSnapshot, Qcow2Options};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};
use block_testkit::{MemStorage, Rng};

const DISK: u64 = 1 << 20;

fn plain(thread: &IoThread, file: &MemStorage) -> Image {
    open(thread, file, None, Qcow2Options::default()).expect("opens")
}

fn all(file: &MemStorage) -> Vec<u8> {
    file.bytes(0, file.len() as usize)
}

/// An image with data, compressed data, and a snapshot if it `has_snapshot`.
fn made(thread: &IoThread, format: Format, has_snapshot: bool) -> MemStorage {
    let file = storage(format.bytes());
    let mut image = plain(thread, &file);
    image.write(0, &[1; 100_000]);
    if has_snapshot {
        let new = NewSnapshot { name: b"a".to_vec(), ..NewSnapshot::default() };
        let taken = image.alone(|req, control| async move { control.create_snapshot(&req, new).await });
        block_on(taken).expect("there is room");
        image.write(5000, &[2; 60_000]);
    }
    let size = 1 << format.cluster_bits;
    for at in (400 << 10..416 << 10).step_by(size) {
        let data = buf(&vec![3; size]);
        block_on(image.root.write(at, data, RequestFlags::WRITE_COMPRESSED)).0.expect("written");
    }
    image.write(DISK - 5000, &[4; 5000]);
    image.close().expect("closes");
    file
}

fn empty(image: &mut Image) -> Result<(), IoError> {
    block_on(image.alone(|req, control| async move { control.make_empty(&req).await }))
}

#[test]
fn an_emptied_image_is_short_and_its_snapshots_stay() {
    let thread = io_thread(false);
    for extended in [false, true] {
        for has_snapshot in [false, true] {
            let cluster_bits = if extended { 14 } else { 12 };
            let format = Format { cluster_bits, extended, ..Format::new(DISK) };
            let before = format.bytes().len() as u64;
            let file = made(&thread, format, has_snapshot);
            let mut image = plain(&thread, &file);
            empty(&mut image).expect("emptied");
            assert!(image.read(0, DISK as usize).iter().all(|byte| *byte == 0));
            if !has_snapshot {
                assert_eq!(file.len(), before);
            }
            // Whoever gets the places of what was cut off does not find it there.
            image.write(70_000, &[5; 10]);
            let read = image.read(65536, 8192);
            assert!(read.iter().enumerate().all(|(at, byte)| *byte == if (4464..4474).contains(&at) { 5 } else { 0 }));
            image.close().expect("closes");
            let report = inspect(&all(&file), &[]).expect("an image");
            assert_eq!((report.leaks, report.unmarked), (0, 0));
            for snapshot in &report.snapshots {
                assert!(snapshot.guest.iter().enumerate().all(|(at, byte)| *byte == u8::from(at < 100_000)));
            }
            assert_eq!(report.snapshots.len(), usize::from(has_snapshot));
        }
    }
}

// Scenario: any request fails, or the power does, while an image is emptied. Each byte is what it was or is gone, and the snapshot has all of its own.
#[test]
fn qcow2_2_what_fails_while_an_image_is_emptied_leaves_it_valid() {
    let (thread, mut rng) = (io_thread(false), Rng::new(1));
    for has_snapshot in [false, true] {
        let original = all(&made(&thread, Format { cluster_bits: 12, ..Format::new(DISK) }, has_snapshot));
        let old = inspect(&original, &[]).expect("an image").guest;
        for nth in 0.. {
            let file = storage(original.clone());
            let mut image = plain(&thread, &file);
            let opened = file.log().len() as u64;
            file.fail_nth(None, opened + nth, IoError::host(28));
            let ended = empty(&mut image);
            let is_over = file.log().len() as u64 <= opened + nth;
            let cuts = [0, 30, 50, 70, 100].map(|keep| file.power_cut(|_, _| rng.chance(keep)));
            file.clear_script();
            for cut in cuts {
                let report = inspect(&cut, &[]).unwrap_or_else(|error| panic!("request {nth}: {error}"));
                let is_gone = |now: &[u8], old: &[u8]| now == old || now.iter().all(|byte| *byte == 0);
                assert!(report.guest.chunks(4096).zip(old.chunks(4096)).all(|(now, old)| is_gone(now, old)));
                for snapshot in &report.snapshots {
                    assert!(snapshot.guest.iter().enumerate().all(|(at, byte)| *byte == u8::from(at < 100_000)));
                }
                assert_eq!(report.snapshots.len(), usize::from(has_snapshot));
            }
            // It goes on being used.
            image.write(0, &[7; 50_000]);
            assert!(image.read(0, 50_000).iter().all(|byte| *byte == 7), "request {nth}");
            image.close().expect("closes");
            inspect(&all(&file), &[]).unwrap_or_else(|error| panic!("request {nth}, afterwards: {error}"));
            if is_over {
                assert!(ended.is_ok() && nth > 5, "only {nth} requests");
                break;
            }
        }
    }
}
