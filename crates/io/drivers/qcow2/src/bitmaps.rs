//! Persistent bitmaps: loaded when the image is opened, stored when it is closed.
//!
//! While an image is open for writing, its directory says of each bitmap that it is in use: whoever opens it after a crash knows that the bits
//! are stale (rule qcow2-6). Closing stores all of them anew, beside the old ones; what counts switches with one write of the header.

use crate::image::{Qcow2Control, Qcow2Error, Shared};
use crate::overlap::MetadataKind;
use crate::refcounts::Class;
use crate::{TOLD, meta};
use block_common::{Errno, IoError, IoResult};
use block_io::{DirtyBitmap, KeptBitmap, NodeBitmap, Req};
use block_qcow2_format::{
    AutoclearFeatures, Bitmap, BitmapCluster, BitmapFlags, BitmapTableEntry, BitmapsExtension, Header, Version,
};
use std::sync::Arc;

/// The most memory for the bits of all bitmaps of an image, in bytes. Of a table without entries the file says nothing: it costs its author no
/// space to claim as much as this.
const MEMORY_MAX: u64 = 2 << 30;
/// Bits are written so many bytes at a time.
const PIECE: u64 = 2 << 20;

/// The bitmaps of an open image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bitmaps {
    /// As the directory on the disk has them.
    stored: Vec<Bitmap>,
    /// As they are to be stored.
    kept: Vec<KeptBitmap>,
}

impl Bitmaps {
    /// Whether there is one to keep, or one on the disk.
    pub(crate) fn is_any(&self) -> bool {
        !self.kept.is_empty() || !self.stored.is_empty()
    }

    /// As the directory on the disk has them.
    pub(crate) fn stored(&self) -> &[Bitmap] {
        &self.stored
    }

    /// Whether there is none to keep.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

/// Runs of clusters in the file.
type Places = Vec<(u64, u64)>;

impl Qcow2Control {
    /// The bitmaps that are to be kept with the image: those that were found in it, until [`Qcow2Control::keep_bitmaps`] says otherwise.
    pub fn kept_bitmaps(&self) -> Vec<KeptBitmap> {
        self.0.bitmaps().kept.clone()
    }

