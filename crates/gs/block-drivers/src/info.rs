//! What there is to tell of an image that is open, as the field's programs tell it: its name, its size, what its format says of it.
//!
//! Nothing is opened here, and nobody's requests are held up: what lies in an image is read beside them. How it is laid out for people is a program's business.

mod name;

use name::{Names, name_of};
pub use name::{file_name, full_backing_name};

use crate::crypt::{LuksHeader, told::qcow2_specific};
use crate::luks::LuksImage;
use block_common::ChildName;
use block_gs::{GlobalState, GraphError, GraphResult, NodeRef};
use block_qcow2::Qcow2Control;
use block_qcow2::info::{ImageInfo, InfoValue};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// Lengths are told in whole sectors of so many bytes.
const SECTOR: u64 = 512;

/// An image, or a file below one: QAPI's `ImageInfo`.
#[derive(Clone, Debug)]
pub struct ImageTold {
    /// The name that opens it.
    pub file_name: String,
    /// Its driver.
    pub driver: &'static str,
    /// Bytes, whole sectors.
    pub length: u64,
    /// Bytes that the host has allocated, where that is told.
    pub disk_size: Option<u64>,
    /// It is, or is on, something that tells more of itself than its length.
    pub has_flags: bool,
    /// What the image says of itself, if it has a structure.
    pub structure: Option<Box<Structure>>,
}

/// What an image with a structure says of itself.
#[derive(Clone, Debug)]
pub struct Structure {
    /// What its format says of it.
    pub specific: InfoValue,
    /// Whether its data is encrypted.
    pub is_encrypted: bool,
    /// What else a qcow2 image says.
    pub qcow2: Option<ImageInfo>,
    /// The backing file's name as it stands there, and as it is from here.
    pub backing: Option<(String, String)>,
}

impl Structure {
    /// The format of the backing file, if the image says it.
    pub fn backing_format(&self) -> Option<String> {
        let header = &self.qcow2.as_ref()?.header;
        let format = header.backing_format.as_ref().filter(|_| self.backing.is_some());
        format.map(|format| String::from_utf8_lossy(format).into_owned())
    }

    /// Whether the image was not closed by whoever wrote to it last.
    pub fn is_dirty(&self) -> bool {
        self.qcow2.as_ref().is_some_and(ImageInfo::is_dirty)
    }
}

/// A value as JSON.
pub fn json_of(value: &InfoValue) -> Value {
    match value {
        InfoValue::Text(words) => words.as_str().into(),
        InfoValue::Number(number) => (*number).into(),
        InfoValue::Flag(flag) => (*flag).into(),
        InfoValue::List(list) => list.iter().map(json_of).collect(),
        InfoValue::Map(map) => map.iter().map(|(name, value)| ((*name).to_owned(), json_of(value))).collect(),
    }
}

impl ImageTold {
    /// What there is to tell of `node`.
    ///
    /// # Errors
    /// The node is gone, or what it says of itself cannot be read any more.
    pub async fn of(gs: &GlobalState, node: &NodeRef) -> GraphResult<Self> {
        ImageTeller::new(gs).find(node).await
    }

    /// Whether its data is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.structure.as_ref().is_some_and(|structure| structure.is_encrypted)
    }

    /// The members of an `ImageInfo`, but for those that are about other images.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut add = |key: &str, value: Value| drop(map.insert(key.into(), value));
        let structure = self.structure.as_deref();
        if let Some(format) = structure.and_then(Structure::backing_format) {
            add("backing-filename-format", format.into());
        }
        let qcow2 = structure.and_then(|structure| structure.qcow2.as_ref());
        if let Some(info) = qcow2.filter(|info| !info.snapshots.is_empty()) {
            add("snapshots", info.snapshot_values().iter().map(json_of).collect());
        }
        add("virtual-size", self.length.into());
        add("filename", self.file_name.as_str().into());
        if let Some(info) = qcow2 {
            add("cluster-size", info.header.geometry.cluster_size().into());
        }
        add("format", self.driver.into());
        if let Some(bytes) = self.disk_size {
            add("actual-size", bytes.into());
        }
        if matches!(self.driver, "file" | "host_device") {
            add("format-specific", json!({ "type": "file", "data": {} }));
        }
        if let Some(structure) = structure {
            add("format-specific", json!({ "type": self.driver, "data": json_of(&structure.specific) }));
            if let Some((name, path)) = &structure.backing {
                add("full-backing-filename", path.as_str().into());
                add("backing-filename", name.as_str().into());
            }
            if structure.is_encrypted {
                add("encrypted", true.into());
            }
        }
        if self.has_flags {
            add("dirty-flag", structure.is_some_and(Structure::is_dirty).into());
        }
        map
    }
}

