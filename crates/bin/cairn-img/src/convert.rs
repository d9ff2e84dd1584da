//! `convert`: copy one or more images, one behind the other, into another.
//!
//! This file is the order of things and their words; `convert/args.rs` is the command line, `block_copy::sparse_copy` moves
//! the data.

mod args;

use crate::PROGRAM;
use crate::args::{asks_for_help, option_list};
use crate::cli::{Command, Failure};
use crate::create::{list_options, unopenable};
use crate::image::{Image, node_of, on_io_thread};
use crate::layer::BlockLayer;
use crate::progress::Progress;
use block_backend::Backend;
use block_common::{CacheFlags, Preallocation, RequestFlags};
use block_copy::{CopyAct, CopyError, Padded, SparseNote, SparseOptions, data_bytes, packed_copy, sparse_copy};
use block_drivers::{ImageOptions, NewImage, Qcow2Control, check_not_open};
use block_gs::{BitmapError, BitmapInfo, BitmapOptions, GlobalState, NodeRef};
use block_qcow2::{SnapshotFailure, SnapshotKey};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

pub(crate) use args::Args;

/// The longest chain in which the target's backing file is looked for.
const LAYERS_MAX: usize = 1000;

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Copy the images.
    ///
    /// # Errors
    /// What is wrong with the options, or what the images answered. A target that was created stays as far as it was written.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let this = &self;
        let options = option_list(&this.target_options)?;
        if asks_for_help(&options) {
            let target = this.names.last().filter(|_| this.names.len() > 1);
            let format = this.target_format.as_deref().unwrap_or("raw");
            return layer.run(|gs| async move { list_options(&gs, format, target.map(String::as_str)).await });
        }
        this.check()?;
        let [sources @ .., target] = this.names.as_slice() else {
            return Err(Failure::message("Must specify image file name"));
        };
        if sources.is_empty() {
            return Err(Failure::message("Must specify image file name"));
        }
        let progress = this.progress.start(this.quiet, 1.0)?;
        let source_cache = crate::args::source_cache(&this.source_cache).map_err(Failure::message)?;
        layer.run(|gs| async move {
            let (backends, parts) = this.open_sources(&gs, sources, source_cache).await?;
            let bitmaps = if this.bitmaps { this.bitmaps_of(&gs, &backends)? } else { Vec::new() };
            let total = parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.len()));
            let total = total.ok_or_else(|| Failure::message("the images are too long together"))?;
            let (new, backing) = this.new_image(&gs, target, &options, total).await?;
            let parts = match backing {
                Some(backing) => {
                    let (Some(source), [_]) = (backends.first(), parts.as_slice()) else {
                        return Err(Failure::message(
                            "Having a backing file for the target makes no sense when concatenating multiple input images",
                        ));
                    };
                    let layers = layers_above(&gs, &node_of(source)?, &backing);
                    parts.into_iter().map(|part| part.upper(layers)).collect()
                }
                None => parts,
            };
            let cache = crate::args::cache(&this.target_cache);
            let cache =
                cache.ok_or_else(|| Failure::message(format!("Invalid cache option: {}", this.target_cache)))?;
            if let Some(new) = &new {
                let created = new.create(&gs).await;
                let format = this.format();
                created
                    .map_err(|error| Failure::message(format!("{target}: error while converting {format}: {error}")))?;
            }
            let own = new.as_ref().map(NewImage::open_options).unwrap_or_default();
            let target = this.open_target(&gs, target, (cache, own), total).await?;
            let is_zero = new.map_or(this.target_is_zero, |new| new.is_zero());
            if this.bitmaps && !gs.keeps_bitmaps(&node_of(&target)?).map_err(Failure::message)? {
                let format = target.node().and_then(|node| node.io().driver()).unwrap_or("none");
                return Err(Failure::message(format!("Format driver '{format}' does not support bitmaps")));
            }
            this.copy(&gs, parts, &target, is_zero, progress).await?;
            match backends.first() {
                Some(source) => copy_bitmaps(&gs, &node_of(source)?, &node_of(&target)?, bitmaps).await,
                None => Ok(()),
            }
        })
    }
}

