//! What callers ask for: requests that own their buffers, and what comes back.
//!
//! Nothing here says how a request is carried out; that is `pipeline`.

use block_common::{IoBuf, IoResult, RequestFlags};

/// The kinds of request that a [`Queue`](crate::Queue) takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Fill the buffer.
    Read,
    /// Store the buffer.
    Write,
    /// Make a range read as zeroes.
    Zero,
    /// The content of a range is no longer needed.
    Discard,
    /// Bring everything that was acknowledged to stable storage.
    Flush,
}

/// One request, with its buffer.
#[derive(Debug)]
pub struct Request {
    pub(crate) kind: RequestKind,
    pub(crate) flags: RequestFlags,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) buf: Option<IoBuf>,
}

impl Request {
    /// Read `buf.len()` bytes at `offset` bytes.
    pub fn read(offset: u64, buf: IoBuf) -> Self {
        let len = buf.len() as u64;
        Self { kind: RequestKind::Read, flags: RequestFlags::empty(), offset, len, buf: Some(buf) }
    }

    /// Write `buf` at `offset` bytes.
    pub fn write(offset: u64, buf: IoBuf, flags: RequestFlags) -> Self {
        let len = buf.len() as u64;
        Self { kind: RequestKind::Write, flags, offset, len, buf: Some(buf) }
    }

    /// Make `len` bytes at `offset` read as zeroes.
    pub fn zero(offset: u64, len: u64, flags: RequestFlags) -> Self {
        Self { kind: RequestKind::Zero, flags, offset, len, buf: None }
    }

    /// Discard `len` bytes at `offset`.
    pub fn discard(offset: u64, len: u64) -> Self {
        Self { kind: RequestKind::Discard, flags: RequestFlags::empty(), offset, len, buf: None }
    }

    /// Flush.
    pub fn flush() -> Self {
        Self { kind: RequestKind::Flush, flags: RequestFlags::empty(), offset: 0, len: 0, buf: None }
    }

    /// What it asks for.
    pub fn kind(&self) -> RequestKind {
        self.kind
    }

    /// Where it begins, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it is about; 0 for a flush.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is about no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How it is to be carried out.
    pub fn flags(&self) -> RequestFlags {
        self.flags
    }

    /// The buffer that came with it, if any did.
    pub fn into_buf(self) -> Option<IoBuf> {
        self.buf
    }

    pub(crate) fn is_write(&self) -> bool {
        !matches!(self.kind, RequestKind::Read | RequestKind::Flush)
    }
}

/// A request that is over: its result, and its buffer back.
#[derive(Debug)]
pub struct Done {
    /// Whether all of it was done.
    pub result: IoResult<()>,
    /// The buffer that came with the request.
    pub buf: Option<IoBuf>,
}

/// A finished request of a [`Queue`](crate::Queue).
#[derive(Debug)]
pub struct Completed {
    /// The tag that it was submitted with.
    pub tag: u64,
    /// Its result and buffer.
    pub done: Done,
}