/// What the node's image says of itself, if it has a structure.
async fn structure(gs: &GlobalState, node: &NodeRef) -> GraphResult<Option<Structure>> {
    if let Ok(specific) = gs.with_control(node, |image: &mut LuksImage| image.specific()) {
        return Ok(Some(Structure { specific, is_encrypted: true, qcow2: None, backing: None }));
    }
    let Ok(control) = gs.with_control(node, |control: &mut Qcow2Control| control.clone()) else { return Ok(None) };
    let ask = |req| async move { Ok(control.info(&req).await) };
    let info = gs.run_beside(node, "Could not read the qcow2 header", ask).await?;
    let info = info.map_err(|error| GraphError::Open(error.to_string()))?;
    let luks = LuksHeader::within(gs, node).await?;
    let backing = info.header.backing_file.as_deref().map(|name| {
        let name = String::from_utf8_lossy(name).into_owned();
        let path = full_backing_name(gs, node, &name);
        (name, path)
    });
    let (specific, is_encrypted) = (qcow2_specific(&info, luks.as_ref()), info.is_encrypted());
    Ok(Some(Structure { specific, is_encrypted, qcow2: Some(info), backing }))
}

/// How many bytes the host has allocated for a node, where that is told, and whether it tells more of itself than its length.
type Storage = (Option<u64>, bool);

/// Tells of several images of one graph, and finds nothing twice: what is below one of them is below others as well. It tells what was so when it first looked.
pub struct ImageTeller<'a> {
    gs: &'a GlobalState,
    names: Names,
    storages: HashMap<String, Storage>,
    images: HashMap<String, Rc<ImageTold>>,
}

impl<'a> ImageTeller<'a> {
    /// One that knows nothing yet.
    pub fn new(gs: &'a GlobalState) -> Self {
        Self { gs, names: Names::new(), storages: HashMap::new(), images: HashMap::new() }
    }

    /// The graph.
    pub fn gs(&self) -> &'a GlobalState {
        self.gs
    }

    /// See [`file_name`].
    ///
    /// # Errors
    /// The node is gone.
    pub fn file_name(&mut self, node: &NodeRef) -> GraphResult<String> {
        name_of(self.gs, node, &mut self.names)
    }

    /// See [`ImageTold::of`].
    ///
    /// # Errors
    /// The node is gone, or what it says of itself cannot be read any more.
    pub async fn image(&mut self, node: &NodeRef) -> GraphResult<Rc<ImageTold>> {
        if let Some(known) = self.images.get(node.name()) {
            return Ok(known.clone());
        }
        let told = Rc::new(self.find(node).await?);
        self.images.insert(node.name().to_owned(), told.clone());
        Ok(told)
    }

    async fn find(&mut self, node: &NodeRef) -> GraphResult<ImageTold> {
        let info = self.gs.node_info(node)?;
        let (disk_size, has_flags) = self.storage(node).await?;
        Ok(ImageTold {
            file_name: self.file_name(node)?,
            driver: info.driver,
            length: info.length.next_multiple_of(SECTOR),
            disk_size,
            has_flags,
            structure: structure(self.gs, node).await?.map(Box::new),
        })
    }

    fn storage<'b>(&'b mut self, node: &'b NodeRef) -> Pin<Box<dyn Future<Output = GraphResult<Storage>> + 'b>> {
        Box::pin(async move {
            if let Some(known) = self.storages.get(node.name()) {
                return Ok(*known);
            }
            let storage = self.find_storage(node).await?;
            self.storages.insert(node.name().to_owned(), storage);
            Ok(storage)
        })
    }

    async fn find_storage(&mut self, node: &NodeRef) -> GraphResult<Storage> {
        let info = self.gs.node_info(node)?;
        let mut of_children = Vec::new();
        let own = |edge: &str| edge != ChildName::BACKING.as_str();
        for (_, child, _) in info.children.iter().filter(|(edge, ..)| own(edge)) {
            if let Some(child) = child {
                of_children.push(self.storage(&self.gs.find_node(child)?).await?);
            }
        }
        let first = of_children.first().copied();
        let has_flags = match (info.driver, first) {
            ("qcow2", _) => true,
            ("quorum", _) => false,
            (_, Some((_, has_flags))) => has_flags,
            (driver, None) => matches!(driver, "file" | "host_device"),
        };
        let disk_size = match (info.driver, first) {
            // They stand for any disk, whose size is not told.
            ("blkdebug" | "blkverify", _) => None,
            // The image is in all of them.
            ("luks" | "qcow2" | "quorum", Some(_)) => {
                let sizes = of_children.iter().map(|(size, _)| *size);
                sizes.reduce(|all, size| Some(all? + size?)).flatten()
            }
            (_, Some((size, _))) => size,
            // Where nobody can tell, nothing is.
            (_, None) => Some(self.gs.allocated_size(node).await.unwrap_or(0)),
        };
        Ok((disk_size, has_flags))
    }
}

impl fmt::Debug for ImageTeller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageTeller({} images)", self.images.len())
    }
}
