//! The cases: who runs against whom, and the bar. The bars are the project's own; see its first issue, "Speed".

use crate::inside::{Encryption, NewImage, NullBackend, Threads, layers};
use crate::life::{Act, Lie, ManyNodes, slowest};
use crate::programs::{Bench, CP, FIO, Fio, Fresh, OPENSSL, OpensslSpeed, Peer, QEMU_IMG, QEMU_STORAGE_DAEMON, Tools};
use crate::report::{Bar, Row};
use crate::rounds::{Contender, alternate};
use crate::stats::median;
use crate::whole::{Whole, sparse_file, text_file};
use anyhow::{Context, Result};
use cairn_benches::{DataFile, Driver, FileMode, Live, PASSING, Shape, Stack, warm};
use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// One case.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Programs that it needs.
    pub(crate) peers: &'static [Peer],
    /// Whether it needs io_uring.
    pub(crate) ring: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Null { depth: usize },
    TwoThreads { depth: usize },
    Cached { depth: usize },
    Direct { depth: usize },
    Layer { layer: Layer, depth: usize },
    Unaligned { depth: usize },
    Convert { pieces: Pieces },
    Compare { pieces: Pieces },
    Info,
    Qcow2Read { depth: usize },
    Qcow2Allocate { size: usize, how: Allocating },
    Qcow2Convert { how: Converting },
    Qcow2Whole { command: &'static str },
    Qcow2Compare,
    Qcow2Commit,
    Qcow2TwoThreads { size: usize },
    Encryption,
    LuksConvert { into: bool },
    LuksTwoThreads { size: usize },
    Pass { filter: &'static str, depth: usize },
    Stall { act: Act },
    Nodes { lie: Lie },
}

/// Into what image allocating writes go.
#[derive(Clone, Copy, Debug)]
enum Allocating {
    Plain,
    Subclusters,
    OverBacking,
}

/// From what to what.
#[derive(Clone, Copy, Debug)]
enum Converting {
    FromRaw,
    ToRaw,
    /// Compressed, of this type.
    Packed(&'static str),
    Unpacked(&'static str),
}

/// How a sparse image is made.
#[derive(Clone, Copy, Debug)]
enum Pieces {
    /// Pieces of 1 MiB.
    Long,
    /// Pieces of 4 to 256 KiB, as file systems leave them.
    Mixed,
}

#[derive(Clone, Copy, Debug)]
enum Layer {
    Raw,
    Filter,
    Format,
    /// Above the file, against raw above the file.
    Qcow2,
    /// Above the file, against raw above the file, less what openssl takes to encrypt as much.
    Luks,
}

const fn null(name: &'static str, depth: usize) -> Case {
    let what = "4 KiB reads of a null node: cairn-img bench against qemu-img bench";
    Case { name, what, peers: &[QEMU_IMG], ring: false, kind: Kind::Null { depth } }
}

const fn threads(name: &'static str, depth: usize) -> Case {
    let what = "4 KiB reads of one null node: two I/O threads against one";
    Case { name, what, peers: &[], ring: false, kind: Kind::TwoThreads { depth } }
}

const fn cached(name: &'static str, depth: usize) -> Case {
    let what = "4 KiB reads of a file in the page cache: cairn-img bench against fio and qemu-img bench";
    Case { name, what, peers: &[FIO, QEMU_IMG], ring: true, kind: Kind::Cached { depth } }
}

const fn direct(name: &'static str, depth: usize) -> Case {
    let what = "4 KiB reads of a file around the page cache: cairn-img bench against fio";
    Case { name, what, peers: &[FIO], ring: true, kind: Kind::Direct { depth } }
}

const fn layer(name: &'static str, layer: Layer, depth: usize) -> Case {
    let what = "4 KiB reads of a file in the page cache: what a layer above it adds";
    Case { name, what, peers: &[], ring: true, kind: Kind::Layer { layer, depth } }
}

const fn unaligned(name: &'static str, depth: usize) -> Case {
    let what = "512-byte writes that fill no block, around the page cache: cairn-img bench against qemu-img bench";
    Case { name, what, peers: &[QEMU_IMG], ring: true, kind: Kind::Unaligned { depth } }
}

const fn convert(name: &'static str, pieces: Pieces) -> Case {
    let what = "a sparse raw image to a raw image: cairn-img convert against qemu-img convert and cp --sparse=always";
    Case { name, what, peers: &[QEMU_IMG, CP], ring: false, kind: Kind::Convert { pieces } }
}

const fn compare(name: &'static str, pieces: Pieces) -> Case {
    let what = "two sparse raw images that are the same: cairn-img compare against qemu-img compare";
    Case { name, what, peers: &[QEMU_IMG], ring: false, kind: Kind::Compare { pieces } }
}

const INFO: Case = Case {
    name: "info",
    what: "the whole of cairn-img info against the whole of qemu-img info",
    peers: &[QEMU_IMG],
    ring: false,
    kind: Kind::Info,
};

const fn qcow2_read(name: &'static str, depth: usize) -> Case {
    let what = "4 KiB reads of an allocated qcow2 image in the page cache: cairn-img bench against qemu-img bench";
    Case { name, what, peers: &[QEMU_IMG], ring: true, kind: Kind::Qcow2Read { depth } }
}

const fn qcow2_allocate(name: &'static str, size: usize, how: Allocating) -> Case {
    let what = "writes that each allocate a cluster of a new qcow2 image, 32 at once: cairn-img bench against qemu-img bench, large ones against fio";
    let peers: &[Peer] = if size > 4096 { &[QEMU_IMG, FIO] } else { &[QEMU_IMG] };
    Case { name, what, peers, ring: true, kind: Kind::Qcow2Allocate { size, how } }
}

const fn qcow2_convert(name: &'static str, how: Converting) -> Case {
    let what = "a sparse image from raw to qcow2 or back: cairn-img convert against qemu-img convert";
    Case { name, what, peers: &[QEMU_IMG], ring: false, kind: Kind::Qcow2Convert { how } }
}

const fn qcow2_whole(name: &'static str, command: &'static str) -> Case {
    let what = "a command on a sparse qcow2 image: cairn-img against qemu-img";
    Case { name, what, peers: &[QEMU_IMG], ring: false, kind: Kind::Qcow2Whole { command } }
}

const QCOW2_COMPARE: Case = Case {
    name: "qcow2-compare",
    what: "a sparse qcow2 image and the raw one that it was made from: cairn-img compare against qemu-img compare",
    peers: &[QEMU_IMG],
    ring: false,
    kind: Kind::Qcow2Compare,
};

const QCOW2_COMMIT: Case = Case {
    name: "qcow2-commit",
    what: "a sparse overlay into an empty qcow2 image: cairn-img commit against qemu-img commit",
    peers: &[QEMU_IMG, CP],
    ring: false,
    kind: Kind::Qcow2Commit,
};

const fn qcow2_threads(name: &'static str, size: usize) -> Case {
    let what = "writes that each allocate a cluster of a new qcow2 image, 32 at once: two I/O threads against one";
    Case { name, what, peers: &[], ring: true, kind: Kind::Qcow2TwoThreads { size } }
}

const fn luks_convert(name: &'static str, into: bool) -> Case {
    let what =
        "an encrypted image to nowhere, or a raw image to an encrypted one: cairn-img convert against qemu-img convert";
    Case { name, what, peers: &[QEMU_IMG], ring: false, kind: Kind::LuksConvert { into } }
}

const fn luks_threads(name: &'static str, size: usize) -> Case {
    let what = "reads of an encrypted disk in the page cache, 8 at once: two I/O threads against one";
    Case { name, what, peers: &[], ring: true, kind: Kind::LuksTwoThreads { size } }
}

const fn luks_layer(name: &'static str, depth: usize) -> Case {
    let what =
        "4 KiB reads of a file in the page cache: what decryption adds, against what openssl speed takes for 4 KiB";
    Case { name, what, peers: &[OPENSSL], ring: true, kind: Kind::Layer { layer: Layer::Luks, depth } }
}

const fn pass(name: &'static str, filter: &'static str, depth: usize) -> Case {
    let what = "4 KiB reads of a file in the page cache: what a filter adds that lets them pass";
    Case { name, what, peers: &[], ring: true, kind: Kind::Pass { filter, depth } }
}

const fn stall(name: &'static str, act: Act) -> Case {
    let what = "the slowest of 4 KiB requests to a qcow2 image, 32 at once: with an act every 20 ms, and without";
    Case { name, what, peers: &[], ring: true, kind: Kind::Stall { act } }
}

const fn nodes(name: &'static str, lie: Lie, peers: &'static [Peer]) -> Case {
    let what = "a daemon that opens 1,000 nodes, is asked about them, and closes them: cairn-storage-daemon, and qemu-storage-daemon where it takes less than a minute";
    Case { name, what, peers, ring: false, kind: Kind::Nodes { lie } }
}

const ENCRYPTION: Case = Case {
    name: "crypt-xts",
    what: "AES-256-XTS in memory, 16 KiB at a time: 512-byte sectors here, one piece in openssl speed",
    peers: &[OPENSSL],
    ring: false,
    kind: Kind::Encryption,
};

/// All of them.
pub(crate) const CASES: [Case; 64] = [
    null("null-d1", 1),
    null("null-d32", 32),
    threads("null-2threads-d1", 1),
    threads("null-2threads-d32", 32),
    cached("file-cached-d1", 1),
    cached("file-cached-d32", 32),
    direct("file-direct-d1", 1),
    direct("file-direct-d32", 32),
    layer("raw-d1", Layer::Raw, 1),
    layer("raw-d32", Layer::Raw, 32),
    layer("filter-d1", Layer::Filter, 1),
    layer("filter-d32", Layer::Filter, 32),
    layer("format-d1", Layer::Format, 1),
    layer("format-d32", Layer::Format, 32),
    unaligned("direct-unaligned-d32", 32),
    convert("convert-long", Pieces::Long),
    convert("convert-mixed", Pieces::Mixed),
    compare("compare-long", Pieces::Long),
    compare("compare-mixed", Pieces::Mixed),
    INFO,
    layer("qcow2-d1", Layer::Qcow2, 1),
    layer("qcow2-d32", Layer::Qcow2, 32),
    qcow2_read("qcow2-read-d1", 1),
    qcow2_read("qcow2-read-d32", 32),
    qcow2_allocate("qcow2-alloc-4k", 4 << 10, Allocating::Plain),
    qcow2_allocate("qcow2-alloc-4k-sub", 4 << 10, Allocating::Subclusters),
    qcow2_allocate("qcow2-alloc-4k-back", 4 << 10, Allocating::OverBacking),
    qcow2_allocate("qcow2-alloc-64k", 64 << 10, Allocating::Plain),
    qcow2_convert("qcow2-convert-to", Converting::FromRaw),
    qcow2_convert("qcow2-convert-from", Converting::ToRaw),
    qcow2_convert("qcow2-pack-zlib", Converting::Packed("zlib")),
    qcow2_convert("qcow2-pack-zstd", Converting::Packed("zstd")),
    qcow2_convert("qcow2-unpack-zlib", Converting::Unpacked("zlib")),
    qcow2_convert("qcow2-unpack-zstd", Converting::Unpacked("zstd")),
    qcow2_whole("qcow2-map", "map"),
    qcow2_whole("qcow2-check", "check"),
    QCOW2_COMPARE,
    QCOW2_COMMIT,
    qcow2_threads("qcow2-2threads-4k", 4 << 10),
    qcow2_threads("qcow2-2threads-64k", 64 << 10),
    ENCRYPTION,
    luks_layer("luks-d1", 1),
    luks_layer("luks-d32", 32),
    luks_convert("luks-convert-from", false),
    luks_convert("luks-convert-to", true),
    luks_threads("luks-2threads-4k", 4 << 10),
    luks_threads("luks-2threads-1m", 1 << 20),
    pass("pass-throttle-d1", "throttle", 1),
    pass("pass-throttle-d32", "throttle", 32),
    pass("pass-copy-on-read-d1", "copy-on-read", 1),
    pass("pass-copy-on-read-d32", "copy-on-read", 32),
    pass("pass-copy-before-write-d1", "copy-before-write", 1),
    pass("pass-copy-before-write-d32", "copy-before-write", 32),
    pass("pass-preallocate-d1", "preallocate", 1),
    pass("pass-preallocate-d32", "preallocate", 32),
    pass("pass-compress-d1", "compress", 1),
    pass("pass-compress-d32", "compress", 32),
    pass("pass-blklogwrites-d1", "blklogwrites", 1),
    pass("pass-blklogwrites-d32", "blklogwrites", 32),
    stall("stall-drain", Act::Drain),
    stall("stall-snapshot", Act::Snapshot),
    stall("stall-reopen", Act::Reopen),
    nodes("nodes-wide", Lie::Wide, &[QEMU_STORAGE_DAEMON]),
    nodes("nodes-chain", Lie::Chain, &[]),
];

/// What all cases share: programs, patience, and files, which are made when they are first needed.
pub(crate) struct Place {
    tools: Tools,
    rounds: usize,
    target: Duration,
    file_len: u64,
    dir: TempDir,
    data: OnceCell<DataFile>,
}

impl Place {
    /// A folder for files beside this program, which is on the disk that the project is built on.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(crate) fn new(tools: Tools, rounds: usize, target: Duration, file_len: u64) -> Result<Self> {
        let exe = std::env::current_exe()?;
        let beside = exe.parent().context("this program is in a folder")?;
        let dir = tempfile::Builder::new().prefix("compare-").tempdir_in(beside)?;
        Ok(Self { tools, rounds, target, file_len, dir, data: OnceCell::new() })
    }

    /// Remove the files.
    ///
    /// # Errors
    /// They cannot be removed.
    pub(crate) fn remove(self) -> Result<()> {
        let path = self.dir.path().to_owned();
        self.dir.close().with_context(|| format!("cannot remove {}", path.display()))
    }

    fn data(&self) -> Result<&DataFile> {
        if let Some(data) = self.data.get() {
            return Ok(data);
        }
        let data = DataFile::create(self.dir.path(), "data", self.file_len)?;
        Ok(self.data.get_or_init(|| data))
    }

    /// A sparse image of the length of other files, half of it holes.
    fn sparse(&self, pieces: Pieces) -> Result<PathBuf> {
        let (name, shortest, longest) = match pieces {
            Pieces::Long => ("long", 1 << 20, 1 << 20),
            Pieces::Mixed => ("mixed", 4 << 10, 256 << 10),
        };
        let path = self.dir.path().join(name);
        if !path.exists() {
            sparse_file(&path, self.file_len, shortest, longest)?;
        }
        warm(&path)?;
        Ok(path)
    }

    /// A qcow2 image of that name, made by qemu-img from the raw image at `from`, in the page cache.
    fn qcow2(&self, name: &str, from: &Path, options: &[&str]) -> Result<PathBuf> {
        let path = self.dir.path().join(name).with_extension("qcow2");
        if !path.exists() {
            let mut command = std::process::Command::new(QEMU_IMG.program);
            command.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options).arg(from).arg(&path);
            crate::programs::output(&mut command)?;
        }
        warm(&path)?;
        Ok(path)
    }

    /// A raw image whose content shrinks to about a third: words of a small vocabulary.
    fn text(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("text");
        if !path.exists() {
            text_file(&path, 128 << 20)?;
        }
        warm(&path)?;
        Ok(path)
    }

    fn cairn(&self, depth: usize, args: &[&str], image: &OsStr) -> Bench {
        Bench::new("cairn-img", &self.tools.cairn_img, (4096, depth), args, image)
    }

    fn qemu(&self, name: &str, depth: usize, args: &[&str], image: &OsStr) -> Bench {
        Bench::new(name, Path::new(QEMU_IMG.program), (4096, depth), args, image)
    }
}

impl Case {
    /// Run it.
    ///
    /// # Errors
    /// A program or a request fails. Missing a bar is no error.
    pub(crate) fn run(&self, place: &Place) -> Result<Vec<Row>> {
        match self.kind {
            Kind::Null { depth } => self.null(place, depth),
            Kind::TwoThreads { depth } => self.two_threads(place, depth),
            Kind::Cached { depth } => self.cached(place, depth),
            Kind::Direct { depth } => self.direct(place, depth),
            Kind::Layer { layer, depth } => self.layer(place, layer, depth),
            Kind::Unaligned { depth } => self.unaligned(place, depth),
            Kind::Convert { pieces } => self.convert(place, pieces),
            Kind::Compare { pieces } => self.compare(place, pieces),
            Kind::Info => self.info(place),
            Kind::Qcow2Read { depth } => self.qcow2_read(place, depth),
            Kind::Qcow2Allocate { size, how } => self.qcow2_allocate(place, size, how),
            Kind::Qcow2Convert { how } => self.qcow2_convert(place, how),
            Kind::Qcow2Whole { command } => self.qcow2_whole(place, command),
            Kind::Qcow2Compare => self.qcow2_compare(place),
            Kind::Qcow2Commit => self.qcow2_commit(place),
            Kind::Qcow2TwoThreads { size } => self.qcow2_two_threads(place, size),
            Kind::Encryption => self.encryption(place),
            Kind::LuksConvert { into } => self.luks_convert(place, into),
            Kind::LuksTwoThreads { size } => self.luks_two_threads(place, size),
            Kind::Pass { filter, depth } => self.pass(place, filter, depth),
            Kind::Stall { act } => self.stall(place, act),
            Kind::Nodes { lie } => self.nodes(place, lie),
        }
    }

    /// Run the first contender against the others, each with its bar.
    fn against(
        &self,
        place: &Place,
        ours: &mut dyn Contender,
        peers: &mut [(&mut dyn Contender, Bar)],
    ) -> Result<Vec<Row>> {
        let name = ours.name().to_owned();
        let named: Vec<_> = peers.iter().map(|(peer, bar)| (peer.name().to_owned(), *bar)).collect();
        let mut all: Vec<&mut dyn Contender> = vec![ours];
        all.extend(peers.iter_mut().map(|(peer, _)| &mut **peer as &mut dyn Contender));
        let (first, second) = alternate(&mut all, place.rounds, place.target)?;
        let rows = named
            .iter()
            .zip(1..)
            .map(|((peer, bar), i)| Row::new(self.name, (&name, peer), *bar, (&first[0], &first[i], &second[i])));
        Ok(rows.collect())
    }

    fn null(&self, place: &Place, depth: usize) -> Result<Vec<Row>> {
        let image = OsStr::new("null-co://");
        let mut ours = place.cairn(depth, &["-f", "null-co"], image);
        let mut theirs = place.qemu("qemu-img", depth, &["-f", "null-co"], image);
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(5.0))])
    }

    fn two_threads(&self, place: &Place, depth: usize) -> Result<Vec<Row>> {
        let backend = NullBackend::open()?;
        let (mut two, mut one) = (backend.threads(2, depth), backend.threads(1, depth));
        let rows = self.against(place, &mut two, &mut [(&mut one, Bar::TimesFaster(1.8))])?;
        drop((two, one));
        backend.close()?;
        Ok(rows)
    }

    fn cached(&self, place: &Place, depth: usize) -> Result<Vec<Row>> {
        let data = place.data()?;
        warm(&data.path)?;
        let image = data.path.as_os_str();
        let mut ours = place.cairn(depth, &["-f", "raw", "-i", "io_uring"], image);
        let mut fio = Fio::new(&data.path, data.len, depth, false);
        // aio=native needs O_DIRECT, so these are all that there are.
        let mut qemu = [
            place.qemu("qemu-img -i io_uring", depth, &["-f", "raw", "-i", "io_uring"], image),
            place.qemu("qemu-img -i threads", depth, &["-f", "raw", "-i", "threads"], image),
        ];
        let fastest = fastest(&mut qemu, place.target)?;
        let faster = if depth == 1 { 2.5 } else { 2.0 };
        let peers: &mut [(&mut dyn Contender, Bar)] =
            &mut [(&mut fio, Bar::TimesAsLong(1.2)), (&mut qemu[fastest], Bar::TimesFaster(faster))];
        self.against(place, &mut ours, peers)
    }

    fn direct(&self, place: &Place, depth: usize) -> Result<Vec<Row>> {
        let data = place.data()?;
        let args = ["-f", "raw", "-t", "none", "-i", "io_uring"];
        let mut ours = place.cairn(depth, &args, data.path.as_os_str());
        let mut fio = Fio::new(&data.path, data.len, depth, true);
        self.against(place, &mut ours, &mut [(&mut fio, Bar::WithinNoise)])
    }

    fn unaligned(&self, place: &Place, depth: usize) -> Result<Vec<Row>> {
        let data = place.data()?;
        let image = data.path.as_os_str();
        let args = ["-w", "-f", "raw", "-t", "none", "-o", "256"];
        let bench = |name: &str, program: &Path, engine: &str| {
            Bench::new(name, program, (512, depth), &[&args[..], &["-i", engine]].concat(), image)
        };
        let mut ours = bench("cairn-img", &place.tools.cairn_img, "io_uring");
        let mut qemu = ["native", "io_uring", "threads"]
            .map(|engine| bench(&format!("qemu-img -i {engine}"), Path::new(QEMU_IMG.program), engine));
        let fastest = fastest(&mut qemu, place.target)?;
        self.against(place, &mut ours, &mut [(&mut qemu[fastest], Bar::TimesFaster(1.0))])
    }

    fn convert(&self, place: &Place, pieces: Pieces) -> Result<Vec<Row>> {
        let (from, to) = (place.sparse(pieces)?, place.dir.path().join("converted"));
        let tool = |name: &str, program: &Path| {
            Whole::new(name, program, &[&"convert", &"-f", &"raw", &"-O", &"raw", &from, &to]).making(&to)
        };
        let mut ours = tool("cairn-img", &place.tools.cairn_img);
        let mut others = [
            tool("qemu-img", Path::new(QEMU_IMG.program)),
            Whole::new("cp", Path::new(CP.program), &[&"--sparse=always", &from, &to]).making(&to),
        ];
        let fastest = fastest(&mut others, place.target)?;
        self.against(place, &mut ours, &mut [(&mut others[fastest], Bar::TimesFaster(0.95))])
    }

    fn compare(&self, place: &Place, pieces: Pieces) -> Result<Vec<Row>> {
        let (one, other) = (place.sparse(pieces)?, place.dir.path().join("same"));
        let mut copy = std::process::Command::new(CP.program);
        crate::programs::output(copy.arg("--sparse=always").arg(&one).arg(&other))?;
        let tool = |name: &str, program: &Path| {
            Whole::new(name, program, &[&"compare", &"-f", &"raw", &"-F", &"raw", &one, &other])
        };
        let mut ours = tool("cairn-img", &place.tools.cairn_img);
        let mut theirs = tool("qemu-img", Path::new(QEMU_IMG.program));
        let rows = self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(1.5))])?;
        std::fs::remove_file(&other)?;
        Ok(rows)
    }

    fn encryption(&self, place: &Place) -> Result<Vec<Row>> {
        const PIECE: usize = 16 << 10;
        let mut ours = Encryption::new(PIECE)?;
        let mut theirs = OpensslSpeed::new("aes-256-xts", PIECE);
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(0.8))])
    }

    fn pass(&self, place: &Place, filter: &str, depth: usize) -> Result<Vec<Row>> {
        let (data, live) = (place.data()?, Live::new()?);
        warm(&data.path)?;
        let leaf = live.leaf(data, filter)?;
        let options = PASSING.iter().find(|(name, _)| *name == filter).context("there is none such")?;
        let node = live.open(options.1)?;
        let users = (live.backend(&node, false)?, live.backend(&leaf, false)?);
        let times = layers(users.0.io().root(), users.1.io().root(), depth, place.rounds, place.target)?;
        drop((users, node, leaf));
        live.close()?;
        let times = (&times.with[..], &times.without[..], &times.again[..]);
        Ok(vec![Row::new(self.name, (filter, "without"), Bar::AddedNs(50.0), times)])
    }

    fn stall(&self, place: &Place, act: Act) -> Result<Vec<Row>> {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..place.rounds {
            for turn in 0..3 {
                let who = (round + turn) % 3;
                let took = slowest(place.dir.path(), act, who == 0, place.target)?;
                times[who].push(took.as_nanos() as f64);
            }
        }
        let times = (&times[0][..], &times[1][..], &times[2][..]);
        Ok(vec![Row::new(self.name, (act.name(), "without"), Bar::AddedNs(5e6), times)])
    }

    fn nodes(&self, place: &Place, lie: Lie) -> Result<Vec<Row>> {
        const NODES: usize = 1000;
        let daemon = place.tools.daemon()?;
        let (many, one) = (NODES, Bar::Seconds(1.0));
        match lie {
            Lie::Wide => {
                let mut ours = ManyNodes::new("cairn-storage-daemon", &daemon, many, lie);
                let qemu = Path::new(QEMU_STORAGE_DAEMON.program);
                let mut theirs = ManyNodes::new("qemu-storage-daemon", qemu, many, lie);
                self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(1.0))])
            }
            Lie::Chain => {
                let mut chain = ManyNodes::new("in a chain", &daemon, many, lie);
                let mut wide = ManyNodes::new("side by side", &daemon, many, Lie::Wide);
                self.against(place, &mut chain, &mut [(&mut wide, one)])
            }
        }
    }

    fn luks_two_threads(&self, place: &Place, size: usize) -> Result<Vec<Row>> {
        let data = place.data()?;
        warm(&data.path)?;
        let mut stack = Stack::file(&data.path, FileMode::CACHED)?;
        stack.luks(0)?;
        let root = stack.root();
        let shape = Shape { size, step: size as u64, ..Shape::reads(8) };
        let (mut two, mut one) = (Threads::new(&root, 2, shape), Threads::new(&root, 1, shape));
        let rows = self.against(place, &mut two, &mut [(&mut one, Bar::TimesFaster(1.0))]);
        drop((two, one, root));
        stack.close()?;
        rows
    }

    fn luks_convert(&self, place: &Place, into: bool) -> Result<Vec<Row>> {
        const SECRET: &str = "secret,id=s,data=password";
        let raw = place.data()?.path.clone();
        warm(&raw)?;
        let to = place.dir.path().join("converted");
        let encrypted = place.dir.path().join("encrypted");
        let options = "key-secret=s,iter-time=10";
        if !into && !encrypted.exists() {
            let mut command = std::process::Command::new(QEMU_IMG.program);
            command.args(["convert", "--object", SECRET, "-f", "raw", "-O", "luks", "-o", options]);
            crate::programs::output(command.arg(&raw).arg(&encrypted))?;
        }
        if !into {
            warm(&encrypted)?;
        }
        let source = format!("driver=luks,key-secret=s,file.filename={}", encrypted.display());
        let nowhere = format!("driver=null-co,size={}", place.file_len);
        let tool = |name: &str, program: &Path| match into {
            true => Whole::new(
                name,
                program,
                &[&"convert", &"--object", &SECRET, &"-f", &"raw", &"-O", &"luks", &"-o", &options, &raw, &to],
            )
            .making(&to),
            false => Whole::new(
                name,
                program,
                &[&"convert", &"--object", &SECRET, &"-n", &"--image-opts", &"--target-image-opts", &source, &nowhere],
            ),
        };
        let mut ours = tool("cairn-img", &place.tools.cairn_img);
        let mut theirs = tool("qemu-img", Path::new(QEMU_IMG.program));
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(6.0))])
    }

    fn info(&self, place: &Place) -> Result<Vec<Row>> {
        let image = &place.data()?.path;
        let mut ours = Whole::new("cairn-img", &place.tools.cairn_img, &[&"info", image]);
        let mut theirs = Whole::new("qemu-img", Path::new(QEMU_IMG.program), &[&"info", image]);
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesAsLong(0.7))])
    }

    fn qcow2_read(&self, place: &Place, depth: usize) -> Result<Vec<Row>> {
        let image = place.qcow2("allocated", &place.data()?.path.clone(), &[])?;
        let args = ["-f", "qcow2", "-i", "io_uring"];
        let mut ours = place.cairn(depth, &args, image.as_os_str());
        let mut theirs = place.qemu("qemu-img", depth, &args, image.as_os_str());
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(2.0))])
    }

    fn qcow2_allocate(&self, place: &Place, size: usize, how: Allocating) -> Result<Vec<Row>> {
        let image = place.dir.path().join("new.qcow2");
        // Larger than what a run writes: each request finds a cluster that was never written.
        let mut create: Vec<OsString> = ["create", "-q", "-f", "qcow2"].map(OsString::from).into();
        match how {
            Allocating::Plain => {}
            Allocating::Subclusters => create.extend(["-o", "extended_l2=on"].map(OsString::from)),
            Allocating::OverBacking => {
                let backing = place.qcow2("allocated", &place.data()?.path.clone(), &[])?;
                create.extend(["-F".into(), "qcow2".into(), "-b".into(), backing.into_os_string()]);
            }
        }
        create.extend([image.clone().into_os_string(), "64G".into()]);
        let step = size.max(128 << 10).to_string();
        let args = ["-w", "-f", "qcow2", "-i", "io_uring", "-t", "writeback", "-S", &step];
        let bench = |name: &str, program: &Path| {
            let bench = Bench::new(name, program, (size, 32), &args, image.as_os_str());
            Fresh::new(bench, create.clone(), &image)
        };
        let (mut ours, mut theirs) =
            (bench("cairn-img", &place.tools.cairn_img), bench("qemu-img", Path::new(QEMU_IMG.program)));
        if size == 4096 {
            return self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(2.0))]);
        }
        let mut fio = Fio::writes(&place.dir.path().join("new.raw"), size, 32);
        let bar = Bar::TimesFaster(1.0);
        self.against(place, &mut ours, &mut [(&mut theirs, bar), (&mut fio, bar)])
    }

    fn qcow2_two_threads(&self, place: &Place, size: usize) -> Result<Vec<Row>> {
        let file = place.dir.path().join("new.qcow2");
        let image = |threads| NewImage::new(&file, threads, size);
        self.against(place, &mut image(2), &mut [(&mut image(1), Bar::TimesFaster(1.0))])
    }

    fn qcow2_compare(&self, place: &Place) -> Result<Vec<Row>> {
        let raw = place.sparse(Pieces::Mixed)?;
        let image = place.qcow2("sparse", &raw, &[])?;
        let tool = |name: &str, program: &Path| {
            Whole::new(name, program, &[&"compare", &"-f", &"qcow2", &"-F", &"raw", &image, &raw])
        };
        let (mut ours, mut theirs) =
            (tool("cairn-img", &place.tools.cairn_img), tool("qemu-img", Path::new(QEMU_IMG.program)));
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(1.5))])
    }

    fn qcow2_commit(&self, place: &Place) -> Result<Vec<Row>> {
        let full = place.qcow2("sparse", &place.sparse(Pieces::Mixed)?, &[])?;
        let [empty, base, overlay, above] =
            ["empty", "base", "overlay", "above"].map(|name| place.dir.path().join(name));
        let qemu = |words: &[&dyn AsRef<OsStr>]| {
            let mut command = std::process::Command::new(QEMU_IMG.program);
            command.args(words.iter().map(|word| word.as_ref()));
            crate::programs::output(&mut command)
        };
        qemu(&[&"create", &"-q", &"-f", &"qcow2", &empty, &place.file_len.to_string()])?;
        std::fs::copy(&empty, &base)?;
        std::fs::copy(&full, &overlay)?;
        qemu(&[&"rebase", &"-u", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &base, &overlay])?;
        let tool = |name: &str, program: &Path| {
            Whole::new(name, program, &[&"commit", &"-q", &"-f", &"qcow2", &above])
                .changing(&empty, &base)
                .changing(&overlay, &above)
        };
        let (mut ours, mut theirs) =
            (tool("cairn-img", &place.tools.cairn_img), tool("qemu-img", Path::new(QEMU_IMG.program)));
        // What no program can leave out: the data is copied, and on the disk, before the overlay lets go of it.
        let raw = place.sparse(Pieces::Mixed)?;
        let script = "cp --sparse=always \"$0\" \"$1\" && sync \"$1\" && truncate -s 256K \"$2\"";
        let mut least = Whole::new("cp, sync, truncate", Path::new("sh"), &[&"-c", &script, &raw, &base, &above])
            .changing(&empty, &base)
            .changing(&overlay, &above);
        self.against(
            place,
            &mut ours,
            &mut [(&mut theirs, Bar::TimesFaster(2.0)), (&mut least, Bar::TimesFaster(0.95))],
        )
    }

    fn qcow2_convert(&self, place: &Place, how: Converting) -> Result<Vec<Row>> {
        let raw = place.sparse(Pieces::Mixed)?;
        let to = place.dir.path().join("converted");
        let (from, words, bar) = match how {
            Converting::FromRaw => (raw, vec!["-f", "raw", "-O", "qcow2"], 0.95),
            Converting::ToRaw => (place.qcow2("sparse", &raw, &[])?, vec!["-f", "qcow2", "-O", "raw"], 0.95),
            Converting::Packed(kind) => {
                let option = if kind == "zstd" { "compression_type=zstd" } else { "compression_type=zlib" };
                (
                    place.text()?,
                    vec!["-f", "raw", "-O", "qcow2", "-c", "-o", option],
                    if kind == "zstd" { 2.0 } else { 4.0 },
                )
            }
            Converting::Unpacked(kind) => {
                let option = if kind == "zstd" { "compression_type=zstd" } else { "compression_type=zlib" };
                let packed = place.qcow2(kind, &place.text()?, &["-c", "-o", option])?;
                (packed, vec!["-f", "qcow2", "-O", "raw"], 2.0)
            }
        };
        let tool = |name: &str, program: &Path| {
            let mut args: Vec<&dyn AsRef<OsStr>> = vec![&"convert"];
            args.extend(words.iter().map(|word| word as &dyn AsRef<OsStr>));
            args.extend([&from as &dyn AsRef<OsStr>, &to]);
            Whole::new(name, program, &args).making(&to)
        };
        let (mut ours, mut theirs) =
            (tool("cairn-img", &place.tools.cairn_img), tool("qemu-img", Path::new(QEMU_IMG.program)));
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(bar))])
    }

    fn qcow2_whole(&self, place: &Place, command: &str) -> Result<Vec<Row>> {
        let image = place.qcow2("small", &place.sparse(Pieces::Mixed)?, &["-o", "cluster_size=4k"])?;
        let tool = |name: &str, program: &Path| Whole::new(name, program, &[&command, &"-f", &"qcow2", &image]);
        let (mut ours, mut theirs) =
            (tool("cairn-img", &place.tools.cairn_img), tool("qemu-img", Path::new(QEMU_IMG.program)));
        let bar = if command == "map" { 2.0 } else { 1.0 };
        self.against(place, &mut ours, &mut [(&mut theirs, Bar::TimesFaster(bar))])
    }

    fn layer(&self, place: &Place, layer: Layer, depth: usize) -> Result<Vec<Row>> {
        let data = place.data()?;
        let mut below = Stack::file(&data.path, FileMode::CACHED)?;
        if let Layer::Qcow2 | Layer::Luks = layer {
            below.raw()?;
        }
        let without = below.root();
        let (name, bar, above) = match layer {
            Layer::Raw => {
                below.raw()?;
                ("raw", 50.0, None)
            }
            Layer::Filter => {
                below.filter()?;
                ("toy filter", 50.0, None)
            }
            Layer::Format => ("toy format", 100.0, Some(toy_image(place, data.len)?)),
            Layer::Qcow2 => ("qcow2", 150.0, Some(qcow2_image(place, data.len)?)),
            Layer::Luks => {
                let mut above = Stack::file(&data.path, FileMode::CACHED)?;
                above.luks(0)?;
                ("luks", openssl_ns(4096)? + 200.0, Some(above))
            }
        };
        let mut above = above;
        let with = above.as_mut().unwrap_or(&mut below).root();
        warm(&data.path)?;
        let times = layers(&with, &without, depth, place.rounds, place.target)?;
        let times = (&times.with[..], &times.without[..], &times.again[..]);
        let row = Row::new(self.name, (name, "file"), Bar::AddedNs(bar), times);
        drop((with, without));
        above.map_or(Ok(()), Stack::close)?;
        below.close()?;
        Ok(vec![row])
    }
}

