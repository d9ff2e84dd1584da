//! Copying images into an image cluster by cluster, for a target that compresses each: `convert -c`.
//!
//! A cluster is written when it is anything but zeroes. Pieces of some clusters are read, compressed and written beside each other, as many as
//! [`SparseOptions::depth`] says; what compresses them is the target's driver, on threads of its own.

use crate::error::{CopyAct, CopyError};
use crate::padded::Padded;
use crate::rate::RateLimit;
use crate::sparse::{SparseNote, SparseOptions, earlier};
use block_common::{AlignedBuf, BufPool, IoBuf, RequestFlags, is_zero};
use block_io::{Flight, Root};
use std::sync::Arc;
use std::time::Instant;

/// Clusters that are short make pieces of so many bytes together.
const PIECE: u64 = 256 << 10;

/// Copy all of `sources`, one behind the other, to the start of `target`, compressed, in clusters of `cluster` bytes. Zeroes are left out where
/// the target is zero, else they are written as such. Of `options`, those about runs of zeroes and about the host are of no meaning here.
///
/// # Errors
/// The first request that failed; those in flight are over by then.
pub async fn packed_copy(
    sources: Vec<Padded>,
    target: Root,
    cluster: u64,
    options: SparseOptions,
    note: impl Fn(SparseNote) + Send + Sync + 'static,
) -> Result<(), CopyError> {
    let total = sources.iter().map(Padded::len).sum();
    let piece = PIECE.max(cluster) / cluster * cluster;
    let pool = BufPool::new(4096, (options.depth + 1) * piece as usize);
    let packer = Arc::new(Packer { sources, target, cluster, pool, options, note: Box::new(note) });
    let (mut flight, mut rate) = (Flight::new(), RateLimit::default());
    rate.set_speed(options.speed);
    let mut ended = Ok(());
    for at in (0..total).step_by(piece as usize) {
        if flight.len() >= options.depth.max(1)
            && let Some(done) = flight.next().await
        {
            ended = earlier(ended, done);
        }
        if ended.is_err() {
            break;
        }
        let delay = rate.delay(Instant::now());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let len = piece.min(total - at);
        rate.charge(Instant::now(), len);
        let packer = packer.clone();
        if let Some(done) = flight.start(async move { packer.piece(at, len).await }).await {
            ended = earlier(ended, done);
        }
    }
    while let Some(done) = flight.next().await {
        ended = earlier(ended, done);
    }
    ended
}

/// What a cluster is, without its being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Zero,
    /// The target shows it already.
    Left,
}

struct Packer {
    sources: Vec<Padded>,
    target: Root,
    cluster: u64,
    pool: BufPool,
    options: SparseOptions,
    note: Box<dyn Fn(SparseNote) + Send + Sync>,
}

impl Packer {
    /// The parts of sources that the `len` bytes at `at` of the whole are: where each begins in its source and in the cluster.
    fn parts(&self, at: u64, len: u64) -> Vec<(&Padded, u64, u64, u64)> {
        let (mut start, mut parts) = (0, Vec::new());
        for source in &self.sources {
            let (from, to) = (at.max(start), (at + len).min(start + source.len()));
            if from < to {
                parts.push((source, from - start, from - at, to - from));
            }
            start += source.len();
        }
        parts
    }

    /// Copy some clusters: runs of such as have to be read, and what is known between them.
    async fn piece(&self, at: u64, len: u64) -> Result<(), CopyError> {
        let end = at + len;
        let (mut run, mut next) = (at, at);
        while next < end {
            let len = self.cluster.min(end - next);
            if let Some(known) = self.known(next, len).await? {
                self.run(run, next).await?;
                run = next + len;
                (self.note)(SparseNote::Skipped(len));
                if known == Known::Zero {
                    self.zero(next, len).await?;
                }
            }
            next += len;
        }
        self.run(run, end).await
    }

    /// Copy the clusters from `at` to `end`.
    async fn run(&self, at: u64, end: u64) -> Result<(), CopyError> {
        if at == end {
            return Ok(());
        }
        let copied = self.at_once(at, end).await;
        if let Err(CopyError { act: CopyAct::Read, .. }) = copied
            && end - at > self.cluster
        {
            // Nothing of it is written. Which cluster it was, and what lies before that, is found out one by one.
            for start in (at..end).step_by(self.cluster as usize) {
                self.at_once(start, end.min(start + self.cluster)).await?;
            }
        }
        copied
    }

