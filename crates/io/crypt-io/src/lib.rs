//! Encrypted bytes of a child, for engines: what is read is decrypted before the guest sees it, and what is written was copied out of the guest's memory
//! before it is encrypted. Where bytes lie, and how their sectors are numbered, is the engine's business; nothing here knows a format.
//!
//! Guest memory may change under a request, and nobody has a reference into it. So everything goes through memory of this crate's own: a write stores one version of the
//! guest's data, and a read puts nothing into the guest's memory that is not decrypted. Short requests are worked on by the I/O thread itself; long ones are cut into
//! pieces, each of which is read or written by itself and worked on by the pool, beside the others.

#![forbid(unsafe_code)]

use block_common::{AlignedBuf, BufPool, Errno, HostOffset, IoBuf, IoError, IoResult, RequestFlags};
use block_crypt::{Cipher, CipherSpec, SectorCipher};
use block_io::{Access, Edge, Flight, RECODED_SHORT, Req, ThreadPool, yield_now};
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;

mod share;

/// Requests up to so many bytes are worked on where they are.
const SHORT: usize = RECODED_SHORT as usize;
/// Reads up to so many bytes are worked on by the thread that asks, if enough threads ask and the cipher is one that processors have: a thread that submits is not held up for long.
const BY_ASKER: u64 = 1 << 20;
/// Longer ones are cut into pieces of so many.
const PIECE: usize = 128 << 10;
/// What is copied and worked on in one go, so that it is still in the processor's nearest cache.
const STEP: usize = 8 << 10;
/// Pooled memory is aligned so; a child that wants more gets memory of its own.
const ALIGNMENT: u32 = 4096;
/// Memory that is kept for later requests.
const POOLED: usize = 16 << 20;

/// A cipher, the length of its sectors, and what it takes to use it on requests. Clones share everything.
#[derive(Clone)]
pub struct Crypt(Arc<Shared>);

struct Shared {
    cipher: SectorCipher,
    /// Bytes of a sector.
    sector: usize,
    pool: ThreadPool,
    /// Threads that can run at a time.
    threads: usize,
    buffers: BufPool,
}

impl Crypt {
    /// Sectors of `sector` bytes, encrypted with `cipher`; long requests are worked on by `pool`.
    ///
    /// # Panics
    /// `sector` is no power of two from [`SectorCipher::UNIT`] to 8 KiB: that is the caller's bug.
    pub fn new(cipher: SectorCipher, sector: usize, pool: ThreadPool) -> Self {
        let is_sector = sector.is_power_of_two() && (SectorCipher::UNIT..=STEP).contains(&sector);
        assert!(is_sector, "sectors of {sector} bytes");
        let buffers = BufPool::new(ALIGNMENT as usize, POOLED);
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self(Arc::new(Shared { cipher, sector, pool, threads, buffers }))
    }

    /// Bytes of a sector: offsets and lengths of requests are multiples of it.
    pub fn sector(&self) -> usize {
        self.0.sector
    }

    /// What the cipher was made with.
    pub fn spec(&self) -> CipherSpec {
        self.0.cipher.spec()
    }

    /// Whether a request of so many bytes may be worked on at once, by the thread that has it.
    #[inline]
    pub fn is_for_asker(&self, access: Access, len: u64) -> bool {
        let is_fast = matches!(self.spec().cipher, Cipher::Aes128 | Cipher::Aes192 | Cipher::Aes256);
        len <= if access == Access::Read && is_fast { BY_ASKER } else { SHORT as u64 }
    }

    /// Encrypt whole sectors where they are, at once. `number` is the first one's, in units of 512 bytes.
    ///
    /// # Panics
    /// `data` is no multiple of a sector: that is the caller's bug.
    pub fn encrypt(&self, number: u64, data: &mut [u8]) {
        self.0.cipher.encrypt(number, self.0.sector, data);
    }

    /// Decrypt them, as [`Crypt::encrypt`].
    ///
    /// # Panics
    /// As [`Crypt::encrypt`].
    pub fn decrypt(&self, number: u64, data: &mut [u8]) {
        self.0.cipher.decrypt(number, self.0.sector, data);
    }

    /// Fill `buf` with what the bytes of `edge` from `at` on are, decrypted. `number` is the first sector's, in units of 512 bytes. What lies past the child's end
    /// counts as zeroes that are decrypted.
    ///
    /// # Errors
    /// [`IoError::INVALID`] if `buf` is no multiple of a sector, [`IoError::NO_MEDIUM`] without a child, or the child's error.
    pub async fn read(&self, req: &Req, edge: &Edge, at: HostOffset, number: u64, buf: &IoBuf) -> IoResult<()> {
        self.check(buf)?;
        if buf.len() <= SHORT {
            let mut bytes = self.fetch(req, edge, at, buf.len()).await?;
            self.decrypt_into(&mut bytes, number, buf);
            return Ok(());
        }
        self.in_pieces(buf, |done, part| async move {
            let bytes = self.fetch(req, edge, HostOffset(at.0 + done), part.len()).await?;
            self.decrypt_somewhere(bytes, number + units(done), part).await
        })
        .await
    }

