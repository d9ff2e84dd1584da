//! `file` and `host_device`: options `filename`, `aio`, `locking`, `drop-cache`, and the cache modes of every node.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{AioMode, OptionReader, PermPair, QapiEnum};
use block_file_posix::{
    DiscardCounts, FileAccess, FileError, FilePosix, FilePosixControl, FilePosixModes, FilePosixOptions,
    FilePosixReopen, HostKind,
};
use block_gs::{
    CommonOptions, DriverType, EngineControl, GlobalState, GraphError, GraphResult, NodeRef, OpenContext, Opened,
    PreparingReopen, Reopening,
};
use block_io::{FileEngine, Quiesced, ring_available};
use std::any::Any;

/// The driver of what the host has, under one of its two names.
#[derive(Clone, Copy, Debug)]
pub struct FileType(HostKind);

impl FileType {
    /// `file`: regular files.
    pub const FILE: Self = Self(HostKind::File);
    /// `host_device`: block and character devices.
    pub const HOST_DEVICE: Self = Self(HostKind::Device);
}

/// The driver for what a path leads to, where a user names no driver.
#[doc(alias = "bdrv_probe_device")]
#[doc(alias = "find_hdev_driver")]
pub async fn driver_of_path(gs: &GlobalState, path: &str) -> &'static str {
    match block_file_posix::kind(path, gs.pool()).await {
        HostKind::File => FileType::FILE.name(),
        HostKind::Device => FileType::HOST_DEVICE.name(),
    }
}

/// What became of the discards that a node had the host make, if it is a file or device of the host.
#[doc(alias = "bdrv_get_specific_stats")]
pub fn discard_counts(gs: &GlobalState, node: &NodeRef) -> Option<DiscardCounts> {
    gs.with_control(node, |control: &mut FilePosixControl| control.discards()).ok()
}

struct Control(FilePosixControl);

/// Its nodes' control is a [`FilePosixControl`].
impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.0
    }

    fn prepare_perm(&mut self, perm: PermPair) -> GraphResult<()> {
        self.0.prepare_perm(perm).map_err(|error| graph_error(&error))
    }

    fn commit_perm(&mut self) {
        self.0.commit_perm();
    }

    fn abort_perm(&mut self) {
        self.0.abort_perm();
    }

    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let CommonOptions { cache_direct: direct, cache_no_flush: no_flush, .. } = to.common;
        let modes = FilePosixModes { access: access(to.common), direct, no_flush };
        let preparing = (modes != self.0.modes()).then(|| self.0.prepare(modes));
        Ok(Box::pin(async move {
            let prepared = match preparing {
                Some(preparing) => Some(preparing.await.map_err(|error| graph_error(&error))?),
                None => None,
            };
            Ok(Box::new(prepared) as Box<dyn Any>)
        }))
    }

    fn commit_reopen(&mut self, prepared: Box<dyn Any>, proof: &Quiesced<'_>) {
        if let Ok(prepared) = prepared.downcast::<Option<FilePosixReopen>>()
            && let Some(reopen) = *prepared
        {
            self.0.commit(reopen, proof);
        }
    }
}

/// What a file is opened for. Without a promise to be writable, it is opened for writing when somebody wants to write.
fn access(common: CommonOptions) -> FileAccess {
    match (common.read_only, common.auto_read_only) {
        (true, _) => FileAccess::ReadOnly,
        (false, true) => FileAccess::AsNeeded,
        (false, false) => FileAccess::ReadWrite,
    }
}

fn graph_error(error: &FileError) -> GraphError {
    match error.hint() {
        Some(hint) => GraphError::Locked { message: error.to_string(), hint },
        None => GraphError::Open(error.to_string()),
    }
}

/// Options that other builds have and that would change what happens: refused rather than ignored.
fn refuse_unbuilt(options: &mut OptionReader, driver: &str) -> GraphResult<()> {
    let refused = |key| Err(GraphError::NotBuilt(format!("Option '{key}' of driver '{driver}'")));
    for key in ["aio-max-batch", "pr-manager"] {
        if options.take(key).is_some() {
            return refused(key);
        }
    }
    // Its default is what happens.
    if options.take_bool("x-check-cache-dropped")? == Some(true) {
        return refused("x-check-cache-dropped");
    }
    Ok(())
}

/// Who carries out requests. The field's `native` is served by the ring as well.
fn engine(aio: Option<AioMode>, direct: bool) -> GraphResult<FileEngine> {
    match aio {
        Some(AioMode::Threads) => Ok(FileEngine::Threads),
        Some(AioMode::Native) if !direct => {
            let message = "aio=native was specified, but it requires cache.direct=on, which was not specified.";
            Err(GraphError::Open(message.into()))
        }
        Some(mode) if !ring_available() => {
            Err(GraphError::Open(format!("aio={} needs io_uring, which this host refuses", mode.name())))
        }
        Some(_) | None => Ok(FileEngine::Ring),
    }
}

#[async_trait(?Send)]
impl DriverType for FileType {
    fn name(&self) -> &'static str {
        match self.0 {
            HostKind::File => "file",
            HostKind::Device => "host_device",
        }
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let common = context.common();
        let Some(path) = options.take_str("filename")?.filter(|path| !path.is_empty()) else {
            return Err(GraphError::Open(format!("The '{}' block driver requires a file name", self.name())));
        };
        let engine = engine(options.take_enum("aio")?, common.cache_direct)?;
        let locking = options.take_enum("locking")?.unwrap_or_default();
        let drop_cache = options.take_bool("drop-cache")?.unwrap_or(true);
        refuse_unbuilt(options, self.name())?;
        let mut how = FilePosixOptions::new(&path);
        how.kind = self.0;
        how.access = access(common);
        how.direct = common.cache_direct;
        how.no_flush = common.cache_no_flush;
        how.engine = engine;
        how.locking = locking;
        how.drop_cache = drop_cache;
        let opened = FilePosix::open(how, context.pool().clone()).await;
        let (engine, control) = opened.map_err(|error| graph_error(&error))?;
        let read_only = common.read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }
}
