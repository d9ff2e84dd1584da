//! The luks driver's engine: the disk in an encrypted image.
//!
//! The engine is given where the data begins and a cipher; how these are had from a header and a password is the business of the graph's owner, and of
//! `block-luks-format`. Every request goes through a copy that nobody else sees: short ones through the core's (see [`Mapping::Recoded`]), others through
//! [`Crypt`]'s.
//!
//! To this driver zeroes are data like any other: a zero write is a write of encrypted zeroes, a discard is nothing (it would leave noise, and tell where the disk is
//! empty), and all of the disk is data.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    AlignedBuf, DebugEvent, Errno, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits,
    Preallocation, RequestFlags, StatusExtent,
};
use block_crypt_io::Crypt;
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::sync::{Arc, PoisonError, RwLock};

/// Sizes are multiples of this many bytes, also where sectors are longer.
const UNIT: u64 = 512;

/// Where an image's data is, and what encrypts it.
#[derive(Clone, Debug)]
pub struct LuksOptions {
    /// Bytes of the file before the disk's first one.
    pub payload: u64,
    /// Bytes of the disk. Without it all that the file has from `payload` on, also when that changes.
    pub size: Option<u64>,
    /// The number of the first sector, in units of 512 bytes: what the first initialisation vector is made of.
    pub first: u64,
    /// The cipher. Without it the disk can be described and not read.
    pub crypt: Option<Crypt>,
    /// Bytes of a sector: those of `crypt`, if there is one.
    pub sector: u32,
}

#[derive(Debug)]
struct Shared {
    file: Edge,
    /// The child that the header is in, if that is not `file`.
    header: Option<Edge>,
    options: LuksOptions,
    limits: RwLock<Limits>,
}

/// The engine.
#[derive(Debug)]
pub struct Luks(Arc<Shared>);

/// The engine's control half: reads and writes what is not the disk's data.
#[derive(Clone, Debug)]
pub struct LuksControl(Arc<Shared>);

impl Shared {
    fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        let limits = self.limits_of(req)?;
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    fn limits_of(&self, req: &Req) -> IoResult<Limits> {
        let below = self.file.limits(req)?;
        let sector = self.options.sector.max(1);
        // Blocks of the file that are cut by where the data begins are padded by the file.
        let fits = self.options.payload.is_multiple_of(below.request_alignment.max(1).into());
        let request_alignment = if fits { sector.max(below.request_alignment) } else { sector };
        Ok(Limits { request_alignment, ..Limits::NONE })
    }

    fn place(&self, offset: GuestOffset) -> IoResult<HostOffset> {
        offset.0.checked_add(self.options.payload).map(HostOffset).ok_or(IoError::OUT_OF_BOUNDS)
    }

    fn number(&self, offset: GuestOffset) -> u64 {
        self.options.first.wrapping_add(offset.0 / UNIT)
    }

    fn crypt(&self) -> IoResult<&Crypt> {
        self.options.crypt.as_ref().ok_or(IoError::NOT_PERMITTED)
    }

    fn header(&self) -> &Edge {
        self.header.as_ref().unwrap_or(&self.file)
    }
}

/// `len` bytes of what `edge` leads to, from `at` on; fewer where that ends.
///
/// # Errors
/// What the child answered.
pub async fn read_header(req: &Req, edge: &Edge, at: u64, len: usize) -> IoResult<Vec<u8>> {
    let there = edge.length(req)?.saturating_sub(at).min(len as u64) as usize;
    let limits = edge.limits(req)?;
    let buf = AlignedBuf::try_zeroed(there, limits.memory_alignment.max(1) as usize);
    let buf = buf.ok_or(IoError::host(Errno::ENOMEM.raw()))?.into_io();
    if there > 0 {
        edge.read(req, HostOffset(at), &buf).await?;
    }
    let mut bytes = vec![0; there];
    buf.copy_to_slice(0, &mut bytes);
    Ok(bytes)
}

impl Luks {
    /// The disk in `file`, or what is to be known of it without its key. `header` is the child that the header is in, if that is another one. `req` is a token
    /// on the node that owns the edges.
    ///
    /// # Errors
    /// What `file` answered.
    pub async fn open(
        req: &Req,
        file: Edge,
        header: Option<Edge>,
        options: LuksOptions,
    ) -> IoResult<(Self, LuksControl)> {
        let shared = Shared { file, header, options, limits: RwLock::new(Limits::NONE) };
        shared.file.refresh_length(req).await?;
        shared.refresh_limits(req)?;
        let shared = Arc::new(shared);
        Ok((Self(shared.clone()), LuksControl(shared)))
    }
}

