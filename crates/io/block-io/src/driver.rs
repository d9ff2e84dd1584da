//! What a driver's engine is to the core: the trait, and the mappings that keep it out of the way.
//!
//! An engine is the I/O half of a driver. It owns the edges to its children, may be called from any I/O thread, many
//! requests at once, and has no way to the graph: opening, reopening, permissions and limits are the business of its
//! *control* half, which the constructor returns beside it and which belongs to the graph's owner.

use crate::edge::Edge;
use crate::file::{DeviceBlocks, DiskGeometry, HostFile};
use crate::node::Req;
use async_trait::async_trait;
use block_common::{
    DebugEvent, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Preallocation, RequestFlags,
    StatusExtent,
};

/// What a request means to do with the mapped bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read them.
    Read,
    /// Overwrite them in place.
    Write,
    /// Overwrite them in place, and have them on stable storage when that is over: to be answered with a mapping only if
    /// nothing but the data has to get there.
    WriteFua,
}

impl Access {
    /// Whether the bytes are overwritten.
    #[inline]
    pub fn is_write(self) -> bool {
        self != Self::Read
    }

    /// The access of a write with these flags, or `None` if it is more than a plain write of the mapped bytes.
    #[inline]
    pub(crate) fn write(flags: RequestFlags) -> Option<Self> {
        let plain = flags.difference(RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED).is_empty();
        plain.then_some(if flags.contains(RequestFlags::FUA) { Self::WriteFua } else { Self::Write })
    }
}

/// Longer requests than this many bytes are worth several threads' work, see [`Mapping::Recoded`].
pub const RECODED_SHORT: u64 = 32 << 10;

/// The answer to [`Driver::map_cached`]. Lengths are in bytes and may exceed what was asked.
#[derive(Debug)]
pub enum Mapping<'a> {
    /// These bytes are `edge`'s, from `offset` on, for `len` bytes.
    Child {
        /// The edge to follow.
        edge: &'a Edge,
        /// Where in the child.
        offset: HostOffset,
        /// For how long this holds.
        len: u64,
    },
    /// As [`Mapping::Child`], but other bytes stand there: what is read is a copy that [`Driver::decode`] is given before the caller sees it, and what is written a copy that
    /// [`Driver::encode`] was given. Requests of more than [`RECODED_SHORT`] bytes take the slow path all the same, where the driver can have several threads work on
    /// them, unless all processors have such requests of their own.
    Recoded {
        /// The edge to follow.
        edge: &'a Edge,
        /// Where in the child.
        offset: HostOffset,
        /// For how long this holds.
        len: u64,
        /// What the two methods are to be told of the first byte; it grows by one with 512 bytes.
        at: u64,
    },
    /// Reads give zeroes for `len` bytes. Never an answer to a write.
    Zeroes {
        /// For how long this holds.
        len: u64,
    },
    /// The node itself holds them in a host file, at the same offset.
    File(&'a HostFile),
    /// The node itself serves them at once, without waiting: the core calls [`Driver::serve_now`].
    Now,
    /// Ask the slow path.
    Slow,
}

/// A request that a leaf serves without waiting.
#[derive(Debug)]
pub enum NowRequest<'a> {
    /// Fill the buffer from the offset.
    Read(GuestOffset, &'a IoBuf),
    /// Store the buffer at the offset.
    Write(GuestOffset, &'a IoBuf),
}

/// In what units a node allocates storage, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters {
    /// What is allocated at a time.
    pub cluster: u64,
    /// What can be filled by itself within it: a part of a cluster, or all of it.
    pub subcluster: u64,
}

