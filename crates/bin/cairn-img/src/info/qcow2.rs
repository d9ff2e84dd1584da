//! Images with a structure: what they say of themselves, without a driver that opens them, and the chain of their backing files.

use super::node;
use super::tree::Node;
use crate::cli::Failure;
use crate::image::{Image, on_io_thread};
use block_common::{AlignedBuf, FileName, IoError};
use block_copy::Padded;
use block_drivers::{ImageTold, LuksHeader, Structure, file_name, qcow2_specific};
use block_gs::{GlobalState, NodeRef};
use block_io::Root;
use block_qcow2::check::{CheckError, Storage};
use block_qcow2::info::ImageInfo;
use std::collections::HashSet;

/// Bytes that every LUKS header that an image may have is in.
const LUKS_HEAD: u64 = 4096;
/// The longest chain that is followed.
const CHAIN_MAX: usize = 1000;

/// What there is to tell of `image`, and of the images below it if `all` of the chain is asked for.
///
/// # Errors
/// An image cannot be opened, or the chain comes back to itself.
pub(super) async fn chain(gs: &GlobalState, image: Image, all: bool) -> Result<Vec<Node>, Failure> {
    let (mut chain, mut seen, mut next) = (Vec::new(), HashSet::new(), Some(image));
    while let Some(image) = next.take() {
        if !seen.insert(image.name.clone()) || chain.len() == CHAIN_MAX {
            return Err(Failure::message(format!("Backing file '{}' creates an infinite loop.", image.name)));
        }
        let node = describe(gs, &image).await?;
        if all {
            next = node.image.structure.as_deref().and_then(|structure| below(&image, structure));
        }
        chain.push(node);
    }
    Ok(chain)
}

/// The image's backing file. Whatever its name looks like, it is that of a file (rule trust-2).
fn below(image: &Image, structure: &Structure) -> Option<Image> {
    let (_, path) = structure.backing.as_ref()?;
    let is_path = matches!(FileName::parse(path), Ok(FileName::Path(parsed)) if parsed == *path);
    let name = if is_path { path.clone() } else { format!("./{path}") };
    let format = structure.qcow2.as_ref()?.header.backing_format.as_ref();
    let mut below = Image { name, image_opts: false, ..image.clone() };
    below.how.format = format.map(|format| String::from_utf8_lossy(format).into_owned());
    Some(below)
}

async fn describe(gs: &GlobalState, image: &Image) -> Result<Node, Failure> {
    let gone = || Failure::message(format!("Could not open '{}'", image.name));
    let (backend, named) = image.open_under_format(gs).await?;
    let (root, under) = (backend.io().root().clone(), backend.node().ok_or_else(gone)?);
    let is_guessed = named.is_none();
    let format = match named {
        Some(format) => format,
        None => image.guess(&root).await?.to_owned(),
    };
    if format != "qcow2" {
        // What else the first bytes may look like, there is no driver for: that is told as for any command.
        if is_guessed && format != "raw" {
            drop(backend);
            let backend = image.open(gs).await?;
            return node(gs, backend.node().ok_or_else(gone)?).await;
        }
        return node(gs, under).await;
    }
    let read = on_io_thread(gs, async move {
        let info = ImageInfo::read(Storage::Root(&root)).await;
        let header = match info.as_ref().map(|info| info.header.crypto) {
            Ok(Some(place)) => Some(luks_header(&root, place).await?),
            _ => None,
        };
        Ok((info, header))
    });
    structured(gs, image, under, read.await?).await
}

/// The LUKS header that an image has at that place, or what is wrong with it.
async fn luks_header(root: &Root, (at, len): (u64, u64)) -> Result<Result<LuksHeader, String>, Failure> {
    let failed = |error: IoError| Failure::message(format!("Could not read the LUKS header: {error}"));
    let there = root.length().map_err(failed)?.saturating_sub(at).min(len).min(LUKS_HEAD) as usize;
    let (read, buf) = root.read(at, AlignedBuf::zeroed(there, 4096).into_io()).await;
    read.map_err(failed)?;
    let bytes = buf.map(|buf| buf.to_aligned(1)).ok_or_else(|| failed(IoError::BUG))?;
    Ok(LuksHeader::parse_luks1(&bytes).map_err(|error| error.to_string()))
}

/// An image whose bytes are those of `under`.
async fn structured(
    gs: &GlobalState,
    image: &Image,
    under: NodeRef,
    (read, header): (Result<ImageInfo, CheckError>, Option<Result<LuksHeader, String>>),
) -> Result<Node, Failure> {
    let info = read.map_err(|error| Failure::message(format!("Could not open '{}': {error}", image.name)))?;
    // It is opened as raw, which is what its name says, if that is a name of options.
    let file_name =
        file_name(gs, &under).map_err(Failure::message)?.replacen("\"driver\": \"raw\"", "\"driver\": \"qcow2\"", 1);
    let backing = info.header.backing_file.as_ref().map(|name| {
        let name = String::from_utf8_lossy(name).into_owned();
        let path = from_folder_of(&file_name, &name);
        (name, path)
    });
    let length = info.header.size.next_multiple_of(Padded::SECTOR);
    let below = node(gs, under).await?;
    let header =
        header.transpose().map_err(|error| Failure::message(format!("Could not open '{}': {error}", image.name)))?;
    let (specific, is_encrypted) = (qcow2_specific(&info, header.as_ref()), info.is_encrypted());
    let structure = Structure { specific, is_encrypted, qcow2: Some(info), backing };
    let structure = Some(Box::new(structure));
    let image = ImageTold { file_name, driver: "qcow2", length, structure, ..below.image };
    Ok(Node { image, ..below })
}

/// The name `backing`, which stands in the image called `image`, as it is from here.
fn from_folder_of(image: &str, backing: &str) -> String {
    let is_relative = matches!(FileName::parse(backing), Ok(FileName::Path(_))) && !backing.starts_with('/');
    match image.rsplit_once('/') {
        Some((folder, _)) if is_relative && !image.starts_with("json:") => format!("{folder}/{backing}"),
        _ => backing.to_owned(),
    }
}
