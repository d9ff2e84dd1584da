//! What becomes of discarded clusters, and what of it the host is told.

use crate::bed::{Image, NONE, buf, open, storage};
use block_common::{IoError, RequestFlags};
use block_io::IoThread;
use block_qcow2::{NewSnapshot, Qcow2Options, Version};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};
use block_testkit::{MemOpKind, MemStorage, Verdict};

const CLUSTER: u64 = 1 << 16;
/// Where the first L2 table of a [`Format`] and the first data come to lie.
const TABLE: u64 = 4 * CLUSTER;
const DATA: u64 = 5 * CLUSTER;

fn keeping() -> Qcow2Options {
    Qcow2Options { discard_no_unref: true, pass_discard_request: true, ..Qcow2Options::default() }
}

fn opened(thread: &IoThread, file: &MemStorage, options: Qcow2Options) -> Image {
    open(thread, file, None, options).expect("opens")
}

fn word(file: &MemStorage, at: u64) -> u64 {
    u64::from_be_bytes(file.bytes(at, 8).try_into().expect("eight bytes"))
}

/// The places that the host was told of.
fn told(file: &MemStorage) -> Vec<(u64, u64)> {
    let ops = file.log().into_iter().map(|op| op.op).filter(|op| op.kind == MemOpKind::Discard);
    ops.map(|op| (op.offset, op.len)).collect()
}

fn is_told(file: &MemStorage, offset: u64, len: u64) -> bool {
    told(file).into_iter().any(|(at, bytes)| at <= offset && offset + len <= at + bytes)
}

fn leaks(file: &MemStorage) -> u64 {
    inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image").leaks
}

// Scenario: clusters are discarded, zeroed and written again. They stay where they are, all the time; the host is told of what is empty when the disk's
// entries say so, and not before.
#[test]
fn qcow2_2_discarded_clusters_keep_their_places() {
    let thread = io_thread(true);
    for extended in [false, true] {
        let file = storage(Format { extended, ..Format::new(8 << 20) }.bytes());
        let image = opened(&thread, &file, keeping());
        image.write(0, &[1; 4 * CLUSTER as usize]);
        block_on(image.root.flush()).expect("flushed");
        let len = file.len();
        file.clear_log();
        block_on(image.root.discard(CLUSTER, 2 * CLUSTER)).expect("discarded");
        block_on(image.root.zero(0, CLUSTER, RequestFlags::MAY_UNMAP)).expect("zeroed");
        assert_eq!(image.read(0, 3 * CLUSTER as usize), vec![0; 3 * CLUSTER as usize]);
        assert_eq!(told(&file), [], "the disk names them");
        block_on(image.root.flush()).expect("flushed");
        let mut places = told(&file);
        places.sort_unstable();
        assert_eq!(places, [(DATA, CLUSTER), (DATA + CLUSTER, 2 * CLUSTER)]);
        let each = if extended { 16 } else { 8 };
        for cluster in 0..3 {
            let entry = word(&file, TABLE + cluster * each);
            let zero = if extended { 0 } else { 1 };
            assert_eq!(entry, 1 << 63 | (DATA + cluster * CLUSTER) | zero);
            assert!(!extended || word(&file, TABLE + cluster * each + 8) == 0xffff_ffff << 32);
        }
        assert_eq!(leaks(&file), 0);
        image.write(CLUSTER + 512, &[2; 512]);
        let now = image.read(0, 4 * CLUSTER as usize);
        assert_eq!(now[CLUSTER as usize..][..1536], [[0; 512], [2; 512], [0; 512]].concat());
        assert_eq!((file.len(), word(&file, TABLE + 3 * each) & !(1 << 63)), (len, DATA + 3 * CLUSTER));
        image.close().expect("closes");
        assert_eq!(leaks(&file), 0);
    }
}

// Scenario: while the disk's entry for a cluster with one half empty is written, the other half becomes empty, too, in memory. The host is told when the disk says that: with encryption
// a power cut would else leave an entry whose data decrypts to noise.
#[test]
fn qcow2_2_what_became_empty_since_waits_for_its_own_flush() {
    let thread = io_thread(true);
    let file = storage(Format { extended: true, ..Format::new(8 << 20) }.bytes());
    let image = opened(&thread, &file, keeping());
    image.write(0, &[1; CLUSTER as usize]);
    block_on(image.root.flush()).expect("flushed");
    block_on(image.root.zero(0, CLUSTER / 2, RequestFlags::MAY_UNMAP)).expect("zeroed");
    file.clear_log();
    // There is no data to be flushed before the table is written.
    file.set_script(|op| if op.kind == MemOpKind::Flush { Verdict::Hold } else { Verdict::Serve });
    let root = image.root.clone();
    let flushing = Box::pin(thread.handle().run(async move { root.flush().await }));
    block_on(file.wait_held(1));
    block_on(image.root.zero(CLUSTER / 2, CLUSTER / 2, RequestFlags::MAY_UNMAP)).expect("zeroed");
    file.clear_script();
    file.release_all();
    block_on(flushing).expect("the thread lives").expect("flushed");
    assert_eq!(word(&file, TABLE + 8), 0x0000_ffff_ffff_0000, "half of it is data to the disk");
    assert_eq!(told(&file), []);
    block_on(image.root.flush()).expect("flushed");
    assert!(is_told(&file, DATA, CLUSTER));
    assert_eq!(image.read(0, CLUSTER as usize), vec![0; CLUSTER as usize]);
    image.close().expect("closes");
    assert_eq!(leaks(&file), 0);
}