    /// Store these bitmaps, and no others, when the image is closed.
    ///
    /// # Errors
    /// Why the image cannot have them, in the field's words; those of before are kept then.
    pub fn keep_bitmaps(&self, kept: &[KeptBitmap]) -> Result<(), String> {
        let shared = &self.0;
        let geometry = &shared.geometry;
        if shared.version < Version::V3 {
            return Err("Cannot store dirty bitmaps in qcow2 v2 files".into());
        }
        let mut directory = 0;
        for bitmap in kept {
            let entry = entry(bitmap, 0, 0);
            directory += Bitmap::entry_len(entry.name.len());
            let clusters = Bitmap::table_entries_for(shared.length(), entry.granularity_bits, geometry);
            if clusters > u64::from(Bitmap::TABLE_MAX) || clusters << geometry.cluster_bits() > Bitmap::BITS_MAX {
                return Err("Too much space will be occupied by the bitmap. Use larger granularity".into());
            }
        }
        if kept.len() > BitmapsExtension::COUNT_MAX as usize {
            return Err("Maximum number of persistent bitmaps is already reached".into());
        }
        if directory > BitmapsExtension::DIRECTORY_MAX {
            return Err("Not enough space in the bitmap directory".into());
        }
        let mut header = shared.header().clone();
        with_directory(&mut header, kept.len(), directory, geometry.cluster_size());
        if header.to_bytes().is_err() {
            return Err("Not enough space in the image header".into());
        }
        shared.bitmaps().kept = kept.to_vec();
        Ok(())
    }
}

/// The directory's entry of a bitmap whose table lies there.
fn entry(bitmap: &KeptBitmap, table_offset: u64, table_size: u32) -> Bitmap {
    Bitmap {
        table_offset,
        table_size,
        flags: if bitmap.recording { BitmapFlags::AUTO } else { BitmapFlags::empty() },
        granularity_bits: bitmap.granularity.trailing_zeros() as u8,
        name: bitmap.name.clone().into_bytes(),
    }
}

/// Let a header name a directory of `count` bitmaps, or none.
fn with_directory(header: &mut Header, count: usize, directory_size: u64, directory_offset: u64) {
    header.bitmaps = (count > 0).then_some(BitmapsExtension { count: count as u32, directory_size, directory_offset });
    header.autoclear.set(AutoclearFeatures::BITMAPS, count > 0);
}

/// The bytes of a directory.
fn directory_bytes(bitmaps: &[Bitmap]) -> Vec<u8> {
    bitmaps.iter().flat_map(Bitmap::to_bytes).collect()
}

/// Tell whoever uses the image that its bitmaps are gone, if they are.
pub(crate) fn tell_of_stale(header: &Header) {
    if header.has_stale_bitmaps {
        tracing::warn!(
            target: TOLD,
            "warning: a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent\n\
             Some clusters may be leaked, run 'cairn-img check -r' on the image file to fix."
        );
    }
}

impl Shared {
    /// Load what the directory lists.
    pub(crate) async fn load_bitmaps(&self, req: &Req) -> Result<(), Qcow2Error> {
        tell_of_stale(&self.header());
        let Some(extension) = self.header().bitmaps else { return Ok(()) };
        let failed = |error| Qcow2Error::Read { what: "the bitmap directory", error };
        let size = extension.directory_size as usize;
        let bytes = meta::read(req, &self.file, extension.directory_offset, size).await.map_err(failed)?;
        let stored = Bitmap::parse_directory(&bytes, &extension, &self.geometry)?;
        let (mut kept, mut memory) = (Vec::new(), 0);
        // Tables lie in the file, and not over each other.
        let mut room = self.file.length(req).map_err(failed)?.saturating_add(self.geometry.cluster_size());
        for bitmap in &stored {
            let fits = room.checked_sub(u64::from(bitmap.table_size) * 8);
            room = fits.ok_or_else(|| Qcow2Error::Bitmap { name: bitmap.name_text(), error: Errno::EINVAL })?;
            let Ok(name) = String::from_utf8(bitmap.name.clone()) else {
                return Err(Qcow2Error::Bitmap { name: bitmap.name_text(), error: Errno::EINVAL });
            };
            let granularity = bitmap.granularity();
            let is_stale = bitmap.flags.contains(BitmapFlags::IN_USE);
            let bits = if is_stale {
                NodeBitmap::lost(granularity)
            } else {
                memory += self.length().div_ceil(granularity).div_ceil(8);
                if memory > MEMORY_MAX {
                    return Err(Qcow2Error::Bitmap { name, error: Errno::ENOMEM });
                }
                self.load_bits(req, bitmap).await?
            };
            let recording = bitmap.flags.contains(BitmapFlags::AUTO);
            kept.push(KeptBitmap { name, granularity, recording, bits: Arc::new(bits) });
        }
        *self.bitmaps() = Bitmaps { stored, kept };
        Ok(())
    }

    /// Say in the directory that the bitmaps are in use; that is on the disk when this returns. Their places are known as metadata from now on.
    pub(crate) async fn claim_bitmaps(&self, req: &Req) -> Result<(), Qcow2Error> {
        let Some(extension) = self.header().bitmaps else { return Ok(()) };
        let mut stored = self.bitmaps().stored.clone();
        if stored.iter().any(|bitmap| !bitmap.flags.contains(BitmapFlags::IN_USE)) {
            stored.iter_mut().for_each(|bitmap| bitmap.flags |= BitmapFlags::IN_USE);
            let claimed = async {
                let len = extension.directory_size;
                self.guard(req, extension.directory_offset, len, MetadataKind::BitmapDirectory).await?;
                meta::write(req, &self.file, extension.directory_offset, &directory_bytes(&stored)).await?;
                self.file.flush(req).await
            };
            claimed.await.map_err(|error| Qcow2Error::Update { what: "the bitmap directory", error })?;
        }
        let mut clusters: Vec<u64> = self.clusters_at(extension.directory_offset, extension.directory_size).collect();
        for bitmap in &stored {
            clusters.extend(self.clusters_of(req, bitmap).await);
        }
        self.overlaps.add_bitmaps(clusters);
        self.bitmaps().stored = stored;
        Ok(())
    }

