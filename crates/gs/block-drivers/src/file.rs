//! `file`: options `filename`, `aio`, and the cache modes of every node.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{AioMode, OptionReader, QapiEnum};
use block_file_posix::{FileAccess, FileError, FilePosix, FilePosixControl, FilePosixOptions};
use block_gs::{DriverType, EngineControl, GraphError, GraphResult, OpenContext, Opened};
use block_io::{FileEngine, ring_available};
use std::any::Any;

/// The file driver.
#[derive(Clone, Copy, Debug)]
pub struct FileType;

struct Control(#[expect(dead_code, reason = "reopen exchanges the descriptor through it")] FilePosixControl);

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

fn open_error(error: &FileError) -> GraphError {
    GraphError::Open(error.to_string())
}

/// Options that other builds have and that would change what happens: refused rather than ignored.
fn refuse_unbuilt(options: &mut OptionReader) -> GraphResult<()> {
    for key in ["aio-max-batch", "locking", "drop-cache", "pr-manager", "x-check-cache-dropped"] {
        if options.take(key).is_some() {
            return Err(GraphError::NotBuilt(format!("Option '{key}' of driver 'file'")));
        }
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
        "file"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let common = context.common();
        let Some(path) = options.take_str("filename")?.filter(|path| !path.is_empty()) else {
            return Err(GraphError::Open("The 'file' block driver requires a file name".into()));
        };
        let engine = engine(options.take_enum("aio")?, common.cache_direct)?;
        refuse_unbuilt(options)?;
        let open = |access| {
            let mut how = FilePosixOptions::new(&path);
            how.access = access;
            how.direct = common.cache_direct;
            how.no_flush = common.cache_no_flush;
            how.engine = engine;
            FilePosix::open(how, context.pool().clone())
        };
        let (opened, read_only) = if common.read_only {
            (open(FileAccess::ReadOnly).await, true)
        } else {
            match open(FileAccess::ReadWrite).await {
                Err(error) if common.auto_read_only && is_refusal(&error) => (open(FileAccess::ReadOnly).await, true),
                opened => (opened, false),
            }
        };
        let (engine, control) = opened.map_err(|error| open_error(&error))?;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }
}

/// Whether the host refuses writing, so that reading is worth a try.
fn is_refusal(error: &FileError) -> bool {
    use block_common::Errno;
    matches!(error.errno(), Errno::EACCES | Errno::EPERM | Errno::EROFS)
}
