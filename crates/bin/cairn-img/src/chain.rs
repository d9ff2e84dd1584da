//! Chains of backing files, for commands that look at their images one by one: each is opened without what it stands on, and knows what that is called.

use crate::cli::Failure;
use crate::image::Image;
use block_backend::Backend;
use block_common::FileName;
use block_common::options::{Dict, Value};
use block_copy::Padded;
use block_drivers::{Qcow2Control, file_name};
use block_gs::{GlobalState, NodeRef};

/// The longest chain that is followed.
const CHAIN_MAX: usize = 1000;

/// An image that was opened without what it stands on.
pub(crate) struct Alone {
    pub(crate) backend: Backend,
    pub(crate) padded: Padded,
    pub(crate) node: NodeRef,
    /// What manages it, if its format can stand on other images.
    pub(crate) control: Option<Qcow2Control>,
    /// The name of what it stands on, as it is in the image, and how that is opened.
    pub(crate) below: Option<(String, Image)>,
}

impl Alone {
    /// Open `image`.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub(crate) async fn open(gs: &GlobalState, image: &Image) -> Result<Self, Failure> {
        let mut alone = image.clone();
        alone.how.alone = true;
        let (backend, padded) = alone.open_padded(gs).await?;
        let node = backend.node().ok_or_else(|| Failure::message(format!("Could not open '{}'", image.name)))?;
        let control = gs.with_control(&node, |control: &mut Qcow2Control| control.clone()).ok();
        let below = match &control {
            Some(control) => below(gs, image, &node, control)?,
            None => None,
        };
        Ok(Self { backend, padded, node, control, below })
    }

    /// Open what it stands on, and what that stands on, and so on, for reading, each alone.
    ///
    /// # Errors
    /// As [`Image::open`], or the chain comes back to itself.
    pub(crate) async fn open_below(&self, gs: &GlobalState) -> Result<Vec<(String, Self)>, Failure> {
        let mut chain: Vec<(String, Self)> = Vec::new();
        let mut next = self.below.clone();
        while let Some((_, image)) = next.take() {
            if chain.len() == CHAIN_MAX || chain.iter().any(|(name, _)| *name == image.name) {
                return Err(Failure::message(format!("Backing file '{}' creates an infinite loop.", image.name)));
            }
            let opened = Self::open(gs, &image).await?;
            next = opened.below.clone();
            chain.push((image.name, opened));
        }
        Ok(chain)
    }
}

/// What the image stands on. Whatever its name looks like, it is that of a file (rule trust-2), from the folder of the image.
fn below(
    gs: &GlobalState,
    image: &Image,
    node: &NodeRef,
    control: &Qcow2Control,
) -> Result<Option<(String, Image)>, Failure> {
    let header = control.header();
    let Some(name) = &header.backing_file else { return Ok(None) };
    let name = String::from_utf8_lossy(name).into_owned();
    let info = gs.node_info(node).map_err(Failure::message)?;
    let file = info.children.iter().find(|(edge, ..)| edge == "file").and_then(|(_, child, _)| child.as_deref());
    let own = match file.map(|file| gs.find_node(file)) {
        Some(Ok(file)) => file_name(gs, &file).map_err(Failure::message)?,
        _ => String::new(),
    };
    let path = match own.rsplit_once('/') {
        Some((folder, _)) if !name.starts_with('/') && !own.starts_with("json:") => format!("{folder}/{name}"),
        _ => name.clone(),
    };
    let is_path = matches!(FileName::parse(&path), Ok(FileName::Path(parsed)) if parsed == path);
    let format = header.backing_format.as_ref().map(|format| String::from_utf8_lossy(format).into_owned());
    let mut below = image.clone();
    below.name = if is_path { path.clone() } else { format!("./{path}") };
    below.image_opts = false;
    if let Some(mut options) = image.backing_options().map_err(Failure::message)? {
        // Options that do not say what to open are about what the image names.
        if !["driver", "file", "filename"].iter().any(|key| options.contains_key(key)) {
            let mut file = Dict::new();
            file.insert("driver", "file").map_err(Failure::message)?;
            file.insert("filename", path).map_err(Failure::message)?;
            options.insert("file", Value::Dict(file)).map_err(Failure::message)?;
            let format = format.as_deref().ok_or_else(|| Failure::message("Parameter 'backing.driver' is missing"))?;
            options.insert("driver", format).map_err(Failure::message)?;
        }
        below.name = format!("json:{options}");
    }
    below.resize = false;
    below.stored = true;
    below.how.read_only = true;
    below.how.format = if below.name.starts_with("json:") { None } else { format };
    Ok(Some((name, below)))
}
