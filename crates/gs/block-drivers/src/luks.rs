//! `luks`: children `file` and `header`, option `key-secret`.
//!
//! A node asks of its file what its users ask of it, as a raw image does: it writes nothing of its own while it is used. When its key slots change, it asks to write the header, and
//! minds that anybody else reads it, for as long as that takes.

use crate::create::CreateError;
use crate::crypt::slots::{HeaderFile, SlotChange, SlotError, Slots};
use crate::crypt::{LuksHeader, Volume, refused};
use async_trait::async_trait;
use block_common::options::{Dialect, DriverKind, Value};
use block_common::{ChildName, ChildOrNull, ChildRole, OptionReader, Options, Perm, PermPair};
use block_crypt_io::Crypt;
use block_gs::{
    DriverType, EngineControl, GlobalState, GraphError, GraphResult, NodeRef, OpenContext, Opened, PreparingReopen,
    Reopening, filter_perm,
};
use block_luks::{Luks, LuksControl, LuksOptions, read_header};
use block_qcow2::Qcow2Control;
use block_qcow2::info::InfoValue;
use std::any::Any;

const HEADER: ChildName = ChildName::from_static("header");
/// Both versions' headers tell one image from another within so many bytes: they have its UUID.
const HEADER_LEN: usize = 4096;

/// The luks driver.
#[derive(Clone, Copy, Debug)]
pub struct LuksType;

/// The control of an encrypted image.
#[derive(Clone, Debug)]
pub struct LuksImage {
    engine: LuksControl,
    header: LuksHeader,
    is_detached: bool,
    /// The name of the secret that it was opened with.
    secret: Option<String>,
}

impl LuksImage {
    /// What its header says.
    pub fn header(&self) -> &LuksHeader {
        &self.header
    }

    /// What is told of it, in the order and with the names of the field's tools.
    pub fn specific(&self) -> InfoValue {
        crate::crypt::told::values(self.header.info(), self.is_detached, None)
    }

    /// Whether that is a file of its own.
    pub fn is_detached(&self) -> bool {
        self.is_detached
    }
}

impl EngineControl for LuksImage {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    /// A file that takes the place of the image's own has the same header.
    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let coming = to.take_coming_child(ChildName::FILE.as_str()).filter(|_| !self.is_detached);
        drop(to.options.take_str("key-secret")?);
        let nothing = || Box::new(()) as Box<dyn Any>;
        let Some(coming) = coming else { return Ok(Box::pin(std::future::ready(Ok(nothing())))) };
        let (engine, what) = (self.engine.clone(), "Could not read the LUKS header");
        let compared = to.run(what, move |req| async move {
            let found = read_header(&req, &coming, 0, HEADER_LEN).await?;
            Ok(found == engine.read(req, 0, HEADER_LEN).await?)
        })?;
        Ok(Box::pin(async move {
            let other = || GraphError::Open("The new 'file' does not hold the image that is open".into());
            compared.await?.then(nothing).ok_or_else(other)
        }))
    }
}

#[async_trait(?Send)]
impl DriverType for LuksType {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let secret = options.take_str("key-secret")?;
        let header = match options.take_child_or_null(HEADER.as_str())? {
            Some(ChildOrNull::Child(spec)) => Some(spec),
            Some(ChildOrNull::Null) | None => None,
        };
        let is_detached = header.is_some();
        let role = if is_detached { ChildRole::DATA | ChildRole::PRIMARY } else { ChildRole::IMAGE };
        let header = match header {
            Some(spec) => Some(context.open_child(HEADER, ChildRole::METADATA, spec).await?),
            None => None,
        };
        let file = context.require_child(options, ChildName::FILE, role).await?;
        let is_locked = context.common().no_io;
        if secret.is_none() && !is_locked {
            return Err(GraphError::Open("Parameter 'key-secret' is required for cipher".into()));
        }
        let read = context.run("Could not read the LUKS header", move |req| async move {
            let of = header.as_ref().unwrap_or(&file);
            let volume = Volume::read(|at, len| read_header(&req, of, at, len), is_detached, !is_locked).await?;
            Ok((volume, file, header))
        });
        let (volume, file, header) = read.await?;
        let volume = volume.map_err(refused)?;
        let gs = context.global();
        let (volume, crypt) = match &secret {
            Some(secret) if !is_locked => {
                let (volume, key) = volume.unlock(gs, gs.secret_text(secret)?).await?;
                let cipher = volume.cipher(&key)?;
                let crypt = Crypt::new(cipher, volume.header.sector() as usize, gs.pool().clone());
                (volume, Some(crypt))
            }
            _ => (volume, None),
        };
        let of = &volume.header;
        let options = LuksOptions {
            payload: of.payload(),
            size: of.size(),
            first: of.first_sector(),
            crypt,
            sector: of.sector(),
        };
        let opened = context.run("Could not open the LUKS image", move |req| async move {
            Luks::open(&req, file, header, options).await
        });
        let (engine, control) = opened.await?;
        let control = LuksImage { engine: control, header: volume.header, is_detached, secret };
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }

    fn child_perm(&self, role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        match role.contains(ChildRole::DATA) {
            true => filter_perm(above),
            // The header alone: it is read when the node is opened.
            false => PermPair::new(above.perm & Perm::CONSISTENT_READ, Perm::all() & !Perm::WRITE),
        }
    }
}

