//! The raw driver's engine: its child's bytes, all of them or a window of them.
//!
//! A raw node adds nothing and keeps nothing: every request goes to the child at a fixed distance. It deliberately
//! knows neither how its format was found out nor what its guest may write into the first sector: that is the graph's
//! owner's.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    AlignedBuf, DebugEvent, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Preallocation,
    RequestFlags, StatusExtent, probe_format,
};
use block_io::{Access, Clusters, DeviceBlocks, DiskGeometry, Driver, Edge, Mapping, Quiesced, Req};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Sizes are multiples of this many bytes, as in the field.
const SECTOR: u64 = 512;

/// Which part of its child a raw node shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// Bytes of the child before the first one shown.
    pub offset: u64,
    /// How many bytes are shown. Without it all that the child has from `offset` on, also when that changes.
    pub size: Option<u64>,
}

/// Why there is no such window into the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RawError {
    /// The window begins past the child's end.
    #[error("Offset ({offset}) cannot be greater than size of the containing file ({length})")]
    OffsetPastEnd {
        /// The offset asked for, in bytes.
        offset: u64,
        /// The child's length, in bytes.
        length: u64,
    },
    /// The window ends past the child's end.
    #[error(
        "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the \
         containing file ({length})"
    )]
    WindowPastEnd {
        /// The offset asked for, in bytes.
        offset: u64,
        /// The size asked for, in bytes.
        size: u64,
        /// The child's length, in bytes.
        length: u64,
    },
    /// The window's size is odd.
    #[error("Specified size is not multiple of {SECTOR}")]
    SizeNotSectors {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// The child did not tell its length.
    #[error("Could not get the size of the containing file: {0}")]
    Child(IoError),
}

/// Without a fixed size the window is as long as anything can be.
const UNLIMITED: u64 = u64::MAX;

#[derive(Debug)]
struct Shared {
    file: Edge,
    offset: AtomicU64,
    /// The fixed size in bytes, or [`UNLIMITED`].
    size: AtomicU64,
    limits: RwLock<Limits>,
    /// Somebody guessed that the image is raw: no guest may make it look like anything else (rule trust-1).
    guessed: AtomicBool,
    /// Writes of parts of the first sector come one after the other: what they make of it together is looked at.
    first_sector: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Whether a change of `range` needs a look at the first sector.
    #[inline]
    fn is_guarded(&self, range: GuestRange) -> bool {
        range.offset().0 < SECTOR && !range.is_empty() && self.guessed.load(Ordering::Relaxed)
    }

    /// Offset and size. They change only while nothing is in flight, so two loads are one value.
    fn window(&self) -> (u64, u64) {
        (self.offset.load(Ordering::Acquire), self.size.load(Ordering::Acquire))
    }

    /// Whether `file` has such a window.
    async fn check(file: &Edge, req: &Req, options: RawOptions) -> Result<RawReopen, RawError> {
        let length = file.refresh_length(req).await.map_err(RawError::Child)?;
        let limits = Self::limits_of(file, req, options).map_err(RawError::Child)?;
        let RawOptions { offset, size } = options;
        if offset > length {
            return Err(RawError::OffsetPastEnd { offset, length });
        }
        if let Some(size) = size {
            if size > length - offset {
                return Err(RawError::WindowPastEnd { offset, size, length });
            }
            if !size.is_multiple_of(SECTOR) {
                return Err(RawError::SizeNotSectors { size });
            }
        }
        Ok(RawReopen { options, limits })
    }

    /// The limits of a window on the child as it is.
    fn limits_of(file: &Edge, req: &Req, options: RawOptions) -> IoResult<Limits> {
        let mut limits = file.limits(req)?;
        // A window that cuts the child's blocks is not made of blocks itself: the child pads what comes through it.
        let cuts = |bytes: u64| !bytes.is_multiple_of(limits.request_alignment.into());
        if cuts(options.offset) || options.size.is_some_and(cuts) {
            limits.request_alignment = 1;
        }
        Ok(limits)
    }

    fn options(&self) -> RawOptions {
        let (offset, size) = self.window();
        RawOptions { offset, size: (size != UNLIMITED).then_some(size) }
    }

