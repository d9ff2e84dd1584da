//! Encrypted images: guest data on its way through a cipher, and the header that its key comes from.
//!
//! Sectors of 512 bytes are encrypted each by itself. With LUKS a sector's number is where it lies in the file that has it, and with the method of old where the guest
//! sees it. So data that gets another place is read and written anew, as all data is here that does. Zeroes on the disk are no zeroes to the guest: those are told by entries, or
//! are written. Compressed clusters are not encrypted by those who write them in the field; here none are written, and they are read as they are.
//!
//! Keys, passwords and what the header says are the business of whoever opens the image.

use crate::image::{Qcow2, Qcow2Control, Qcow2Error, Shared};
use crate::meta;
use crate::overlap::MetadataKind;
use block_common::{AlignedBuf, HostOffset, IoBuf, IoError, IoResult, RequestFlags};
use block_crypt::SectorCipher;
use block_crypt_io::Crypt;
use block_io::{Access, Edge, Req, ThreadPool};
use block_qcow2_format::Header;
use std::ops::Range;

/// Bytes of a sector.
pub(crate) const SECTOR: usize = SectorCipher::UNIT;
/// Zeroes are written so many bytes at a time.
const ZEROES: u64 = 2 << 20;

/// How guest data is encrypted.
#[derive(Debug)]
pub(crate) struct Encryption {
    /// Without one the image can be described, and its data not be read.
    crypt: Option<Crypt>,
    /// Sectors have the numbers that the guest sees.
    by_guest: bool,
}

impl Encryption {
    /// What the header asks for.
    ///
    /// # Errors
    /// There is a cipher for what is not encrypted, or none for what is to be written.
    pub(crate) fn new(
        header: &Header,
        cipher: Option<SectorCipher>,
        read_only: bool,
        pool: &ThreadPool,
    ) -> Result<Option<Self>, Qcow2Error> {
        match (header.crypt_method, cipher) {
            (0, None) => Ok(None),
            (0, Some(_)) => Err(Qcow2Error::Option("No encryption in image header, but a key is given".into())),
            (_, None) if !read_only => Err(Qcow2Error::Locked),
            (method, cipher) => {
                let crypt = cipher.map(|cipher| Crypt::new(cipher, SECTOR, pool.clone()));
                Ok(Some(Self { crypt, by_guest: method == 1 }))
            }
        }
    }

    /// Whether nobody has the key.
    pub(crate) fn is_locked(&self) -> bool {
        self.crypt.is_none()
    }

    /// The number of the sector that the guest sees at `guest` and that lies at `host`, if there is a key and so many bytes are few enough to be worked on where they are asked for.
    pub(crate) fn at_once(&self, access: Access, (guest, host): (u64, u64), len: u64) -> Option<u64> {
        let crypt = self.crypt.as_ref().filter(|crypt| crypt.is_for_asker(access, len))?;
        self.at(guest, host).ok().filter(|_| len.is_multiple_of(crypt.sector() as u64)).map(|(_, number)| number)
    }

    /// The cipher.
    pub(crate) fn crypt(&self) -> IoResult<&Crypt> {
        self.crypt.as_ref().ok_or(IoError::NOT_PERMITTED)
    }

    /// The cipher, and the number of the sector that the guest sees at `guest` and that lies at `host`.
    fn at(&self, guest: u64, host: u64) -> IoResult<(&Crypt, u64)> {
        Ok((self.crypt()?, if self.by_guest { guest } else { host } / SECTOR as u64))
    }
}

impl Shared {
    /// Whether guest data is encrypted.
    #[inline]
    pub(crate) fn is_encrypted(&self) -> bool {
        self.encryption.is_some()
    }

    /// Fill `buf`, whole sectors of an encrypted image, with the guest's data of `guest`, which lies at `host`. The file may end before that does.
    pub(crate) async fn read_data(&self, req: &Req, guest: u64, host: u64, buf: &IoBuf) -> IoResult<()> {
        match &self.encryption {
            None => meta::read_padded(req, self.data_edge(), host, buf).await,
            Some(encryption) => {
                let (crypt, number) = encryption.at(guest, host)?;
                // Boxed, so that requests of images that are not encrypted stay small.
                Box::pin(crypt.read(req, self.data_edge(), HostOffset(host), number, buf)).await
            }
        }
    }

    /// Store `buf`, whole sectors of an encrypted image, at `host`, as the guest's data of `guest`.
    pub(crate) async fn write_data(
        &self,
        req: &Req,
        (guest, host): (u64, u64),
        buf: &IoBuf,
        flags: RequestFlags,
    ) -> IoResult<()> {
        match &self.encryption {
            None => self.data_edge().write(req, HostOffset(host), buf, flags).await,
            Some(encryption) => {
                let (crypt, number) = encryption.at(guest, host)?;
                let edge = self.data_edge();
                Box::pin(crypt.write(req, edge, HostOffset(host), number, buf, flags)).await
            }
        }
    }