/// An image of the toy format with every cluster allocated, in a file of its own that is in the page cache.
fn toy_image(place: &Place, len: u64) -> Result<Stack> {
    let file = DataFile::create(place.dir.path(), "toy", 0)?;
    let mut stack = Stack::file(&file.path, FileMode::CACHED)?;
    stack.toy_format(len)?;
    Driver::write_all(&stack.root())?;
    Ok(stack)
}

/// A qcow2 image with every cluster allocated, in a file of its own that is in the page cache.
fn qcow2_image(place: &Place, len: u64) -> Result<Stack> {
    let file = DataFile::create(place.dir.path(), "full", 0)?;
    let mut stack = Stack::file(&file.path, FileMode::CACHED)?;
    stack.qcow2(len, false)?;
    Driver::write_all(&stack.root())?;
    Ok(stack)
}

/// The nanoseconds that openssl takes to encrypt so many bytes with AES-256-XTS, at the rate that it has with 16 KiB.
fn openssl_ns(bytes: usize) -> Result<f64> {
    const PIECE: usize = 16 << 10;
    let took = OpensslSpeed::new("aes-256-xts", PIECE).run(1000)?;
    Ok(took.as_nanos() as f64 / 1000.0 * bytes as f64 / PIECE as f64)
}

/// The fastest of `contenders`, judged by three short runs of each.
fn fastest<C: Contender>(contenders: &mut [C], target: Duration) -> Result<usize> {
    let mut all: Vec<&mut dyn Contender> = contenders.iter_mut().map(|one| one as &mut dyn Contender).collect();
    let (times, _) = alternate(&mut all, 3, target.min(Duration::from_millis(200)))?;
    let medians = times.iter().map(|times| median(times)).enumerate();
    let best = medians.min_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map(|(index, _)| index).context("nobody to choose from")
}