    /// The entries of a bitmap's table.
    async fn bitmap_table(&self, req: &Req, bitmap: &Bitmap) -> Result<Vec<BitmapCluster>, Errno> {
        let words = meta::read_table(req, &self.file, bitmap.table_offset, bitmap.table_size as usize).await;
        let words = words.map_err(|error| error.errno())?;
        let cluster = |word| BitmapTableEntry::from_raw(word).cluster(&self.geometry).ok_or(Errno::EINVAL);
        words.into_iter().map(cluster).collect()
    }

    async fn load_bits(&self, req: &Req, bitmap: &Bitmap) -> Result<NodeBitmap, Qcow2Error> {
        let name = || bitmap.name_text();
        let failed = |error| Qcow2Error::Bitmap { name: name(), error };
        let wanted = Bitmap::table_entries_for(self.length(), bitmap.granularity_bits, &self.geometry);
        if wanted != u64::from(bitmap.table_size) {
            return Err(failed(Errno::EINVAL));
        }
        let table = self.bitmap_table(req, bitmap).await;
        let table = table.map_err(|error| Qcow2Error::BitmapTable { name: name(), error })?;
        let bits = NodeBitmap::try_new(self.length(), bitmap.granularity()).ok_or_else(|| failed(Errno::ENOMEM))?;
        let each = self.geometry.cluster_size() * 8;
        for (first, cluster) in (0..).step_by(each as usize).zip(table) {
            match cluster {
                BitmapCluster::Zeroes => {}
                BitmapCluster::Ones => bits.with(|bits| bits.set_chunks(first..first + each)),
                BitmapCluster::Data(offset) => {
                    let size = self.geometry.cluster_size() as usize;
                    let read = meta::read(req, &self.file, offset, size).await;
                    let bytes = read.map_err(|error| failed(error.errno()))?;
                    bits.with(|bits| bits.set_bits_from(first, &bytes));
                }
            }
        }
        Ok(bits)
    }

    /// Store the bitmaps that are to be kept, and free what those had that are on the disk. Everything else is flushed, and nothing is in flight.
    pub(crate) async fn store_bitmaps(&self, req: &Req) -> IoResult<()> {
        let Bitmaps { stored, kept } = self.bitmaps().clone();
        if stored.is_empty() && kept.is_empty() {
            return Ok(());
        }
        let old_directory = self.header().bitmaps;
        let mut made = Places::new();
        let entries = match self.store_all_bitmaps(req, &stored, &kept, &mut made).await {
            Ok(entries) => entries,
            Err(error) => {
                // Those on the disk are in use for ever: nobody takes their bits for what they were.
                tracing::error!(node = req.node_name(), %error, "Lost persistent bitmaps");
                for (offset, clusters) in made {
                    self.give_back(req, offset, clusters).await;
                }
                return Err(error);
            }
        };
        let mut gone: Vec<u64> = Vec::new();
        for bitmap in stored.iter().filter(|old| !entries.iter().any(|new| new.table_offset == old.table_offset)) {
            gone.extend(self.clusters_of(req, bitmap).await);
        }
        gone.extend(old_directory.iter().flat_map(|old| self.clusters_at(old.directory_offset, old.directory_size)));
        for cluster in gone {
            // What the image calls a bitmap's, and does not count, is left for a check to find.
            let count = self.count_of(req, &mut *self.refcounts.lock().await, cluster).await?;
            if count > 0 {
                self.retire(req, cluster << self.geometry.cluster_bits(), 1, Class::Other);
            }
        }
        self.bitmaps().stored = entries;
        Ok(())
    }

