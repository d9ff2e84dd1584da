//! Reopening real images with other children: backing files, other files for the same image, windows on another file.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests prepare files behind the driver's back")]

use block_common::{AlignedBuf, Options, ParentKind, Perm, PermPair, RequestFlags};
use block_drivers::{NewImage, register_all};
use block_gs::{GlobalOptions, GlobalState, GraphError, GraphResult, LeftOut, MainLoop, NodeRef, ObjectText, RootRef};
use std::path::PathBuf;

const SIZE: usize = 1 << 20;

struct Bed {
    gs: GlobalState,
    dir: tempfile::TempDir,
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(std::rc::Rc<Bed>) -> F) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    main.run(async {
        test(std::rc::Rc::new(Bed { gs: gs.clone(), dir })).await;
        gs.close_all().await.expect("closed");
    });
}

impl Bed {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An image with one byte everywhere, or with nothing of its own.
    async fn image(&self, name: &str, format: &str, options: &str, byte: Option<u8>) {
        let path = self.path(name).display().to_string();
        let new = NewImage::parse(&self.gs, format, &path, options).await.expect("options");
        new.create(&self.gs).await.expect("created");
        if let Some(byte) = byte {
            let node = self.add(&format!(r#"{{"driver": "{format}", "file": {}}}"#, self.file(name, "tmp"))).await;
            let root = self.root(&node, Perm::WRITE).await;
            let mut buf = AlignedBuf::zeroed(SIZE, 4096);
            buf.fill(byte);
            root.io().write(0, buf.into_io(), RequestFlags::empty()).await.0.expect("written");
            self.gs.close_root(root).await;
            self.remove(node).await;
        }
    }

    fn file(&self, name: &str, node: &str) -> String {
        format!(r#"{{"driver": "file", "filename": "{}", "node-name": "{node}"}}"#, self.path(name).display())
    }

    async fn add(&self, json: &str) -> NodeRef {
        let node = self
            .gs
            .open(Options::parse_json(json).expect(json))
            .await
            .unwrap_or_else(|error| panic!("{json}: {error}"));
        self.gs.set_monitor_owned(&node, true);
        node
    }

    async fn remove(&self, node: NodeRef) {
        self.gs.set_monitor_owned(&node, false);
        self.gs.close(node).await.expect("closed");
    }

    async fn root(&self, node: &NodeRef, perm: Perm) -> RootRef {
        let perm = PermPair::new(perm | Perm::CONSISTENT_READ, Perm::all());
        let root = self.gs.new_root("root", ParentKind::Backend, perm, &self.gs.main_io());
        self.gs.attach_root(&root, Some(node)).await.expect("attached");
        root
    }

    async fn reopen(&self, changes: &[(&str, &str)]) -> GraphResult<()> {
        let options = |json: &str| Options::parse_json(json).expect("options");
        let named = |(node, json): &(&str, &str)| Ok((self.gs.find_node(node)?, options(json)));
        self.gs.reopen_all(changes.iter().map(named).collect::<GraphResult<_>>()?, LeftOut::Default).await
    }
}

/// The first byte at each of these offsets.
async fn bytes<const N: usize>(root: &RootRef, at: [u64; N]) -> [u8; N] {
    let mut found = [0; N];
    for (byte, at) in found.iter_mut().zip(at) {
        let (read, buf) = root.io().read(at, AlignedBuf::zeroed(512, 4096).into_io()).await;
        read.expect("read");
        *byte = buf.expect("the buffer").to_aligned(1)[0];
    }
    found
}

fn message<T>(result: Result<T, GraphError>) -> String {
    result.err().expect("this should have failed").report()
}

#[test]
fn reopen_3_a_qcow2_image_gets_another_backing_file() {
    run(async |bed| {
        bed.image("a", "qcow2", "size=1M", Some(1)).await;
        bed.image("b", "qcow2", "size=1M", Some(2)).await;
        let backing = format!("size=1M,backing_fmt=qcow2,backing_file={}", bed.path("a").display());
        bed.image("top", "qcow2", &backing, None).await;
        for name in ["a", "b"] {
            let file = bed.file(name, &format!("{name}-file"));
            let json = format!(r#"{{"driver": "qcow2", "node-name": "{name}", "read-only": true, "file": {file}}}"#);
            bed.add(&json).await;
        }
        let json = format!(
            r#"{{"driver": "qcow2", "node-name": "top", "backing": "a", "file": {}}}"#,
            bed.file("top", "top-file")
        );
        let top = bed.add(&json).await;
        let root = bed.root(&top, Perm::WRITE).await;
        let mut buf = AlignedBuf::zeroed(65536, 4096);
        buf.fill(9);
        root.io().write(65536, buf.into_io(), RequestFlags::empty()).await.0.expect("written");
        assert_eq!(bytes(&root, [0, 65536]).await, [1, 9]);
        bed.reopen(&[("top", r#"{"backing": "b"}"#)]).await.expect("reopened");
        assert_eq!(bytes(&root, [0, 65536]).await, [2, 9]);
        bed.reopen(&[("top", r#"{"backing": null}"#)]).await.expect("reopened");
        assert_eq!(bytes(&root, [0, 65536]).await, [0, 9]);
        // The image still names one.
        assert_eq!(message(bed.reopen(&[("top", "{}")]).await), "backing is missing for 'top'");
        // That of an image that names none may be left out, as long as it has none.
        bed.reopen(&[("b", r#"{"read-only": true}"#)]).await.expect("reopened");
        bed.reopen(&[("top", r#"{"backing": "a", "lazy-refcounts": true}"#)]).await.expect("reopened");
        assert_eq!(bytes(&root, [0, 65536]).await, [1, 9]);
        // A write copies up what the new one has.
        root.io().write(0, AlignedBuf::zeroed(512, 512).into_io(), RequestFlags::empty()).await.0.expect("written");
        assert_eq!(bytes(&root, [0, 512, 65536]).await, [0, 1, 9]);
        let below = message(bed.reopen(&[("a", r#"{"read-only": true, "backing": "top"}"#)]).await);
        assert_eq!(below, "Making 'top' a backing child of 'a' would create a cycle");
        bed.gs.close_root(root).await;
    });
}

#[test]
fn a_qcow2_image_keeps_to_its_own_content() {
    run(async |bed| {
        bed.image("one", "qcow2", "size=1M", Some(1)).await;
        bed.image("other", "qcow2", "size=1M,cluster_size=4096", Some(2)).await;
        std::fs::write(bed.path("none"), vec![0; SIZE]).expect("a file");
        let top = bed
            .add(&format!(r#"{{"driver": "qcow2", "node-name": "top", "file": {}}}"#, bed.file("one", "file")))
            .await;
        let file = bed.gs.find_node("file").expect("it is there");
        bed.gs.set_monitor_owned(&file, true);
        let root = bed.root(&top, Perm::WRITE).await;
        bed.add(&bed.file("other", "other")).await;
        bed.add(&bed.file("none", "none")).await;
        let told = message(bed.reopen(&[("top", r#"{"file": "other"}"#)]).await);
        assert_eq!(told, "The new 'file' does not hold the image that is open");
        assert_eq!(message(bed.reopen(&[("top", r#"{"file": "none"}"#)]).await), "Image is not in qcow2 format");
        // A filter in between shows the same image.
        bed.add(r#"{"driver": "blkdebug", "node-name": "filter", "image": "file"}"#).await;
        for file in ["filter", "file"] {
            bed.reopen(&[("top", &format!(r#"{{"file": "{file}"}}"#))]).await.expect("reopened");
            assert_eq!(bytes(&root, [0]).await, [1]);
            root.io()
                .write(4096, AlignedBuf::zeroed(512, 512).into_io(), RequestFlags::empty())
                .await
                .0
                .expect("written");
        }
        assert_eq!(bytes(&root, [4096, 8192]).await, [0, 1]);
        // So does a copy, as long as it is one.
        root.io().flush().await.expect("flushed");
        std::fs::copy(bed.path("one"), bed.path("copy")).expect("copied");
        bed.add(&bed.file("copy", "copy")).await;
        bed.reopen(&[("top", r#"{"file": "copy"}"#)]).await.expect("reopened");
        assert_eq!(bytes(&root, [4096, 8192]).await, [0, 1]);
        bed.gs.close_root(root).await;
    });
}

#[test]
fn a_raw_window_moves_to_another_file() {
    run(async |bed| {
        for (name, byte, len) in [("one", 1, SIZE), ("two", 2, 2 * SIZE)] {
            let mut content = vec![byte; len];
            content[512..1024].fill(byte + 10);
            std::fs::write(bed.path(name), content).expect("a file");
            bed.add(&bed.file(name, name)).await;
        }
        let raw = bed.add(r#"{"driver": "raw", "node-name": "raw", "file": "one"}"#).await;
        let root = bed.root(&raw, Perm::empty()).await;
        bed.reopen(&[("raw", r#"{"file": "two"}"#)]).await.expect("reopened");
        assert_eq!((bytes(&root, [0, 512]).await, raw.io().length()), ([2, 12], 2 * SIZE as u64));
        // The window is looked for in the file that it is going to be in.
        let told = message(bed.reopen(&[("raw", r#"{"file": "one", "offset": 1536000}"#)]).await);
        assert_eq!(told, "Offset (1536000) cannot be greater than size of the containing file (1048576)");
        bed.reopen(&[("raw", r#"{"file": "two", "offset": 1536000}"#)]).await.expect("reopened");
        let told = message(bed.reopen(&[("raw", r#"{"file": "one", "offset": 1536000}"#)]).await);
        assert_eq!(told, "Offset (1536000) cannot be greater than size of the containing file (1048576)");
        bed.reopen(&[("raw", r#"{"file": "one", "offset": 512, "size": 1024}"#)]).await.expect("reopened");
        assert_eq!((bytes(&root, [0, 512]).await, raw.io().length()), ([11, 1], 1024));
        let told = message(bed.reopen(&[("raw", r#"{"file": "raw"}"#)]).await);
        assert_eq!(told, "Making 'raw' a file child of 'raw' would create a cycle");
        bed.gs.close_root(root).await;
    });
}

#[test]
fn an_encrypted_image_keeps_to_its_own_header() {
    run(async |bed| {
        let Ok(ObjectText::Make(secret)) = ObjectText::parse("secret,id=s,data=abc") else { panic!("well-formed") };
        bed.gs.add_object(secret).await.expect("a secret");
        for name in ["one", "other"] {
            bed.image(name, "luks", "size=1M,key-secret=s,iter-time=10", None).await;
            bed.add(&bed.file(name, name)).await;
        }
        let json = r#"{"driver": "luks", "node-name": "luks", "key-secret": "s", "file": "one"}"#;
        let luks = bed.add(json).await;
        let root = bed.root(&luks, Perm::WRITE).await;
        let mut buf = AlignedBuf::zeroed(512, 512);
        buf.fill(7);
        root.io().write(0, buf.into_io(), RequestFlags::empty()).await.0.expect("written");
        let told = message(bed.reopen(&[("luks", r#"{"key-secret": "s", "file": "other"}"#)]).await);
        assert_eq!(told, "The new 'file' does not hold the image that is open");
        let told = message(bed.reopen(&[("luks", r#"{"key-secret": "t", "file": "one"}"#)]).await);
        assert_eq!(told, "Cannot change the option 'key-secret'");
        bed.add(r#"{"driver": "blkdebug", "node-name": "filter", "image": "one"}"#).await;
        bed.reopen(&[("luks", r#"{"key-secret": "s", "file": "filter"}"#)]).await.expect("reopened");
        assert_eq!(bytes(&root, [0]).await, [7]);
        bed.gs.close_root(root).await;
    });
}
