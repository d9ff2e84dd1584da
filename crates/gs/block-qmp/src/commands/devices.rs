//! Devices that are stood for, their media, their limits, and what is counted of them.

use super::Call;
use super::{nodes, queries};
use crate::error::{ErrorClass, QmpError, QmpResult};
use block_backend::{
    Backend, FrontEnd, FrontEndError, GuestAct, MediaError, change_medium, close_tray, eject, insert_medium, open_tray,
    remove_medium,
};
use block_backend_io::{AcctKind, BadBoundaries};
use block_common::{CacheFlags, OptionReader, QapiEnum as _, qapi_enum};
use block_drivers::{ImageOptions, ImageTeller, open_image};
use block_gs::GlobalState;
use block_throttle::{LimitKind, LimitSettings, LimitsError, ThrottleLimits};
use serde_json::{Map, Value, json};

qapi_enum! {
    /// Whether a new medium may be written to.
    enum ReadOnlyMode: "read-only mode" {
        /// As the one before.
        Retain = "retain",
        /// It may not.
        ReadOnly = "read-only",
        /// It may.
        ReadWrite = "read-write",
    }
}

qapi_enum! {
    /// What a guest does with its drive.
    enum Act: "act" {
        /// It locks the medium in.
        Lock = "lock",
        /// It unlocks it.
        Unlock = "unlock",
        /// It opens the tray.
        OpenTray = "open-tray",
        /// It closes it.
        CloseTray = "close-tray",
    }
}

fn not_found(name: &str) -> QmpError {
    QmpError::of(ErrorClass::DeviceNotFound, format!("Device '{name}' not found"))
}

/// A backend as arguments name it: by its own name, or by its device's.
struct Named {
    device: Option<String>,
    id: Option<String>,
}

impl Named {
    fn take(arguments: &mut OptionReader) -> Result<Self, QmpError> {
        Ok(Self { device: arguments.take_str("device")?, id: arguments.take_str("id")? })
    }

    /// The backend, and that name. To be asked when all arguments were read: what is wrong with these is told first.
    fn find(self, gs: &GlobalState) -> Result<(Backend, String), QmpError> {
        match (self.device, self.id) {
            (Some(name), None) => Ok((Backend::find(gs, &name).ok_or_else(|| not_found(&name))?, name)),
            (None, Some(id)) => by_id(gs, id),
            _ => Err(QmpError::new("Need exactly one of 'device' and 'id'")),
        }
    }
}

fn by_id(gs: &GlobalState, id: String) -> Result<(Backend, String), QmpError> {
    Ok((Backend::find_device(gs, &id).ok_or_else(|| not_found(&id))?, id))
}

fn done<E: Into<QmpError>>(result: Result<(), E>) -> QmpResult {
    result.map_err(Into::into)?;
    Ok(json!({}))
}

impl From<MediaError> for QmpError {
    fn from(error: MediaError) -> Self {
        Self::new(error.to_string().lines().next().unwrap_or_default())
    }
}

impl From<FrontEndError> for QmpError {
    fn from(error: FrontEndError) -> Self {
        Self::new(error.to_string().lines().next().unwrap_or_default())
    }
}

impl From<LimitsError> for QmpError {
    fn from(error: LimitsError) -> Self {
        Self::new(error.to_string())
    }
}

pub(super) async fn add(call: Call) -> QmpResult {
    let gs = call.gs();
    FrontEnd::open(&gs, call.arguments).await?;
    Ok(json!({}))
}

pub(super) async fn delete(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("id")?;
    call.finish()?;
    FrontEnd::find(&gs, &id).ok_or_else(|| not_found(&id))?.remove(&gs).await;
    // Whoever waits for that hears of it by an event, as of a device whose guest has a say in it.
    gs.event_sender().send(block_gs::Event::DeviceDeleted { device: id });
    Ok(json!({}))
}

pub(super) async fn guest(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("id")?;
    let act = call.arguments.require_enum::<Act>("act")?;
    call.finish()?;
    let act = match act {
        Act::Lock => GuestAct::Lock,
        Act::Unlock => GuestAct::Unlock,
        Act::OpenTray => GuestAct::Open,
        Act::CloseTray => GuestAct::Close,
    };
    done(FrontEnd::find(&gs, &id).ok_or_else(|| not_found(&id))?.act(act))
}

