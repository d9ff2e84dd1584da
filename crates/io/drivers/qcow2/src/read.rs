//! Reading.

use crate::image::{CLUSTER_ALIGNMENT, Shared};
use crate::lookup::{Extent, Source};
use crate::{compress, meta};
use block_common::{AlignedBuf, HostOffset, IoBuf, IoError, IoResult};
use block_io::{Edge, Flight, Req};

/// How many places one request reads from at a time.
const READS_MAX: usize = 8;
/// Into how many jobs the clusters that a long request decompresses are divided, if each has no more bytes than [`JOB_MAX`].
const JOBS: u64 = 2;
/// Memory for longer pieces is not kept.
const POOLED_MAX: usize = 2 << 20;
const JOB_MAX: u64 = 256 << 10;

impl Shared {
    /// Fill `buf` from `offset` of the virtual disk. What lies in several places is read from several at a time.
    pub(crate) async fn read(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        match self.sectors_around(offset, buf.len()) {
            None => self.read_sectors(req, offset, buf).await,
            Some(all) => Box::pin(self.read_parts(req, all, offset, buf)).await,
        }
    }

    /// As [`Shared::read`]; of an encrypted image whole sectors.
    pub(crate) async fn read_sectors(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
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
            let started = if let Source::Compressed(place, bytes) = extent.source {
                let packed = Packed { place, bytes, within: self.geometry.within(at) as usize, part };
                // A request is cut into a few jobs: what it costs to have one done is not paid for each cluster.
                let most = (buf.len() as u64 / JOBS).min(JOB_MAX);
                let (packed, len) = self.packed_from(req, packed, at, buf.slice(done, buf.len() - done), most).await;
                done += len;
                flight.start(Read::Packed(packed).carry_out(self, req)).await
            } else {
                flight.start(Read::Extent(at, extent, part).carry_out(self, req)).await
            };
            if let Some(read) = started {
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
            Source::File(host) => self.read_data(req, offset, host, buf).await,
            Source::Zeroes(_) => {
                buf.fill(0, buf.len(), 0);
                Ok(())
            }
            Source::Backing => self.read_backing(req, offset, buf).await,
            Source::Compressed(place, bytes) => {
                let within = self.geometry.within(offset) as usize;
                self.read_packed(req, vec![Packed { place, bytes, within, part: buf.clone() }]).await
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

    /// `first`, which is at `at`, and the compressed clusters that follow it on the disk and in the file, at most `most` bytes of the disk. What follows goes
    /// to `rest`; returns how many bytes of it that is.
    async fn packed_from(&self, req: &Req, first: Packed, at: u64, rest: IoBuf, most: u64) -> (Vec<Packed>, usize) {
        let mut next = at + first.part.len() as u64;
        let (mut all, mut done) = (vec![first], 0);
        while done < rest.len() && next + self.geometry.cluster_size() <= at + most {
            // Whatever is wrong is found out where it counts.
            let Ok(extent) = self.find(req, next, (rest.len() - done) as u64).await else { break };
            let Source::Compressed(place, bytes) = extent.source else { break };
            let follows = all.last().is_some_and(|last| (last.place..=last.place + last.bytes).contains(&place));
            if !follows {
                break;
            }
            let len = extent.len as usize;
            all.push(Packed { place, bytes, within: 0, part: rest.slice(done, len) });
            (next, done) = (next + extent.len, done + len);
        }
        (all, done)
    }

    /// Memory for `len` bytes that are read from or written to what `edge` leads to. What was in it before is still there.
    pub(crate) fn buffer(&self, req: &Req, edge: &Edge, len: usize) -> IoResult<AlignedBuf> {
        let limits = edge.limits(req)?;
        let is_usual = limits.memory_alignment.max(limits.request_alignment) <= CLUSTER_ALIGNMENT;
        if is_usual && len <= POOLED_MAX { Ok(self.clusters.take(len)) } else { meta::buffer(req, edge, len) }
    }

    /// Decompress clusters whose data lies together in the file.
    async fn read_packed(&self, req: &Req, all: Vec<Packed>) -> IoResult<()> {
        let Some(first) = all.first() else { return Ok(()) };
        // They follow each other, but how many bytes each may have is anybody's guess.
        let end = all.iter().map(|packed| packed.place + packed.bytes).max().unwrap_or_default();
        // The data may begin and end anywhere; blocks of the file do not.
        let alignment = u64::from(self.file.limits(req)?.request_alignment.max(1));
        let from = first.place - first.place % alignment;
        let buf = self.buffer(req, &self.file, (end - from).next_multiple_of(alignment) as usize)?.into_io();
        meta::read_padded(req, &self.file, from, &buf).await?;
        let (size, kind) = (self.geometry.cluster_size() as usize, self.compression);
        let work = move || {
            // Nobody else has it, so nothing is copied.
            let bytes = buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(1));
            let bad = |packed: &&Packed| {
                let at = (packed.place - from) as usize;
                let data = &bytes[at..at + packed.bytes as usize];
                // Where the cluster still is in the processor's cache, and beside other jobs.
                let copy =
                    |cluster: &[u8]| packed.part.copy_from_slice(0, &cluster[packed.within..][..packed.part.len()]);
                compress::decompress_with(kind, data, size, copy).is_none()
            };
            all.iter().find(bad).map(|packed| packed.place)
        };
        if let Some(at) = self.pool.compute(work).await.ok_or(IoError::BUG)? {
            tracing::warn!(at, "a compressed cluster cannot be decompressed");
            return Err(IoError::host(block_common::Errno::EIO.raw()));
        }
        Ok(())
    }
}

/// Part of a compressed cluster.
struct Packed {
    /// Where in the file the data is, and how many bytes at most.
    place: u64,
    bytes: u64,
    /// Where the part begins in the cluster, and where it goes.
    within: usize,
    part: IoBuf,
}

/// Part of a request.
enum Read {
    Extent(u64, Extent, IoBuf),
    Packed(Vec<Packed>),
}

impl Read {
    async fn carry_out(self, image: &Shared, req: &Req) -> IoResult<()> {
        match self {
            Self::Extent(at, extent, part) => image.read_extent(req, at, extent, &part).await,
            Self::Packed(all) => image.read_packed(req, all).await,
        }
    }
}