/// The file that a node's header lies in.
struct Header<'a> {
    gs: &'a GlobalState,
    node: &'a NodeRef,
    engine: LuksControl,
}

impl HeaderFile for Header<'_> {
    async fn read(&self, at: u64, len: usize) -> GraphResult<Vec<u8>> {
        let read = |req| self.engine.read(req, at, len);
        self.gs.run_drained(self.node, "Could not read the LUKS header", read).await
    }

    async fn write(&self, at: u64, bytes: Vec<u8>) -> GraphResult<()> {
        let write = |req| self.engine.write(req, at, bytes);
        self.gs.run_drained(self.node, "Could not write the LUKS header", write).await
    }
}

/// The part of a qcow2 node's file that its LUKS header is in.
struct HeaderWithin<'a> {
    gs: &'a GlobalState,
    node: &'a NodeRef,
    control: Qcow2Control,
}

impl HeaderFile for HeaderWithin<'_> {
    async fn read(&self, at: u64, len: usize) -> GraphResult<Vec<u8>> {
        let control = self.control.clone();
        let read = |req| async move { control.read_crypto(&req, at, len).await };
        self.gs.run_drained(self.node, "Could not read the LUKS header", read).await
    }

    async fn write(&self, at: u64, bytes: Vec<u8>) -> GraphResult<()> {
        let control = self.control.clone();
        let write = |req| async move { control.write_crypto(&req, at, &bytes).await };
        self.gs.run_drained(self.node, "Could not write the LUKS header", write).await
    }
}

/// Those of a qcow2 node, which is a writable one.
async fn change_slots_within(
    gs: &GlobalState,
    node: &NodeRef,
    control: Qcow2Control,
    (change, force): (&SlotChange, bool),
) -> Result<(), SlotError> {
    match control.header().crypt_method {
        0 => return Err(CreateError::AmendEncryption.into()),
        1 => return Err(CreateError::AmendOld.into()),
        _ => {}
    }
    let info = gs.node_info(node)?;
    if info.read_only {
        return Err(GraphError::ReadOnly(info.name).into());
    }
    let secret = Options::from_dict(Dialect::Legacy, info.options);
    let secret = match secret.lookup("encrypt.key-secret") {
        Some(Value::Str(secret)) => Some(secret.as_str()),
        _ => None,
    };
    let slots = Slots { gs, file: HeaderWithin { gs, node, control }, is_detached: true, secret };
    slots.change(change, force).await?;
    Ok(())
}

/// Change the key slots of a luks or qcow2 node, which goes on being used meanwhile; a luks node may be a read-only one. With `force`, also what may make the image unreadable.
///
/// # Errors
/// [`SlotError`]: nothing was changed, unless the file refused to be written.
#[doc(alias = "bdrv_co_amend")]
pub async fn change_slots(gs: &GlobalState, node: &NodeRef, change: &SlotChange, force: bool) -> Result<(), SlotError> {
    if let Ok(control) = gs.with_control(node, |control: &mut Qcow2Control| control.clone()) {
        return change_slots_within(gs, node, control, (change, force)).await;
    }
    let image = gs.with_control(node, |image: &mut LuksImage| image.clone())?;
    let edge = if image.is_detached { HEADER } else { ChildName::FILE };
    // Before anything else: without it nothing happens at all.
    let more = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all() & !Perm::CONSISTENT_READ);
    let asked = gs.ask_more(node, edge.as_str(), more)?;
    let file = Header { gs, node, engine: image.engine };
    let slots = Slots { gs, file, is_detached: image.is_detached, secret: image.secret.as_deref() };
    let changed = slots.change(change, force).await;
    // Whatever became of it: what stands there is true.
    let header = slots.header().await;
    drop(asked);
    match header {
        Ok(header) => gs.with_control(node, |image: &mut LuksImage| image.header = header)?,
        Err(error) => return changed.and(Err(error)),
    }
    changed
}