    async fn store_all_bitmaps(
        &self,
        req: &Req,
        stored: &[Bitmap],
        kept: &[KeptBitmap],
        made: &mut Places,
    ) -> IoResult<Vec<Bitmap>> {
        let mut entries = Vec::new();
        for bitmap in kept {
            bitmap.bits.resize(self.length(), bitmap.recording);
            let old = stored.iter().find(|old| old.name == bitmap.name.as_bytes());
            match (bitmap.bits.is_lost(), old) {
                (false, _) => {
                    let (table_offset, table_size) = self.store_bits(req, &bitmap.bits, made).await?;
                    entries.push(entry(bitmap, table_offset, table_size));
                }
                (true, Some(old)) => entries.push(old.clone()),
                (true, None) => tracing::error!(name = bitmap.name, "a bitmap whose bits are not known is not stored"),
            }
        }
        let directory = directory_bytes(&entries);
        let place = if entries.is_empty() { 0 } else { self.new_place(req, &directory, made).await? };
        self.write_counts(req).await?;
        self.file.flush(req).await?;
        let (count, len) = (entries.len(), directory.len() as u64);
        self.rewrite_header(req, |header| with_directory(header, count, len, place)).await?;
        self.file.flush(req).await?;
        Ok(entries)
    }

    /// Store bits and their table. Returns where that is, and how many entries it has.
    async fn store_bits(&self, req: &Req, bits: &NodeBitmap, made: &mut Places) -> IoResult<(u64, u32)> {
        let (chunks, size) = (bits.with(DirtyBitmap::chunks), self.geometry.cluster_size());
        let count = self.geometry.clusters_for(chunks.div_ceil(8));
        if count > u64::from(Bitmap::TABLE_MAX) || count * size > Bitmap::BITS_MAX {
            return Err(IoError::host(Errno::EFBIG.raw()));
        }
        let mut table = vec![BitmapCluster::Zeroes; count as usize];
        let mut at = 0;
        while at < count {
            let dirty = bits.with(|bits| bits.next_dirty(at * size * 8, |_| true));
            let Some(first) = dirty.map(|chunk| chunk / (size * 8)) else { break };
            // What follows without a cluster of zeroes in between is stored in one go, as far as there is room in one place.
            let mut bytes = vec![0; size as usize];
            bits.with(|bits| bits.bits_from(first * size * 8, &mut bytes));
            let mut next = first + 1;
            while next < count && (bytes.len() as u64) < PIECE {
                let mut more = vec![0; size as usize];
                bits.with(|bits| bits.bits_from(next * size * 8, &mut more));
                if more.iter().all(|byte| *byte == 0) {
                    break;
                }
                bytes.extend(more);
                next += 1;
            }
            let found = self.allocate(req, next - first).await?;
            made.push((found.offset, found.clusters));
            bytes.truncate((found.clusters * size) as usize);
            meta::write(req, &self.file, found.offset, &bytes).await?;
            for cluster in 0..found.clusters {
                table[(first + cluster) as usize] = BitmapCluster::Data(found.offset + cluster * size);
            }
            at = first + found.clusters;
        }
        let words = table.into_iter().map(|cluster| BitmapTableEntry::new(cluster).raw());
        let place = self.new_place(req, &meta::table_bytes(words), made).await?;
        Ok((place, count as u32))
    }

    /// A new place with these bytes, that goes to `made`.
    async fn new_place(&self, req: &Req, bytes: &[u8], made: &mut Places) -> IoResult<u64> {
        let clusters = self.geometry.clusters_for((bytes.len() as u64).max(1));
        let place = self.allocate_all(req, clusters).await?;
        made.push((place, clusters));
        meta::write(req, &self.file, place, bytes).await?;
        Ok(place)
    }

    /// The clusters that a place in the file touches.
    fn clusters_at(&self, offset: u64, bytes: u64) -> std::ops::Range<u64> {
        self.geometry.cluster(offset)..self.geometry.clusters_for(offset.saturating_add(bytes))
    }

    /// The clusters that a bitmap's table and bits take. Of a table that makes no sense, nothing is known to be its own.
    async fn clusters_of(&self, req: &Req, bitmap: &Bitmap) -> Vec<u64> {
        match self.bitmap_table(req, bitmap).await {
            Ok(table) => {
                let data = table.into_iter().filter_map(|cluster| match cluster {
                    BitmapCluster::Data(offset) => Some(self.geometry.cluster(offset)),
                    BitmapCluster::Zeroes | BitmapCluster::Ones => None,
                });
                data.chain(self.clusters_at(bitmap.table_offset, u64::from(bitmap.table_size) * 8)).collect()
            }
            Err(error) => {
                let name = bitmap.name_text();
                tracing::warn!(name, ?error, "where the clusters of a bitmap are is not known");
                Vec::new()
            }
        }
    }
}
