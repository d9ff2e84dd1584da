//! Key slots: who may open a volume.
//!
//! Each change is made in acts that leave a volume that opens, whenever the power is cut: a new slot's key material is on stable storage before the header says that there is one; the
//! header says that an erased slot is free before its material is overwritten. A slot that is replaced is erased first, so the volume needs another one that opens, or the force of its user.

use crate::create::CreateError;
use crate::crypt::new::{iterations, random};
use crate::crypt::{LuksHeader, Volume, refused};
use block_gs::{GlobalState, GraphError, GraphResult};
use block_luks_format::{Header1, Sealed, SlotState};
use std::time::Duration;

/// Milliseconds that the hashing of a password takes, unless the user says otherwise.
const ITER_TIME: u64 = 2000;

/// A change of the key slots of an encrypted image: what `amend` is asked for. Secrets are named by their `id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotChange {
    /// Whether a password is added, or erased.
    pub active: bool,
    /// The password to be added.
    pub new_secret: Option<String>,
    /// The password to be erased; when one is added, another one that opens the image than that which it was opened with.
    pub old_secret: Option<String>,
    /// The slot. Without it the first free one, or those that the password to be erased opens.
    pub keyslot: Option<u64>,
    /// Milliseconds that hashing the new password shall take.
    pub iter_time: Option<u64>,
}

/// Why key slots stay as they are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Nothing to add.
    #[error("'new-secret' is required to activate a keyslot")]
    NoNewSecret,
    /// Nothing says what to erase.
    #[error(
        "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given"
    )]
    NothingToErase,
    /// An option that means nothing when slots are erased.
    #[error("'{0}' must not be given when erasing keyslots")]
    NotWhenErasing(&'static str),
    /// There is no such slot.
    #[error("Invalid keyslot {0} specified, must be between 0 and {max}", max = Header1::SLOTS - 1)]
    NoSlot(u32),
    /// All have a key.
    #[error("Can't add a keyslot - all keyslots are in use")]
    Full,
    /// It has a key.
    #[error("Refusing to overwrite active keyslot {0} - please erase it first")]
    Active(usize),
    /// It has none.
    #[error("Given keyslot {0} is already erased (inactive) ")]
    Inactive(usize),
    /// Another password opens it.
    #[error("Given keyslot {0} doesn't contain the given old password for erase operation")]
    OtherPassword(usize),
    /// The password opens none.
    #[error("No keyslots match given (old) password for erase operation")]
    NoMatch,
    /// Nobody could open the image any more.
    #[error(
        "Attempt to erase the only active keyslot {0} which will erase all the data in the image irreversibly - \
         refusing operation"
    )]
    Last(usize),
    /// Nobody could open the image any more.
    #[error(
        "All the active keyslots match the (old) password that was given and erasing them will erase all the data in \
         the image irreversibly - refusing operation"
    )]
    AllMatch,
    /// The image cannot be unlocked, or not be written.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The new slot cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Where a header lies: bytes of it can be read and written, and what was written is on stable storage afterwards.
pub(crate) trait HeaderFile {
    /// So many bytes from an offset on, or fewer where the file ends.
    fn read(&self, at: u64, len: usize) -> impl Future<Output = GraphResult<Vec<u8>>>;

    /// Store bytes at an offset, and flush.
    fn write(&self, at: u64, bytes: Vec<u8>) -> impl Future<Output = GraphResult<()>>;
}

impl SlotChange {
    /// Check what can be checked without the image.
    fn check(&self) -> Result<Option<usize>, SlotError> {
        if !self.active {
            let extra = [("new-secret", self.new_secret.is_some()), ("iter-time", self.iter_time.is_some())];
            if let Some((name, _)) = extra.into_iter().find(|(_, given)| *given) {
                return Err(SlotError::NotWhenErasing(name));
            }
        } else if self.new_secret.is_none() {
            return Err(SlotError::NoNewSecret);
        }
        let Some(slot) = self.keyslot else { return Ok(None) };
        match usize::try_from(slot) {
            Ok(slot) if slot < Header1::SLOTS => Ok(Some(slot)),
            // As the field's tools show it.
            _ => Err(SlotError::NoSlot(slot as u32)),
        }
    }
}

/// What is being changed.
pub(crate) struct Slots<'a, F> {
    pub(crate) gs: &'a GlobalState,
    pub(crate) file: F,
    pub(crate) is_detached: bool,
    /// The name of the secret that the image was opened with.
    pub(crate) secret: Option<&'a str>,
}

