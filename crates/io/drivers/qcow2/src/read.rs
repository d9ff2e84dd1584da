//! Reading.

use crate::image::Shared;
use crate::lookup::{Extent, Source};
use crate::{compress, meta};
use block_common::{AlignedBuf, HostOffset, IoBuf, IoError, IoResult};
use block_io::{Flight, Req};

/// How many places one request reads from at a time.
const READS_MAX: usize = 8;

impl Shared {
    /// Fill `buf` from `offset` of the virtual disk. What lies in several places is read from several at a time.
    pub(crate) async fn read(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let (mut flight, mut result) = (Flight::new(), Ok(()));
        let mut done = 0;
        while done < buf.len() && result.is_ok() {
            let at = offset + done as u64;
            let extent = match self.find(req, at, (buf.len() - done) as u64).await {
                Ok(extent) => extent,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let len = extent.len as usize;
            let part = buf.slice(done, len);
            if len == buf.len() {
                return self.read_extent(req, at, extent, &part).await;
            }
            done += len;
            let read = async move { self.read_extent(req, at, extent, &part).await };
            if let Some(read) = flight.start(read).await {
                result = result.and(read);
            }
            if flight.len() == READS_MAX {
                result = result.and(flight.next().await.unwrap_or(Ok(())));
            }
        }
        // Nobody writes to the buffer any more when this is over, whatever it was.
        while let Some(read) = flight.next().await {
            result = result.and(read);
        }
        result
    }

    async fn read_extent(&self, req: &Req, offset: u64, extent: Extent, buf: &IoBuf) -> IoResult<()> {
        match extent.source {
            // The file may end within its last cluster.
            Source::File(host) => meta::read_padded(req, self.data_edge(), host, buf).await,
            Source::Zeroes(_) => {
                buf.fill(0, buf.len(), 0);
                Ok(())
            }
            Source::Backing => self.read_backing(req, offset, buf).await,
            Source::Compressed(at, len) => {
                let cluster = self.decompress(req, at, len).await?;
                buf.copy_from_slice(0, &cluster[self.geometry.within(offset) as usize..][..buf.len()]);
                Ok(())
            }
            Source::Bad(entry) => Err(self.bad_entry(req, offset, entry).await),
        }
    }

    /// What the backing file has; zeroes past its end, or where there is none.
    pub(crate) async fn read_backing(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let Some(backing) = self.backing.as_ref().filter(|backing| backing.is_attached()) else {
            buf.fill(0, buf.len(), 0);
            return Ok(());
        };
        let there = backing.length(req)?.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf.fill(there, buf.len() - there, 0);
        if there == 0 { Ok(()) } else { backing.read(req, HostOffset(offset), &buf.slice(0, there)).await }
    }

    /// The content of a compressed cluster of which at most `len` bytes at `at` of the file are the data.
    pub(crate) async fn decompress(&self, req: &Req, at: u64, len: u64) -> IoResult<AlignedBuf> {
        // The data may begin and end anywhere; blocks of the file do not.
        let alignment = u64::from(self.file.limits(req)?.request_alignment.max(1));
        let skip = at % alignment;
        let whole = (skip + len).next_multiple_of(alignment);
        let buf = meta::buffer(req, &self.file, whole as usize)?.into_io();
        meta::read_padded(req, &self.file, at - skip, &buf).await?;
        let (size, kind) = (self.geometry.cluster_size() as usize, self.compression);
        let work = move || {
            let bytes = buf.slice(skip as usize, len as usize).to_aligned(1);
            compress::decompress(kind, &bytes, size)
        };
        match self.pool.run(work).await.ok_or(IoError::BUG)? {
            Some(cluster) => Ok(cluster),
            None => {
                tracing::warn!(at, "a compressed cluster cannot be decompressed");
                Err(IoError::host(block_common::Errno::EIO.raw()))
            }
        }
    }
}
