//! Snapshots of live nodes: inside their images, and images to be put on top of them.
//!
//! Snapshots inside an image are taken and deleted while nothing else is in flight on its node. An overlay's image is made and opened here, and put on top elsewhere
//! ([`GlobalState::change_all`]): nothing that is done here changes what anybody reads.

use crate::create::{CreateError, NewImage};
use crate::image::{ImageOptions, open_image};
use block_common::options::{Dialect, Value};
use block_common::{CacheFlags, ChildName, FileName, IoError, OpType, Options};
use block_gs::{GlobalState, GraphError, LeftOut, NodeInfo, NodeRef};
use block_io::Req;
use block_qcow2::{NewSnapshot, Qcow2Control, SnapshotFailure};
use block_qcow2_format::Snapshot;
use std::future::Future;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is told of a snapshot inside an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id, unique within the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken: seconds and nanoseconds since 1970.
    pub date: (u32, u32),
    /// How long the machine had run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Bytes of the machine's state that it has.
    pub vm_state_size: u64,
    /// Instructions that the machine had executed, where they were counted.
    pub icount: Option<u64>,
}

impl From<&Snapshot> for SnapshotInfo {
    fn from(snapshot: &Snapshot) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            id: text(&snapshot.id),
            name: text(&snapshot.name),
            date: (snapshot.date_seconds, snapshot.date_nanoseconds),
            vm_clock_nanoseconds: snapshot.vm_clock_nanoseconds,
            vm_state_size: snapshot.vm_state_size,
            icount: snapshot.icount,
        }
    }
}

/// Why a snapshot was not taken or deleted, or an overlay not made, in the field's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// Other nodes use this one: it shows no disk by itself.
    #[error("Need a root block node")]
    NotRoot,
    /// The node is only read.
    #[error("Device '{0}' is read only")]
    ReadOnly(String),
    /// The format has no place for snapshots.
    #[error("Block format '{format}' used by device '{node}' does not support internal snapshots")]
    NoSnapshots {
        /// The format.
        format: String,
        /// The node.
        node: String,
    },
    /// The format has no place for snapshots, and so no list of them.
    #[error("Failed to get a snapshot list: {0}")]
    NoList(block_common::Errno),
    /// A snapshot without a name.
    #[error("Name is empty")]
    NoName,
    /// Neither is given.
    #[error("Name or id must be provided")]
    NoKey,
    /// There is one already.
    #[error("Snapshot with name '{name}' already exists on device '{node}'")]
    Exists {
        /// The snapshot.
        name: String,
        /// The node.
        node: String,
    },
    /// There is none.
    #[error("Snapshot with id '{}' and name '{}' does not exist on device '{node}'", or_null(.id), or_null(.name))]
    NotThere {
        /// The id that was asked for.
        id: Option<String>,
        /// The name that was asked for.
        name: Option<String>,
        /// The node.
        node: String,
    },
    /// The image refused.
    #[error("Failed to {doing} snapshot '{name}' on device '{node}': {why}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The snapshot.
        name: String,
        /// The node.
        node: String,
        /// Why not.
        why: SnapshotFailure,
    },
    /// What the node shows is not what a file shows by its name: nothing could be written into the overlay that leads back to it.
    #[error(
        "Node '{0}' has no file name of its own that an overlay could keep; create the overlay and use mode 'existing'"
    )]
    NoFileName(String),
    /// The overlay cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The graph has something against it.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

fn or_null(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("null")
}

/// Seconds and nanoseconds since 1970.
fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos())
}

/// Run `work` with nothing else in flight on `node`.
async fn drained<T: Send + 'static, F: Future<Output = Result<T, SnapshotFailure>> + Send + 'static>(
    gs: &GlobalState,
    node: &NodeRef,
    work: impl FnOnce(Req) -> F,
) -> Result<Result<T, SnapshotFailure>, GraphError> {
    let run = |req| {
        let work = work(req);
        async move { Ok(work.await) }
    };
    gs.run_drained(&gs.skip_filters(node), "Could not change the snapshots", run).await
}

/// Of a filter's image, that of what it filters.
fn control(gs: &GlobalState, node: &NodeRef) -> Option<Qcow2Control> {
    gs.with_control(&gs.skip_filters(node), |control: &mut Qcow2Control| control.clone()).ok()
}