    fn set(&self, reopen: RawReopen) {
        self.offset.store(reopen.options.offset, Ordering::Release);
        self.size.store(reopen.options.size.unwrap_or(UNLIMITED), Ordering::Release);
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = reopen.limits;
    }
}

/// The engine.
#[derive(Debug)]
pub struct Raw(Arc<Shared>);

/// The engine's control half: may move the window.
#[derive(Debug)]
pub struct RawControl(Arc<Shared>);

/// A window that was checked and waits to be committed.
#[derive(Clone, Copy, Debug)]
pub struct RawReopen {
    options: RawOptions,
    limits: Limits,
}

impl Raw {
    /// An engine that shows the window `options` of `file`, and its control. `req` is a token on the node that owns the
    /// edge.
    ///
    /// # Errors
    /// [`RawError`] when the child has no such window.
    pub async fn open(req: &Req, file: Edge, options: RawOptions) -> Result<(Self, RawControl), RawError> {
        let shared = Shared {
            file,
            offset: AtomicU64::new(0),
            size: AtomicU64::new(UNLIMITED),
            limits: RwLock::new(Limits::NONE),
            guessed: AtomicBool::new(false),
            first_sector: tokio::sync::Mutex::default(),
        };
        let window = Shared::check(&shared.file, req, options).await?;
        shared.set(window);
        let shared = Arc::new(shared);
        Ok((Self(shared.clone()), RawControl(shared)))
    }

    /// Where the guest's `range` lies in the child. Only a write through an edge that may resize can leave a fixed
    /// window.
    fn place(&self, range: GuestRange) -> IoResult<HostOffset> {
        let (offset, size) = self.0.window();
        if range.end() > size {
            return Err(IoError::OUT_OF_BOUNDS);
        }
        range.offset().0.checked_add(offset).map(HostOffset).ok_or(IoError::OUT_OF_BOUNDS)
    }

    /// Write `buf`, the start of which is in the first sector, unless the image would then look like one of another format. What is written
    /// there is what was looked at: a guest may change its memory meanwhile.
    async fn write_guarded(&self, req: &Req, range: GuestRange, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let _first_sector = self.0.first_sector.lock().await;
        let sector = req.length().min(SECTOR);
        let head = range.slice(0, sector.saturating_sub(range.offset().0));
        let alignment = self.limits().memory_alignment.max(1) as usize;
        let merged = AlignedBuf::zeroed(sector as usize, alignment).into_io();
        if head.len() < sector {
            let all = GuestRange::new(0, sector)?;
            self.0.file.read(req, self.place(all)?, &merged).await?;
        }
        let part = merged.slice(head.offset().0 as usize, head.len() as usize);
        part.copy_from(&buf.slice(0, head.len() as usize));
        if probe_format(&merged.to_aligned(1)) != "raw" {
            tracing::warn!(node = req.node_name(), "a guest's write of another format's header was refused");
            return Err(IoError::NOT_PERMITTED);
        }
        let copy = AlignedBuf::zeroed(buf.len(), alignment).into_io();
        copy.slice(0, head.len() as usize).copy_from(&part);
        let rest = head.len() as usize..buf.len();
        copy.slice(rest.start, rest.len()).copy_from(&buf.slice(rest.start, rest.len()));
        self.0.file.write(req, self.place(range)?, &copy, flags).await
    }

    fn place_of(&self, offset: GuestOffset, buf: &IoBuf) -> IoResult<HostOffset> {
        self.place(GuestRange::new(offset.0, buf.len() as u64)?)
    }
}

impl RawControl {
    /// The window as it is.
    pub fn options(&self) -> RawOptions {
        self.0.options()
    }

    /// Check whether the window may become `options`, on the child that is `coming` if that is another one, and look at its limits again. Changes nothing. To be
    /// awaited on an I/O thread, with a token on the node.
    ///
    /// # Errors
    /// [`RawError`] when the child has no such window.
    pub fn prepare(
        &self,
        req: Req,
        coming: Option<Edge>,
        options: RawOptions,
    ) -> impl Future<Output = Result<RawReopen, RawError>> + Send + use<> {
        let shared = self.0.clone();
        async move { Shared::check(coming.as_ref().unwrap_or(&shared.file), &req, options).await }
    }