    /// Store `buf` encrypted in `edge` at `at`. `number` is the first sector's, in units of 512 bytes.
    ///
    /// # Errors
    /// As [`Crypt::read`]; the range then holds old or new data, sector by sector.
    pub async fn write(
        &self,
        req: &Req,
        edge: &Edge,
        at: HostOffset,
        number: u64,
        buf: &IoBuf,
        flags: RequestFlags,
    ) -> IoResult<()> {
        self.check(buf)?;
        if buf.len() <= SHORT {
            let bytes = self.memory(req, edge, buf.len())?;
            let bytes = self.encrypt_from(buf, number, bytes);
            return edge.write(req, at, &bytes.into_io(), flags).await;
        }
        self.in_pieces(buf, |done, part| async move {
            let bytes = self.memory(req, edge, part.len())?;
            let (this, number) = (self.clone(), number + units(done));
            let bytes = self.somewhere(move || this.encrypt_from(&part, number, bytes)).await?;
            edge.write(req, HostOffset(at.0 + done), &bytes.into_io(), flags).await
        })
        .await
    }

    /// Fill `buf` with what `bytes` decrypt to, which is done where they are. `number` is the first sector's, in units of 512 bytes.
    ///
    /// # Panics
    /// `bytes` is shorter than `buf`, or no multiple of a sector: that is the caller's bug.
    pub fn decrypt_into(&self, bytes: &mut [u8], number: u64, buf: &IoBuf) {
        for (index, step) in bytes[..buf.len()].chunks_mut(STEP).enumerate() {
            let done = index * STEP;
            self.decrypt(number + units(done as u64), step);
            buf.copy_from_slice(done, step);
        }
    }

    /// `bytes`, filled with what `buf` encrypts to.
    fn encrypt_from(&self, buf: &IoBuf, number: u64, mut bytes: AlignedBuf) -> AlignedBuf {
        for (index, step) in bytes.chunks_mut(STEP).enumerate() {
            let done = index * STEP;
            buf.copy_to_slice(done, step);
            self.encrypt(number + units(done as u64), step);
        }
        bytes
    }

    async fn decrypt_somewhere(&self, mut bytes: AlignedBuf, number: u64, buf: IoBuf) -> IoResult<()> {
        let this = self.clone();
        self.somewhere(move || this.decrypt_into(&mut bytes, number, &buf)).await
    }

    /// Do `work` on a processor that has nothing else to do, or here when all are at it already.
    async fn somewhere<T, W>(&self, work: W) -> IoResult<T>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        match share::Handed::over(self.0.threads) {
            None => Ok(work()),
            Some(handed) => {
                let work = move || {
                    let _handed = handed;
                    work()
                };
                self.0.pool.compute(work).await.ok_or(IoError::BUG)
            }
        }
    }

    /// `work` on each piece of `buf`, with where in it that begins, several of them at a time. All have ended when this is over; the error is the first one.
    async fn in_pieces<'a, F>(&'a self, buf: &IoBuf, work: impl Fn(u64, IoBuf) -> F) -> IoResult<()>
    where
        F: Future<Output = IoResult<()>> + Send + 'a,
    {
        let (mut flight, mut result) = (Flight::new(), Ok(()));
        for done in (0..buf.len()).step_by(PIECE) {
            let part = buf.slice(done, PIECE.min(buf.len() - done));
            if let Some(ended) = flight.start(work(done as u64, part)).await {
                result = result.and(ended);
                // It was worked on here: other requests have waited for it long enough.
                yield_now().await;
            }
            if flight.len() > self.0.threads {
                result = result.and(flight.next().await.unwrap_or(Ok(())));
            }
            if result.is_err() {
                break;
            }
        }
        while let Some(ended) = flight.next().await {
            result = result.and(ended);
        }
        result
    }

    fn check(&self, buf: &IoBuf) -> IoResult<()> {
        if buf.len().is_multiple_of(self.0.sector) { Ok(()) } else { Err(IoError::INVALID) }
    }

    /// `len` bytes of the child, as they stand there.
    async fn fetch(&self, req: &Req, edge: &Edge, at: HostOffset, len: usize) -> IoResult<AlignedBuf> {
        let there = edge.length(req)?.saturating_sub(at.0).min(len as u64) as usize;
        let buf = self.memory(req, edge, len)?.into_io();
        buf.fill(there, len - there, 0);
        if there > 0 {
            edge.read(req, at, &buf.slice(0, there)).await?;
        }
        // The request is over, so nobody else has it.
        Ok(buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(1)))
    }

    /// Memory for a request to the child. What was in it before may still be there.
    fn memory(&self, req: &Req, edge: &Edge, len: usize) -> IoResult<AlignedBuf> {
        let limits = edge.limits(req)?;
        let alignment = limits.memory_alignment.max(limits.request_alignment);
        if alignment <= ALIGNMENT {
            return Ok(self.0.buffers.take(len));
        }
        AlignedBuf::try_zeroed(len, alignment as usize).ok_or(IoError::host(Errno::ENOMEM.raw()))
    }
}

/// Bytes as the units that sectors are numbered in.
fn units(bytes: u64) -> u64 {
    bytes / SectorCipher::UNIT as u64
}

impl fmt::Debug for Crypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crypt({:?}, {} bytes)", self.0.cipher, self.0.sector)
    }
}