async fn list(gs: &GlobalState, node: &NodeRef, control: &Qcow2Control) -> Result<Vec<Snapshot>, LiveError> {
    let control = control.clone();
    let found = drained(gs, node, |req| async move { control.snapshots(&req).await }).await?;
    found.map_err(|error| LiveError::NoList(error.errno()))
}

/// Whether a snapshot called `name` may be taken in the image of `node`, as far as that can be said without its list of them.
///
/// # Errors
/// As [`take_snapshot`].
#[doc(alias = "bdrv_can_snapshot")]
pub fn check_snapshot(gs: &GlobalState, node: &NodeRef, name: &str) -> Result<(), LiveError> {
    check_root(gs, node)?;
    gs.check_op(node, OpType::InternalSnapshot)?;
    if node.io().is_read_only() {
        return Err(LiveError::ReadOnly(node.name().into()));
    }
    if control(gs, node).is_none() {
        let format = node.io().driver().unwrap_or_default().into();
        return Err(LiveError::NoSnapshots { format, node: node.name().into() });
    }
    if name.is_empty() { Err(LiveError::NoName) } else { Ok(()) }
}

fn check_root(gs: &GlobalState, node: &NodeRef) -> Result<(), LiveError> {
    if gs.has_parent_node(node) { Err(LiveError::NotRoot) } else { Ok(()) }
}

/// Take a snapshot called `name` inside the image of `node`, with all that was written to it so far. Returns its id.
///
/// # Errors
/// [`LiveError`]; the image is as it was then.
pub async fn take_snapshot(gs: &GlobalState, node: &NodeRef, name: &str) -> Result<String, LiveError> {
    check_snapshot(gs, node, name)?;
    let Some(control) = control(gs, node) else { return Err(LiveError::NotRoot) };
    if list(gs, node, &control).await?.iter().any(|snapshot| snapshot.name == name.as_bytes()) {
        return Err(LiveError::Exists { name: name.into(), node: node.name().into() });
    }
    let date = now();
    // Without a machine, its clock is the host's.
    let vm_clock_nanoseconds = u64::from(date.0) * 1_000_000_000 + u64::from(date.1);
    let name_bytes = name.as_bytes().to_vec();
    let new = NewSnapshot { name: name_bytes, date, vm_clock_nanoseconds, icount: None, ..NewSnapshot::default() };
    let taking = control.clone();
    let taken = drained(gs, node, |req| async move { taking.create_snapshot(&req, new).await }).await?;
    let failed = |why| LiveError::Failed { doing: "create", name: name.into(), node: node.name().into(), why };
    taken.map_err(failed)?;
    let found = list(gs, node, &control).await?;
    let id =
        found.iter().find(|snapshot| snapshot.name == name.as_bytes()).map(|snapshot| SnapshotInfo::from(snapshot).id);
    Ok(id.unwrap_or_default())
}

/// Delete the snapshot inside the image of `node` that has this id and this name, as far as they are given. Returns what it was.
///
/// # Errors
/// [`LiveError`]; the image is as it was then.
pub async fn delete_snapshot(
    gs: &GlobalState,
    node: &NodeRef,
    id: Option<String>,
    name: Option<String>,
) -> Result<SnapshotInfo, LiveError> {
    check_root(gs, node)?;
    gs.check_op(node, OpType::InternalSnapshotDelete)?;
    if id.is_none() && name.is_none() {
        return Err(LiveError::NoKey);
    }
    let control = control(gs, node).ok_or(LiveError::NoList(block_common::Errno::ENOTSUP))?;
    let fits = |wanted: &Option<String>, is: &[u8]| wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == is);
    let found = list(gs, node, &control).await?;
    let found = found.iter().find(|snapshot| fits(&id, &snapshot.id) && fits(&name, &snapshot.name));
    let Some(snapshot) = found else {
        return Err(LiveError::NotThere { id, name, node: node.name().into() });
    };
    let (told, key) = (SnapshotInfo::from(snapshot), snapshot.id.clone());
    let failed = |why| LiveError::Failed { doing: "delete", name: told.name.clone(), node: node.name().into(), why };
    if node.io().is_read_only() {
        return Err(failed(SnapshotFailure::Io(IoError::READ_ONLY)));
    }
    let deleted = drained(gs, node, |req| async move { control.delete_snapshot(&req, &key).await }).await?;
    deleted.map_err(failed)?;
    Ok(told)
}