impl LuksControl {
    /// Where the data is, and what encrypts it.
    pub fn options(&self) -> &LuksOptions {
        &self.0.options
    }

    /// `len` bytes of the header's file from `at` on; fewer where that ends. To be awaited on an I/O thread, with a token on the node.
    pub fn read(&self, req: Req, at: u64, len: usize) -> impl Future<Output = IoResult<Vec<u8>>> + Send + use<> {
        let shared = self.0.clone();
        async move { read_header(&req, shared.header(), at, len).await }
    }

    /// Store `bytes` in the header's file at `at`, and bring that and everything before it to stable storage. To be awaited as [`LuksControl::read`]; the edge needs the
    /// permission to write.
    pub fn write(&self, req: Req, at: u64, bytes: Vec<u8>) -> impl Future<Output = IoResult<()>> + Send + use<> {
        let shared = self.0.clone();
        async move {
            let edge = shared.header();
            let mut buf = AlignedBuf::zeroed(bytes.len(), edge.limits(&req)?.memory_alignment.max(1) as usize);
            buf.copy_from_slice(&bytes);
            edge.write(&req, HostOffset(at), &buf.into_io(), RequestFlags::empty()).await?;
            edge.flush(&req).await
        }
    }
}

#[async_trait]
impl Driver for Luks {
    fn format_name(&self) -> &'static str {
        "luks"
    }

    fn limits(&self) -> Limits {
        *self.0.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED | RequestFlags::DONT_CACHE
    }

    /// Short requests are worked on where they come from.
    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        let shared = &self.0;
        match (&shared.options.crypt, shared.place(range.offset())) {
            (Some(crypt), Ok(offset)) if crypt.is_for_asker(access, range.len()) => {
                let at = shared.number(range.offset());
                Mapping::Recoded { edge: &shared.file, offset, len: range.len(), at }
            }
            _ => Mapping::Slow,
        }
    }

    fn decode(&self, at: u64, bytes: &mut [u8]) -> IoResult<()> {
        self.0.crypt()?.decrypt(at, bytes);
        Ok(())
    }

    fn encode(&self, at: u64, bytes: &mut [u8]) -> IoResult<()> {
        self.0.crypt()?.encrypt(at, bytes);
        Ok(())
    }

    /// Whole sectors. What is left of 512 bytes at the file's end counts as these, as in the field.
    async fn length(&self, req: &Req) -> IoResult<u64> {
        let Shared { file, options, .. } = &*self.0;
        let there = file.refresh_length(req).await?.checked_sub(options.payload);
        let there = there.filter(|there| options.size.is_none_or(|size| size <= *there));
        // What was cut off is no disk that reads as noise.
        let there = there.ok_or(IoError::host(Errno::EIO.raw()))?;
        let sector = u64::from(options.sector);
        Ok(options.size.unwrap_or(there.next_multiple_of(UNIT) / sector * sector))
    }

    async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        let data = self.0.file.allocated_size(req).await?;
        match &self.0.header {
            Some(header) => Ok(data + header.allocated_size(req).await?),
            None => Ok(data),
        }
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let (shared, at) = (&self.0, self.0.place(offset)?);
        shared.file.debug_event(req, DebugEvent::ReadAio).await;
        shared.crypt()?.read(req, &shared.file, at, shared.number(offset), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let (shared, at) = (&self.0, self.0.place(offset)?);
        shared.file.debug_event(req, DebugEvent::WriteAio).await;
        shared.crypt()?.write(req, &shared.file, at, shared.number(offset), buf, flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.file.flush(req).await
    }

    /// All of it is data, and lies nowhere where somebody could read it.
    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    /// Where the file has zeroes, the disk has noise.
    fn has_zero_init(&self, _req: &Req) -> bool {
        false
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let Shared { file, options, .. } = &*self.0;
        if options.size.is_some() {
            return Err(IoError::UNSUPPORTED);
        }
        let len = len.checked_add(options.payload).ok_or(IoError::INVALID)?;
        file.truncate(req, len, preallocation).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        self.0.refresh_limits(req)
    }
}
