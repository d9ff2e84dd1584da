//! The preallocate driver's engine: a filter that makes its file longer, ahead of what is written past the end, and cuts off again what nobody has used.
//!
//! The node is as long as its data; what the file has behind that is the *surplus*, which reads as zeroes and which nobody above sees. There is one only while
//! the engine may write and resize its file and nobody else may. Who cuts it off, and when, is told by the control half's owner; closing the engine does it in any case. After a
//! power cut the file may have a surplus still: it is then a longer file, with zeroes at its end.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, LENGTH_MAX, Limits, Perm, Preallocation, RequestFlags,
    StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Quiesced, Req};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Ends of surpluses are multiples of a multiple of this many bytes.
pub const ALIGN_UNIT: u64 = 512;

/// How much is allocated ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreallocateOptions {
    /// The file's length is made a multiple of this many bytes; itself a multiple of [`ALIGN_UNIT`], or 0 for any length.
    pub align: u64,
    /// At least so many bytes are allocated behind what is written.
    pub size: u64,
}

impl Default for PreallocateOptions {
    fn default() -> Self {
        Self { align: 1 << 20, size: 128 << 20 }
    }
}

/// The alignment makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prealloc-align parameter of preallocate filter is not aligned to {ALIGN_UNIT}")]
pub struct AlignError;

impl PreallocateOptions {
    /// These, if they make sense.
    ///
    /// # Errors
    /// [`AlignError`].
    pub fn checked(self) -> Result<Self, AlignError> {
        if self.align.is_multiple_of(ALIGN_UNIT) { Ok(self) } else { Err(AlignError) }
    }

    /// How long the file is to be when something is written that ends at `end`. `None` where no file is that long.
    fn file_end(self, end: u64, block: u64) -> Option<u64> {
        let wanted = end.checked_add(self.size)?.checked_next_multiple_of(self.align.max(1))?;
        wanted.checked_next_multiple_of(block).filter(|end| *end <= LENGTH_MAX)
    }
}

/// What is known of the file while there may be a surplus. Always `data_end <= zero_start <= file_end`.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// Where the data ends: the node's length.
    data: u64,
    /// Nothing has been written behind this, not even by a write that failed: it reads as zeroes.
    zero_start: u64,
    /// Where the file ends, or will when the writes under way are over.
    file: u64,
}

impl Ends {
    const fn at(end: u64) -> Self {
        Self { data: end, zero_start: end, file: end }
    }
}

struct Shared {
    file: Edge,
    limits: RwLock<Limits>,
    options: Mutex<PreallocateOptions>,
    /// `None` while there is no surplus, and the file's length is the node's.
    ends: Mutex<Option<Ends>>,
    /// Held by whoever moves the file's end, so that what is allocated is never what somebody else writes.
    growing: tokio::sync::Mutex<()>,
}

impl Shared {
    fn ends(&self) -> MutexGuard<'_, Option<Ends>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self) -> PreallocateOptions {
        *self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something ends at `end`: whether the file may have to grow for it.
    fn reaches_out(&self, req: &Req, end: u64) -> bool {
        let is_past = match *self.ends() {
            Some(ends) => end > ends.data,
            None => end > req.length(),
        };
        is_past && self.file.perm().contains(Perm::WRITE | Perm::RESIZE)
    }

    /// See to it that what is written up to `end` lies within the file, with a surplus behind it. From now on the bytes below `end` count as written. Returns
    /// whether `range` was nothing but zeroes before, and inside the file.
    async fn make_room(&self, req: &Req, range: GuestRange) -> IoResult<bool> {
        let _growing = self.growing.lock().await;
        let known = *self.ends();
        let mut ends = match known {
            Some(ends) => ends,
            None => Ends::at(self.file.refresh_length(req).await?),
        };
        if range.end() > ends.file {
            ends.file = self.grow(req, ends.file, range.end()).await.unwrap_or(ends.file);
        }
        let was_zero = range.offset().0 >= ends.zero_start && range.end() <= ends.file;
        ends.zero_start = ends.zero_start.max(range.end());
        ends.file = ends.file.max(range.end());
        // Others may have reached further with what they wrote, but nobody has moved the file's end.
        let mut now = self.ends();
        ends.data = now.map_or(ends.data, |now| now.data);
        *now = Some(ends);
        Ok(was_zero)
    }

    /// Allocate from the file's end on, with something to spare behind `end`. Returns the new end. Where that cannot be, what is written makes the file grow, as it
    /// would without this filter.
    async fn grow(&self, req: &Req, from: u64, end: u64) -> Option<u64> {
        let block = u64::from(self.file.limits(req).ok()?.request_alignment);
        let (from, to) = (from.checked_next_multiple_of(block)?, self.options().file_end(end, block)?);
        let flags = RequestFlags::NO_FALLBACK;
        match self.file.zero(req, HostOffset(from), to.checked_sub(from)?, flags).await {
            Ok(()) => Some(to),
            Err(error) => {
                tracing::debug!(node = req.node_name(), %error, "nothing is allocated ahead");
                None
            }
        }
    }

