//! Key slots under bad conditions: whenever the power is cut, and whatever write fails, an image opens; what was erased is gone; what a node says of its header is true.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{AlignedBuf, Errno, IoError, OptionReader, Options, ParentKind, Perm, PermPair, RequestFlags};
use block_crypt::{Cipher, CipherMode, CipherSpec, Hash, IvGen, Secret};
use block_drivers::{LuksHeader, LuksImage, SlotChange, SlotError, change_slots, register_all};
use block_gs::{
    DriverType, GlobalOptions, GlobalState, GraphError, GraphResult, MainLoop, NoControl, NodeRef, ObjectText,
    OpenContext, Opened,
};
use block_luks_format::{Header1, Header2, HeaderCopy, KdfCost, LuksError, NewHeader1, NewHeader2};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Rng, Verdict};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::Poll;

const PASSWORDS: [&str; 3] = ["old", "new", "more"];
const KEY_LEN: usize = 16;
/// A short key, for short material.
const SPEC: CipherSpec = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Plain64) };
const UUID: &str = "b9cdd2fd-9c66-4ab2-a5c4-64c4ff2c11f8";
/// Bytes of the disk behind a header of LUKS1.
const DISK: u64 = 64 << 10;

thread_local! {
    /// The passwords of slots, by hashes of what the header says of them and of their material.
    static KNOWN: RefCell<HashMap<u64, Option<&'static str>>> = RefCell::default();
}

type Storages = Rc<RefCell<BTreeMap<String, MemStorage>>>;

/// The driver `mem`: option `storage` names one of the bed's.
struct MemType(Storages);

#[async_trait(?Send)]
impl DriverType for MemType {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let name = options.require_str("storage")?;
        let engine = self.0.borrow()[&name].driver();
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

/// A block layer with the passwords as secrets.
struct Bed {
    gs: GlobalState,
    storages: Storages,
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Bed>) -> F) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    let storages = Storages::default();
    gs.register(Rc::new(MemType(storages.clone())));
    main.run(async {
        for password in PASSWORDS {
            let text = format!("secret,id={password},data={password}");
            let Ok(ObjectText::Make(options)) = ObjectText::parse(&text) else { panic!("{text}") };
            gs.add_object(options).await.expect("a secret");
        }
        test(Rc::new(Bed { gs: gs.clone(), storages })).await;
        gs.close_all().await.expect("nobody holds a node");
    });
}

impl Bed {
    async fn open(&self, json: &str) -> GraphResult<NodeRef> {
        self.gs.open(Options::parse_json(json).expect("options")).await
    }