impl Args {
    fn format(&self) -> &str {
        self.target_format.as_deref().unwrap_or("raw")
    }

    async fn open_sources(
        &self,
        gs: &GlobalState,
        names: &[String],
        cache: CacheFlags,
    ) -> Result<(Vec<Backend>, Vec<Padded>), Failure> {
        let (mut backends, mut parts) = (Vec::new(), Vec::new());
        for name in names {
            let how = ImageOptions {
                format: self.source_format.clone(),
                read_only: true,
                cache,
                force_share: self.force_share,
                ..ImageOptions::default()
            };
            let image = Image {
                name: name.clone(),
                image_opts: self.source_image_opts,
                resize: false,
                still: !self.force_share,
                stored: false,
                how,
            };
            let (backend, padded) = image.open_padded(gs).await?;
            let padded = match &self.source_snapshot {
                Some(snapshot) => show_snapshot(gs, &backend, snapshot).await?,
                None => padded,
            };
            backends.push(backend);
            parts.push(padded);
        }
        Ok((backends, parts))
    }

    /// The bitmaps of the only source that are to be copied.
    fn bitmaps_of(&self, gs: &GlobalState, sources: &[Backend]) -> Result<Vec<BitmapInfo>, Failure> {
        let [source] = sources else {
            return Err(Failure::message("Copying bitmaps only possible with single source"));
        };
        let node = node_of(source)?;
        if !gs.keeps_bitmaps(&node).map_err(Failure::message)? {
            return Err(Failure::message("Source lacks bitmap support"));
        }
        let mut all = gs.bitmaps(&node).map_err(Failure::message)?;
        all.retain(|bitmap| bitmap.persistent);
        for bitmap in all.iter().filter(|bitmap| bitmap.inconsistent) {
            let name = &bitmap.name;
            if !self.skip_broken_bitmaps {
                return Err(Failure::message(format!(
                    "Cannot copy inconsistent bitmap '{name}'\nTry --skip-broken-bitmaps, or use '{PROGRAM} bitmap \
                     --remove' to delete it"
                )));
            }
            crate::warn(&format!("Skipping inconsistent bitmap '{name}'"));
        }
        all.retain(|bitmap| !bitmap.inconsistent);
        Ok(all)
    }

    /// What is to be created, if anything is, and what the target stands on.
    async fn new_image(
        &self,
        gs: &GlobalState,
        name: &str,
        options: &str,
        total: u64,
    ) -> Result<(Option<NewImage>, Option<String>), Failure> {
        let mut new = None;
        if !self.no_create {
            let mut image = NewImage::parse(gs, self.format(), name, options).await.map_err(Failure::message)?;
            if let Some(text) = unopenable(gs, self.format()) {
                return Err(Failure::message(text));
            }
            image.set_size(total);
            new = Some(image);
        }
        if self.compress && !matches!(self.format(), "qcow2") && !self.target_image_opts {
            return Err(Failure::message("Compression not supported for this file format"));
        }
        if self.compress && new.as_ref().is_some_and(|new| new.has_clusters() && new.is_encrypted()) {
            return Err(Failure::message("Compression and encryption not supported at the same time"));
        }
        if self.compress && new.as_ref().is_some_and(NewImage::is_preallocated) {
            return Err(Failure::message("Compression and preallocation not supported at the same time"));
        }
        let mut backing = NewImage::imagine(self.format(), "").map_err(Failure::message)?;
        let new_or_not = new.as_mut().unwrap_or(&mut backing);
        let set = new_or_not.set_backing(self.backing.as_deref(), self.backing_format.as_deref());
        set.map_err(Failure::message)?;
        if new_or_not.lacks_backing_format() {
            return Err(Failure::message("Use of backing file requires explicit backing format"));
        }
        let backing = new_or_not.backing_beside(name);
        Ok((new, backing))
    }