/// An image that is to be put on top of a node.
#[derive(Clone, Debug)]
pub struct Overlay {
    /// The name of its file.
    pub file: String,
    /// Its format.
    pub format: String,
    /// The name of its node; without it, one is made up.
    pub node_name: Option<String>,
    /// Whether the image is there already; otherwise it is created, as large as the node and with the node's file as its backing file.
    pub is_there: bool,
    /// The name of the file that it stands on, where the node does not tell it yet.
    pub base_name: Option<String>,
}

/// Make the overlay's image, if it is to be made, and open it, with the cache mode of `base` and with nothing below it yet. The node goes unless somebody holds it.
///
/// # Errors
/// [`LiveError`]. A file that was created may be left then, as in the field.
pub async fn open_overlay(gs: &GlobalState, base: &NodeRef, overlay: &Overlay) -> Result<NodeRef, LiveError> {
    let info = gs.node_info(base)?;
    if !overlay.is_there {
        let mut new = NewImage::parse(gs, &overlay.format, &overlay.file, "").await?;
        // What cannot have a backing file is refused for that, whatever the node is called.
        new.set_backing(Some(""), None)?;
        let name = overlay.base_name.clone().or_else(|| file_name_of(gs, base));
        let name = name.ok_or_else(|| LiveError::NoFileName(base.name().into()))?;
        if name == overlay.file {
            return Err(CreateError::BackingSelf.into());
        }
        new.set_backing(Some(&name), Some(info.driver))?;
        new.set_size(base.io().length());
        new.create(gs).await?;
    }
    let flag = |key: &str| match info.options.lookup("cache") {
        Some(Value::Dict(cache)) => cache.lookup(key).map(text).is_some_and(|value| value == "on"),
        _ => false,
    };
    let cache = CacheFlags { direct: flag("direct"), no_flush: flag("no-flush"), ..CacheFlags::default() };
    let unmap = info.options.lookup("discard").map(text).is_some_and(|value| value == "unmap" || value == "on");
    let own = overlay.node_name.iter().map(|name| ("node-name", name.clone())).collect();
    let format = Some(overlay.format.clone());
    let how = ImageOptions { format, cache, unmap, own, alone: true, ..ImageOptions::default() };
    Ok(open_image(gs, &overlay.file, &how).await?)
}

/// A value as a command line has it.
fn text(value: &Value) -> String {
    match value {
        Value::Str(text) => text.clone(),
        Value::Bool(true) => "on".into(),
        Value::Bool(false) => "off".into(),
        other => other.to_string(),
    }
}

/// The name of the file that shows the same as `node` if it is opened with nothing but the node's format. `None` where it takes more: where the node is a filter,
/// or a window, or stands on another backing file than its image names. Such a name is the only one that an image of ours names: others would open nothing (rule trust-2).
pub fn file_name_of(gs: &GlobalState, node: &NodeRef) -> Option<String> {
    let info = gs.node_info(node).ok()?;
    match info.driver {
        "file" | "host_device" => info.options.lookup("filename").map(text),
        "raw" if ["offset", "size"].iter().all(|key| !info.options.contains_key(key)) => child_name(gs, &info, "file"),
        "luks" if info.children.len() == 1 => child_name(gs, &info, "file"),
        "qcow2" => {
            let name = child_name(gs, &info, "file")?;
            let named = gs.with_control(node, |control: &mut Qcow2Control| control.header()).ok()?.backing_file;
            let below = info.children.iter().find(|(edge, ..)| edge == ChildName::BACKING.as_str());
            let is_as_named = match (below.and_then(|(_, child, _)| child.as_ref()), named) {
                (None, None) => true,
                (Some(_), Some(named)) => {
                    let stands_on = child_name(gs, &info, ChildName::BACKING.as_str())?;
                    is_same_file(&beside(&name, &String::from_utf8(named).ok()?), &stands_on)
                }
                _ => false,
            };
            is_as_named.then_some(name)
        }
        _ => None,
    }
}

fn child_name(gs: &GlobalState, info: &NodeInfo, edge: &str) -> Option<String> {
    let (_, child, _) = info.children.iter().find(|(name, ..)| name == edge)?;
    file_name_of(gs, &gs.find_node(child.as_ref()?).ok()?)
}