    /// A luks node that `password` opens, over a header in `storage`. That of LUKS2 has its data in another file.
    async fn luks(&self, version: u32, storage: &MemStorage, password: &str, more: &str) -> GraphResult<NodeRef> {
        self.storages.borrow_mut().insert("header".into(), storage.clone());
        self.storages.borrow_mut().insert("data".into(), MemStorage::new(MemOptions::new(DISK)));
        let children = match version {
            1 => r#""file": {"driver": "mem", "storage": "header"}"#,
            _ => r#""file": {"driver": "mem", "storage": "data"}, "header": {"driver": "mem", "storage": "header"}"#,
        };
        self.open(&format!(r#"{{"driver": "luks", "key-secret": "{password}", {children}{more}}}"#)).await
    }

    fn header(&self, node: &NodeRef) -> LuksHeader {
        self.gs.with_control(node, |image: &mut LuksImage| image.header().clone()).expect("it is a luks node")
    }
}

fn random(seed: u64) -> impl FnMut(&mut [u8]) -> Result<(), LuksError> {
    let mut rng = Rng::new(seed);
    move |bytes| {
        bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
        Ok(())
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, what: &[u8]) {
    let end = at as usize + what.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[at as usize..end].copy_from_slice(what);
}

/// A header whose slots these passwords open, with the material, and a small disk behind that of LUKS1.
fn image(version: u32, slots: &[(usize, &str)]) -> Vec<u8> {
    let (key, mut random) = (Secret::new((1..=KEY_LEN as u8).collect()), random(7));
    let mut bytes = Vec::new();
    if version == 1 {
        let new =
            NewHeader1 { spec: SPEC, hash: Hash::Sha256, uuid: UUID.into(), digest_iterations: 1, is_detached: false };
        let mut header = new.header(&key, &mut random).expect("it can be made");
        for (slot, password) in slots {
            let sealed = header.seal(*slot, password.as_bytes(), &key, 1, &mut random).expect("it can be sealed");
            put(&mut bytes, header.material(*slot).start, sealed.material.expose());
            header.slots[*slot].state = sealed.state;
        }
        put(&mut bytes, 0, &header.bytes());
        bytes.resize((header.payload_offset() + DISK) as usize, 0x5a);
        return bytes;
    }
    let new = NewHeader2 {
        spec: SPEC,
        sector: 512,
        hash: Hash::Sha256,
        uuid: UUID.into(),
        label: String::new(),
        digest_iterations: 1,
        is_detached: true,
    };
    let mut header = new.header(&key, &mut random).expect("it can be made");
    for (slot, password) in slots {
        let cost = KdfCost::Pbkdf2 { hash: Hash::Sha256, iterations: 1 };
        let sealed = header.seal(*slot as u32, password.as_bytes(), &key, cost, &mut random).expect("it can be sealed");
        header = sealed.header;
        put(&mut bytes, header.material(*slot as u32).expect("a slot").start, sealed.material.expose());
    }
    for copy in [HeaderCopy::Primary, HeaderCopy::Secondary] {
        put(&mut bytes, header.place(copy).start, &header.bytes(copy, &mut random).expect("it has room"));
    }
    // As far as slots will lie here.
    bytes.resize(512 << 10, 0);
    bytes
}

/// What is in a header, seen without the driver: the passwords that open each slot.
fn slots(version: u32, bytes: &[u8]) -> Result<BTreeMap<usize, Option<&'static str>>, LuksError> {
    let part = |place: Range<u64>| {
        let mut part = bytes.get(place.start as usize..).unwrap_or_default().to_vec();
        part.resize((place.end - place.start) as usize, 0);
        part
    };
    let header = parsed(version, bytes)?;
    // The same slot with the same material is met again and again.
    let find = |place: Range<u64>, slot: String, opens: &dyn Fn(&[u8], &[u8]) -> bool| {
        let material = part(place);
        let mut hasher = DefaultHasher::new();
        (&slot, &material).hash(&mut hasher);
        let find = || PASSWORDS.into_iter().find(|password| opens(password.as_bytes(), &material));
        KNOWN.with_borrow_mut(|known| *known.entry(hasher.finish()).or_insert_with(find))
    };
    Ok(match &header {
        LuksHeader::V1(header) => {
            let enabled = (0..Header1::SLOTS).filter(|slot| header.slots[*slot].is_enabled());
            let found = enabled.map(|slot| {
                let opens = |password: &[u8], material: &[u8]| {
                    header.unlock(slot, password, material).expect("it can be computed").is_some()
                };
                (slot, find(header.material(slot), format!("{:?}", header.slots[slot]), &opens))
            });
            found.collect()
        }
        LuksHeader::V2(header) => {
            let found = header.slots().iter().map(|(number, slot)| {
                let opens = |password: &[u8], material: &[u8]| {
                    let key = header.unlock(*number, password, material, u32::MAX);
                    key.expect("it can be computed").is_some()
                };
                (*number as usize, find(slot.material(), format!("{slot:?}"), &opens))
            });
            found.collect()
        }
        other => panic!("{other:?}"),
    })
}

fn parsed(version: u32, bytes: &[u8]) -> Result<LuksHeader, LuksError> {
    match version {
        1 => Header1::parse(bytes, false).map(LuksHeader::V1),
        _ => Header2::parse(bytes, true).map(LuksHeader::V2),
    }
}

/// Where the material of a slot lies.
fn material(version: u32, bytes: &[u8], slot: usize) -> Range<usize> {
    let place = match parsed(version, bytes).expect("a header") {
        LuksHeader::V1(header) => header.material(slot),
        LuksHeader::V2(header) => header.material(slot as u32).expect("a slot"),
        other => panic!("{other:?}"),
    };
    place.start as usize..place.end as usize
}

fn add(slot: Option<u64>, secret: &str) -> SlotChange {
    let new_secret = Some(secret.to_owned());
    SlotChange { active: true, new_secret, old_secret: None, keyslot: slot, iter_time: Some(1) }
}

fn erase(slot: Option<u64>, secret: Option<&str>) -> SlotChange {
    let old_secret = secret.map(str::to_owned);
    SlotChange { active: false, new_secret: None, old_secret, keyslot: slot, iter_time: None }
}

/// A change that goes well if nothing is in its way, and what the slots are before and after it.
struct Scene {
    name: &'static str,
    before: Vec<(usize, &'static str)>,
    change: SlotChange,
    force: bool,
    after: Vec<(usize, &'static str)>,
    /// The slots whose former material is gone.
    gone: Vec<usize>,
}

fn scenes(version: u32) -> Vec<Scene> {
    let scene = |name, before: &[_], change, force, after: &[_], gone: &[_]| Scene {
        name,
        before: before.to_vec(),
        change,
        force,
        after: after.to_vec(),
        gone: gone.to_vec(),
    };
    let full: Vec<_> = (0..8).map(|slot| (slot, if slot == 5 { "more" } else { "old" })).collect();
    let mut replaced = full.clone();
    replaced[5].1 = "new";
    let mut all = vec![
        scene("add", &[(0, "old")], add(None, "new"), false, &[(0, "old"), (1, "new")], &[]),
        scene("add in slot 6", &[(7, "old")], add(Some(6), "new"), false, &[(6, "new"), (7, "old")], &[]),
        scene("erase", &[(0, "old"), (1, "new")], erase(Some(1), None), false, &[(0, "old")], &[1]),
        scene(
            "erase several",
            &[(0, "new"), (1, "old"), (3, "new")],
            erase(None, Some("new")),
            false,
            &[(1, "old")],
            &[0, 3],
        ),
        scene("replace", &[(0, "old"), (1, "more")], add(Some(1), "new"), true, &[(0, "old"), (1, "new")], &[1]),
        scene("replace the only one", &[(0, "old")], add(Some(0), "new"), true, &[(0, "new")], &[0]),
        scene("replace the only one, behind others", &[(3, "old")], add(Some(3), "new"), true, &[(3, "new")], &[3]),
    ];
    if version == 1 {
        all.push(scene("replace where none is free", &full, add(Some(5), "new"), true, &replaced, &[5]));
    }
    all
}

/// The scene is over: what is there is as it should be, and nothing of what was erased can be found.
fn check_end(version: u32, scene: &Scene, before: &[u8], after: &[u8]) {
    let slots = slots(version, after).expect("a header");
    let expected: BTreeMap<_, _> = scene.after.iter().map(|(slot, password)| (*slot, Some(*password))).collect();
    assert_eq!(slots, expected, "{}", scene.name);
    for slot in &scene.gone {
        let place = material(version, before, *slot);
        let sectors = before[place.clone()].chunks(512).zip(after[place].chunks(512));
        assert!(
            sectors.into_iter().all(|(before, after)| before != after),
            "{}: slot {slot} is still there",
            scene.name
        );
    }
}

/// What the medium may hold if the power is cut now.
fn cuts(storage: &MemStorage, rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut odd = false;
    let mut all = vec![
        storage.power_cut(|_, _| false),
        storage.power_cut(|_, _| true),
        storage.power_cut(|at, _| at % 16384 == 0),
        storage.power_cut(|at, _| at % 16384 != 0),
        storage.power_cut(|_, _| {
            odd = !odd;
            odd
        }),
    ];
    all.extend((0..3).map(|_| storage.power_cut(|_, _| rng.below(0..2) == 0)));
    all
}

// Scenario: the power is cut before every write and flush of every change, and any part of what was not flushed is on the medium. The header makes sense, somebody can open
// the image, and every slot that is said to have a key has one (but for a slot that is overwritten where none is free).
#[test]
fn an_image_opens_whenever_the_power_is_cut() {
    run(async |bed| {
        for (version, scene) in
            [1, 2].into_iter().flat_map(|version| scenes(version).into_iter().map(move |s| (version, s)))
        {
            let before = image(version, &scene.before);
            let storage = MemStorage::with_content(MemOptions { journal: true, ..MemOptions::new(0) }, before.clone());
            let node = bed.luks(version, &storage, "old", "").await.expect("it opens");
            let seen = Arc::new(Mutex::new(Vec::new()));
            storage.set_script({
                let (storage, seen, mut rng) = (storage.clone(), seen.clone(), Rng::new(3));
                move |op| {
                    if op.kind != MemOpKind::Read {
                        seen.lock().expect("no panic").extend(cuts(&storage, &mut rng));
                    }
                    Verdict::Serve
                }
            });
            change_slots(&bed.gs, &node, &scene.change, scene.force).await.expect(scene.name);
            storage.clear_script();
            let after = storage.power_cut(|_, _| false);
            assert!(after == storage.bytes(0, storage.len() as usize), "all is flushed");
            check_end(version, &scene, &before, &after);
            assert_eq!(parsed(version, &after).as_ref(), Ok(&bed.header(&node)), "{}", scene.name);
            let mut seen = std::mem::take(&mut *seen.lock().expect("no panic"));
            seen.dedup();
            assert!(seen.len() > 4, "{}: {} cuts", scene.name, seen.len());
            for cut in seen {
                let slots = slots(version, &cut).unwrap_or_else(|error| panic!("{}: {error}", scene.name));
                let opens = slots.values().flatten().any(|password| ["old", "new"].contains(password));
                assert!(opens, "LUKS{version}, {}: {slots:?}", scene.name);
                assert!(slots.values().all(Option::is_some), "LUKS{version}, {}: {slots:?}", scene.name);
            }
            drop(node);
            bed.gs.settle().await.expect("it closes");
        }
    });
}

// Scenario: a write or a flush fails, each of them in turn. The error is told, the image opens, and the node knows what its header is; what is tried again goes well.
fn check_failures(version: u32) {
    // What a new slot may cost is measured each time, so these are few.
    let names = ["add", "erase", "erase several", "replace the only one", "replace where none is free"];
    run(async |bed| {
        for scene in scenes(version).into_iter().filter(|scene| names.contains(&scene.name)) {
            for kind in [MemOpKind::Write, MemOpKind::Flush] {
                if kind == MemOpKind::Flush && scene.name == "replace where none is free" {
                    continue;
                }
                let mut failed = 0;
                loop {
                    let before = image(version, &scene.before);
                    let options = MemOptions { journal: true, ..MemOptions::new(0) };
                    let storage = MemStorage::with_content(options, before.clone());
                    let node = bed.luks(version, &storage, "old", "").await.expect("it opens");
                    storage.fail_nth(Some(kind), failed, IoError::host(Errno::ENOSPC.raw()));
                    let changed = change_slots(&bed.gs, &node, &scene.change, scene.force).await;
                    storage.clear_script();
                    let after = storage.bytes(0, storage.len() as usize);
                    let header = parsed(version, &after).expect("a header");
                    assert_eq!(bed.header(&node).info(), header.info(), "{}, {kind:?} {failed}", scene.name);
                    if changed.is_ok() {
                        check_end(version, &scene, &before, &after);
                        break;
                    }
                    failed += if kind == MemOpKind::Write { 1 } else { 3 };
                    let error = changed.expect_err("just seen");
                    let is_told = matches!(&error, SlotError::Graph(error) if error.report() == "Could not write the LUKS header: No space left on device");
                    assert!(is_told, "{error}");
                    for state in [after, storage.power_cut(|_, _| false), storage.power_cut(|_, _| true)] {
                        let slots = slots(version, &state).expect("a header");
                        let opens = slots.values().flatten().any(|password| ["old", "new"].contains(password));
                        assert!(opens, "LUKS{version}, {}, {kind:?} {failed}: {slots:?}", scene.name);
                    }
                    drop(node);
                    bed.gs.settle().await.expect("it closes");
                }
                assert!(failed >= 2, "{}: {failed} {kind:?}", scene.name);
            }
        }
    });
}

#[test]
fn an_image_opens_whatever_write_of_luks1_fails() {
    check_failures(1);
}

#[test]
fn an_image_opens_whatever_write_of_luks2_fails() {
    check_failures(2);
}

// Scenario: one of several erased slots cannot be overwritten. The others are.
#[test]
fn what_cannot_be_overwritten_keeps_the_rest_from_nothing() {
    run(async |bed| {
        for version in [1, 2] {
            let before = image(version, &[(0, "new"), (1, "old"), (2, "new")]);
            let storage = MemStorage::with_content(MemOptions::new(0), before.clone());
            let node = bed.luks(version, &storage, "old", "").await.expect("it opens");
            let bad = material(version, &before, 0).start as u64;
            storage.set_script(move |op| match op.kind == MemOpKind::Write && op.offset == bad {
                true => Verdict::Fail(IoError::host(Errno::EIO.raw())),
                false => Verdict::Serve,
            });
            let changed = change_slots(&bed.gs, &node, &erase(None, Some("new")), false).await;
            assert!(changed.is_err());
            let after = storage.bytes(0, storage.len() as usize);
            assert_eq!(slots(version, &after), Ok([(1, Some("old"))].into()));
            let place = material(version, &before, 2);
            assert!(before[place.clone()] != after[place]);
            storage.clear_script();
        }
    });
}

async fn both<A, B>(one: impl Future<Output = A>, two: impl Future<Output = B>) -> (A, B) {
    let (mut one, mut two) = (pin!(one), pin!(two));
    let (mut first, mut second) = (None, None);
    poll_fn(move |cx| {
        if first.is_none() {
            first = match one.as_mut().poll(cx) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            };
        }
        if second.is_none() {
            second = match two.as_mut().poll(cx) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            };
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

// Scenario: the node is read-only, what it lies in is not, and a guest reads all the time.
#[test]
fn slots_of_a_read_only_node_change_while_a_guest_reads() {
    run(async |bed| {
        let storage = MemStorage::with_content(MemOptions::new(0), image(1, &[(0, "old")]));
        bed.storages.borrow_mut().insert("header".into(), storage.clone());
        let file = bed.open(r#"{"driver": "mem", "node-name": "file", "storage": "header"}"#).await.expect("it opens");
        let luks = r#"{"driver": "luks", "key-secret": "old", "read-only": true, "file": "file"}"#;
        let node = bed.open(luks).await.expect("it opens");
        let perm = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
        let root = bed.gs.new_root("guest", ParentKind::Backend, perm, &bed.gs.main_io());
        bed.gs.attach_root(&root, Some(&node)).await.expect("it only reads");
        let read = async || {
            let (read, buf) = root.io().read(0, AlignedBuf::zeroed(65536, 512).into_io()).await;
            read.expect("it can be read");
            buf.expect("the buffer comes back").to_aligned(1)[..].to_vec()
        };
        let expected = read().await;
        let done = std::cell::Cell::new(false);
        let guest = async {
            while !done.get() {
                assert!(read().await == expected);
            }
        };
        let changes = async {
            for change in [add(None, "new"), add(Some(4), "more"), erase(Some(1), None), erase(None, Some("more"))] {
                change_slots(&bed.gs, &node, &change, false).await.expect("nobody is in the way");
            }
            done.set(true);
        };
        both(guest, changes).await;
        // No guest may write because of it.
        let (written, _) = root.io().write(0, AlignedBuf::zeroed(512, 512).into_io(), RequestFlags::empty()).await;
        assert!(written.is_err());
        let parents = bed.gs.node_info(&node).expect("it is there").children;
        assert!(!parents[0].2.perm.contains(Perm::WRITE), "{parents:?}");
        bed.gs.close_root(root).await;
        drop(file);
    });
}

// Scenario: the file was opened for reading, or somebody else reads it and minds writes. Nothing has happened when that is told.
#[test]
fn slots_that_may_not_be_written_stay_as_they_are() {
    run(async |bed| {
        let storage = MemStorage::with_content(MemOptions::new(0), image(1, &[(0, "old")]));
        bed.storages.borrow_mut().insert("header".into(), storage.clone());
        let read_only = r#"{"driver": "mem", "node-name": "ro", "storage": "header", "read-only": true}"#;
        let ro = bed.open(read_only).await.expect("it opens");
        let luks =
            |file: &str| format!(r#"{{"driver": "luks", "key-secret": "old", "read-only": true, "file": "{file}"}}"#);
        let node = bed.open(&luks("ro")).await.expect("it opens");
        let refused = async |node: &NodeRef| {
            let before = storage.log().len();
            let error = change_slots(&bed.gs, node, &add(None, "new"), false).await.expect_err("it may not");
            assert_eq!(storage.log().len(), before, "nothing has happened");
            error.to_string()
        };
        assert_eq!(refused(&node).await, "Block node 'ro' is read-only");
        let file = bed.open(r#"{"driver": "mem", "node-name": "rw", "storage": "header"}"#).await.expect("it opens");
        let node = bed.open(&luks("rw")).await.expect("it opens");
        for (perm, shared, what) in [
            (Perm::empty(), Perm::all() - Perm::WRITE, "write"),
            (Perm::CONSISTENT_READ, Perm::all(), "consistent read"),
        ] {
            let other = bed.gs.new_root("other", ParentKind::Backend, PermPair::new(perm, shared), &bed.gs.main_io());
            bed.gs.attach_root(&other, Some(&file)).await.expect("nobody writes");
            let told = refused(&node).await;
            assert!(
                told.starts_with(&format!(
                    "Permission conflict on node 'rw': permissions '{what}' are both required by"
                )),
                "{told}"
            );
            assert!(told.contains("block device 'other'"), "{told}");
            bed.gs.close_root(other).await;
        }
        // Two acts at a time.
        let (new, more) = (add(None, "new"), add(None, "more"));
        let change = |change| change_slots(&bed.gs, &node, change, false);
        let (first, second) = both(change(&new), change(&more)).await;
        first.expect("nobody is in the way");
        assert!(matches!(second, Err(SlotError::Graph(GraphError::InUse(_)))), "{second:?}");
        change_slots(&bed.gs, &node, &add(None, "more"), false).await.expect("the other act is over");
        let after = storage.bytes(0, storage.len() as usize);
        assert_eq!(slots(1, &after), Ok([(0, Some("old")), (1, Some("new")), (2, Some("more"))].into()));
        drop((ro, file));
    });
}

// Scenario: whoever opens an image, or changes its slots, goes away while a password is hashed.
#[test]
fn who_goes_away_while_a_password_is_hashed_leaves_nothing() {
    run(async |bed| {
        for version in [1, 2] {
            let storage = MemStorage::with_content(MemOptions::new(0), image(version, &[(0, "old")]));
            for polls in 1..12 {
                let mut opening = Box::pin(bed.luks(version, &storage, "old", ""));
                for _ in 0..polls {
                    let polled = poll_fn(|cx| Poll::Ready(opening.as_mut().poll(cx).is_ready())).await;
                    if polled {
                        break;
                    }
                    bed.gs.main().sleep(std::time::Duration::from_millis(1)).await;
                }
                drop(opening);
                // What was begun is ended by itself.
                while !bed.gs.nodes().is_empty() {
                    bed.gs.main().sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            let node = bed.luks(version, &storage, "old", "").await.expect("it opens");
            for polls in 1..12 {
                let change = add(Some(1), "new");
                let mut changing = Box::pin(change_slots(&bed.gs, &node, &change, true));
                for _ in 0..polls {
                    let polled = poll_fn(|cx| Poll::Ready(changing.as_mut().poll(cx).is_ready())).await;
                    if polled {
                        break;
                    }
                    bed.gs.main().sleep(std::time::Duration::from_millis(1)).await;
                }
                drop(changing);
                let slots = slots(version, &storage.bytes(0, storage.len() as usize)).expect("a header");
                assert_eq!(slots[&0], Some("old"), "{polls} polls");
            }
            change_slots(&bed.gs, &node, &add(Some(2), "more"), false).await.expect("the edge is free again");
            drop(node);
            bed.gs.settle().await.expect("it closes");
        }
    });
}
