//! Dirty bitmaps of nodes, by name: what has changed since a backup, say.
//!
//! A bitmap that records is an observer of its node; one that does not costs writers nothing. It follows the node's length, and goes with
//! the node. Formats that store bitmaps set and read the bits through [`BitmapRef::bits`]; none does yet, and a bitmap that is to be stored is refused.

use crate::error::GraphError;
use crate::graph::{GsNode, NodeRef};
use crate::state::GlobalState;
use block_io::{NodeBitmap, WriteObserver};
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// How much a write dirties at least, if nobody says otherwise.
const GRANULARITY: u64 = 64 << 10;
const GRANULARITY_MIN: u64 = 512;
const GRANULARITY_MAX: u64 = 1 << 31;
const NAME_LEN_MAX: usize = 1023;

/// Why an act on bitmaps was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// No name.
    #[error("Bitmap name cannot be empty")]
    NoName,
    /// A name that is too long.
    #[error("Bitmap name is too long: it has {0} bytes, and the most is {max}", max = NAME_LEN_MAX)]
    LongName(usize),
    /// The node has a bitmap of this name.
    #[error("Bitmap already exists: {0}")]
    Exists(String),
    /// The node has no bitmap of this name.
    #[error("Dirty bitmap '{0}' not found")]
    NotFound(String),
    /// Not a size for chunks.
    #[error("Granularity must be power of 2 and at least {min}, and at most {max}", min = GRANULARITY_MIN, max = GRANULARITY_MAX)]
    Granularity,
    /// There would be too many chunks.
    #[error("Bitmap '{name}' of node '{node}' would take too much memory: choose a larger granularity")]
    TooFine {
        /// The node.
        node: String,
        /// The bitmap.
        name: String,
    },
    /// The node's driver stores no bitmaps.
    #[error("Can't store persistent bitmaps to {node}: driver '{driver}' has no place for them")]
    NotStored {
        /// The node.
        node: String,
        /// Its driver.
        driver: &'static str,
    },
    /// A job uses it.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// It could not follow its node, and is good for nothing but being removed.
    #[error("Bitmap '{0}' is inconsistent and cannot be used; it can be removed")]
    Inconsistent(String),
    /// They are about nodes of different lengths.
    #[error("Bitmaps are of different sizes (destination size is {target}, source size is {from}) and can't be merged")]
    Sizes {
        /// What would be merged into, in bytes.
        target: u64,
        /// What would be merged, in bytes.
        from: u64,
    },
    /// There is no such node.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// What an act on bitmaps returns.
pub type BitmapResult<T> = Result<T, BitmapError>;

/// A new bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapOptions {
    /// Its name: at most 1023 bytes, unique on its node.
    pub name: String,
    /// How much a write dirties at least, in bytes: a power of two from 512 to 2 GiB. 64 KiB without it.
    pub granularity: Option<u64>,
    /// Whether it is to be stored with the image.
    pub persistent: bool,
    /// Whether it records nothing until it is enabled.
    pub disabled: bool,
}

impl BitmapOptions {
    /// A bitmap that records from the start and goes with its node.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), granularity: None, persistent: false, disabled: false }
    }

    fn check(&self, node: &GsNode) -> BitmapResult<u64> {
        match self.name.len() {
            0 => return Err(BitmapError::NoName),
            1..=NAME_LEN_MAX => {}
            len => return Err(BitmapError::LongName(len)),
        }
        let granularity = self.granularity.unwrap_or(GRANULARITY);
        if !granularity.is_power_of_two() || !(GRANULARITY_MIN..=GRANULARITY_MAX).contains(&granularity) {
            return Err(BitmapError::Granularity);
        }
        if node.bitmaps.contains_key(&self.name) {
            return Err(BitmapError::Exists(self.name.clone()));
        }
        if self.persistent {
            let (node, driver) = (node.name.as_str().to_owned(), node.driver.name());
            return Err(BitmapError::NotStored { node, driver });
        }
        Ok(granularity)
    }
}

