//! Key slots: who may open a volume.
//!
//! Each change is made in acts that leave a volume that opens, whenever the power is cut: a new slot's key material is on stable storage before the header says that there is one; the
//! header says that an erased slot is free before its material is overwritten. A slot of LUKS1 has one place for its material, so what replaces it lies in a free slot as well until it
//! has that place; if no slot is free, the volume opens with the others' passwords meanwhile.

use crate::create::CreateError;
use crate::crypt::new::{Rate, random, spent};
use crate::crypt::{LuksHeader, Volume, memory_max, refused};
use block_crypt::{Secret, SectorCipher, argon2_cost};
use block_gs::{GlobalState, GraphError, GraphResult};
use block_luks_format::{Header1, Header2, KdfCost, Sealed, Sealed2, SlotState};
use std::ops::Range;
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
    /// The password to be erased.
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
    /// An option that means nothing when a slot gets a password.
    #[error("'{0}' must not be given when activating keyslots")]
    NotWhenActivating(&'static str),
    /// There is no such slot.
    #[error("Invalid keyslot {0} specified, must be between 0 and {1}")]
    NoSlot(u32, usize),
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

impl SlotError {
    /// The message, and the hint in a line of its own: what a program writes to its user.
    pub fn report(&self) -> String {
        match self {
            Self::Graph(error) => error.report(),
            error => error.to_string(),
        }
    }
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
    fn check(&self) -> Result<(), SlotError> {
        if !self.active {
            let extra = [("new-secret", self.new_secret.is_some()), ("iter-time", self.iter_time.is_some())];
            if let Some((name, _)) = extra.into_iter().find(|(_, given)| *given) {
                return Err(SlotError::NotWhenErasing(name));
            }
        } else if self.new_secret.is_none() {
            return Err(SlotError::NoNewSecret);
        } else if self.old_secret.is_some() {
            return Err(SlotError::NotWhenActivating("old-secret"));
        }
        Ok(())
    }

    /// The slot, if one is named, which is one of so many.
    fn slot(&self, count: usize) -> Result<Option<usize>, SlotError> {
        let Some(slot) = self.keyslot else { return Ok(None) };
        match usize::try_from(slot) {
            Ok(slot) if slot < count => Ok(Some(slot)),
            // As the field's tools show it.
            _ => Err(SlotError::NoSlot(slot as u32, count - 1)),
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
    /// Carry out `change`. With `force`, also what may make the image unreadable.
    ///
    /// # Errors
    /// Nothing was changed, unless the file refused to be written.
    pub(crate) async fn change(&self, change: &SlotChange, force: bool) -> Result<(), SlotError> {
        change.check()?;
        // What stands there now: another process may have changed it since the image was opened.
        let volume = self.volume(true).await?;
        let slot = change.slot(volume.header.slot_count())?;
        if change.active {
            self.add(volume, change, slot, force).await
        } else {
            self.erase(volume, change, slot, force).await
        }
    }

    /// The header that stands there.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub(crate) async fn header(&self) -> Result<LuksHeader, SlotError> {
        Ok(self.volume(false).await?.header)
    }

    async fn volume(&self, to_unlock: bool) -> Result<Volume, SlotError> {
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
        match Volume::read(read, self.is_detached, to_unlock).await {
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
    ) -> Result<(), SlotError> {
        let new = self.gs.secret_text(change.new_secret.as_deref().ok_or(SlotError::NoNewSecret)?)?;
        let old =
            self.secret.ok_or_else(|| GraphError::Open("Parameter 'key-secret' is required for cipher".into()))?;
        let old = self.gs.secret_text(old)?;
        let enabled = volume.header.enabled();
        let slot = match slot {
            Some(slot) if enabled.contains(&slot) && !force => return Err(SlotError::Active(slot)),
            Some(slot) => slot,
            None => volume.header.free_slot().ok_or(SlotError::Full)?,
        };
        let time = Duration::from_millis(change.iter_time.unwrap_or(ITER_TIME));
        let (volume, (opened, key)) = volume.try_in_pool(self.gs, old, false).await?;
        let (Some(opened), Some(key)) = (opened.first().copied(), key) else {
            return Err(GraphError::Open("Invalid password, cannot unlock any keyslot".into()).into());
        };
        match volume.header {
            LuksHeader::V1(header) => self.add_1(header, slot, (new, key, time)).await,
            LuksHeader::V2(header) => self.add_2(header, (slot, opened), (new, key, time)).await,
        }
    }

    async fn add_1(
        &self,
        mut header: Header1,
        slot: usize,
        (new, key, time): (Secret, Secret, Duration),
    ) -> Result<(), SlotError> {
        let made = self.in_pool(move || {
            let iterations = Rate::measure(header.hash).iterations(header.spec.key_len(), time)?;
            let sealed: Sealed = header.seal(slot, new.expose(), &key, iterations, random)?;
            Ok((sealed, header))
        });
        let (sealed, made) = made.await?;
        header = made;
        let was_enabled = header.slots[slot].is_enabled();
        let spare = header.slots.iter().position(|other| !other.is_enabled()).filter(|_| was_enabled);
        if let Some(spare) = spare {
            self.put_1(&mut header, spare, &sealed).await?;
        }
        if was_enabled {
            header.slots[slot].state = SlotState::Disabled;
            self.write_1(&header).await?;
        }
        self.put_1(&mut header, slot, &sealed).await?;
        let Some(spare) = spare else { return Ok(()) };
        header.slots[spare].state = SlotState::Disabled;
        self.write_1(&header).await?;
        self.overwrite(header.material(spare)).await
    }

    /// Enable a slot that is free. Material is the same whichever slot it is for.
    async fn put_1(&self, header: &mut Header1, slot: usize, sealed: &Sealed) -> Result<(), SlotError> {
        self.file.write(header.material(slot).start, sealed.material.expose().to_vec()).await?;
        header.slots[slot].state = sealed.state.clone();
        Ok(self.write_1(header).await?)
    }

    async fn add_2(
        &self,
        header: Header2,
        (slot, opened): (usize, usize),
        (new, key, time): (Secret, Secret, Duration),
    ) -> Result<(), SlotError> {
        let (slot, opened) = (slot as u32, opened as u32);
        // What is replaced is overwritten when no copy of the header speaks of it any more.
        let replaced = header.slots().get(&slot).map(|slot| slot.area.clone());
        let sealed = self.in_pool(move || {
            // As the slot that was opened, for who made that has chosen.
            let cost = header.slots().get(&opened).map(|slot| slot.kdf.cost);
            let cost = match cost {
                Some(KdfCost::Argon2 { kind, .. }) => {
                    KdfCost::Argon2 { kind, cost: argon2_cost(kind, time, memory_max(), threads(), spent) }
                }
                _ => {
                    let hash = header.hash();
                    KdfCost::Pbkdf2 { hash, iterations: Rate::measure(hash).iterations(key.expose().len(), time)? }
                }
            };
            let header = if header.slots().contains_key(&slot) { header.remove(slot)? } else { header };
            header.seal(slot, new.expose(), &key, cost, random)
        });
        let Sealed2 { header, material } = sealed.await?;
        let place = header.material(slot).map_or(0, |place| place.start);
        self.file.write(place, material.expose().to_vec()).await?;
        self.write_2(&header).await?;
        match replaced {
            Some(area) => self.overwrite(area).await,
            None => Ok(()),
        }
    }

    async fn erase(
        &self,
        volume: Volume,
        change: &SlotChange,
        slot: Option<usize>,
        force: bool,
    ) -> Result<(), SlotError> {
        let enabled = volume.header.enabled();
        let old = change.old_secret.as_deref().map(|name| self.gs.secret_text(name)).transpose()?;
        if let Some(slot) = slot.filter(|slot| !enabled.contains(slot)) {
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
            (Some(slot), _) if enabled.len() == 1 && !force => return Err(SlotError::Last(slot)),
            (Some(slot), _) => vec![slot],
            (None, Some(matching)) if matching.is_empty() => return Err(SlotError::NoMatch),
            (None, Some(matching)) if matching.len() == enabled.len() && !force => return Err(SlotError::AllMatch),
            (None, Some(matching)) => matching,
        };
        let areas: Vec<_> = match volume.header {
            LuksHeader::V1(mut header) => {
                slots.iter().for_each(|slot| header.slots[*slot].state = SlotState::Disabled);
                self.write_1(&header).await?;
                slots.into_iter().map(|slot| header.material(slot)).collect()
            }
            LuksHeader::V2(mut header) => {
                let mut areas = Vec::new();
                for slot in slots {
                    areas.extend(header.slots().get(&(slot as u32)).map(|slot| slot.area.clone()));
                    header = header.remove(slot as u32).map_err(refused)?;
                }
                self.write_2(&header).await?;
                areas
            }
        };
        let mut all = Ok(());
        for area in areas {
            // One that cannot be overwritten keeps the others from nothing.
            all = all.and(self.overwrite(area).await);
        }
        all
    }

    /// Nobody shall find out what was there.
    async fn overwrite(&self, area: Range<u64>) -> Result<(), SlotError> {
        let mut noise = vec![0; (area.end - area.start) as usize];
        random(&mut noise)?;
        Ok(self.file.write(area.start, noise).await?)
    }

    /// The last sector comes first: the slot that lies in both has its state in the first one, so no cut leaves one that is enabled and not whole.
    async fn write_1(&self, header: &Header1) -> GraphResult<()> {
        let bytes = header.bytes();
        let (first, last) = bytes.split_at(SectorCipher::UNIT);
        self.file.write(SectorCipher::UNIT as u64, last.to_vec()).await?;
        self.file.write(0, first.to_vec()).await
    }

    /// One copy after the other: at each moment one of them can be read.
    async fn write_2(&self, header: &Header2) -> Result<(), SlotError> {
        for copy in header.order() {
            let bytes: Result<_, CreateError> = header.bytes(copy, random);
            self.file.write(header.place(copy).start, bytes?).await?;
        }
        Ok(())
    }

    async fn in_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, CreateError> + Send + 'static,
    ) -> Result<T, SlotError> {
        let done = self.gs.pool().run(work).await.ok_or(GraphError::ShuttingDown)?;
        Ok(done?)
    }
}

fn threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |threads| threads.get() as u32)
}
