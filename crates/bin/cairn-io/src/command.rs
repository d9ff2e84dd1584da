//! Commands as they are carried out: everything that stood in their arguments, checked as far as it can be without an
//! image.

use block_common::{AioMode, CacheFlags, DiscardMode};

/// How the result of a request is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Not at all, unless it failed.
    pub quiet: bool,
    /// For programs.
    pub machine: bool,
}

/// What read data has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Each byte.
    pub byte: u8,
    /// Where it begins, in bytes from the start of the request.
    pub start: usize,
    /// For how many bytes.
    pub len: usize,
}

/// One read, or one vector of reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, of all pieces together.
    pub len: usize,
    /// What to compare with.
    pub pattern: Option<Pattern>,
    /// Print the data.
    pub dump: bool,
    /// Read the state of the virtual machine, not its disk.
    pub vm_state: bool,
    /// The buffer is registered with the drivers.
    pub registered: bool,
    /// How to report.
    pub report: Report,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One byte, over and over.
    Fill(u8),
    /// A file's content, over and over.
    File(Vec<u8>),
    /// Zeroes, without a buffer.
    Zeroes {
        /// Deallocating is welcome.
        unmap: bool,
        /// Not if they would have to be written out.
        no_fallback: bool,
    },
}

/// One write, or one vector of writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, of all pieces together. No more than a request may have, unless zeroes are written.
    pub len: u64,
    /// What is written.
    pub source: Source,
    /// It is on stable storage when the request completes.
    pub fua: bool,
    /// Write compressed clusters.
    pub compressed: bool,
    /// Write the state of the virtual machine, not its disk.
    pub vm_state: bool,
    /// The buffer is registered with the drivers.
    pub registered: bool,
    /// How to report.
    pub report: Report,
}

/// How to open an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// Refuse writes.
    pub read_only: bool,
    /// Put a temporary overlay on it.
    pub snapshot: bool,
    /// Copy what is read up from backing files.
    pub copy_on_read: bool,
    /// Let others use the image in any way.
    pub force_share: bool,
    /// The cache mode.
    pub cache: Cache,
    /// Who carries out requests on host files.
    pub aio: Option<AioMode>,
    /// What becomes of discards.
    pub discard: Discard,
    /// Texts with options of the node; later ones win.
    pub options: Vec<Vec<u8>>,
    /// Its name.
    pub path: Option<Vec<u8>>,
}

/// A cache mode that was put together from several options. Unless told otherwise, each write is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache(pub CacheFlags);

impl Default for Cache {
    fn default() -> Self {
        Self(CacheFlags { direct: false, no_flush: false, writethrough: true })
    }
}

impl Cache {
    /// What `-n` does: bypass the page cache, and rely on flushes.
    pub fn bypass(&mut self) {
        self.0.direct = true;
        self.0.writethrough = false;
    }
}

/// What becomes of discards: unless told otherwise they are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard(pub DiscardMode);

impl Default for Discard {
    fn default() -> Self {
        Self(DiscardMode::Unmap)
    }
}

/// What a reopen changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reopen {
    /// Whether writes are refused from now on.
    pub read_only: Option<bool>,
    /// The cache mode.
    pub cache: Option<CacheFlags>,
    /// Texts with options of the node; later ones win.
    pub options: Vec<Vec<u8>>,
}

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Crash.
    Abort,
    /// Wait for all requests.
    AioFlush,
    /// Start a read.
    AioRead(Read),
    /// Start a write.
    AioWrite(Write),
    /// Count a request that was never made.
    InvalidAio {
        /// Whether it would have written.
        is_write: bool,
    },
    /// How much of a range is allocated.
    Alloc {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Stop the next request that does something.
    Break {
        /// What.
        event: Vec<u8>,
        /// What the request is to be called.
        tag: Vec<u8>,
    },
    /// Close the image.
    Close,
    /// Discard a range.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// How to report.
        report: Report,
    },
    /// Flush.
    Flush,
    /// Explain all commands, or one.
    Help(Option<Vec<u8>>),
    /// Print what kind of image it is.
    Info,
    /// Print the length.
    Length,
    /// Print what is allocated.
    Map,
    /// Open an image.
    Open(Open),
    /// Leave.
    Quit,
    /// Read.
    Read(Read),
    /// Read into several buffers.
    Readv(Read),
    /// Forget a breakpoint.
    RemoveBreak(Vec<u8>),
    /// Open the image again, in another way.
    Reopen(Reopen),
    /// Let a stopped request go on.
    Resume(Vec<u8>),
    /// Raise a signal.
    Sigraise(i32),
    /// Wait for so many milliseconds.
    Sleep(i64),
    /// Change the length.
    Truncate {
        /// In bytes.
        len: u64,
        /// What to allocate.
        preallocation: block_common::Preallocation,
    },
    /// Wait until a request is stopped.
    WaitBreak(Vec<u8>),
    /// Write.
    Write(Write),
    /// Write from several buffers.
    Writev(Write),
    /// Something with zones.
    Zone {
        /// What, as messages say it.
        what: &'static str,
        /// What it is about, where the range has to lie inside the image: first byte and length.
        range: Option<(u64, u64)>,
    },
}