    /// Somebody guessed the format: from now on no write may make the first sector look like a header of another one. To be called before the
    /// node has users.
    pub fn guard_first_sector(&mut self) {
        self.0.guessed.store(true, Ordering::Relaxed);
    }

    /// Show the prepared window from now on. The node's length and limits are to be refreshed after it.
    pub fn commit(&mut self, reopen: RawReopen, _proof: &Quiesced<'_>) {
        self.0.set(reopen);
    }
}

#[async_trait]
impl Driver for Raw {
    fn format_name(&self) -> &'static str {
        "raw"
    }

    fn limits(&self) -> Limits {
        *self.0.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_flags(&self) -> RequestFlags {
        // Raw data is as it is: the field's driver compresses nothing either, whatever its file could do.
        RequestFlags::all().difference(RequestFlags::WRITE_COMPRESSED)
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        if access.is_write() && self.0.is_guarded(range) {
            return Mapping::Slow;
        }
        match self.place(range) {
            Ok(offset) => Mapping::Child { edge: &self.0.file, offset, len: range.len() },
            Err(_) => Mapping::Slow,
        }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        let (offset, size) = self.0.window();
        let length = self.0.file.refresh_length(req).await?;
        Ok(length.saturating_sub(offset).min(size))
    }

    /// Clusters of an image within a window need not begin where those of its node do: what is rounded to them is rounded to none.
    fn clusters(&self, req: &Req) -> Option<Clusters> {
        let clusters = self.0.file.clusters(req)?;
        self.0.window().0.is_multiple_of(clusters.cluster).then_some(clusters)
    }

    async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        self.0.file.allocated_size(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.debug_event(req, DebugEvent::ReadAio).await;
        self.0.file.read(req, self.place_of(offset, buf)?, buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.file.debug_event(req, DebugEvent::WriteAio).await;
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        if self.0.is_guarded(range) {
            return self.write_guarded(req, range, buf, flags).await;
        }
        self.0.file.write(req, self.place_of(offset, buf)?, buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        // A sector of zeroes is no header. What zeroes make of a part of one is looked at when they are written.
        let covers = range.offset().0 == 0 && range.len() >= SECTOR.min(req.length());
        if self.0.is_guarded(range) && !covers {
            return Err(IoError::UNSUPPORTED);
        }
        self.0.file.zero(req, self.place(range)?, range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.0.file.discard(req, self.place(range)?, range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.file.flush(req).await
    }

    /// The child's answer, whose place is then where the bytes are in the end.
    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.file.block_status(req, self.place(range)?, range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.0.file.block_statuses(req, self.place(range)?, range.len(), max).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        let limits = Shared::limits_of(&self.0.file, req, self.0.options())?;
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    fn has_zero_init(&self, req: &Req) -> bool {
        self.0.file.has_zero_init(req)
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        match self.0.window() {
            (offset, UNLIMITED) => {
                let len = len.checked_add(offset).ok_or(IoError::INVALID)?;
                self.0.file.truncate(req, len, preallocation).await
            }
            // "Cannot resize fixed-size raw disks".
            _ => Err(IoError::UNSUPPORTED),
        }
    }

    async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.0.file.save_vmstate(req, offset, buf).await
    }

    async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.0.file.load_vmstate(req, offset, buf).await
    }

    /// A device keeps its blocks in a window that begins with one.
    async fn probe_block_sizes(&self, req: &Req) -> IoResult<DeviceBlocks> {
        let blocks = self.0.file.probe_block_sizes(req).await?;
        let (offset, _) = self.0.window();
        let size = u64::from(blocks.logical.max(blocks.physical));
        if offset.is_multiple_of(size) { Ok(blocks) } else { Err(IoError::UNSUPPORTED) }
    }

    /// A part of a device has no cylinders of its own.
    async fn probe_geometry(&self, req: &Req) -> IoResult<DiskGeometry> {
        match self.0.window() {
            (0, UNLIMITED) => self.0.file.probe_geometry(req).await,
            _ => Err(IoError::UNSUPPORTED),
        }
    }

    /// A device's own commands know nothing of a window: they pass only where there is none.
    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        match self.0.window() {
            (0, UNLIMITED) => self.0.file.ioctl(req, number, argument).await,
            _ => Err(IoError::UNSUPPORTED),
        }
    }
}