/// A driver's engine.
///
/// # Contract
/// - Every method may run on any I/O thread and many times at once; the graph around the node stands still meanwhile.
/// - Ranges lie inside the node's length (writes through an edge with the resize permission may end past it; a length that is not made of
///   whole blocks counts up to the end of its last block), are
///   aligned to the node's request alignment and no longer than its limits: the core sees to that.
/// - Futures are polled to their end on one thread. Dropping the caller's future does not drop them, so an engine needs no
///   cleverness against being cancelled half-way; only the end of the whole I/O thread drops them, and that looks like a
///   power cut.
/// - Children are called with the request's own token. A method that returns an error has either done nothing or
///   left the image valid.
/// - Nothing may block the thread: no system call that sleeps, no lock held across an await.
#[async_trait]
#[doc(alias = "BlockDriver")]
pub trait Driver: Send + Sync + 'static {
    /// The driver's name, as in `driver=…`.
    #[doc(alias = "bdrv_get_format_name")]
    fn format_name(&self) -> &'static str;

    /// What one request may be, given the children as they are now.
    fn limits(&self) -> Limits {
        Limits::NONE
    }

    /// The flags of writes and zero writes that the engine carries out itself; it is given no others, beside
    /// [`MAY_UNMAP`](RequestFlags::MAY_UNMAP) and [`NO_FALLBACK`](RequestFlags::NO_FALLBACK) with zero writes. Of the rest, the core follows
    /// a write with FUA by a flush and refuses a compressed one.
    fn write_flags(&self) -> RequestFlags {
        RequestFlags::empty()
    }

    /// Whether the driver reaches storage itself, so that asking for block status is dear and data stays data until it is zeroed or discarded
    /// through this node: the core then remembers.
    #[doc(alias = "bdrv_bsc_fill")]
    #[doc(alias = "bdrv_bsc_invalidate_range")]
    #[doc(alias = "bdrv_bsc_is_data")]
    fn is_leaf(&self) -> bool {
        false
    }

    /// The child that has what is not allocated here, for a driver that has such a child.
    #[doc(alias = "bdrv_cow_child")]
    fn backing(&self) -> Option<&Edge> {
        None
    }

    /// The child whose content this node passes on unchanged, for a filter.
    #[doc(alias = "bdrv_filter_child")]
    #[doc(alias = "bdrv_filter_bs")]
    fn filtered(&self) -> Option<&Edge> {
        None
    }

    /// In what units the node allocates storage, if it does so in units: a filter says what the node below it says.
    #[doc(alias = "bdrv_round_to_clusters")]
    fn clusters(&self, req: &Req) -> Option<Clusters> {
        self.filtered()?.clusters(req)
    }

    /// Where `range` lies, if that is known without waiting and a plain read or write of those bytes is all that is left
    /// to do. The caller holds a lease: it pinned the node before it asks, and what the answer refers to must not be reused while
    /// a pin from before the change is left (see [`Req::epoch_passed`]).
    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        Mapping::Slow
    }

    /// Serve a request that [`Driver::map_cached`] answered with [`Mapping::Now`]. A write is on stable storage afterwards if
    /// the mapping was asked for [`Access::WriteFua`].
    ///
    /// # Errors
    /// As for [`Driver::read`] and [`Driver::write`].
    fn serve_now(&self, _request: NowRequest<'_>) -> IoResult<()> {
        Err(IoError::BUG)
    }

    /// Make of `bytes`, as they stand in the child, what they are to the caller. `at` is what [`Driver::map_cached`] said with [`Mapping::Recoded`].
    ///
    /// # Errors
    /// It cannot be done: the caller sees nothing of them.
    fn decode(&self, _at: u64, _bytes: &mut [u8]) -> IoResult<()> {
        Err(IoError::BUG)
    }

    /// Make of `bytes` what is to stand in the child: the reverse of [`Driver::decode`].
    ///
    /// # Errors
    /// It cannot be done: nothing is written.
    fn encode(&self, _at: u64, _bytes: &mut [u8]) -> IoResult<()> {
        Err(IoError::BUG)
    }

    /// Whether [`Driver::debug_event`] is of interest. Nothing is told to those whose answer is no.
    fn wants_debug_events(&self) -> bool {
        false
    }

    /// A request on its way down has come to a point at which something may be tried out: an error, or a stop.
    #[doc(alias = "bdrv_co_debug_event")]
    #[doc(alias = "bdrv_debug_event")]
    async fn debug_event(&self, _req: &Req, _event: DebugEvent) {}

    /// Whether writes can be [compressed](RequestFlags::WRITE_COMPRESSED) where their data ends up: a filter that passes such writes on does not say
    /// that of what is below it.
    #[doc(alias = "bdrv_supports_compressed_writes")]
    fn compresses(&self, req: &Req) -> bool {
        let here = self.write_flags().contains(RequestFlags::WRITE_COMPRESSED);
        here && self.filtered().is_none_or(|child| child.compresses(req))
    }

    /// The length in bytes, asked anew: may differ from last time when something outside changed it.
    ///
    /// # Errors
    /// What the host or the child answered.
    #[doc(alias = "bdrv_getlength")]
    async fn length(&self, req: &Req) -> IoResult<u64>;

    /// How many bytes of storage the host has given the node, data and metadata together.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where nobody can tell, else what the host or the child answered.
    #[doc(alias = "bdrv_get_allocated_file_size")]
    async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        match self.filtered() {
            Some(child) => child.allocated_size(req).await,
            None => Err(IoError::UNSUPPORTED),
        }
    }

    /// Fill `buf` from `offset`. This and the requests below come in whole blocks of the node's request alignment; but a driver that
    /// is no leaf is not asked for what lies past an odd end of its node.
    ///
    /// # Errors
    /// What the host or the child answered; the buffer's content is then unspecified.
    #[doc(alias = "bdrv_co_preadv")]
    #[doc(alias = "bdrv_co_preadv_part")]
    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()>;

    /// Store `buf` at `offset`. `flags` are among [`Driver::write_flags`].
    ///
    /// # Errors
    /// What the host or the child answered; the range then holds old or new data, byte by byte.
    #[doc(alias = "bdrv_co_pwritev")]
    #[doc(alias = "bdrv_co_pwritev_part")]
    #[doc(alias = "bdrv_co_pwritev_compressed")]
    #[doc(alias = "bdrv_co_pwritev_compressed_part")]
    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()>;

    /// Make `range` read as zeroes without being given them.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] makes the core write zeroes out, unless the caller forbade it.
    #[doc(alias = "bdrv_co_pwrite_zeroes")]
    async fn zero(&self, _req: &Req, _range: GuestRange, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    /// The content of `range` is no longer needed. Doing nothing is right.
    ///
    /// # Errors
    /// What the host or the child answered; [`IoError::UNSUPPORTED`] counts as done.
    #[doc(alias = "bdrv_co_pdiscard")]
    async fn discard(&self, _req: &Req, _range: GuestRange) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    /// Bring everything that completed before to stable storage.
    ///
    /// # Errors
    /// What the host or the child answered; nothing may then be assumed to be stable.
    #[doc(alias = "bdrv_co_flush")]
    #[doc(alias = "bdrv_co_flush_to_disk")]
    #[doc(alias = "bdrv_co_flush_to_os")]
    async fn flush(&self, req: &Req) -> IoResult<()>;

    /// What the start of `range` is: data, zeroes, allocated here or not, and for how many bytes that holds (at least
    /// one, at most the range). Calling zeroes data is allowed, calling data zeroes never.
    ///
    /// # Errors
    /// What the host or the child answered.
    #[doc(alias = "bdrv_co_block_status")]
    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent>;

    /// The same for what follows as well, one extent behind the other: at least one, at most `max`, and only as many as cost little more
    /// than the first.
    ///
    /// # Errors
    /// As [`Driver::block_status`], for the first extent.
    async fn block_statuses(&self, req: &Req, range: GuestRange, _max: usize) -> IoResult<Vec<StatusExtent>> {
        Ok(vec![self.block_status(req, range).await?])
    }

    /// Fill `buf` with what the node had from `offset` on at the point in time that it keeps.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where it keeps none; EACCES where it does not keep these bytes, or no more; else what the host or the child
    /// answered.
    async fn read_snapshot(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    /// As [`Driver::block_status`], of the point in time that the node keeps.
    ///
    /// # Errors
    /// As [`Driver::read_snapshot`].
    async fn snapshot_status(&self, _req: &Req, _range: GuestRange) -> IoResult<StatusExtent> {
        Err(IoError::UNSUPPORTED)
    }

    /// Nobody is going to ask for `range` of the point in time that the node keeps: it need not be kept. Whole units only; doing nothing is right.
    ///
    /// # Errors
    /// As [`Driver::read_snapshot`].
    async fn discard_snapshot(&self, _req: &Req, _range: GuestRange) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    /// Whether bytes of the node that nobody has written read as zeroes: those that [`Driver::truncate`] adds, and all of an image that was just made. Where that
    /// is not so, who needs zeroes there writes them.
    #[doc(alias = "bdrv_has_zero_init")]
    fn has_zero_init(&self, req: &Req) -> bool {
        self.filtered().is_none_or(|child| child.has_zero_init(req))
    }

    /// Change the length to `len` bytes. New bytes read as zeroes, unless [`Driver::has_zero_init`] says otherwise.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] for a driver of fixed length, else what the host or the child answered.
    #[doc(alias = "bdrv_co_truncate")]
    async fn truncate(&self, _req: &Req, _len: u64, _preallocation: Preallocation) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    /// A child has other limits than before: see what that means for this driver's own, which are asked for after it. Nothing is in flight.
    ///
    /// # Errors
    /// What a child answered.
    #[doc(alias = "bdrv_reopen_commit_post")]
    async fn refresh_limits(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    /// A section waits for requests that may be in this node: while `on`, let those go on that wait for nothing but time (a throttle) or for a peer that may never
    /// come (one that reconnects), and those that come later as well (rule drain-5). Told by the graph's owner on its own thread, with the graph in its hands, once
    /// for each change: it neither waits nor changes anything but this engine (rule drain-2), and wakes tasks of I/O threads at most.
    #[doc(alias = "bdrv_co_drain_begin")]
    #[doc(alias = "bdrv_co_drain_end")]
    fn hurry(&self, _on: bool) {}

    /// Forget cached metadata and read it again: somebody else had the image. Touches no permission and no graph.
    ///
    /// # Errors
    /// What the host or the child answered; the node is then not to be used.
    #[doc(alias = "bdrv_co_invalidate_cache")]
    async fn invalidate_cache(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    /// Store `buf` at byte `offset` of a machine's state, which the node keeps beside its disk. A filter has what it passes on keep it.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where it keeps none.
    #[doc(alias = "bdrv_save_vmstate")]
    async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        match self.filtered() {
            Some(child) => child.save_vmstate(req, offset, buf).await,
            None => Err(IoError::UNSUPPORTED),
        }
    }

    /// Fill `buf` from byte `offset` of the machine's state. What was not stored reads as zeroes.
    ///
    /// # Errors
    /// As [`Driver::save_vmstate`].
    #[doc(alias = "bdrv_load_vmstate")]
    async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        match self.filtered() {
            Some(child) => child.load_vmstate(req, offset, buf).await,
            None => Err(IoError::UNSUPPORTED),
        }
    }

    /// In what pieces the host's block device works that the node's disk is, from its first byte on: what a guest's disk should tell of itself.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where there is no such device.
    #[doc(alias = "bdrv_probe_blocksizes")]
    async fn probe_block_sizes(&self, req: &Req) -> IoResult<DeviceBlocks> {
        match self.filtered() {
            Some(child) => child.probe_block_sizes(req).await,
            None => Err(IoError::UNSUPPORTED),
        }
    }

    /// How the host counts the disk in heads, sectors and cylinders, where the node's disk is all of a device of the host's.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where there is no such device, or it is not counted that way.
    #[doc(alias = "bdrv_probe_geometry")]
    async fn probe_geometry(&self, req: &Req) -> IoResult<DiskGeometry> {
        match self.filtered() {
            Some(child) => child.probe_geometry(req).await,
            None => Err(IoError::UNSUPPORTED),
        }
    }

    /// An ioctl of the device behind the node, for pass-through: request number and argument, in and out.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where there is no such device.
    #[doc(alias = "bdrv_co_ioctl")]
    #[doc(alias = "bdrv_aio_ioctl")]
    async fn ioctl(&self, _req: &Req, _number: u64, _argument: &IoBuf) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    /// Write out what is cached and let go of the host's resources. The last call; nothing is in flight.
    /// An engine that is dropped without it does no I/O.
    ///
    /// # Errors
    /// What the host or the child answered: acknowledged data may then be missing.
    #[doc(alias = "bdrv_close")]
    async fn close(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }
}
