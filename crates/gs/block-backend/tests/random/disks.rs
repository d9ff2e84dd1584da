//! Disks: files, the nodes above them, and the backends and devices that use them.

use crate::board::{Allowed, UNIT, UNITS, check_unit};
use crate::guest::Guest;
use block_backend::{Backend, Device, FrontEnd};
use block_backend_io::BackendIo;
use block_common::{AlignedBuf, Options, ParentKind, Perm, PermPair};
use block_drivers::NewImage;
use block_gs::{GlobalState, NodeRef};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What lies in a stack of nodes.
pub(crate) enum Kind {
    Filter,
    Image { file: PathBuf, format: &'static str },
}

pub(crate) struct Layer {
    pub(crate) node: NodeRef,
    pub(crate) kind: Kind,
}

impl Layer {
    pub(crate) fn is_image(&self) -> bool {
        matches!(self.kind, Kind::Image { .. })
    }

    pub(crate) fn image(&self) -> Option<(&Path, &'static str)> {
        match &self.kind {
            Kind::Image { file, format } => Some((file, format)),
            Kind::Filter => None,
        }
    }
}

/// What a disk was like at some time, and where that can be seen.
pub(crate) struct Kept {
    pub(crate) file: PathBuf,
    pub(crate) format: &'static str,
    /// The snapshot inside the image; the image itself, where there is none.
    pub(crate) snapshot: Option<String>,
    pub(crate) allowed: Vec<Allowed>,
    /// How many units there were.
    pub(crate) units: usize,
}

/// A medium: its nodes, the uppermost first.
pub(crate) struct Medium {
    pub(crate) layers: Vec<Layer>,
    pub(crate) is_read_only: bool,
    pub(crate) kept: Vec<Kept>,
}

impl Medium {
    pub(crate) fn top(&self) -> NodeRef {
        self.layers[0].node.clone()
    }

    /// The place of the uppermost image.
    pub(crate) fn image(&self) -> usize {
        self.layers.iter().position(Layer::is_image).expect("there is no medium without an image")
    }

    pub(crate) fn images(&self) -> usize {
        self.layers.iter().filter(|layer| layer.is_image()).count()
    }

    pub(crate) fn image_file(&self) -> (PathBuf, &'static str) {
        let (file, format) = self.layers[self.image()].image().expect("it is an image");
        (file.to_owned(), format)
    }
}

/// A backend that a guest uses.
pub(crate) struct Drive {
    /// Its number on the board.
    pub(crate) number: usize,
    pub(crate) backend: Backend,
    pub(crate) front: Option<FrontEnd>,
    pub(crate) guest: Guest,
    pub(crate) medium: Option<usize>,
    pub(crate) share_rw: bool,
    pub(crate) writes: bool,
}

/// A drive with a tray whose media are written.
pub(crate) struct Tray {
    pub(crate) id: String,
    pub(crate) io: BackendIo,
}

pub(crate) fn tray_perm(is_read_only: bool) -> PermPair {
    let perm = if is_read_only { Perm::CONSISTENT_READ } else { Perm::CONSISTENT_READ | Perm::WRITE };
    PermPair::new(perm, Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED | Perm::RESIZE)
}

impl Device for Tray {
    fn id(&self) -> &str {
        &self.id
    }

    fn has_removable_media(&self) -> bool {
        true
    }

    fn has_tray(&self) -> bool {
        true
    }

    fn media_changed(&self, is_loaded: bool) -> Result<(), String> {
        self.io.eject(!is_loaded);
        Ok(())
    }

    fn eject_requested(&self, force: bool) {
        if force {
            self.io.lock_medium(false);
        }
    }

    fn perm(&self, is_read_only: bool) -> Option<PermPair> {
        Some(tray_perm(is_read_only))
    }
}

pub(crate) fn json(text: &str) -> Options {
    Options::parse_json(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A new image of so many units, open.
pub(crate) async fn new_image(gs: &GlobalState, file: &Path, format: &'static str, name: &str, units: usize) -> Layer {
    let path = file.display().to_string();
    let new = NewImage::parse(gs, format, &path, &format!("size={}", units * UNIT)).await.expect("options");
    new.create(gs).await.expect("created");
    let text = format!(
        r#"{{"driver": "{format}", "node-name": "{name}", "discard": "unmap",
            "file": {{"driver": "file", "filename": "{path}", "node-name": "{name}-file"}}}}"#
    );
    let node = gs.open(json(&text)).await.expect("it opens");
    Layer { node, kind: Kind::Image { file: file.to_owned(), format } }
}

/// All that a node shows.
pub(crate) async fn read_all(gs: &GlobalState, node: &NodeRef) -> Vec<u8> {
    let perm = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
    let root = gs.new_root("compare", ParentKind::Backend, perm, &gs.main_io());
    gs.attach_root(&root, Some(node)).await.expect("everybody shares reading");
    let len = root.io().length().expect("a length") as usize;
    let (read, buf) = root.io().read(0, AlignedBuf::zeroed(len, 4096).into_io()).await;
    read.expect("it is read");
    let mut bytes = vec![0; len];
    buf.expect("the buffer").copy_to_slice(0, &mut bytes);
    gs.close_root(root).await;
    bytes
}

/// Compare a disk with what it may hold.
pub(crate) fn check_all(what: &str, allowed: &[Allowed], bytes: &[u8]) {
    assert!(bytes.len() <= UNITS * UNIT, "{what}: {} bytes", bytes.len());
    for (at, unit) in bytes.chunks(UNIT).enumerate() {
        check_unit(&allowed[at], at, unit).unwrap_or_else(|why| panic!("{what}: {why}"));
    }
}

pub(crate) fn has_qemu_img() -> bool {
    Command::new("qemu-img").arg("--version").output().is_ok()
}

/// What QEMU's tool finds in a file, or in a snapshot inside it.
pub(crate) fn qemu_img_reads(dir: &Path, kept: &Kept) -> Vec<u8> {
    let out = dir.join("out.raw");
    let mut tool = Command::new("qemu-img");
    tool.args(["convert", "-f", kept.format, "-O", "raw"]);
    if let Some(name) = &kept.snapshot {
        tool.args(["-l", &format!("snapshot.name={name}")]);
    }
    let done = tool.arg(&kept.file).arg(&out).output().expect("qemu-img");
    assert!(done.status.success(), "{}: {}", kept.file.display(), String::from_utf8_lossy(&done.stderr));
    std::fs::read(out).expect("it was written")
}

pub(crate) fn qemu_img_checks(file: &Path) {
    let done = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(file).output().expect("qemu-img");
    let told = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {told}", file.display());
}

/// The graph in lines: what a refused change must not change.
pub(crate) fn shape(gs: &GlobalState) -> Vec<String> {
    let node = |node: block_gs::NodeInfo| {
        // A file grows as its image is written.
        let length = if node.driver == "file" { 0 } else { node.length };
        format!("{} {length} {:?} {:?} {} {:?}", node.name, node.children, node.parents, node.read_only, node.common)
    };
    let mut lines: Vec<_> = gs.nodes().into_iter().map(node).collect();
    lines.extend(gs.roots().into_iter().map(|root| format!("{root:?}")));
    lines
}