/// What can be seen of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// The size of a chunk in bytes.
    pub granularity: u64,
    /// How many bytes are dirty, in whole chunks.
    pub count: u64,
    /// Whether writes dirty it.
    pub recording: bool,
    /// Whether a job uses it.
    pub busy: bool,
    /// Whether it is stored with the image.
    pub persistent: bool,
    /// Whether it could not follow its node.
    pub inconsistent: bool,
}

struct Inner {
    name: String,
    granularity: u64,
    bits: Arc<NodeBitmap>,
    recording: Cell<bool>,
    busy: Cell<bool>,
}

/// A bitmap of a node. It may be held longer than the node has it; it is nobody's then.
#[derive(Clone)]
pub struct BitmapRef(Rc<Inner>);

impl BitmapRef {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What is known of it.
    pub fn info(&self) -> BitmapInfo {
        let Inner { name, granularity, bits, recording, busy } = &*self.0;
        BitmapInfo {
            name: name.clone(),
            granularity: *granularity,
            count: bits.with(|bits| bits.dirty_bytes()),
            recording: recording.get(),
            busy: busy.get(),
            persistent: false,
            inconsistent: bits.is_lost(),
        }
    }

    /// The bits, for whoever looks at them or sets and clears them: a job that has [locked](Self::lock) the bitmap, a format that loads it.
    pub fn bits(&self) -> &Arc<NodeBitmap> {
        &self.0.bits
    }

    /// Use it alone: for as long as the lock lives, it is neither changed nor removed but by who locked it. It goes on recording.
    ///
    /// # Errors
    /// [`BitmapError::Busy`] when somebody else has, [`BitmapError::Inconsistent`].
    pub fn lock(&self) -> BitmapResult<BitmapLock> {
        self.check_usable()?;
        self.0.busy.set(true);
        Ok(BitmapLock(self.clone()))
    }

    fn check_free(&self) -> BitmapResult<()> {
        if self.0.busy.get() { Err(BitmapError::Busy(self.0.name.clone())) } else { Ok(()) }
    }

    fn check_usable(&self) -> BitmapResult<()> {
        self.check_free()?;
        if self.0.bits.is_lost() { Err(BitmapError::Inconsistent(self.0.name.clone())) } else { Ok(()) }
    }

    /// The node has `len` bytes, as far as is known. What it grew by while nothing was recorded is not dirty.
    fn follow(&self, len: u64) {
        self.0.bits.resize(len, self.0.recording.get());
    }

    fn observer(&self) -> Arc<dyn WriteObserver> {
        self.0.bits.clone()
    }

    fn length(&self) -> u64 {
        self.0.bits.with(|bits| bits.length())
    }
}

impl fmt::Debug for BitmapRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BitmapRef({:?})", self.info())
    }
}

/// A bitmap that one user has to himself.
#[must_use = "the bitmap is free when the lock is dropped"]
#[derive(Debug)]
pub struct BitmapLock(BitmapRef);

impl BitmapLock {
    /// The bitmap.
    pub fn bitmap(&self) -> &BitmapRef {
        &self.0
    }
}

impl Drop for BitmapLock {
    fn drop(&mut self) {
        self.0.0.busy.set(false);
    }
}

impl GlobalState {
    /// Give `node` a bitmap. Every write that begins after this returns dirties it, if it records.
    ///
    /// # Errors
    /// What is wrong with the options.
    #[doc(alias = "bdrv_create_dirty_bitmap")]
    pub async fn add_bitmap(&self, node: &NodeRef, options: BitmapOptions) -> BitmapResult<BitmapRef> {
        let bitmap = {
            let mut graph = self.0.graph.borrow_mut();
            let found = graph.node_mut(node)?;
            let granularity = options.check(found)?;
            let BitmapOptions { name, disabled, .. } = options;
            let Some(bits) = NodeBitmap::try_new(node.io().length(), granularity) else {
                return Err(BitmapError::TooFine { node: node.name().into(), name });
            };
            let (bits, recording) = (Arc::new(bits), Cell::new(!disabled));
            let bitmap = BitmapRef(Rc::new(Inner { name, granularity, bits, recording, busy: Cell::new(false) }));
            found.bitmaps.insert(bitmap.name().into(), bitmap.clone());
            bitmap
        };
        if bitmap.0.recording.get() {
            self.observe(node, bitmap.observer()).await?;
        }
        Ok(bitmap)
    }

