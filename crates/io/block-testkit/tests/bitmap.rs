//! Dirty bitmaps against a vector of bools, as their nodes are written, grow, shrink and grow again.

use block_common::GuestRange;
use block_io::{ChangeKind, DirtyBitmap, NodeBitmap, WriteObserver};
use block_testkit::{Rng, seed};
use std::ops::Range;

fn range(offset: u64, len: u64) -> GuestRange {
    GuestRange::new(offset, len).expect("a range")
}

/// The dirty chunks, as asking for one after the other finds them.
fn scan(bitmap: &DirtyBitmap) -> Vec<u64> {
    let mut scanned = Vec::new();
    while let Some(chunk) = bitmap.next_dirty(scanned.last().map_or(0, |last| last + 1), |_| true) {
        scanned.push(chunk);
    }
    assert_eq!(bitmap.dirty_chunks(), scanned.len() as u64);
    scanned
}

/// A bitmap as it should be: a `bool` for each chunk.
struct Model {
    length: u64,
    granularity: u64,
    chunks: Vec<bool>,
}

impl Model {
    fn new(length: u64, granularity: u64) -> Self {
        Self { length, granularity, chunks: vec![false; length.div_ceil(granularity) as usize] }
    }

    fn mark(&mut self, bytes: Range<u64>) {
        if bytes.end > self.length {
            self.resize(bytes.end, true);
        }
        for (chunk, dirty) in self.chunks.iter_mut().enumerate() {
            let start = chunk as u64 * self.granularity;
            *dirty |= start < bytes.end && start + self.granularity > bytes.start && !bytes.is_empty();
        }
    }

    fn resize(&mut self, length: u64, dirty: bool) {
        let old = std::mem::replace(&mut self.length, length);
        self.chunks.resize(length.div_ceil(self.granularity) as usize, false);
        if dirty && length > old {
            self.mark(old..length);
        }
    }

    fn check(&self, bitmap: &NodeBitmap, from: u64) {
        bitmap.with(|bitmap| {
            assert_eq!((bitmap.length(), bitmap.chunks()), (self.length, self.chunks.len() as u64));
            let expected = |wanted| {
                let mut rest = self.chunks.iter().zip(0..).skip(from as usize);
                rest.find(|(dirty, _)| **dirty == wanted).map(|(_, chunk)| chunk)
            };
            assert_eq!(bitmap.next_dirty(from, |_| true), expected(true));
            assert_eq!(bitmap.next_clean(from), expected(false));
            let found: Vec<_> = self.chunks.iter().zip(0..).filter(|(dirty, _)| **dirty).map(|(_, at)| at).collect();
            assert_eq!(scan(bitmap), found);
            assert_eq!(bitmap.dirty_bytes(), found.len() as u64 * self.granularity);
        });
    }
}

/// Random acts on three bitmaps of the same node, in chunks of different sizes.
#[test]
fn trunc_1_bitmaps_do_as_a_vector_of_bools_does() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    println!("CAIRN_SEED={seed:#x}");
    for _ in 0..40 {
        let mut length = rng.below(0..40_000);
        let grains = [512, 64, 4096];
        let bitmaps = grains.map(|grain| NodeBitmap::try_new(length, grain).expect("it is small"));
        let mut models = grains.map(|grain| Model::new(length, grain));
        for _ in 0..200 {
            let at = rng.below(0..3) as usize;
            let (bitmap, model) = (&bitmaps[at], &mut models[at]);
            match rng.below(0..12) {
                0..5 => {
                    let start = rng.below(0..length + 1);
                    let len = rng.below(0..(length - start).min(3000) + 1);
                    bitmap.before(ChangeKind::Write, range(start, len));
                    model.mark(start..start + len);
                }
                5 => {
                    // A write past the end.
                    let start = length + rng.below(0..100);
                    for (bitmap, model) in bitmaps.iter().zip(&mut models) {
                        bitmap.after(ChangeKind::Write, range(start, 700));
                        model.mark(start..start + 700);
                    }
                    length = start + 700;
                }
                6 => {
                    bitmap.with(DirtyBitmap::clear_all);
                    model.chunks.fill(false);
                }
                7 => {
                    let from = rng.below(0..3) as usize;
                    let dirty: Vec<_> = models[from].chunks.clone();
                    let (grain, end) = (models[from].granularity, models[from].length);
                    bitmaps[from].with(|from| bitmap.with(|to| to.merge(from)));
                    for chunk in dirty.iter().zip(0..).filter(|(dirty, _)| **dirty).map(|(_, chunk)| chunk) {
                        models[at].mark(chunk * grain..((chunk + 1) * grain).min(end));
                    }
                }
                8 => {
                    length = rng.below(0..40_000);
                    let grown_is_dirty = rng.chance(50);
                    for (bitmap, model) in bitmaps.iter().zip(&mut models) {
                        bitmap.resize(length, grown_is_dirty);
                        model.resize(length, grown_is_dirty);
                    }
                }
                9 if !model.chunks.is_empty() => {
                    let chunk = rng.below(0..model.chunks.len() as u64) as usize;
                    assert_eq!(bitmap.with(|bitmap| bitmap.clear(chunk as u64)), model.chunks[chunk]);
                    model.chunks[chunk] = false;
                }
                _ => model.check(bitmap, rng.below(0..100)),
            }
        }
        models.iter().zip(&bitmaps).for_each(|(model, bitmap)| model.check(bitmap, 0));
    }
}

/// Writers on three threads, while the node's end moves to and fro behind them: nothing that was marked is lost.
#[test]
fn trunc_1_what_is_marked_beside_a_resize_stays_marked() {
    const LEN: u64 = 64 * 1000;
    let bitmap = NodeBitmap::try_new(LEN, 64).expect("it is small");
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let bitmap = &bitmap;
                scope.spawn(move || {
                    for chunk in (writer..1000).step_by(3) {
                        bitmap.before(ChangeKind::Write, range(chunk * 64, 1));
                        assert!(bitmap.with(|bitmap| bitmap.is_dirty(chunk)));
                    }
                })
            })
            .collect();
        let mut rounds = 0;
        while rounds < 200 || writers.iter().any(|writer| !writer.is_finished()) {
            bitmap.resized(LEN + rounds % 7 * 100);
            rounds += 1;
        }
    });
    bitmap.resized(LEN);
    assert_eq!(bitmap.with(scan), (0..1000).collect::<Vec<_>>());
}