/// Where a name leads that stands in the image called `image`.
fn beside(image: &str, named: &str) -> String {
    let path = match FileName::stored_in_image(named) {
        FileName::Path(path) => path,
        _ => named.to_owned(),
    };
    match Path::new(image).parent() {
        Some(folder) => folder.join(path).to_string_lossy().into_owned(),
        None => path,
    }
}

fn is_same_file(one: &str, other: &str) -> bool {
    let absolute = |name: &str| std::path::absolute(name).ok();
    one == other || (absolute(one).is_some() && absolute(one) == absolute(other))
}

/// Why an image does not say from now on that it stands on another file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenameError {
    /// Other nodes use the device: it shows no disk by itself.
    #[error("Need a root block node")]
    NotRoot,
    /// The image stands on nothing.
    #[error("not allowing backing file change on an image without a backing file")]
    NoBacking,
    /// The device does not stand on the image.
    #[error("'{0}' and image file are not in the same chain")]
    OtherChain(String),
    /// The image refused.
    #[error("Could not change backing file to '{name}': {why}")]
    Refused {
        /// The name that was to be.
        name: String,
        /// Why not.
        why: block_common::Errno,
    },
    /// The graph has something against it.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// Let `image`, which `device` stands on or is, say that it stands on the file called `name`, of the format that it stands on now; or on nothing, if that is empty. What it
/// does stand on stays. An image that is only read is open for writing meanwhile. Within a mutation.
///
/// # Errors
/// [`RenameError`]; the image says what it said before then.
pub async fn change_backing_file(
    gs: &GlobalState,
    device: &NodeRef,
    image: &NodeRef,
    name: &str,
) -> Result<(), RenameError> {
    let Some(below) = stands_on(gs, image) else { return Err(RenameError::NoBacking) };
    let chain = std::iter::successors(Some(device.clone()), |node| below_in_chain(gs, node));
    if !chain.into_iter().any(|node| node.same(image)) {
        return Err(RenameError::OtherChain(device.name().into()));
    }
    gs.check_op(image, OpType::Change)?;
    let refused = |why| RenameError::Refused { name: name.into(), why };
    let control = gs.with_control(image, |control: &mut Qcow2Control| control.clone());
    let control = control.map_err(|_| refused(block_common::Errno::ENOTSUP))?;
    let format = gs.skip_filters(&below).io().driver().unwrap_or_default().as_bytes().to_vec();
    let backing = (!name.is_empty()).then(|| (name.as_bytes().to_vec(), Some(format)));
    let is_fixed = image.io().is_read_only();
    if is_fixed {
        set_read_only(gs, image, false).await?;
    }
    let change = |req| async move { Ok(control.change_backing(&req, backing).await) };
    let changed = gs.run_drained(image, "Could not change backing file", change).await;
    if is_fixed {
        set_read_only(gs, image, true).await?;
    }
    changed?.map_err(|error| refused(error.errno()))
}

/// Whether `node` may be called a device: no node uses it.
///
/// # Errors
/// [`RenameError::NotRoot`].
pub fn check_device(gs: &GlobalState, node: &NodeRef) -> Result<(), RenameError> {
    check_root(gs, node).map_err(|_| RenameError::NotRoot)
}

async fn set_read_only(gs: &GlobalState, node: &NodeRef, read_only: bool) -> Result<(), GraphError> {
    let mut options = Options::new(Dialect::Qmp);
    options.insert("read-only", read_only)?;
    gs.reopen_in_mutation(vec![(node.clone(), options)], LeftOut::Stays).await
}

/// What a node's data, or that of what it filters, stands on.
fn stands_on(gs: &GlobalState, node: &NodeRef) -> Option<NodeRef> {
    gs.child(&gs.skip_filters(node), ChildName::BACKING.as_str()).ok().flatten()
}

/// What is next on the way down through filters and backing files.
fn below_in_chain(gs: &GlobalState, node: &NodeRef) -> Option<NodeRef> {
    let backing = gs.child(node, ChildName::BACKING.as_str()).ok().flatten();
    let is_filter = !gs.skip_filters(node).same(node);
    backing.or_else(|| gs.primary_child(node).ok().flatten().filter(|_| is_filter))
}
