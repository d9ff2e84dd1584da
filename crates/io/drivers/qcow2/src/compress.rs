//! Compressing and decompressing clusters, and writing compressed ones.

use crate::deflate::{Deflate, SLACK};
use crate::image::Shared;
use crate::refcounts::Class;
use block_common::{HostOffset, IoBuf, IoError, IoResult, RequestFlags};
use block_io::Req;
use block_qcow2_format::{CompressionType, L2Entry, L2Kind, SubclusterBits};
use flate2::{Decompress, FlushDecompress, Status};
use std::cell::RefCell;

/// What a thread needs to compress and to decompress, kept from one cluster to the next: it is large, and takes as long to set up as a cluster does to decompress.
#[derive(Default)]
struct Contexts {
    inflate: Option<libdeflater::Decompressor>,
    unzstd: Option<zstd::bulk::Decompressor<'static>>,
    deflate: Option<Deflate>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    /// What is to be compressed, and what comes of it.
    plain: Vec<u8>,
    packed: Vec<u8>,
    /// A cluster that came of it.
    unpacked: Vec<u8>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::default();
}

/// `then` with the cluster of `size` bytes that compressed bytes are; others may follow these. `None` when that is not what they are.
pub(crate) fn decompress_with<T>(
    kind: CompressionType,
    bytes: &[u8],
    size: usize,
    then: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
    let mut cluster = CONTEXTS.with_borrow_mut(|contexts| std::mem::take(&mut contexts.unpacked));
    cluster.resize(size, 0);
    let done = decompress(kind, bytes, &mut cluster).then(|| then(&cluster));
    CONTEXTS.with_borrow_mut(|contexts| contexts.unpacked = cluster);
    done
}

/// `out` from compressed bytes, behind which others may follow. `false` when that is not what they are.
fn decompress(kind: CompressionType, bytes: &[u8], out: &mut [u8]) -> bool {
    // The first is fast, and the second takes whatever anybody may have written.
    let at_once = CONTEXTS.with_borrow_mut(|contexts| match kind {
        CompressionType::Zlib => {
            let inflate = contexts.inflate.get_or_insert_with(libdeflater::Decompressor::new);
            inflate.deflate_decompress(bytes, out).ok()
        }
        CompressionType::Zstd => {
            let frame = bytes.get(..zstd::zstd_safe::find_frame_compressed_size(bytes).ok()?)?;
            if contexts.unzstd.is_none() {
                contexts.unzstd = Some(zstd::bulk::Decompressor::new().ok()?);
            }
            contexts.unzstd.as_mut()?.decompress_to_buffer(frame, out).ok()
        }
    });
    if at_once == Some(out.len()) {
        return true;
    }
    let done = match kind {
        CompressionType::Zlib => inflate(bytes, out),
        CompressionType::Zstd => unzstd(bytes, out),
    };
    done == Some(out.len())
}

/// The stream may end early or late: what counts is that a cluster came out of it.
fn inflate(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    // Whoever wrote the cluster may have looked back further than this project does.
    let mut stream = Decompress::new(false);
    match stream.decompress(bytes, out, FlushDecompress::Finish) {
        Ok(Status::Ok | Status::BufError | Status::StreamEnd) => Some(stream.total_out() as usize),
        Err(_) => None,
    }
}

/// One frame or several, one behind the other, and rubbish behind them.
fn unzstd(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut decoder = zstd::stream::raw::Decoder::new().ok()?;
    let (mut from, mut to) = (0, 0);
    while to < out.len() {
        use zstd::stream::raw::Operation;
        let status = decoder.run_on_buffers(&bytes[from..], &mut out[to..]).ok()?;
        if status.bytes_read == 0 && status.bytes_written == 0 {
            break;
        }
        from += status.bytes_read;
        to += status.bytes_written;
    }
    Some(to)
}

/// `bytes`, and zeroes behind them up to a cluster of `size` bytes, compressed to less than that, or `None`.
pub(crate) fn compress(kind: CompressionType, bytes: &IoBuf, size: usize) -> Option<Vec<u8>> {
    CONTEXTS.with_borrow_mut(|contexts| {
        let Contexts { deflate, zstd, plain, packed, .. } = contexts;
        let room = size.checked_sub(1)?;
        plain.resize(size + SLACK, 0);
        packed.resize(room + SLACK, 0);
        let (data, rest) = plain.split_at_mut(bytes.len());
        bytes.copy_to_slice(0, data);
        rest.fill(0);
        let len = match kind {
            CompressionType::Zlib => deflate.get_or_insert_with(Deflate::new).compress(plain, packed)?,
            CompressionType::Zstd => {
                if zstd.is_none() {
                    *zstd = Some(zstd::bulk::Compressor::new(0).ok()?);
                }
                zstd.as_mut()?.compress_to_buffer(&plain[..size], &mut packed[..room]).ok()?
            }
        };
        Some(packed[..len].to_vec())
    })
}

