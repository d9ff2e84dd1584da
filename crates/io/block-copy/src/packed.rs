//! Copying images into an image cluster by cluster, for a target that compresses each: `convert -c`.
//!
//! A cluster is written when it is anything but zeroes. Clusters are read, compressed and written beside each other, as many as
//! [`SparseOptions::depth`] says; what compresses them is the target's driver, on threads of its own.

use crate::error::{CopyAct, CopyError};
use crate::padded::Padded;
use crate::rate::RateLimit;
use crate::sparse::{SparseNote, SparseOptions, earlier};
use block_common::{AlignedBuf, BufPool, IoBuf, RequestFlags, is_zero};
use block_io::{Flight, Root};
use std::sync::Arc;
use std::time::Instant;

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
    let pool = BufPool::new(4096, 2 * cluster as usize);
    let packer = Arc::new(Packer { sources, target, pool, options, note: Box::new(note) });
    let (mut flight, mut rate) = (Flight::new(), RateLimit::default());
    rate.set_speed(options.speed);
    let mut ended = Ok(());
    for at in (0..total).step_by(cluster as usize) {
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
        let len = cluster.min(total - at);
        rate.charge(Instant::now(), len);
        let packer = packer.clone();
        if let Some(done) = flight.start(async move { packer.cluster(at, len).await }).await {
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

    async fn cluster(&self, at: u64, len: u64) -> Result<(), CopyError> {
        match self.known(at, len).await? {
            None => {}
            Some(known) => {
                (self.note)(SparseNote::Skipped(len));
                return if known == Known::Left { Ok(()) } else { self.zero(at, len).await };
            }
        }
        let buf = self.pool.take(len as usize).into_io();
        for (source, from, place, part) in self.parts(at, len) {
            self.read(source, from, at + place, buf.slice(place as usize, part as usize)).await?;
        }
        let data: AlignedBuf = buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(4096));
        if self.options.sparse > 0 && is_zero(&data) {
            self.zero(at, len).await?;
        } else {
            let flags = self.options.flags | RequestFlags::WRITE_COMPRESSED;
            let written = self.target.write(at, data.into_io(), flags).await.0;
            written.map_err(CopyError::at(CopyAct::Write, at))?;
        }
        (self.note)(SparseNote::Copied(len));
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
