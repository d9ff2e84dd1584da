//! Snapshots of live nodes: overlays, snapshots inside images, and what an image says it stands on.
//!
//! The commands that are actions of transactions as well are transactions of one.

use super::Call;
use super::transaction::{self, Action};
use crate::error::{QmpError, QmpResult};
use block_backend::Backend;
use block_common::{OptionReader, OptionsError, qapi_enum};
use block_drivers::{LiveError, SnapshotInfo, change_backing_file, check_device, delete_snapshot};
use block_gs::{GlobalState, NodeRef};
use serde_json::json;

qapi_enum! {
    /// What is there of an overlay before.
    pub(super) enum NewImageMode: "mode" {
        /// All of it.
        Existing = "existing",
        /// Nothing: it is made, and names what it stands on.
        AbsolutePaths = "absolute-paths",
    }
}

/// The arguments of `blockdev-snapshot`.
pub(super) struct Put {
    pub(super) node: String,
    pub(super) overlay: String,
}

/// The arguments of `blockdev-snapshot-sync`.
pub(super) struct Sync {
    pub(super) device: Option<String>,
    pub(super) node: Option<String>,
    pub(super) file: String,
    pub(super) overlay: Option<String>,
    pub(super) format: String,
    pub(super) mode: NewImageMode,
}

/// The arguments of `blockdev-snapshot-internal-sync`.
pub(super) struct Internal {
    pub(super) device: String,
    pub(super) name: String,
}

impl Put {
    pub(super) fn take(from: &mut OptionReader) -> Result<Self, OptionsError> {
        Ok(Self { node: from.require_str("node")?, overlay: from.require_str("overlay")? })
    }
}

impl Sync {
    pub(super) fn take(from: &mut OptionReader) -> Result<Self, OptionsError> {
        Ok(Self {
            device: from.take_str("device")?,
            node: from.take_str("node-name")?,
            file: from.require_str("snapshot-file")?,
            overlay: from.take_str("snapshot-node-name")?,
            format: from.take_str("format")?.unwrap_or_else(|| "qcow2".into()),
            mode: from.take_enum("mode")?.unwrap_or(NewImageMode::AbsolutePaths),
        })
    }
}

impl Internal {
    pub(super) fn take(from: &mut OptionReader) -> Result<Self, OptionsError> {
        Ok(Self { device: from.require_str("device")?, name: from.require_str("name")? })
    }
}

/// The medium of the backend that was found as `name`.
fn medium(backend: &Backend, name: &str) -> Result<NodeRef, QmpError> {
    backend.node().ok_or_else(|| QmpError::new(format!("Device '{name}' has no medium")))
}

/// What is called `name` where an argument may be a device or a node: the node, or the device's medium, unless it is empty. Names of backends come first, as in
/// the field; ids of devices, which these arguments do not take there, come last: they hide no node. `None` if there is neither.
pub(super) fn lookup(gs: &GlobalState, name: &str) -> Option<Result<NodeRef, QmpError>> {
    if let Some(backend) = Backend::find(gs, name) {
        return Some(medium(&backend, name));
    }
    let device = || Backend::find_device(gs, name).map(|backend| medium(&backend, name));
    gs.find_node(name).ok().map(Ok).or_else(device)
}

/// The node that is called `name`, or the medium of the device that is.
///
/// # Errors
/// There is neither; the device is empty.
pub(super) fn device_or_node(gs: &GlobalState, name: &str) -> Result<NodeRef, QmpError> {
    lookup(gs, name).unwrap_or_else(|| Ok(gs.find_node(name)?))
}

/// The node of a command that takes a device's name (a backend's, or else a device's id), or a node's. The device's is the one that counts if it is there.
///
/// # Errors
/// There is neither; the device is empty.
pub(super) fn of_two(gs: &GlobalState, device: Option<&str>, node: Option<&str>) -> Result<NodeRef, QmpError> {
    let (device, node) = (device.unwrap_or_default(), node.unwrap_or_default());
    if let Some(backend) = Backend::find(gs, device).or_else(|| Backend::find_device(gs, device)) {
        return medium(&backend, device);
    }
    let missing = |_| QmpError::new(format!("Cannot find device='{device}' nor node-name='{node}'"));
    gs.find_node(node).map_err(missing)
}

pub(super) async fn put(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let put = Put::take(&mut call.arguments)?;
    call.finish()?;
    transaction::carry_out(&gs, vec![Action::Overlay(put)], false).await
}

pub(super) async fn sync(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let sync = Sync::take(&mut call.arguments)?;
    call.finish()?;
    transaction::carry_out(&gs, vec![Action::Sync(sync)], false).await
}

pub(super) async fn internal(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let internal = Internal::take(&mut call.arguments)?;
    call.finish()?;
    transaction::carry_out(&gs, vec![Action::Internal(internal)], false).await
}

pub(super) async fn delete_internal(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let device = call.arguments.require_str("device")?;
    let (id, name) = (call.arguments.take_str("id")?, call.arguments.take_str("name")?);
    call.finish()?;
    let node = device_or_node(&gs, &device)?;
    let deleted: Result<SnapshotInfo, LiveError> =
        gs.mutate(move |gs| async move { delete_snapshot(&gs, &node, id, name).await }).await;
    let snapshot = deleted?;
    let clock = snapshot.vm_clock_nanoseconds;
    let mut told = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date.0,
        "date-nsec": snapshot.date.1,
        "vm-clock-sec": clock / 1_000_000_000,
        "vm-clock-nsec": clock % 1_000_000_000,
    });
    if let (Some(icount), Some(told)) = (snapshot.icount, told.as_object_mut()) {
        told.insert("icount".into(), icount.into());
    }
    Ok(told)
}

pub(super) async fn change_backing(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let device = call.arguments.require_str("device")?;
    let image = call.arguments.require_str("image-node-name")?;
    let name = call.arguments.require_str("backing-file")?;
    call.finish()?;
    let device = device_or_node(&gs, &device)?;
    check_device(&gs, &device)?;
    let image = of_two(&gs, None, Some(&image))?;
    gs.mutate(move |gs| async move { change_backing_file(&gs, &device, &image, &name).await }).await?;
    Ok(json!({}))
}