pub(super) async fn open(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let named = Named::take(&mut call.arguments)?;
    let force = call.arguments.take_bool("force")?.unwrap_or(false);
    call.finish()?;
    let (backend, _) = named.find(&gs)?;
    done(open_tray(&backend, force))
}

pub(super) async fn close(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let named = Named::take(&mut call.arguments)?;
    call.finish()?;
    let (backend, _) = named.find(&gs)?;
    done(close_tray(&backend))
}

pub(super) async fn remove(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("id")?;
    call.finish()?;
    let (backend, _) = by_id(&gs, id)?;
    done(remove_medium(&backend).await)
}

pub(super) async fn insert(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("id")?;
    let name = call.arguments.require_str("node-name")?;
    call.finish()?;
    let (backend, _) = by_id(&gs, id)?;
    let node = gs.find_node(&name).map_err(|_| QmpError::new(format!("Node '{name}' not found")))?;
    done(insert_medium(&gs, &backend, &node).await)
}

pub(super) async fn eject_medium(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let named = Named::take(&mut call.arguments)?;
    let force = call.arguments.take_bool("force")?.unwrap_or(false);
    call.finish()?;
    let (backend, _) = named.find(&gs)?;
    done(eject(&backend, force).await)
}

pub(super) async fn change(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let arguments = &mut call.arguments;
    let named = Named::take(arguments)?;
    let filename = arguments.require_str("filename")?;
    let format = arguments.take_str("format")?;
    let force = arguments.take_bool("force")?.unwrap_or(false);
    let mode = arguments.take_enum("read-only-mode")?.unwrap_or(ReadOnlyMode::Retain);
    call.finish()?;
    let (backend, _) = named.find(&gs)?;
    let last = backend.root_state();
    let how = ImageOptions {
        format,
        read_only: match mode {
            ReadOnlyMode::Retain => last.read_only,
            ReadOnlyMode::ReadOnly => true,
            ReadOnlyMode::ReadWrite => false,
        },
        cache: CacheFlags { direct: last.no_cache, no_flush: last.no_flush, writethrough: false },
        own: vec![("detect-zeroes", last.detect_zeroes.name().to_owned())],
        ..ImageOptions::default()
    };
    let node = open_image(&gs, &filename, &how).await?;
    done(change_medium(&gs, &backend, &node, force).await)
}

/// Requests that failed and wait are made again.
pub(super) async fn go_on(call: Call) -> QmpResult {
    let gs = call.gs();
    call.finish()?;
    Backend::everyone(&gs).iter().for_each(Backend::resume);
    Ok(json!({}))
}

/// The name of a limit among this command's arguments, which are older than the object's properties.
fn limit_name(kind: LimitKind) -> &'static str {
    match kind {
        LimitKind::BpsTotal => "bps",
        LimitKind::BpsRead => "bps_rd",
        LimitKind::BpsWrite => "bps_wr",
        LimitKind::IopsTotal => "iops",
        LimitKind::IopsRead => "iops_rd",
        LimitKind::IopsWrite => "iops_wr",
    }
}

pub(super) async fn set_io_throttle(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let arguments = &mut call.arguments;
    let named = Named::take(arguments)?;
    let mut settings = LimitSettings::default();
    for kind in LimitKind::ALL {
        let name = limit_name(kind);
        settings[kind].rate = unsigned(arguments.require_i64(name)?, name)?;
        let max = format!("{name}_max");
        settings[kind].max = unsigned(arguments.take_i64(&max)?.unwrap_or(0), &max)?;
        let length = format!("{name}_max_length");
        if let Some(seconds) = arguments.take_i64(&length)? {
            settings[kind].max_length = unsigned(seconds, &length)?;
        }
    }
    settings.iops_size = unsigned(arguments.take_i64("iops_size")?.unwrap_or(0), "iops_size")?;
    let group = arguments.take_str("group")?;
    call.finish()?;
    let (backend, name) = named.find(&gs)?;
    if backend.node().is_none() {
        return Err(QmpError::new("Device has no medium"));
    }
    let limits = ThrottleLimits::new(settings)?;
    match limits.is_unlimited() {
        true => backend.remove_limits(),
        false => backend.set_limits(&group.unwrap_or(name), limits),
    }
    Ok(json!({}))
}

