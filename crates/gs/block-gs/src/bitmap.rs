//! Dirty bitmaps of nodes, by name: what has changed since a backup, say.
//!
//! A bitmap that records is an observer of its node; one that does not costs writers nothing. It follows the node's length. A persistent one is kept
//! with the node's image: the driver is told of every change of what there is to keep ([`EngineControl::keep_bitmaps`](crate::EngineControl::keep_bitmaps)), and
//! stores it when the node is closed. All others go with the node.

use crate::driver::KeepError;
use crate::error::GraphError;
use crate::graph::{GsNode, NodeRef};
use crate::snapshot::BitmapAct;
use crate::state::GlobalState;
use block_io::{KeptBitmap, NodeBitmap, WriteObserver};
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

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
    #[error("Granularity must be power of 2 and at least {min}", min = GRANULARITY_MIN)]
    Granularity,
    /// There would be too many chunks.
    #[error("Bitmap '{name}' of node '{node}' would take too much memory: choose a larger granularity")]
    TooFine {
        /// The node.
        node: String,
        /// The bitmap.
        name: String,
    },
    /// The node's driver keeps no bitmaps.
    #[error("Can't store persistent bitmaps to {0}: Operation not supported")]
    NotKept(String),
    /// The node's image has no place for this one.
    #[error("Can't make bitmap '{name}' persistent in '{node}': {why}")]
    Refused {
        /// The node.
        node: String,
        /// The bitmap.
        name: String,
        /// Why not.
        why: String,
    },
    /// It is kept with an image that is only read.
    #[error("Bitmap '{0}' is readonly and cannot be modified")]
    ReadOnly(String),
    /// A job uses it.
    #[error("Bitmap '{0}' is currently in use by another operation and cannot be used")]
    Busy(String),
    /// It could not follow its node, and is good for nothing but being removed.
    #[error(
        "Bitmap '{0}' is inconsistent and cannot be used\nTry block-dirty-bitmap-remove to delete this bitmap from disk"
    )]
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
    /// How much a write dirties at least, in bytes: a power of two from 512 to 2 GiB. Without it as much as the driver says: a cluster of the image, say, but
    /// 4 to 64 KiB.
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
        let granularity = self.granularity.unwrap_or_else(|| node.engine_control.borrow().bitmap_granularity());
        if !granularity.is_power_of_two() || !(GRANULARITY_MIN..=GRANULARITY_MAX).contains(&granularity) {
            return Err(BitmapError::Granularity);
        }
        if node.bitmap(&self.name).is_some() {
            return Err(BitmapError::Exists(self.name.clone()));
        }
        if self.persistent && node.read_only {
            return Err(BitmapError::ReadOnly(self.name.clone()));
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
    persistent: bool,
}

/// A bitmap of a node. It may be held longer than the node has it; it is nobody's then.
#[derive(Clone)]
pub struct BitmapRef(Rc<Inner>);

impl BitmapRef {
    /// A bitmap that was found in a node's image.
    pub(crate) fn kept(kept: KeptBitmap) -> Self {
        let KeptBitmap { name, granularity, recording, bits } = kept;
        let (recording, busy) = (Cell::new(recording), Cell::new(false));
        Self(Rc::new(Inner { name, granularity, bits, recording, busy, persistent: true }))
    }

    /// What its driver has to know to keep it, if it is to.
    fn to_keep(&self) -> Option<KeptBitmap> {
        let Inner { name, granularity, bits, recording, persistent, .. } = &*self.0;
        let recording = recording.get();
        persistent.then(|| KeptBitmap { name: name.clone(), granularity: *granularity, recording, bits: bits.clone() })
    }