    /// What was written up to `end` is there.
    fn reached(&self, end: u64) {
        if let Some(ends) = &mut *self.ends() {
            ends.data = ends.data.max(end);
        }
    }

    /// Let the file end where the data does.
    async fn cut(&self, req: &Req) -> IoResult<()> {
        let _growing = self.growing.lock().await;
        let Some(ends) = *self.ends() else { return Ok(()) };
        if self.file.refresh_length(req).await? > ends.data {
            self.file.truncate(req, ends.data, Preallocation::Off).await?;
        }
        *self.ends() = None;
        Ok(())
    }

    /// Change the length of data and file to `len`.
    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let _growing = self.growing.lock().await;
        let known = *self.ends();
        // What failed writes have left in the surplus must not come to light, and what is allocated by the file must begin at the data's end.
        if let Some(ends) = known.filter(|ends| ends.data < len) {
            self.file.truncate(req, ends.data, Preallocation::Off).await?;
            *self.ends() = Some(Ends::at(ends.data));
        }
        self.file.truncate(req, len, preallocation).await?;
        if known.is_some() {
            *self.ends() = Some(Ends::at(len));
        }
        Ok(())
    }
}

/// The engine.
pub struct Preallocate(Arc<Shared>);

/// The engine's control half: other options, and the end of the surplus.
#[derive(Clone)]
pub struct PreallocateControl(Arc<Shared>);

impl Preallocate {
    /// A filter over `file`, whose limits are `limits`.
    pub fn new(file: Edge, limits: Limits, options: PreallocateOptions) -> (Self, PreallocateControl) {
        let shared = Arc::new(Shared {
            file,
            limits: RwLock::new(limits),
            options: Mutex::new(options),
            ends: Mutex::new(None),
            growing: tokio::sync::Mutex::default(),
        });
        (Self(shared.clone()), PreallocateControl(shared))
    }
}

impl PreallocateControl {
    /// Whether the file may be longer than its data: the engine needs the permissions to write and to resize it until it is cut.
    pub fn has_surplus(&self) -> bool {
        self.0.ends().is_some()
    }

    /// Cut the surplus off. What is written past the end afterwards makes a new one. To be awaited on an I/O thread, with a token on the node and no
    /// writes in flight.
    ///
    /// # Errors
    /// What the file answered; the surplus is still there then.
    pub fn cut(&self, req: Req) -> impl Future<Output = IoResult<()>> + Send + use<> {
        let shared = self.0.clone();
        async move { shared.cut(&req).await }
    }

    /// The options as they are.
    pub fn options(&self) -> PreallocateOptions {
        self.0.options()
    }

    /// Have other options from now on.
    pub fn set_options(&mut self, options: PreallocateOptions, _proof: &Quiesced<'_>) {
        *self.0.options.lock().unwrap_or_else(PoisonError::into_inner) = options;
    }
}

#[async_trait]
impl Driver for Preallocate {
    fn format_name(&self) -> &'static str {
        "preallocate"
    }

    fn limits(&self) -> Limits {
        *self.0.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0.file)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED
    }

    /// The fast way ends at the node's length, which is never past the data.
    #[inline]
    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        let offset = range.offset().0;
        Mapping::Child { edge: &self.0.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        let known = self.0.ends().map(|ends| ends.data);
        match known {
            Some(end) => Ok(end),
            None => self.0.file.refresh_length(req).await,
        }
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        if self.0.reaches_out(req, range.end()) {
            self.0.make_room(req, range).await?;
        }
        self.0.file.write(req, HostOffset(offset.0), buf, flags).await?;
        self.0.reached(range.end());
        Ok(())
    }

    /// What was allocated ahead is zero already.
    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        if self.0.reaches_out(req, range.end()) && self.0.make_room(req, range).await? {
            if flags.contains(RequestFlags::FUA) {
                self.0.file.flush(req).await?;
            }
        } else {
            self.0.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await?;
        }
        self.0.reached(range.end());
        Ok(())
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.0.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.file.flush(req).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = self.0.file.limits(req)?;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.0.file.block_statuses(req, HostOffset(range.offset().0), range.len(), max).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.0.truncate(req, len, preallocation).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.0.file.ioctl(req, number, argument).await
    }

    async fn close(&self, req: &Req) -> IoResult<()> {
        self.0.cut(req).await
    }
}

impl fmt::Debug for Preallocate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Preallocate({:?}, {:?})", self.0.options(), *self.0.ends())
    }
}

impl fmt::Debug for PreallocateControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreallocateControl({:?}, {:?})", self.0.options(), *self.0.ends())
    }
}