    /// The bitmap of `node` that is called `name`, as long as the node.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`].
    #[doc(alias = "block_dirty_bitmap_lookup")]
    pub fn bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<BitmapRef> {
        let graph = self.0.graph.borrow();
        let found = graph.node(node)?.bitmaps.get(name).cloned();
        let bitmap = found.ok_or_else(|| BitmapError::NotFound(name.into()))?;
        bitmap.follow(node.io().length());
        Ok(bitmap)
    }

    /// The bitmaps of `node`, in the order of their names.
    ///
    /// # Errors
    /// The node is gone.
    pub fn bitmaps(&self, node: &NodeRef) -> BitmapResult<Vec<BitmapInfo>> {
        Ok(self.0.graph.borrow().node(node)?.bitmaps.values().map(BitmapRef::info).collect())
    }

    fn free_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<BitmapRef> {
        let bitmap = self.bitmap(node, name)?;
        bitmap.check_usable()?;
        Ok(bitmap)
    }

    /// Take a bitmap away.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], [`BitmapError::Busy`].
    #[doc(alias = "block_dirty_bitmap_remove")]
    pub fn remove_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        let bitmap = self.bitmap(node, name)?;
        bitmap.check_free()?;
        self.unobserve(node, &bitmap.observer());
        if let Ok(node) = self.0.graph.borrow_mut().node_mut(node) {
            node.bitmaps.remove(name);
        }
        Ok(())
    }

    /// Nothing is dirty from now on, but for what is being written.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], [`BitmapError::Busy`], [`BitmapError::Inconsistent`].
    #[doc(alias = "bdrv_clear_dirty_bitmap")]
    pub fn clear_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        self.free_bitmap(node, name)?.0.bits.with(|bits| bits.clear_all());
        Ok(())
    }

    /// Let a bitmap record. Every write that begins after this returns dirties it.
    ///
    /// # Errors
    /// As [`GlobalState::clear_bitmap`].
    pub async fn enable_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        let bitmap = self.free_bitmap(node, name)?;
        if !bitmap.0.recording.replace(true) {
            self.observe(node, bitmap.observer()).await?;
        }
        Ok(())
    }

    /// Let a bitmap record no more: it stays as it is, but for what is being written.
    ///
    /// # Errors
    /// As [`GlobalState::clear_bitmap`].
    pub fn disable_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        let bitmap = self.free_bitmap(node, name)?;
        if bitmap.0.recording.replace(false) {
            self.unobserve(node, &bitmap.observer());
        }
        Ok(())
    }

    /// What is dirty in one of `sources` (bitmaps of nodes, by name) is dirty in the bitmap `target` of `node`. Chunks may be of different sizes; what
    /// touches a dirty one becomes dirty.
    ///
    /// # Errors
    /// As [`GlobalState::clear_bitmap`], about any of them; [`BitmapError::Sizes`]. Nothing is merged then.
    #[doc(alias = "block_dirty_bitmap_merge")]
    pub fn merge_bitmaps(&self, node: &NodeRef, target: &str, sources: &[(&NodeRef, &str)]) -> BitmapResult<()> {
        let target = self.free_bitmap(node, target)?;
        let mut found = Vec::new();
        for (node, name) in sources {
            let source = self.free_bitmap(node, name)?;
            if source.length() != target.length() {
                return Err(BitmapError::Sizes { target: target.length(), from: source.length() });
            }
            // Merged into itself it is what it is.
            found.extend((!Rc::ptr_eq(&source.0, &target.0)).then_some(source));
        }
        // Only the main loop holds two at a time.
        target.0.bits.with(|bits| found.iter().for_each(|source| source.0.bits.with(|source| bits.merge(source))));
        Ok(())
    }
}
