//! What an operator does with media: opens and closes trays, takes a medium out, puts another one in. Each step is refused where a person at the machine
//! could not do it, either.
//!
//! The words are those of the field's monitor, whose users wait for them.

use crate::{Backend, BackendError};
use block_common::OpType;
use block_gs::{GlobalState, GraphError, NodeRef};

/// Why a medium stayed where it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// Its device's medium is part of it.
    #[error("Device '{0}' is not removable")]
    NotRemovable(String),
    /// The same, of a device that is to take one.
    #[error("Device is not removable")]
    TakesNone,
    /// The guest does not want to give the medium away. It has been asked to.
    #[error("Device '{0}' is locked and force was not specified, wait for tray to open and try again")]
    Locked(String),
    /// A medium can only be taken out of an open tray.
    #[error("Tray of device '{0}' is not open")]
    TrayClosed(String),
    /// A medium can only be put into an open tray.
    #[error("Tray of the device is not open")]
    ClosedToMedia,
    /// There is a medium in it.
    #[error("There already is a medium in the device")]
    Occupied,
    /// The node is another device's medium.
    #[error("Node '{0}' is already in use")]
    InUse(String),
    /// The device does not take the medium.
    #[error("{0}")]
    Refused(String),
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<GraphError> for MediaError {
    fn from(error: GraphError) -> Self {
        Self::Backend(error.into())
    }
}

/// One without a device is a drive that nobody uses yet, from which a medium can be taken.
fn has_removable_media(backend: &Backend) -> bool {
    backend.device().is_none_or(|device| device.has_removable_media())
}

fn has_tray(backend: &Backend) -> bool {
    backend.device().is_some_and(|device| device.has_tray())
}

fn removable(backend: &Backend) -> Result<(), MediaError> {
    has_removable_media(backend).then_some(()).ok_or_else(|| MediaError::NotRemovable(backend.label()))
}

/// Open the tray. A device without one, or whose tray is open, is left as it is. A guest that has locked the medium is asked for it; with `force` its lock is over.
///
/// # Errors
/// [`MediaError::NotRemovable`], [`MediaError::Locked`].
#[doc(alias = "qmp_blockdev_open_tray")]
pub fn open_tray(backend: &Backend, force: bool) -> Result<(), MediaError> {
    removable(backend)?;
    let Some(device) = backend.device().filter(|device| device.has_tray()) else { return Ok(()) };
    let io = backend.io();
    if io.is_tray_open() {
        return Ok(());
    }
    let was_locked = io.is_medium_locked();
    if was_locked {
        device.eject_requested(force);
    }
    if was_locked && !force {
        return Err(MediaError::Locked(backend.label()));
    }
    device.media_changed(false).map_err(MediaError::Refused)
}

/// Close the tray. A device without one, or whose tray is closed, is left as it is.
///
/// # Errors
/// [`MediaError::NotRemovable`], [`MediaError::Refused`] by the device, for the medium that is in it.
pub fn close_tray(backend: &Backend) -> Result<(), MediaError> {
    removable(backend)?;
    let Some(device) = backend.device().filter(|device| device.has_tray()) else { return Ok(()) };
    if !backend.io().is_tray_open() {
        return Ok(());
    }
    device.media_changed(true).map_err(MediaError::Refused)
}

/// Take the medium out of an open tray, or of a device without one. Nothing happens where there is none.
///
/// # Errors
/// [`MediaError::NotRemovable`], [`MediaError::TrayClosed`], or an operation that is under way on the medium.
pub async fn remove_medium(backend: &Backend) -> Result<(), MediaError> {
    removable(backend)?;
    if has_tray(backend) && !backend.io().is_tray_open() {
        return Err(MediaError::TrayClosed(backend.label()));
    }
    if backend.node().is_none() {
        return Ok(());
    }
    backend.check_op(OpType::Eject)?;
    backend.remove().await?;
    match backend.device().filter(|device| !device.has_tray()) {
        // Where there is a tray, the guest saw it open.
        Some(device) => device.media_changed(false).map_err(MediaError::Refused),
        None => Ok(()),
    }
}

/// Put `node` into an open tray, or into a device without one.
///
/// # Errors
/// [`MediaError::InUse`], [`MediaError::TakesNone`], [`MediaError::ClosedToMedia`], [`MediaError::Occupied`], or a permission conflict with the node's other users. The
/// device is empty then, as before.
pub async fn insert_medium(gs: &GlobalState, backend: &Backend, node: &NodeRef) -> Result<(), MediaError> {
    if gs.has_backend(node) {
        return Err(MediaError::InUse(node.name().to_owned()));
    }
    insert(gs, backend, node).await
}

async fn insert(gs: &GlobalState, backend: &Backend, node: &NodeRef) -> Result<(), MediaError> {
    if !has_removable_media(backend) {
        return Err(MediaError::TakesNone);
    }
    if has_tray(backend) && !backend.io().is_tray_open() {
        return Err(MediaError::ClosedToMedia);
    }
    if backend.node().is_some() {
        return Err(MediaError::Occupied);
    }
    if let Some(perm) = backend.device().and_then(|device| device.perm(is_read_only(gs, node))) {
        backend.set_perm(perm)?;
    }
    match backend.insert(node).await {
        Err(BackendError::Occupied(_)) => return Err(MediaError::Occupied),
        other => other?,
    }
    let Some(device) = backend.device().filter(|device| !device.has_tray()) else { return Ok(()) };
    if let Err(refused) = device.media_changed(true) {
        backend.remove().await?;
        return Err(MediaError::Refused(refused));
    }
    Ok(())
}

fn is_read_only(gs: &GlobalState, node: &NodeRef) -> bool {
    gs.node_info(node).is_ok_and(|info| info.read_only)
}

/// Open the tray and take the medium out.
///
/// # Errors
/// As [`open_tray`] and [`remove_medium`].
pub async fn eject(backend: &Backend, force: bool) -> Result<(), MediaError> {
    open_tray(backend, force)?;
    remove_medium(backend).await
}

/// Put `node` in place of the medium that is there: the tray opens and closes for that. When the new one cannot be put in, the tray is open and empty.
///
/// # Errors
/// As the steps by themselves.
pub async fn change_medium(gs: &GlobalState, backend: &Backend, node: &NodeRef, force: bool) -> Result<(), MediaError> {
    eject(backend, force).await?;
    insert(gs, backend, node).await?;
    close_tray(backend)
}
