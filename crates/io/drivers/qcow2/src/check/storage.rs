//! The image's file: reads that find zeroes past its end, many of them at once, and writes.

use super::CheckError;
use block_common::{AlignedBuf, HostOffset, IoBuf, IoError, IoResult, Preallocation, RequestFlags};
use block_io::{Edge, Req, Root};
use block_qcow2_format::Header;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Buffers begin where direct I/O can use them.
const ALIGNMENT: usize = 4096;
/// Requests in flight.
const READS: usize = 16;

/// Where the image lies: an engine's child, or an entry of one's own to its file.
#[derive(Clone, Copy, Debug)]
pub enum Storage<'a> {
    /// The edge of a node, and a token on that node.
    Edge(&'a Req, &'a Edge),
    /// An entry.
    Root(&'a Root),
}

impl Storage<'_> {
    async fn length(&self) -> IoResult<u64> {
        match self {
            Self::Edge(req, edge) => edge.refresh_length(req).await,
            Self::Root(root) => root.refresh_length().await,
        }
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> IoResult<IoBuf> {
        match self {
            Self::Edge(req, edge) => edge.read(req, HostOffset(offset), &buf).await.map(|()| buf),
            Self::Root(root) => {
                let (result, buf) = root.read(offset, buf).await;
                result.and(buf.ok_or(IoError::CANCELLED))
            }
        }
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> IoResult<()> {
        match self {
            Self::Edge(req, edge) => edge.write(req, HostOffset(offset), &buf, RequestFlags::empty()).await,
            Self::Root(root) => root.write(offset, buf, RequestFlags::empty()).await.0,
        }
    }
}

/// The file, and its length.
pub(crate) struct Image<'a> {
    storage: Storage<'a>,
    len: u64,
}

impl<'a> Image<'a> {
    pub(crate) async fn open(storage: Storage<'a>) -> Result<Self, CheckError> {
        Ok(Self { storage, len: storage.length().await? })
    }

    /// The image's header.
    pub(crate) async fn header(&self) -> Result<Header, CheckError> {
        let prefix = self.read(0, Header::PREFIX as u64).await?;
        let cluster_size = Header::cluster_size(&prefix)?;
        Ok(Header::parse(&self.read(0, cluster_size).await?)?)
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// `len` bytes at `offset`, wherever that is: what the file does not have is zeroes. The caller has bounded `len`.
    pub(crate) async fn read(&self, offset: u64, len: u64) -> Result<Bytes, CheckError> {
        let whole = usize::try_from(len).ok().and_then(|len| AlignedBuf::try_zeroed(len, ALIGNMENT));
        let whole = whole.ok_or(CheckError::TooLarge)?.into_io();
        let there = self.len.saturating_sub(offset).min(len) as usize;
        if there > 0 {
            self.storage.read(offset, whole.slice(0, there)).await?;
        }
        whole.into_aligned().map(Bytes).map_err(|_| CheckError::Io(IoError::BUG))
    }

    /// `len` bytes at each of `offsets`, several at a time.
    pub(super) async fn read_many(&self, offsets: &[u64], len: u64) -> Result<Vec<Bytes>, CheckError> {
        let mut all = Vec::with_capacity(offsets.len());
        for some in offsets.chunks(READS) {
            for read in together(some.iter().map(|offset| self.read(*offset, len))).await {
                all.push(read?);
            }
        }
        Ok(all)
    }

    /// Write within the file.
    pub(super) async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CheckError> {
        let buf = AlignedBuf::try_zeroed(bytes.len(), ALIGNMENT).ok_or(CheckError::TooLarge)?.into_io();
        buf.copy_from_slice(0, bytes);
        Ok(self.storage.write(offset, buf).await?)
    }

    /// Make the file at least `len` bytes long.
    pub(super) async fn grow(&mut self, len: u64) -> Result<(), CheckError> {
        if len > self.len {
            match self.storage {
                Storage::Edge(req, edge) => edge.truncate(req, len, Preallocation::Off).await?,
                Storage::Root(root) => root.truncate(len, Preallocation::Off).await?,
            }
            self.len = len;
        }
        Ok(())
    }

    /// What was written is on stable storage after this.
    pub(super) async fn flush(&self) -> Result<(), CheckError> {
        match self.storage {
            Storage::Edge(req, edge) => edge.flush(req).await?,
            Storage::Root(root) => root.flush().await?,
        }
        Ok(())
    }
}

/// What was read.
pub(crate) struct Bytes(AlignedBuf);

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// The big-endian number at `index` of a table of 64 bits each.
pub(super) fn entry(table: &[u8], index: usize) -> u64 {
    let bytes = table.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_be_bytes(bytes.unwrap_or_default())
}

/// Await all of `futures`, beside each other.
async fn together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut slots: Vec<(Pin<Box<F>>, Option<F::Output>)> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut all = true;
        for (future, output) in slots.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(value) => *output = Some(value),
                Poll::Pending => all = false,
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    slots.into_iter().filter_map(|(_, output)| output).collect()
}
