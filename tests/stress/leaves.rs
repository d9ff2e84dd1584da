//! What the graph of a round stands on: storage in memory that answers as it is told, or files of the host.

use crate::plan::{self, DISK};
use crate::support::{Layer, format_toy_cow};
use block_file_posix::{FileAccess, FilePosix, FilePosixOptions};
use block_io::IoThreadHandle;
use block_testkit::{MemOptions, MemStorage, Rng};
use tempfile::NamedTempFile;

/// The leaves, as options say them.
pub(crate) struct Leaves {
    pub(crate) base: String,
    pub(crate) overlay: String,
    /// The overlay, if it is memory.
    pub(crate) storage: Option<MemStorage>,
    /// What is there for as long as this is.
    _files: Vec<NamedTempFile>,
}

fn file(files: &mut Vec<NamedTempFile>, content: &[u8], rng: &mut Rng) -> String {
    let file = NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), content).expect("writes");
    let aio = if rng.chance(50) { "io_uring" } else { "threads" };
    let options = format!("file,aio={aio},filename={}", file.path().display());
    files.push(file);
    options
}

impl Leaves {
    /// A base with its content, and an empty image.
    pub(crate) async fn new(layer: &Layer, home: &IoThreadHandle, rng: &mut Rng) -> Self {
        let mut files = Vec::new();
        let base = if rng.chance(50) {
            let storage = MemStorage::with_content(MemOptions::new(DISK), plan::base());
            // Not millions of records that nobody reads.
            storage.set_logging(false);
            layer.add_storage("base", &storage);
            "mem,storage=base".into()
        } else {
            file(&mut files, &plan::base(), rng)
        };
        if rng.chance(50) {
            let storage = MemStorage::new(MemOptions::new(0));
            storage.set_logging(false);
            layer.add_storage("overlay", &storage);
            format_toy_cow(storage.driver(), home.clone(), DISK).await;
            return Self { base, overlay: "mem,storage=overlay".into(), storage: Some(storage), _files: files };
        }
        let overlay = file(&mut files, &[], rng);
        let mut options = FilePosixOptions::new(files[files.len() - 1].path());
        options.access = FileAccess::ReadWrite;
        let (engine, _control) = FilePosix::open(options, layer.gs.pool().clone()).await.expect("opens");
        format_toy_cow(engine, home.clone(), DISK).await;
        Self { base, overlay, storage: None, _files: files }
    }
}