    /// Open the target, which has room for `total` bytes.
    async fn open_target(
        &self,
        gs: &GlobalState,
        name: &str,
        (cache, own): (CacheFlags, Vec<(&'static str, String)>),
        total: u64,
    ) -> Result<Backend, Failure> {
        let how = ImageOptions {
            format: (!self.target_image_opts).then(|| self.format().to_owned()),
            cache,
            own,
            unmap: self.sparse() > 0,
            ..ImageOptions::default()
        };
        if self.no_create && !self.target_image_opts {
            // Locks do not tell: a raw image is shared with whoever writes it. But a source must not change while it is read.
            let free = check_not_open(gs, name).await;
            free.map_err(|error| Failure::message(format!("Could not open '{name}': {error}")))?;
        }
        let image = Image {
            name: name.to_owned(),
            image_opts: self.target_image_opts,
            resize: self.no_create,
            still: false,
            stored: false,
            how,
        };
        let (backend, padded) = image.open_padded(gs).await?;
        if padded.len() < total {
            return Err(Failure::message("output file is smaller than input file"));
        }
        let root = padded.root();
        let exact = root.length().map_err(Failure::message)?;
        if exact < total {
            // Its last sector was not a whole one.
            let grown = root.truncate(total, Preallocation::Off).await;
            grown.map_err(|error| Failure::message(format!("{name}: Could not resize file: {error}")))?;
        }
        Ok(backend)
    }

    /// Bytes that are compressed together.
    fn cluster(&self, target: &Backend) -> Result<u64, Failure> {
        let refused = || Failure::message("Compression not supported for this file format");
        let node = target.node().ok_or_else(refused)?;
        match node.io().driver() {
            Some("qcow2") => Ok(node.io().limits().transfer_optimal.into()),
            _ => Err(refused()),
        }
    }

    async fn copy(
        &self,
        gs: &GlobalState,
        parts: Vec<Padded>,
        target: &Backend,
        target_is_zero: bool,
        progress: Progress,
    ) -> Result<(), Failure> {
        let io = target.io();
        let options = SparseOptions {
            depth: self.parallel as usize,
            sparse: self.sparse(),
            target_is_zero,
            in_order: !self.oob_writes,
            salvage: self.salvage,
            offload: self.copy_range_offloading,
            speed: self.rate,
            flags: if io.write_cache() { RequestFlags::empty() } else { RequestFlags::FUA },
        };
        let root = io.root().clone();
        let packed = self.compress.then(|| self.cluster(target)).transpose()?;
        let progress = Arc::new(progress);
        let noted = progress.clone();
        let quiet = self.quiet;
        let note = move |note| match note {
            SparseNote::Copied(bytes) => noted.advance(bytes),
            SparseNote::Skipped(bytes) if !noted.is_shown() => noted.advance(bytes),
            SparseNote::Lost(at, error) if !quiet => crate::warn(&format!("error while reading offset {at}: {error}")),
            SparseNote::Unknown(at, error) if !quiet => {
                crate::warn(&format!("error while reading block status at offset {at}: {error}"));
            }
            _ => {}
        };
        on_io_thread(gs, async move {
            // Who only may be asked by the signal has the lengths to go by, which cost nothing.
            progress.set_total(match progress.is_shown() {
                true => data_bytes(&parts, options.salvage).await.map_err(failed)?,
                false => parts.iter().map(Padded::len).sum(),
            });
            match packed {
                None => sparse_copy(parts, root.clone(), options, note).await.map_err(failed)?,
                Some(cluster) => packed_copy(parts, root.clone(), cluster, options, note).await.map_err(failed)?,
            }
            root.flush()
                .await
                .map_err(|error| Failure::message(format!("error while flushing the target: {error}")))?;
            progress.finish();
            Ok(())
        })
        .await
    }
}

/// How many images of the chain that begins at `source` a target that stands on the file `backing` does not show: those above that file, or where the
/// chain does not have it, the first one.
fn layers_above(gs: &GlobalState, source: &NodeRef, backing: &str) -> usize {
    let same = |path: &str| {
        let of = |path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        of(path).is_some_and(|file| of(backing) == Some(file))
    };
    let mut at = gs.skip_filters(source);
    for layers in 1..=LAYERS_MAX {
        let Ok(info) = gs.node_info(&at) else { break };
        let below = info.children.iter().find(|(name, ..)| name == "backing");
        let Some(Ok(below)) = below.and_then(|(_, child, _)| child.as_deref()).map(|name| gs.find_node(name)) else {
            break;
        };
        at = gs.skip_filters(&below);
        if block_drivers::file_of(gs, at.name()).is_some_and(|path| same(&path.to_string_lossy())) {
            return layers;
        }
    }
    1
}

/// Make the same bitmaps in another image. What was written while its content was copied is none of their business.
async fn copy_bitmaps(gs: &GlobalState, from: &NodeRef, to: &NodeRef, all: Vec<BitmapInfo>) -> Result<(), Failure> {
    for BitmapInfo { name, granularity, recording, .. } in all {
        let failed =
            |what: &str, error: BitmapError| Failure::message(format!("Failed to {what} bitmap {name}: {error}"));
        let granularity = Some(granularity);
        let new = BitmapOptions { granularity, persistent: true, disabled: true, ..BitmapOptions::new(&name) };
        gs.add_bitmap(to, new).await.map_err(|error| failed("create", error))?;
        gs.merge_bitmaps(to, &name, &[(from, &name)]).map_err(|error| failed("populate", error))?;
        if recording {
            gs.enable_bitmap(to, &name).await.map_err(|error| failed("populate", error))?;
        }
    }
    Ok(())
}

/// Let an image show the disk as it was when `snapshot` was taken: `snapshot.id=…,snapshot.name=…`, or an id or name.
///
/// # Errors
/// There is no such snapshot, or the format has none.
pub(crate) async fn show_snapshot(gs: &GlobalState, backend: &Backend, snapshot: &str) -> Result<Padded, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::message(format!("Failed to load snapshot: {why}"));
    let key = snapshot_key(snapshot)?;
    let Some(node) = backend.node() else { return Err(failed(&"the image is gone")) };
    let Ok(control) = gs.with_control(&node, |control: &mut Qcow2Control| control.clone()) else {
        let driver = node.io().driver().unwrap_or("none");
        return Err(failed(&format!(
            "Block format '{driver}' used by device '' does not support temporarily loading internal snapshots"
        )));
    };
    let load = |req| async move { Ok(control.load_snapshot(&req, &key).await) };
    match gs.run_drained(&node, "Failed to load snapshot", load).await.map_err(Failure::message)? {
        Ok(()) => {}
        Err(SnapshotFailure::NotFound) => return Err(failed(&"Can't find snapshot")),
        Err(error) => return Err(failed(&error.errno())),
    }
    let root = backend.io().root().clone();
    root.refresh_length().await.map_err(|error| failed(&error))?;
    Padded::new(root).map_err(|error| failed(&error))
}

/// What the value of `-l` means.
fn snapshot_key(text: &str) -> Result<SnapshotKey, Failure> {
    if !text.starts_with("snapshot.") {
        return Ok(SnapshotKey::IdOrName(text.as_bytes().to_vec()));
    }
    let (mut id, mut name) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("snapshot.id", value)) => id = Some(value.as_bytes().to_vec()),
            Some(("snapshot.name", value)) => name = Some(value.as_bytes().to_vec()),
            other => {
                let key = other.map_or(part, |(key, _)| key);
                let what = Failure::message(format!("Invalid parameter '{key}'"));
                return Err(what.and(Failure::message(format!("Failed in parsing snapshot param '{text}'"))));
            }
        }
    }
    Ok(SnapshotKey::Both(id, name))
}

fn failed(error: CopyError) -> Failure {
    let CopyError { act, offset, error } = error;
    Failure::message(match act {
        CopyAct::Read => format!("error while reading at byte {offset}: {error}"),
        CopyAct::Write | CopyAct::Zero => format!("error while writing at byte {offset}: {error}"),
        CopyAct::Status => format!("error while reading block status at offset {offset}: {error}"),
        other => format!("error while {other}: {error}"),
    })
}
