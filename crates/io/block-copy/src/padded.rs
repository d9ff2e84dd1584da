//! An image as the field's tools count it: in whole sectors, the last of which is filled up with zeroes.
//!
//! Nodes have exact lengths; what is compared or copied sector by sector looks at them through a [`Padded`]. Writing is not
//! here.

use block_common::{BlockStatus, HostOffset, IoBuf, IoError, IoResult, StatusExtent};
use block_io::Root;
use std::ops::Range;
use tokio::sync::mpsc;

/// How many answers about status are asked for ahead of their use.
pub(crate) const STATUSES_AHEAD: usize = 256;

/// A root whose length is rounded up to whole sectors. Clones are equal.
#[derive(Clone, Debug)]
pub struct Padded {
    root: Root,
    /// The node's own length when this was made.
    exact: u64,
    /// See [`Padded::upper`].
    layers: Option<usize>,
}

impl Padded {
    /// Lengths are multiples of this many bytes.
    pub const SECTOR: u64 = 512;

    /// What `root` leads to now.
    ///
    /// # Errors
    /// As [`Root::length`].
    pub fn new(root: Root) -> IoResult<Self> {
        let exact = root.length()?;
        exact.checked_next_multiple_of(Self::SECTOR).ok_or(IoError::INVALID)?;
        Ok(Self { root, exact, layers: None })
    }

    /// The same, of which only what the uppermost `layers` images of a chain decide is to be [told](Padded::decided): what is below them is there
    /// already.
    pub fn upper(self, layers: usize) -> Self {
        Self { layers: Some(layers), ..self }
    }

    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Length in bytes, rounded up.
    #[expect(clippy::len_without_is_empty, reason = "a length of an image, not of a container")]
    pub fn len(&self) -> u64 {
        self.exact.next_multiple_of(Self::SECTOR)
    }

    /// Read into `buf` from `offset` bytes; what lies past the exact end is zeroes.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub async fn read(&self, offset: u64, buf: IoBuf) -> IoResult<IoBuf> {
        let there = self.exact.saturating_sub(offset).min(buf.len() as u64) as usize;
        if there == buf.len() {
            let (result, buf) = self.root.read(offset, buf).await;
            result?;
            return buf.ok_or(IoError::CANCELLED);
        }
        if there > 0 {
            let (result, _) = self.root.read(offset, buf.slice(0, there)).await;
            result?;
        }
        buf.fill(there, buf.len() - there, 0);
        Ok(buf)
    }

    /// The status of the start of the `len` bytes at `offset`; what lies past the exact end is zeroes, next to the last byte.
    ///
    /// # Errors
    /// As [`Root::block_status`].
    pub async fn status(&self, offset: u64, len: u64) -> IoResult<StatusExtent> {
        if offset < self.exact {
            let mut extent = self.root.block_status(offset, len.min(self.exact - offset)).await?;
            extent.status.set(BlockStatus::EOF, offset + extent.len == self.len());
            return Ok(extent);
        }
        let mut rest = StatusExtent::zero(len);
        if let Some(last) = self.exact.checked_sub(1)
            && let Some(HostOffset(place)) = self.root.block_status(last, 1).await?.host_offset
        {
            rest = StatusExtent::mapped(rest.status, len, HostOffset(place + 1 + (offset - self.exact)));
        }
        rest.status.set(BlockStatus::EOF, offset + len == self.len());
        Ok(rest)
    }

    /// The same for what follows as well, one extent behind the other: at least one, at most `max`.
    ///
    /// # Errors
    /// As [`Root::block_status`].
    pub async fn statuses(&self, offset: u64, len: u64, max: usize) -> IoResult<Vec<StatusExtent>> {
        if offset >= self.exact {
            return Ok(vec![self.status(offset, len).await?]);
        }
        let mut extents = self.root.block_statuses(offset, len.min(self.exact - offset), max).await?;
        let mut at = offset;
        for extent in &mut extents {
            at += extent.len;
            extent.status.set(BlockStatus::EOF, at == self.len());
        }
        Ok(extents)
    }

    /// The same, with those that the node leaves to what it stands on as told there. [`BlockStatus::empty`] is what is left to images that
    /// do not count.
    ///
    /// # Errors
    /// As [`Root::block_status`].
    pub async fn decided(&self, offset: u64, len: u64, max: usize) -> IoResult<Vec<StatusExtent>> {
        let told = self.statuses(offset, len, max).await?;
        let is_decided = |extent: &StatusExtent| extent.status.difference(BlockStatus::EOF) != BlockStatus::empty();
        if told.iter().all(is_decided) {
            return Ok(told);
        }
        let (mut decided, mut at) = (Vec::new(), offset);
        for extent in told {
            let end = at + extent.len;
            if is_decided(&extent) {
                decided.push(extent);
                at = end;
            }
            while at < end {
                let chain = self.root.chain_status(at, end - at).await?;
                let below = chain.extent;
                at += below.len;
                let is_left = self.layers.is_some_and(|layers| chain.depth.unwrap_or(chain.reached) >= layers);
                // Where it lies is another image's business.
                let kinds = BlockStatus::DATA | BlockStatus::ZERO | BlockStatus::EOF;
                let status = if is_left { BlockStatus::empty() } else { below.status & kinds };
                decided.push(StatusExtent::new(status, below.len));
            }
        }
        Ok(decided)
    }

    /// Send the status of all of `range`, in order, until somebody does not want to know any more or an answer is an error.
    /// Asking may take long: who runs this beside other work need not wait for it.
    pub(crate) async fn tell(&self, range: Range<u64>, to: mpsc::Sender<IoResult<StatusExtent>>) {
        let mut at = range.start;
        while at < range.end {
            let told = match self.statuses(at, range.end - at, STATUSES_AHEAD).await {
                Ok(told) => told,
                Err(error) => {
                    // Whoever does not want to know of it has another error.
                    let _ = to.send(Err(error)).await;
                    return;
                }
            };
            for extent in told {
                at += extent.len;
                if to.send(Ok(extent)).await.is_err() {
                    return;
                }
            }
        }
    }
}