    /// The same. They are read at once, and written in runs without zeroes.
    async fn at_once(&self, at: u64, end: u64) -> Result<(), CopyError> {
        let buf = self.pool.take((end - at) as usize).into_io();
        for (source, from, place, part) in self.parts(at, end - at) {
            self.read(source, from, at + place, buf.slice(place as usize, part as usize)).await?;
        }
        // Nobody else has it, so nothing is copied.
        let data: AlignedBuf = buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(4096));
        let is_left_out = |cluster: &[u8]| self.options.sparse > 0 && is_zero(cluster);
        let zeroes: Vec<bool> = data.chunks(self.cluster as usize).map(is_left_out).collect();
        let (data, mut next) = (data.into_io(), 0);
        for same in zeroes.chunk_by(|one, other| one == other) {
            let start = next as u64 * self.cluster;
            next += same.len();
            let len = (next as u64 * self.cluster).min(end - at) - start;
            if same[0] {
                self.zero(at + start, len).await?;
            } else {
                let flags = self.options.flags | RequestFlags::WRITE_COMPRESSED;
                let written = self.target.write(at + start, data.slice(start as usize, len as usize), flags).await.0;
                written.map_err(CopyError::at(CopyAct::Write, at + start))?;
            }
            (self.note)(SparseNote::Copied(len));
        }
        Ok(())
    }

    async fn zero(&self, at: u64, len: u64) -> Result<(), CopyError> {
        if self.options.target_is_zero {
            return Ok(());
        }
        let flags = self.options.flags | RequestFlags::MAY_UNMAP;
        self.target.zero(at, len, flags).await.map_err(CopyError::at(CopyAct::Zero, at))
    }

    /// What the sources say of a range, if it need not be read.
    async fn known(&self, at: u64, len: u64) -> Result<Option<Known>, CopyError> {
        let mut known = None;
        for (source, from, place, part) in self.parts(at, len) {
            let mut done = 0;
            while done < part {
                let told = match source.decided(from + done, part - done, 1).await {
                    Ok(told) => told,
                    // It may be readable all the same.
                    Err(error) if self.options.salvage => {
                        (self.note)(SparseNote::Unknown(at + place + done, error));
                        return Ok(None);
                    }
                    Err(error) => return Err(CopyError::at(CopyAct::Status, at + place + done)(error)),
                };
                for extent in told {
                    let this = match (extent.status.is_empty(), extent.is_zero()) {
                        (true, _) => Known::Left,
                        (false, true) => Known::Zero,
                        (false, false) => return Ok(None),
                    };
                    if *known.get_or_insert(this) != this {
                        return Ok(None);
                    }
                    done += extent.len;
                }
            }
        }
        Ok(known)
    }

    async fn read(&self, source: &Padded, from: u64, to: u64, buf: IoBuf) -> Result<(), CopyError> {
        let kept = self.options.salvage.then(|| buf.slice(0, buf.len()));
        match (source.read(from, buf).await, kept) {
            (Ok(_), _) => Ok(()),
            (Err(error), None) => Err(CopyError::at(CopyAct::Read, to)(error)),
            (Err(_), Some(buf)) => {
                for at in (0..buf.len()).step_by(Padded::SECTOR as usize) {
                    let sector = buf.slice(at, (Padded::SECTOR as usize).min(buf.len() - at));
                    if let Err(error) = source.read(from + at as u64, sector.clone()).await {
                        sector.fill(0, sector.len(), 0);
                        (self.note)(SparseNote::Lost(to + at as u64, error));
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_common::{IoError, Perm};
    use block_io::StaticGraph;
    use block_testkit::bed::{block_on, io_thread};
    use block_testkit::{MemOptions, MemStorage};

    // Scenario: clusters that lie in two sources, of zeroes, of data, and one that cannot be read. The target takes no compressed writes.
    #[test]
    fn what_cannot_be_stored_compressed_is_told() {
        let thread = io_thread(true);
        let mut graph = StaticGraph::new(thread.handle());
        let mut root = |name: &str, bytes: Vec<u8>| {
            let storage = MemStorage::with_content(MemOptions::new(bytes.len() as u64), bytes);
            let node = block_on(graph.node(name).install(storage.driver(), false)).expect("a node");
            graph.root(name, &node, Perm::all())
        };
        let sources = [root("a", vec![0; 3 << 9]), root("b", vec![1; 5 << 9])];
        let target = root("target", vec![0; 8 << 9]);
        let options = SparseOptions {
            depth: 4,
            sparse: 4096,
            target_is_zero: true,
            in_order: true,
            salvage: false,
            offload: false,
            speed: 0,
            flags: RequestFlags::empty(),
        };
        let sources = sources.map(|root| Padded::new(root).expect("a source")).to_vec();
        let run = thread.handle().run(packed_copy(sources, target, 2 << 9, options, |_| {}));
        let failed = block_on(run).expect("it runs").expect_err("no such writes");
        // The first cluster is zeroes.
        assert_eq!((failed.act, failed.offset, failed.error), (CopyAct::Write, 2 << 9, IoError::UNSUPPORTED));
        block_on(graph.close()).expect("closes");
    }
}