// Scenario: the host is about to be told of a cluster that is empty. Who writes to it waits for that; what was written before stays.
#[test]
fn qcow2_3_what_is_written_after_a_discard_is_not_discarded() {
    let thread = io_thread(true);
    let file = storage(Format::new(8 << 20).bytes());
    let image = opened(&thread, &file, keeping());
    image.write(0, &[1; 3 * CLUSTER as usize]);
    block_on(image.root.discard(0, 3 * CLUSTER)).expect("discarded");
    image.write(CLUSTER, &[2; 512]);
    file.clear_log();
    file.set_script(|op| if op.kind == MemOpKind::Discard { Verdict::Hold } else { Verdict::Serve });
    let root = image.root.clone();
    let flushing = Box::pin(thread.handle().run(async move { root.flush().await }));
    block_on(file.wait_held(1));
    let root = image.root.clone();
    let writing = Box::pin(thread.handle().run(async move { root.write(512, buf(&[3; 512]), NONE).await.0 }));
    // The write is on its way by now.
    image.read(3 * CLUSTER, 512);
    file.clear_script();
    file.release_all();
    block_on(flushing).expect("the thread lives").expect("flushed");
    block_on(writing).expect("the thread lives").expect("written");
    assert_eq!(told(&file), [(DATA, CLUSTER), (DATA + 2 * CLUSTER, CLUSTER)]);
    let now = image.read(0, 3 * CLUSTER as usize);
    assert_eq!((now[512], now[1024], now[CLUSTER as usize], now[CLUSTER as usize + 512]), (3, 0, 2, 0));
    image.close().expect("closes");
    assert_eq!(leaks(&file), 0);
}

// Scenario: a snapshot has the cluster, too. Its data stays, and the host hears nothing.
#[test]
fn qcow2_7_a_discarded_cluster_stays_a_snapshots() {
    let thread = io_thread(true);
    let file = storage(Format::new(8 << 20).bytes());
    let image = opened(&thread, &file, keeping());
    image.write(0, &[1; 2 * CLUSTER as usize]);
    image.close().expect("closes");
    let new = NewSnapshot { name: b"s".to_vec(), ..NewSnapshot::default() };
    crate::bed::alone(&thread, &file, |req, control| async move {
        control.create_snapshot(&req, new).await.expect("there is room");
    });
    let image = opened(&thread, &file, keeping());
    file.clear_log();
    block_on(image.root.discard(0, CLUSTER)).expect("discarded");
    block_on(image.root.flush()).expect("flushed");
    assert_eq!(image.read(0, CLUSTER as usize), vec![0; CLUSTER as usize]);
    assert_eq!((told(&file), file.bytes(DATA, CLUSTER as usize)), (vec![], vec![1; CLUSTER as usize]));
    image.write(0, &[2; 512]);
    image.close().expect("closes");
    assert_eq!(file.bytes(DATA, CLUSTER as usize), vec![1; CLUSTER as usize]);
    crate::bed::alone(&thread, &file, |req, control| async move {
        control.apply_snapshot(&req, b"s").await.expect("it is there");
    });
    let image = opened(&thread, &file, keeping());
    assert_eq!(image.read(0, 2 * CLUSTER as usize), vec![1; 2 * CLUSTER as usize]);
    image.close().expect("closes");
}

// Scenario: compressed clusters have no place to keep. They are let go of.
#[test]
fn qcow2_2_a_discarded_compressed_cluster_is_free() {
    let thread = io_thread(true);
    let file = storage(Format::new(8 << 20).bytes());
    let image = opened(&thread, &file, keeping());
    block_on(image.root.write(0, buf(&[7; CLUSTER as usize]), RequestFlags::WRITE_COMPRESSED)).0.expect("written");
    block_on(image.root.discard(0, CLUSTER)).expect("discarded");
    image.close().expect("closes");
    assert_eq!((word(&file, TABLE), leaks(&file)), (1, 0));
}

