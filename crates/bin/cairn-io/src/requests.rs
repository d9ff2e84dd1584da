//! Reads and writes: their buffers, the requests themselves, what is said about their results.
//!
//! The same code serves commands that wait and those that do not; it holds the device's half of a backend and nothing
//! of the graph.

use crate::command::{Pattern, Read, Report, Source, Write};
use crate::output::Output;
use crate::report;
use block_backend_io::BackendIo;
use block_common::{AlignedBuf, Errno, IoBuf, IoError, IoResult, RequestFlags};
use block_io::{Done, Request};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

/// What buffers hold before anything is read into them: what no driver has touched shows.
const UNREAD: u8 = 0xab;
/// How far off a misaligned buffer begins.
const MISALIGN_BYTES: usize = 16;
const ALIGNMENT_MIN: usize = 4096;

/// An image, as requests see it.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) io: BackendIo,
    pub(crate) out: Output,
    /// Let buffers begin where no driver likes it.
    pub(crate) misalign: bool,
    /// Requests are those of the device's guest, with everything that its backend has to say about them.
    pub(crate) is_guests: bool,
}

/// A command failed, and the user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// What carrying out a command comes to.
pub type Outcome = Result<(), Failed>;

impl Device {
    /// A buffer that holds `byte` all over.
    fn buffer(&self, len: usize, byte: u8) -> Result<IoBuf, Failed> {
        let mut buf = self.memory(len)?;
        buf.fill(byte);
        Ok(buf.into_io().slice(self.begin(), len))
    }

    /// Where in its memory a buffer begins.
    fn begin(&self) -> usize {
        if self.misalign { MISALIGN_BYTES } else { 0 }
    }

    fn memory(&self, len: usize) -> Result<AlignedBuf, Failed> {
        let alignment = self.io.root().limits().map_or(1, |limits| limits.memory_alignment as usize);
        let alignment = alignment.max(ALIGNMENT_MIN);
        AlignedBuf::try_zeroed(len + MISALIGN_BYTES, alignment).ok_or_else(|| {
            let reason = Errno::ENOMEM;
            self.out.fail(format!("failed to allocate {len} bytes at alignment {alignment}: {reason}"));
            Failed
        })
    }

    /// A buffer that holds the content of the file at `path`, again and again.
    #[allow(clippy::disallowed_methods, reason = "of the program's own sessions alone, which may block on files")]
    fn file_buffer(&self, path: &[u8], len: usize) -> Result<IoBuf, Failed> {
        let failed = |reason: &str| {
            self.out.complain([path, b": ", reason.as_bytes()].concat());
            Failed
        };
        let host = |error: std::io::Error| failed(&IoError::from(error).to_string());
        let name = Path::new(OsStr::from_bytes(path));
        let mut file = File::open(name).map_err(host)?;
        let mut memory = self.memory(len)?;
        let buf = &mut memory[self.begin()..][..len];
        let mut have = 0;
        while have < len {
            match file.read(&mut buf[have..]).map_err(host)? {
                0 => break,
                more => have += more,
            }
        }
        if have == 0 {
            return Err(failed("file is empty"));
        }
        while have < len {
            let more = have.min(len - have);
            buf.copy_within(..more, have);
            have += more;
        }
        Ok(memory.into_io().slice(self.begin(), len))
    }

    fn failed(&self, what: &str, error: IoError) -> Failed {
        self.out.print(format!("{what} failed: {error}\n"));
        Failed
    }

    /// Make a request.
    async fn request(&self, request: Request) -> Done {
        match self.is_guests {
            true => self.io.request(request).await,
            false => self.io.root().request(request).await,
        }
    }

    /// Flags that every write of this backend has.
    fn flags(&self, fua: bool) -> RequestFlags {
        // Without a write cache nothing may stay in one.
        if fua || !self.io.write_cache() { RequestFlags::FUA } else { RequestFlags::empty() }
    }