    /// Store zeroes as `write_data` does, in whole sectors.
    pub(crate) async fn write_zeroes(&self, req: &Req, guest: u64, host: u64, len: u64) -> IoResult<()> {
        let zeroes = AlignedBuf::zeroed(len.min(ZEROES) as usize, 4096).into_io();
        let mut done = 0;
        while done < len {
            let piece = zeroes.slice(0, (len - done).min(ZEROES) as usize);
            self.write_data(req, (guest + done, host + done), &piece, RequestFlags::empty()).await?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// The whole sectors around a range of an encrypted image that has parts of some: a disk may end within one, and a machine's state may be stored anyhow.
    #[inline]
    pub(crate) fn sectors_around(&self, offset: u64, len: usize) -> Option<Range<u64>> {
        let (sector, len) = (SECTOR as u64, len as u64);
        let is_whole = offset.is_multiple_of(sector) && len.is_multiple_of(sector);
        if !self.is_encrypted() || is_whole || len == 0 {
            return None;
        }
        Some(offset - offset % sector..(offset + len).next_multiple_of(sector))
    }

    /// Fill `buf` from the whole sectors around it.
    pub(crate) async fn read_parts(&self, req: &Req, all: Range<u64>, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let whole = self.buffer(req, self.data_edge(), (all.end - all.start) as usize)?.into_io();
        self.read_sectors(req, all.start, &whole).await?;
        buf.copy_from(&whole.slice((offset - all.start) as usize, buf.len()));
        Ok(())
    }

    /// Store `buf` with what the whole sectors around it have beside it. Nobody else changes these meanwhile.
    pub(crate) async fn write_parts(
        &self,
        req: &Req,
        all: Range<u64>,
        offset: u64,
        buf: &IoBuf,
        flags: RequestFlags,
    ) -> IoResult<()> {
        let whole = self.buffer(req, self.data_edge(), (all.end - all.start) as usize)?.into_io();
        let last = whole.len() - SECTOR;
        if all.start < offset || last == 0 {
            self.read_sectors(req, all.start, &whole.slice(0, SECTOR)).await?;
        }
        if last > 0 {
            self.read_sectors(req, all.end - SECTOR as u64, &whole.slice(last, SECTOR)).await?;
        }
        whole.slice((offset - all.start) as usize, buf.len()).copy_from(buf);
        self.write_sectors(req, all.start, &whole, flags).await
    }
}

/// Part of the header that keys come from: `len` bytes from `at` on, or fewer where it ends.
fn within(header: &Header, at: u64, len: usize) -> Option<Range<u64>> {
    let (offset, all) = header.crypto?;
    let end = at.saturating_add(len as u64).min(all).max(at);
    Some(offset.checked_add(at)?..offset.checked_add(end)?)
}

impl Qcow2 {
    /// `len` bytes from `at` on of the LUKS header that the image with this header has in `file`, or fewer where that ends. Whoever opens an image needs them before. `req` is a
    /// token on the node that owns the edge.
    ///
    /// # Errors
    /// [`IoError::INVALID`] when the image has none, else what the file answered.
    pub async fn read_crypto_header(req: &Req, file: &Edge, header: &Header, at: u64, len: usize) -> IoResult<Vec<u8>> {
        let range = within(header, at, len).ok_or(IoError::INVALID)?;
        meta::read(req, file, range.start, (range.end - range.start) as usize).await
    }
}

impl Qcow2Control {
    /// Where the LUKS header with its key material lies in the image's file, and how many bytes it has. None with another encryption, or without.
    pub fn crypto_header(&self) -> Option<(u64, u64)> {
        self.0.header().crypto
    }

    /// As [`Qcow2::read_crypto_header`], of the open image.
    ///
    /// # Errors
    /// As there.
    pub async fn read_crypto(&self, req: &Req, at: u64, len: usize) -> IoResult<Vec<u8>> {
        let header = self.header();
        Qcow2::read_crypto_header(req, &self.0.file, &header, at, len).await
    }

    /// Store `bytes` at `at` of the LUKS header, and bring that to stable storage. `req` is a token on the node.
    ///
    /// # Errors
    /// [`IoError::INVALID`] when that is not within the header; the image is only read, or corrupt; or what the file answered.
    pub async fn write_crypto(&self, req: &Req, at: u64, bytes: &[u8]) -> IoResult<()> {
        let shared = &self.0;
        shared.claim(req).await?;
        let range = within(&self.header(), at, bytes.len()).ok_or(IoError::INVALID)?;
        let len = range.end - range.start;
        if len != bytes.len() as u64 {
            return Err(IoError::INVALID);
        }
        // Rule qcow2-8: both headers are of one kind, and it is not the image's that is written here.
        if range.start < shared.geometry.cluster_size() {
            return Err(shared.overlapping(req, MetadataKind::MainHeader).await);
        }
        shared.guard(req, range.start, len, MetadataKind::MainHeader).await?;
        meta::write(req, &shared.file, range.start, bytes).await?;
        shared.file.flush(req).await
    }
}