fn unsigned(value: i64, name: &str) -> Result<u64, QmpError> {
    let refused = |_| QmpError::new(format!("Parameter '{name}' expects a value that is not negative"));
    u64::try_from(value).map_err(refused)
}

pub(super) async fn set_latency_histogram(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let arguments = &mut call.arguments;
    let id = arguments.require_str("id")?;
    let mut lists = |name| arguments.take_list(name, |item| item.into_u64());
    let all = lists("boundaries")?;
    let kinds = [
        (AcctKind::Read, "read", lists("boundaries-read")?),
        (AcctKind::Write, "write", lists("boundaries-write")?),
        (AcctKind::Flush, "flush", lists("boundaries-flush")?),
    ];
    call.finish()?;
    let (backend, id) = by_id(&gs, id)?;
    let io = backend.io();
    let is_empty = all.is_none() && kinds.iter().all(|(.., list)| list.is_none());
    for (kind, word, own) in kinds {
        let boundaries = own.or_else(|| all.clone());
        if boundaries.is_some() || is_empty {
            let refused = |_: BadBoundaries| QmpError::new(format!("Device '{id}' set {word} boundaries fail"));
            io.stats().set_histogram(kind, boundaries).map_err(refused)?;
        }
    }
    Ok(json!({}))
}

/// `BlockInfo`s of all backends that somebody can name: those with names first.
pub(super) async fn query(call: Call) -> QmpResult {
    let gs = call.gs();
    call.finish()?;
    let mut all: Vec<_> = Backend::everyone(&gs).into_iter().filter(is_shown).collect();
    all.sort_by_key(|backend| backend.name().is_empty());
    let mut told = Vec::new();
    for backend in all {
        told.push(block_info(&gs, &backend).await?);
    }
    Ok(Value::Array(told))
}

pub(super) fn is_shown(backend: &Backend) -> bool {
    !backend.name().is_empty() || backend.device().is_some()
}

async fn block_info(gs: &GlobalState, backend: &Backend) -> QmpResult {
    let (device, io) = (backend.device(), backend.io());
    let mut out = Map::new();
    if let Some(status) = backend.io_status() {
        out.insert("io-status".into(), status.name().into());
    }
    out.insert("device".into(), (*backend.name()).into());
    out.insert("locked".into(), io.is_medium_locked().into());
    out.insert("removable".into(), device.as_ref().is_none_or(|device| device.has_removable_media()).into());
    out.insert("type".into(), "unknown".into());
    if let Some(device) = device {
        out.insert("qdev".into(), device.id().into());
        if device.has_tray() {
            out.insert("tray_open".into(), io.is_tray_open().into());
        }
    }
    if let Some(node) = backend.node() {
        let mut inserted = queries::device_info(&mut ImageTeller::new(gs), &node, false).await?;
        if let (Some(group), Some(inserted)) = (backend.limits(), inserted.as_object_mut()) {
            tell_limits(inserted, group.name(), &group.group().limits());
        }
        out.insert("inserted".into(), inserted);
    }
    Ok(Value::Object(out))
}

/// What a backend's limits are, in the place of those that nodes do not have.
fn tell_limits(out: &mut Map<String, Value>, group: &str, limits: &ThrottleLimits) {
    let settings = limits.settings();
    out.insert("group".into(), group.into());
    for kind in LimitKind::ALL {
        let (name, limit) = (limit_name(kind), settings[kind]);
        out.insert(name.into(), limit.rate.into());
        if limit.max != 0 {
            out.insert(format!("{name}_max"), limit.max.into());
            out.insert(format!("{name}_max_length"), limit.max_length.into());
        }
    }
    if settings.iops_size != 0 {
        out.insert("iops_size".into(), settings.iops_size.into());
    }
}

/// Whether a node is a device's medium, for commands that would take it away.
pub(super) fn check_unused(gs: &GlobalState, name: &str) -> Result<(), QmpError> {
    match gs.has_backend(&nodes::find(gs, name)?) {
        true => Err(QmpError::new(format!("Node {name} is in use"))),
        false => Ok(()),
    }
}