    /// Prepare a read. `called` is what the message about its failure begins with.
    pub(crate) fn read(
        &self,
        read: Read,
        called: &'static str,
    ) -> Result<impl Future<Output = Outcome> + use<>, Failed> {
        let buf = self.buffer(read.len, UNREAD)?;
        let this = self.clone();
        Ok(async move {
            let begin = Instant::now();
            let (result, buf) = match read.vm_state {
                true => match this.io.root().load_vmstate(read.offset, buf).await {
                    Ok(buf) => (Ok(()), Some(buf)),
                    Err(error) => (Err(error), None),
                },
                false => {
                    let done = this.request(Request::read(read.offset, buf)).await;
                    (done.result, done.buf)
                }
            };
            let time = begin.elapsed();
            result.map_err(|error| this.failed(called, error))?;
            let buf = buf.ok_or_else(|| this.failed(called, IoError::BUG))?;
            let mut outcome = Ok(());
            let dump = read.dump && !read.report.quiet;
            if read.pattern.is_some() || dump {
                let data = buf.into_aligned().unwrap_or_else(|shared| shared.to_aligned(1));
                outcome = this.verify(&read, &data);
                if dump {
                    report::dump(read.offset, &data, |row| this.out.print(row));
                }
            }
            this.out.print(report::request(read.report, "read", read.offset, read.len as u64, time));
            outcome
        })
    }

    fn verify(&self, read: &Read, data: &[u8]) -> Outcome {
        let Some(Pattern { byte, start, len }) = read.pattern else { return Ok(()) };
        if data[start..start + len].iter().all(|&found| found == byte) {
            return Ok(());
        }
        let at = read.offset + start as u64;
        self.out.print(format!("Pattern verification failed at offset {at}, {len} bytes\n"));
        Err(Failed)
    }

    /// Prepare a write. `called` is what the message about its failure begins with.
    pub(crate) fn write(
        &self,
        write: Write,
        called: &'static str,
    ) -> Result<impl Future<Output = Outcome> + use<>, Failed> {
        let len = usize::try_from(write.len).unwrap_or(usize::MAX);
        let buf = match &write.source {
            Source::Fill(byte) => Some(self.buffer(len, *byte)?),
            Source::File(path) => Some(self.file_buffer(path, len)?),
            Source::Zeroes { .. } => None,
        };
        let this = self.clone();
        Ok(async move {
            let begin = Instant::now();
            let result = this.write_it(&write, buf).await;
            let time = begin.elapsed();
            result.map_err(|error| this.failed(called, error))?;
            this.out.print(report::request(write.report, "wrote", write.offset, write.len, time));
            Ok(())
        })
    }

    async fn write_it(&self, write: &Write, buf: Option<IoBuf>) -> IoResult<()> {
        let mut flags = self.flags(write.fua);
        let root = self.io.root();
        match (buf, &write.source) {
            (Some(buf), _) if write.vm_state => {
                root.save_vmstate(write.offset, buf).await?;
                // Without a write cache nothing may stay in one.
                if self.io.write_cache() { Ok(()) } else { root.flush().await }
            }
            (Some(buf), _) => {
                flags.set(RequestFlags::WRITE_COMPRESSED, write.compressed);
                self.request(Request::write(write.offset, buf, flags)).await.result
            }
            (None, Source::Zeroes { unmap, no_fallback }) => {
                flags.set(RequestFlags::MAY_UNMAP, *unmap);
                flags.set(RequestFlags::NO_FALLBACK, *no_fallback);
                self.request(Request::zero(write.offset, write.len, flags)).await.result
            }
            (None, _) => Err(IoError::BUG),
        }
    }

    /// Discard a range.
    pub(crate) async fn discard(&self, offset: u64, len: u64, report: Report) -> Outcome {
        let begin = Instant::now();
        let result = self.request(Request::discard(offset, len)).await.result;
        let time = begin.elapsed();
        result.map_err(|error| self.failed("discard", error))?;
        self.out.print(report::request(report, "discard", offset, len, time));
        Ok(())
    }

    /// Bring everything that was acknowledged to stable storage.
    pub(crate) async fn flush(&self) -> Outcome {
        let flushed = self.request(Request::flush()).await.result;
        flushed.map_err(|error| {
            self.out.fail(format!("flush failed: {error}"));
            Failed
        })
    }
}