impl Shared {
    /// Store whole clusters compressed; the last one may end with the disk. What does not shrink is stored as it is.
    pub(crate) async fn write_compressed(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        if self.data.is_some() || self.is_encrypted() {
            return Err(IoError::UNSUPPORTED);
        }
        let size = self.geometry.cluster_size();
        let is_end = offset + buf.len() as u64 == self.length();
        if !self.geometry.is_aligned(offset) || !self.geometry.is_aligned(buf.len() as u64) && !is_end {
            return Err(IoError::INVALID);
        }
        let kind = self.compression;
        let parts: Vec<IoBuf> = (0..buf.len())
            .step_by(size as usize)
            .map(|done| buf.slice(done, (buf.len() - done).min(size as usize)))
            .collect();
        let start = |part: &IoBuf| {
            let part = part.clone();
            self.pool.compute(move || compress(kind, &part, size as usize))
        };
        // All are begun before the first one is waited for, and all are over when this is.
        let begun: Vec<_> = parts.iter().map(start).collect();
        let mut packed = Vec::with_capacity(begun.len());
        for data in begun {
            packed.push(data.await);
        }
        let (mut at, mut run) = (offset, Vec::new());
        for (data, part) in packed.into_iter().zip(&parts) {
            match data.ok_or(IoError::BUG)? {
                Some(data) => run.push(data),
                None => {
                    self.store_packed(req, at, std::mem::take(&mut run)).await?;
                    self.write(req, at, part, RequestFlags::empty()).await?;
                }
            }
            at += part.len() as u64;
        }
        self.store_packed(req, at, run).await
    }

    /// Store compressed clusters, the last of which ends before `end`, with as few writes as their places allow.
    async fn store_packed(&self, req: &Req, end: u64, run: Vec<Vec<u8>>) -> IoResult<()> {
        if run.is_empty() {
            return Ok(());
        }
        let size = self.geometry.cluster_size();
        let end = end.next_multiple_of(size);
        let offset = end - run.len() as u64 * size;
        let _lock = self.locks.lock(self.geometry.cluster(offset)..self.geometry.cluster(end)).await;
        let (mut places, mut result, mut named) = (Vec::with_capacity(run.len()), Ok(()), 0);
        for (data, at) in run.iter().zip((offset..).step_by(size as usize)) {
            match self.place_packed(req, at, data.len() as u64).await {
                Ok(place) => places.push(place),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            result = self.write_packed(req, &places, &run).await;
        }
        for ((data, place), at) in run.iter().zip(&places).zip((offset..).step_by(size as usize)) {
            if result.is_err() {
                break;
            }
            result = match L2Entry::compressed(&self.geometry, *place, data.len() as u64) {
                None => Err(IoError::host(block_common::Errno::EFBIG.raw())),
                Some(entry) => {
                    named += 1;
                    self.set_entry(req, at, (entry, SubclusterBits::default())).await
                }
            };
        }
        for (data, place) in run.iter().zip(places).skip(named) {
            // No entry names it: it goes back at once.
            self.give_back_bytes(req, place, data.len() as u64).await;
        }
        result
    }

    /// A place for `len` compressed bytes of the cluster at `at`.
    async fn place_packed(&self, req: &Req, at: u64, len: u64) -> IoResult<u64> {
        self.ensure_table(req, at).await?;
        let (old, _) = self.entry(req, at).await?;
        // As in the field: compressed data is for clusters that were never written.
        if !matches!(self.kind(old), L2Kind::Unallocated | L2Kind::Zero) {
            return Err(IoError::host(block_common::Errno::EIO.raw()));
        }
        self.allocate_bytes(req, len).await
    }

    /// Write compressed clusters to their places; those that lie one behind the other are one write.
    async fn write_packed(&self, req: &Req, places: &[u64], run: &[Vec<u8>]) -> IoResult<()> {
        let mut next = 0;
        while let Some(start) = places.get(next) {
            let (first, mut end) = (next, *start);
            while places.get(next) == Some(&end) {
                end += run[next].len() as u64;
                next += 1;
            }
            let mut buf = self.buffer(req, &self.file, (end - start) as usize)?;
            let mut to = &mut buf[..];
            for data in &run[first..next] {
                let (here, rest) = to.split_at_mut(data.len());
                here.copy_from_slice(data);
                to = rest;
            }
            self.file.write(req, HostOffset(*start), &buf.into_io(), RequestFlags::empty()).await?;
        }
        Ok(())
    }

    /// Nobody names these compressed bytes any more.
    pub(crate) fn retire_compressed(&self, req: &Req, at: u64, len: u64, class: Class) {
        let first = self.geometry.cluster(at);
        let last = self.geometry.cluster(at + len - 1);
        self.retire(req, first << self.geometry.cluster_bits(), last - first + 1, class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 * 31 % 251) as u8).collect()
    }

    fn pack(kind: CompressionType, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut buf = block_common::AlignedBuf::zeroed(bytes.len(), 512);
        buf.copy_from_slice(bytes);
        compress(kind, &buf.into_io(), bytes.len())
    }

    #[test]
    fn clusters_come_back_with_rubbish_behind_them() {
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            for size in [512, 65536, 2 << 20] {
                let plain = text(size);
                let mut packed = pack(kind, &plain).expect("it shrinks");
                packed.extend([0xa5; 600]);
                let mut out = vec![0; size + 1];
                assert!(decompress(kind, &packed, &mut out[..size]) && out[..size] == plain);
                assert!(!decompress(kind, &packed, &mut out), "{kind:?}: longer than it was");
                packed.truncate(20);
                assert!(!decompress(kind, &packed, &mut out[..size]), "{kind:?}: a part of it");
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_told() {
        let mut rng = block_testkit::Rng::new(5);
        let noise: Vec<u8> = (0..4096).map(|_| rng.below(0..256) as u8).collect();
        assert!(pack(CompressionType::Zlib, &noise).is_none() && pack(CompressionType::Zstd, &noise).is_none());
        let mut out = vec![0; 65536];
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            // What was given up leaves nothing behind.
            for times in 1..20 {
                assert!((0..times).all(|_| pack(kind, &noise).is_none()));
                let packed = pack(kind, &text(65536)).expect("it shrinks");
                assert!(decompress(kind, &packed, &mut out) && out == text(65536));
            }
        }
        assert!(!decompress(CompressionType::Zlib, &noise, &mut out));
        assert!(!decompress(CompressionType::Zstd, &noise, &mut out));
    }
}
