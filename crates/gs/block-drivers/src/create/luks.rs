//! New encrypted images: a header, and the data behind it.

use super::{
    CreateError, CreateOption, CreateOptionKind, LENGTH_MAX, NewImage, SIZE, Target, check_path, option, text,
};
use crate::crypt::new::NewVolume;
use block_common::{AlignedBuf, Errno, Preallocation, RequestFlags};
use block_file_posix::{HostKind, create, remove};
use block_gs::{GlobalState, GraphError, NodeRef};
use block_io::Root;

pub(super) const NAME: &str = "luks";

/// In the order in which they are told after they were read.
pub(super) const OPTIONS: [CreateOption; 9] = {
    use CreateOptionKind::{Bool, Number, Str};
    [
        SIZE,
        option("key-secret", Str, "ID of the secret that provides the keyslot passphrase"),
        option("cipher-alg", Str, "Name of encryption cipher algorithm"),
        option("cipher-mode", Str, "Name of encryption cipher mode"),
        option("ivgen-alg", Str, "Name of IV generator algorithm"),
        option("ivgen-hash-alg", Str, "Name of IV generator hash algorithm"),
        option("hash-alg", Str, "Name of encryption hash algorithm"),
        option("iter-time", Number, "Time to spend in PBKDF in milliseconds"),
        option("detached-header", Bool, "Create a detached LUKS header"),
    ]
};

impl NewImage {
    fn volume(&self) -> Result<NewVolume, CreateError> {
        NewVolume::parse("", |name| self.options.get(name).map(text))
    }

    /// Whether it is only a header, for data in another file.
    pub fn is_detached_header(&self) -> bool {
        self.format == NAME && self.options.get("detached-header").is_some_and(|value| text(value) == "on")
    }

    /// The bytes that such an image takes beside its data.
    pub(super) fn luks_header_len(&self, gs: &GlobalState) -> Result<u64, CreateError> {
        let volume = self.volume()?;
        volume.password(gs)?;
        volume.header_len()
    }

    /// Create the image. If that fails, it is not left.
    pub(super) async fn create_luks(&self, gs: &GlobalState, size: u64) -> Result<(), CreateError> {
        let (volume, is_detached) = (self.volume()?, self.is_detached_header());
        let password = volume.password(gs)?;
        let mode = self.options.get("preallocation").map(text).unwrap_or_else(|| "off".into());
        let mode = match mode.parse() {
            Ok(mode) => mode,
            Err(_) => return Err(CreateError::BadMode(mode)),
        };
        self.refuse_unbuilt()?;
        let header = volume.header_len()?;
        let length = header.checked_add(if is_detached { 0 } else { size }).filter(|length| *length <= LENGTH_MAX);
        let length = length.ok_or(CreateError::FileLength)?;
        let start = volume.make(gs, password, is_detached).await?;
        if self.kind == HostKind::Device {
            if mode != Preallocation::Off {
                return Err(CreateError::NoMode(mode));
            }
            super::take_over(gs, &self.path, length, Preallocation::Off).await?;
            return self.fill(gs, &start, length, mode).await;
        }
        check_path(gs, &self.path).await?;
        create(&self.path, 0, Preallocation::Off, gs.pool()).await?;
        let filled = self.fill(gs, &start, length, mode).await;
        if filled.is_err() {
            // The error that led here is the one to be told.
            let _ = remove(self.path.clone(), gs.pool()).await;
        }
        filled
    }

    /// Create the image in a node, which is empty before; with its header in another one, which is: the data is then what it was, as long as the disk.
    pub(super) async fn create_luks_in(
        &self,
        gs: &GlobalState,
        file: Option<&NodeRef>,
        header: Option<&NodeRef>,
        size: u64,
    ) -> Result<(), CreateError> {
        let neither = || GraphError::Open("Either the parameter 'header' or 'file' must be specified".into());
        let first = header.or(file).ok_or_else(neither)?;
        let volume = self.volume()?;
        let password = volume.password(gs)?;
        let mode = self.options.get("preallocation").map(text).and_then(|mode| mode.parse().ok());
        let mode = mode.unwrap_or(Preallocation::Off);
        let behind = if header.is_some() { 0 } else { size };
        let length = volume.header_len()?.checked_add(behind).filter(|length| *length <= LENGTH_MAX);
        let length = length.ok_or(CreateError::FileLength)?;
        if size > LENGTH_MAX {
            return Err(GraphError::Open(Errno::EFBIG.to_string()).into());
        }
        let start = volume.make(gs, password, header.is_some()).await?;
        let Some(data) = header.and(file) else {
            let target = Target::on(gs, first).await?;
            let filled = write_on(&target, self.kind, &start, (length, mode)).await;
            target.leave(gs).await;
            return filled;
        };
        let target = Target::of_two(gs, first).await?;
        let filled = match Target::of_two(gs, data).await {
            Ok(data) => {
                let resized = data.root.io().truncate(size, mode).await;
                data.leave(gs).await;
                let resized = resized.map_err(|error| GraphError::Open(error.errno().to_string()).into());
                match resized {
                    Ok(()) => write_on(&target, self.kind, &start, (length, Preallocation::Off)).await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error.into()),
        };
        target.leave(gs).await;
        filled
    }

    async fn fill(&self, gs: &GlobalState, start: &[u8], length: u64, mode: Preallocation) -> Result<(), CreateError> {
        let file = Target::open(gs, self.kind, &self.path).await?;
        let filled = fill(file.root.io(), self.kind, start, (length, mode)).await;
        let closed = file.close(gs).await;
        filled.and(closed)
    }
}

/// Empty a node that is there, and fill it.
async fn write_on(
    target: &Target,
    kind: HostKind,
    start: &[u8],
    size: (u64, Preallocation),
) -> Result<(), CreateError> {
    target.empty().await?;
    fill(target.root.io(), kind, start, size).await
}

/// Give what is empty its length, and what it begins with.
async fn fill(
    root: &Root,
    kind: HostKind,
    start: &[u8],
    (length, mode): (u64, Preallocation),
) -> Result<(), CreateError> {
    // There are no tables of their own: nothing to be allocated but space.
    let mode = if mode == Preallocation::Metadata { Preallocation::Off } else { mode };
    if kind == HostKind::File {
        let resized = root.truncate(length, mode).await;
        resized.map_err(|error| match error.errno() {
            Errno::EFBIG => CreateError::FileLength,
            errno => match mode {
                Preallocation::Full => CreateError::Device { doing: "write zeros for preallocation", error },
                Preallocation::Falloc => CreateError::Device { doing: "preallocate new data", error },
                _ => CreateError::Resize(errno),
            },
        })?;
    }
    let mut buf = AlignedBuf::zeroed(start.len(), 4096);
    buf.copy_from_slice(start);
    let (written, _) = root.write(0, buf.into_io(), RequestFlags::empty()).await;
    written.map_err(|error| CreateError::Device { doing: "write encryption header", error })
}