#[test]
fn discard_no_unref_needs_version_3() {
    let thread = io_thread(true);
    let old = storage(Format { version: Version::V2, ..Format::new(8 << 20) }.bytes());
    let refused = open(&thread, &old, None, keeping()).err();
    assert_eq!(refused.as_deref(), Some("discard-no-unref is only supported since qcow2 version 3"));
}

// Scenario: an entry leads to no cluster's beginning. What lies there is somebody else's: it is neither freed nor discarded.
#[test]
fn trust_3_an_entry_between_clusters_frees_nothing() {
    let thread = io_thread(true);
    for keeps in [false, true] {
        let file = storage(Format::new(8 << 20).bytes());
        let image = opened(&thread, &file, Qcow2Options::default());
        image.write(0, &[1; 2 * CLUSTER as usize]);
        image.close().expect("closes");
        let mut bytes = file.bytes(0, file.len() as usize);
        bytes[TABLE as usize..][..8].copy_from_slice(&(1 << 63 | (DATA + CLUSTER + 512)).to_be_bytes());
        let file = storage(bytes);
        let image = opened(&thread, &file, Qcow2Options { discard_no_unref: keeps, ..keeping() });
        block_on(image.root.discard(0, CLUSTER)).expect("discarded");
        block_on(image.root.flush()).expect("flushed");
        assert_eq!(told(&file), []);
        image.write(8 * CLUSTER, &[2; 4 * CLUSTER as usize]);
        assert_eq!(image.read(CLUSTER, CLUSTER as usize), vec![1; CLUSTER as usize]);
        image.close().expect("closes");
        assert_eq!(leaks(&file), 1, "its own place is lost");
    }
}

// Scenario: a snapshot is deleted, or applied. What nobody else has is freed, and the host is told, unless the option says not to.
#[test]
fn qcow2_2_the_host_is_told_what_a_snapshot_had() {
    let thread = io_thread(true);
    for passes in [true, false] {
        let options = Qcow2Options { pass_discard_snapshot: passes, ..Qcow2Options::default() };
        let file = storage(Format::new(8 << 20).bytes());
        let image = opened(&thread, &file, options);
        image.write(0, &[1; 3 * CLUSTER as usize]);
        image.close().expect("closes");
        let new = NewSnapshot { name: b"s".to_vec(), ..NewSnapshot::default() };
        let work = |name: &'static str, delete: bool, file: &MemStorage| {
            crate::bed::alone_with(&thread, file, options, move |req, control| async move {
                let key = name.as_bytes();
                if delete {
                    control.delete_snapshot(&req, key).await.expect("it is there");
                } else {
                    control.apply_snapshot(&req, key).await.expect("it is there");
                }
            });
        };
        crate::bed::alone_with(&thread, &file, options, |req, control| async move {
            control.create_snapshot(&req, new).await.expect("there is room");
        });
        let image = opened(&thread, &file, options);
        image.write(0, &[2; 2 * CLUSTER as usize]);
        image.close().expect("closes");
        // What the disk had is gone.
        let own = word(&file, word(&file, word(&file, 40)) & !(1 << 63)) & !(1 << 63);
        file.clear_log();
        work("s", false, &file);
        assert_eq!(is_told(&file, own, 2 * CLUSTER), passes, "{:x?}", told(&file));
        assert_eq!(told(&file).is_empty(), !passes);
        let image = opened(&thread, &file, options);
        assert_eq!(image.read(0, CLUSTER as usize), vec![1; CLUSTER as usize]);
        image.write(0, &[3; 512]);
        image.close().expect("closes");
        file.clear_log();
        work("s", true, &file);
        assert_eq!(is_told(&file, DATA, CLUSTER), passes, "{:x?}", told(&file));
        let image = opened(&thread, &file, options);
        let now = image.read(0, 3 * CLUSTER as usize);
        assert_eq!((now[0], now[512], now[CLUSTER as usize]), (3, 1, 1));
        image.close().expect("closes");
        assert_eq!(leaks(&file), 0);
    }
}

// Scenario: the host cannot be told. Nobody notices.
#[test]
fn qcow2_4_a_host_that_does_not_listen_is_no_error() {
    let thread = io_thread(true);
    let file = storage(Format::new(8 << 20).bytes());
    let image = opened(&thread, &file, keeping());
    image.write(0, &[1; CLUSTER as usize]);
    file.set_script(|op| if op.kind == MemOpKind::Discard { Verdict::Fail(IoError::host(5)) } else { Verdict::Serve });
    block_on(image.root.discard(0, CLUSTER)).expect("discarded");
    block_on(image.root.flush()).expect("flushed");
    assert_eq!(image.read(0, 512), [0; 512]);
    image.close().expect("closes");
    assert_eq!(leaks(&file), 0);
}