impl<F: HeaderFile> Slots<'_, F> {
    /// Carry out `change`, and return the header as it is then. With `force`, also what may make the image unreadable.
    ///
    /// # Errors
    /// Nothing was changed, unless the file refused to be written.
    pub(crate) async fn change(&self, change: &SlotChange, force: bool) -> Result<LuksHeader, SlotError> {
        let slot = change.check()?;
        // What stands there now: another process may have changed it since the image was opened.
        let volume = self.volume().await?;
        if change.active {
            self.add(volume, change, slot, force).await
        } else {
            self.erase(volume, change, slot, force).await
        }
    }

    async fn volume(&self) -> Result<Volume, SlotError> {
        let failed = GraphError::io("Could not read the LUKS header");
        let error = std::cell::Cell::new(None);
        let read = |at, len| {
            let reading = self.file.read(at, len);
            let error = &error;
            async move {
                reading.await.map_err(|why| {
                    error.set(Some(why));
                    block_common::IoError::BUG
                })
            }
        };
        match Volume::read(read, self.is_detached, true).await {
            Ok(volume) => Ok(volume.map_err(refused)?),
            Err(io) => Err(error.take().unwrap_or_else(|| failed(io)).into()),
        }
    }

    async fn add(
        &self,
        volume: Volume,
        change: &SlotChange,
        slot: Option<usize>,
        force: bool,
    ) -> Result<LuksHeader, SlotError> {
        let new = self.gs.secret(change.new_secret.as_deref().ok_or(SlotError::NoNewSecret)?)?;
        let old = change.old_secret.as_deref().or(self.secret);
        let old = old.ok_or_else(|| GraphError::Open("Parameter 'key-secret' is required for cipher".into()))?;
        let old = self.gs.secret(old)?;
        let LuksHeader::V1(header) = &volume.header;
        let slot = match slot {
            Some(slot) if header.slots[slot].is_enabled() && !force => return Err(SlotError::Active(slot)),
            Some(slot) => slot,
            None => header.slots.iter().position(|slot| !slot.is_enabled()).ok_or(SlotError::Full)?,
        };
        let (volume, key) = volume.unlock(self.gs, old).await?;
        let LuksHeader::V1(mut header) = volume.header;
        let was_enabled = header.slots[slot].is_enabled();
        let time = Duration::from_millis(change.iter_time.unwrap_or(ITER_TIME));
        let (sealed, mut header) = self
            .in_pool(move || {
                let iterations = iterations(header.hash, header.spec.key_len(), time)?;
                let sealed: Sealed = header.seal(slot, new.expose(), &key, iterations, random)?;
                // A slot that is replaced is free meanwhile.
                header.slots[slot].state = SlotState::Disabled;
                Ok((sealed, header))
            })
            .await?;
        if was_enabled {
            self.write_header(&header).await?;
        }
        self.file.write(header.material(slot).start, sealed.material.expose().to_vec()).await?;
        header.slots[slot].state = sealed.state;
        self.write_header(&header).await?;
        Ok(LuksHeader::V1(header))
    }

    async fn erase(
        &self,
        volume: Volume,
        change: &SlotChange,
        slot: Option<usize>,
        force: bool,
    ) -> Result<LuksHeader, SlotError> {
        let LuksHeader::V1(header) = &volume.header;
        let enabled = header.slots.iter().filter(|slot| slot.is_enabled()).count();
        let old = change.old_secret.as_deref().map(|name| self.gs.secret(name)).transpose()?;
        if let Some(slot) = slot.filter(|slot| !header.slots[*slot].is_enabled()) {
            return Err(SlotError::Inactive(slot));
        }
        let (volume, matching) = match old {
            Some(old) => {
                let (volume, (matching, _)) = volume.try_in_pool(self.gs, old, true).await?;
                (volume, Some(matching))
            }
            None => (volume, None),
        };
        let slots = match (slot, matching) {
            (None, None) => return Err(SlotError::NothingToErase),
            (Some(slot), Some(matching)) if !matching.contains(&slot) => return Err(SlotError::OtherPassword(slot)),
            (Some(slot), _) if enabled == 1 && !force => return Err(SlotError::Last(slot)),
            (Some(slot), _) => vec![slot],
            (None, Some(matching)) if matching.is_empty() => return Err(SlotError::NoMatch),
            (None, Some(matching)) if matching.len() == enabled && !force => return Err(SlotError::AllMatch),
            (None, Some(matching)) => matching,
        };
        let LuksHeader::V1(mut header) = volume.header;
        for slot in &slots {
            header.slots[*slot].state = SlotState::Disabled;
        }
        self.write_header(&header).await?;
        for slot in slots {
            let place = header.material(slot);
            let mut noise = vec![0; (place.end - place.start) as usize];
            random(&mut noise)?;
            self.file.write(place.start, noise).await?;
        }
        Ok(LuksHeader::V1(header))
    }

    async fn write_header(&self, header: &Header1) -> GraphResult<()> {
        self.file.write(0, header.bytes().to_vec()).await
    }

    async fn in_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, CreateError> + Send + 'static,
    ) -> Result<T, SlotError> {
        let done = self.gs.pool().run(work).await.ok_or(GraphError::ShuttingDown)?;
        Ok(done?)
    }
}