    /// Whether writes dirty it.
    pub(crate) fn records(&self) -> bool {
        self.0.recording.get()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What is known of it.
    pub fn info(&self) -> BitmapInfo {
        let Inner { name, granularity, bits, recording, busy, persistent } = &*self.0;
        BitmapInfo {
            name: name.clone(),
            granularity: *granularity,
            count: bits.with(|bits| bits.dirty_bytes()),
            recording: recording.get(),
            busy: busy.get(),
            persistent: *persistent,
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

    pub(crate) fn observer(&self) -> Arc<dyn WriteObserver> {
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

impl GsNode {
    fn bitmap(&self, name: &str) -> Option<&BitmapRef> {
        self.bitmaps.iter().find(|bitmap| bitmap.name() == name)
    }

    /// Tell the driver which bitmaps are to be kept with the image.
    fn keep_bitmaps(&self) -> Result<(), KeepError> {
        let kept: Vec<_> = self.bitmaps.iter().filter_map(BitmapRef::to_keep).collect();
        self.engine_control.borrow_mut().keep_bitmaps(&kept)
    }
}

impl GlobalState {
    /// Give `node` a bitmap. Every write that begins after this returns dirties it, if it records.
    ///
    /// # Errors
    /// What is wrong with the options.
    #[doc(alias = "bdrv_create_dirty_bitmap")]
    pub async fn add_bitmap(&self, node: &NodeRef, options: BitmapOptions) -> BitmapResult<BitmapRef> {
        let bitmap = self.insert_bitmap(node, options)?;
        if bitmap.0.recording.get() {
            self.observe(node, bitmap.observer()).await?;
        }
        Ok(bitmap)
    }

    /// Give `node` a bitmap that nobody tells of anything yet.
    fn insert_bitmap(&self, node: &NodeRef, options: BitmapOptions) -> BitmapResult<BitmapRef> {
        let mut graph = self.0.graph.borrow_mut();
        let found = graph.node_mut(node)?;
        let granularity = options.check(found)?;
        let BitmapOptions { name, disabled, persistent, .. } = options;
        let make = |bits: NodeBitmap| {
            let (bits, recording, busy) = (Arc::new(bits), Cell::new(!disabled), Cell::new(false));
            BitmapRef(Rc::new(Inner { name: name.clone(), granularity, bits, recording, busy, persistent }))
        };
        if persistent {
            // Before there is memory for its bits.
            found.bitmaps.push(make(NodeBitmap::lost(granularity)));
            let kept = found.keep_bitmaps();
            found.bitmaps.pop();
            let node = node.name().to_owned();
            kept.map_err(|why| match why {
                KeepError::Unsupported => BitmapError::NotKept(node),
                why => BitmapError::Refused { node, name: name.clone(), why: why.to_string() },
            })?;
        }
        let made = NodeBitmap::try_new(node.io().length(), granularity).map(make);
        found.bitmaps.extend(made.clone());
        if persistent && let Err(error) = found.keep_bitmaps() {
            tracing::error!(node = node.name(), %error, "bitmaps are not kept");
        }
        made.ok_or_else(|| BitmapError::TooFine { node: node.name().into(), name })
    }

    /// Whether a bitmap can be kept with the image of `node`.
    ///
    /// # Errors
    /// The node is gone.
    #[doc(alias = "bdrv_supports_persistent_dirty_bitmap")]
    pub fn keeps_bitmaps(&self, node: &NodeRef) -> BitmapResult<bool> {
        Ok(self.0.graph.borrow().node(node)?.keep_bitmaps().is_ok())
    }

    /// The bitmap of `node` that is called `name`, as long as the node.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`].
    #[doc(alias = "block_dirty_bitmap_lookup")]
    pub fn bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<BitmapRef> {
        let graph = self.0.graph.borrow();
        let found = graph.node(node)?.bitmap(name).cloned();
        let bitmap = found.ok_or_else(|| BitmapError::NotFound(name.into()))?;
        bitmap.follow(node.io().length());
        Ok(bitmap)
    }

    /// The bitmaps of `node`, in the order in which they were made.
    ///
    /// # Errors
    /// The node is gone.
    pub fn bitmaps(&self, node: &NodeRef) -> BitmapResult<Vec<BitmapInfo>> {
        Ok(self.0.graph.borrow().node(node)?.bitmaps.iter().map(BitmapRef::info).collect())
    }

    fn free_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<BitmapRef> {
        let bitmap = self.bitmap(node, name)?;
        bitmap.check_usable()?;
        Ok(bitmap)
    }

    /// The same, to change it.
    fn writable_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<BitmapRef> {
        let bitmap = self.free_bitmap(node, name)?;
        self.check_writable(node, &bitmap)?;
        Ok(bitmap)
    }

    fn check_writable(&self, node: &NodeRef, bitmap: &BitmapRef) -> BitmapResult<()> {
        let fixed = bitmap.0.persistent && self.0.graph.borrow().node(node)?.read_only;
        if fixed { Err(BitmapError::ReadOnly(bitmap.name().into())) } else { Ok(()) }
    }

    /// What is to be kept with the node's image is something else now. Only a new bitmap can be refused.
    fn bitmaps_changed(&self, node: &NodeRef, bitmap: &BitmapRef) {
        if bitmap.0.persistent
            && let Ok(node) = self.0.graph.borrow().node(node)
            && let Err(error) = node.keep_bitmaps()
        {
            tracing::error!(node = node.name.as_str(), %error, "bitmaps are not kept");
        }
    }

    /// Take a bitmap away.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], [`BitmapError::Busy`], [`BitmapError::ReadOnly`].
    #[doc(alias = "block_dirty_bitmap_remove")]
    pub fn remove_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        let bitmap = self.bitmap(node, name)?;
        bitmap.check_free()?;
        self.check_writable(node, &bitmap)?;
        self.take_bitmap_out(node, &bitmap);
        Ok(())
    }

    fn take_bitmap_out(&self, node: &NodeRef, bitmap: &BitmapRef) {
        self.unobserve(node, &bitmap.observer());
        if let Ok(node) = self.0.graph.borrow_mut().node_mut(node) {
            node.bitmaps.retain(|other| !Rc::ptr_eq(&other.0, &bitmap.0));
        }
        self.bitmaps_changed(node, bitmap);
    }

    /// Nothing is dirty from now on, but for what is being written.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], [`BitmapError::Busy`], [`BitmapError::Inconsistent`], [`BitmapError::ReadOnly`].
    #[doc(alias = "bdrv_clear_dirty_bitmap")]
    pub fn clear_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        self.writable_bitmap(node, name)?.0.bits.with(|bits| bits.clear_all());
        Ok(())
    }

    /// Let a bitmap record. Every write that begins after this returns dirties it.
    ///
    /// # Errors
    /// As [`GlobalState::clear_bitmap`].
    pub async fn enable_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        let bitmap = self.writable_bitmap(node, name)?;
        if !bitmap.0.recording.replace(true) {
            self.bitmaps_changed(node, &bitmap);
            self.observe(node, bitmap.observer()).await?;
        }
        Ok(())
    }

    /// Let a bitmap record no more: it stays as it is, but for what is being written.
    ///
    /// # Errors
    /// As [`GlobalState::clear_bitmap`].
    pub fn disable_bitmap(&self, node: &NodeRef, name: &str) -> BitmapResult<()> {
        let bitmap = self.writable_bitmap(node, name)?;
        if bitmap.0.recording.replace(false) {
            self.unobserve(node, &bitmap.observer());
            self.bitmaps_changed(node, &bitmap);
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
        let target = self.writable_bitmap(node, target)?;
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

/// What happened to a bitmap among other things, until it is known whether it stays so.
pub(crate) enum BitmapUndo {
    /// It is new.
    Added(NodeRef, BitmapRef),
    /// It goes if all goes well, and is nobody's meanwhile.
    Going(NodeRef, BitmapLock),
    /// It had these bits.
    Bits(BitmapRef, Vec<u8>),
    /// It recorded, or did not.
    Recording(NodeRef, BitmapRef, bool),
}

impl BitmapUndo {
    /// It stays so.
    pub(crate) fn keep(self, gs: &GlobalState) {
        if let Self::Going(node, lock) = self {
            gs.take_bitmap_out(&node, &lock.0);
        }
    }

    /// It is as it was. The node is still drained: nobody has written meanwhile.
    pub(crate) fn take_back(self, gs: &GlobalState) {
        match self {
            Self::Added(node, bitmap) => gs.take_bitmap_out(&node, &bitmap),
            Self::Going(_, lock) => drop(lock),
            Self::Bits(bitmap, bits) => bitmap.0.bits.with(|now| {
                now.clear_all();
                now.set_bits_from(0, &bits);
            }),
            Self::Recording(node, bitmap, was) => gs.record_now(&node, &bitmap, was),
        }
    }
}

/// Without waiting, on nodes that are drained.
impl GlobalState {
    pub(crate) fn add_bitmap_now(&self, node: &NodeRef, options: &BitmapOptions) -> BitmapResult<BitmapUndo> {
        let bitmap = self.insert_bitmap(node, options.clone())?;
        if bitmap.records() {
            self.observe_now(node, &bitmap)?;
        }
        Ok(BitmapUndo::Added(node.clone(), bitmap))
    }

    pub(crate) fn change_bitmap_now(&self, node: &NodeRef, name: &str, act: &BitmapAct) -> BitmapResult<BitmapUndo> {
        let bits = |bitmap: &BitmapRef| {
            bitmap.0.bits.with(|bits| {
                let mut bytes = vec![0; bits.chunks().div_ceil(8) as usize];
                bits.bits_from(0, &mut bytes);
                bytes
            })
        };
        Ok(match act {
            BitmapAct::Remove => {
                let bitmap = self.bitmap(node, name)?;
                bitmap.check_free()?;
                self.check_writable(node, &bitmap)?;
                // Also one that is good for nothing else.
                bitmap.0.busy.set(true);
                BitmapUndo::Going(node.clone(), BitmapLock(bitmap))
            }
            BitmapAct::Clear => {
                let bitmap = self.writable_bitmap(node, name)?;
                let before = bits(&bitmap);
                bitmap.0.bits.with(|bits| bits.clear_all());
                BitmapUndo::Bits(bitmap, before)
            }
            BitmapAct::Merge(sources) => {
                let bitmap = self.writable_bitmap(node, name)?;
                let before = bits(&bitmap);
                let sources: Vec<_> = sources.iter().map(|(node, name)| (node, name.as_str())).collect();
                self.merge_bitmaps(node, name, &sources)?;
                BitmapUndo::Bits(bitmap, before)
            }
            BitmapAct::Enable | BitmapAct::Disable => {
                let bitmap = self.writable_bitmap(node, name)?;
                let was = bitmap.records();
                self.record_now(node, &bitmap, matches!(act, BitmapAct::Enable));
                BitmapUndo::Recording(node.clone(), bitmap, was)
            }
        })
    }

    fn record_now(&self, node: &NodeRef, bitmap: &BitmapRef, records: bool) {
        if bitmap.0.recording.replace(records) == records {
            return;
        }
        if !records {
            self.unobserve(node, &bitmap.observer());
        } else if let Err(error) = self.observe_now(node, bitmap) {
            tracing::error!(node = node.name(), %error, "a node is gone whose bitmap is to record");
        }
        self.bitmaps_changed(node, bitmap);
    }

    fn observe_now(&self, node: &NodeRef, bitmap: &BitmapRef) -> BitmapResult<()> {
        let mut graph = self.0.graph.borrow_mut();
        graph.node_mut(node)?.control.observe(bitmap.observer());
        Ok(())
    }
}
