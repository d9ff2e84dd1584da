//! What an image may have after a power cut: of each sector, of the disk's length, and of each snapshot. It knows nothing of how images are stored.

use super::SECTOR;
use block_qcow2_format::BitmapFlags;
use block_testkit::qcow2::{Found, Report};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) type Shared = Arc<Mutex<Model>>;

pub(super) fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is asked of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Write,
    Zero,
    Discard,
    Compressed,
    Fua,
    Flush,
    Grow,
    Shrink,
    Take,
    Apply,
    Delete,
    Close,
}

impl Event {
    pub(super) const ALL: [Self; 12] = [
        Self::Write,
        Self::Zero,
        Self::Discard,
        Self::Compressed,
        Self::Fua,
        Self::Flush,
        Self::Grow,
        Self::Shrink,
        Self::Take,
        Self::Apply,
        Self::Delete,
        Self::Close,
    ];
}

/// A value of something: what it was set to, and whether that is over.
#[derive(Clone, Copy, Debug)]
struct Value {
    stamp: u64,
    /// Counts requests: zeroes all have the same stamp.
    id: u64,
    done: bool,
}

/// The values that something may have after a power cut, the oldest first.
#[derive(Clone, Debug)]
pub(super) struct History(Vec<Value>);

impl History {
    fn begin(&mut self, stamp: u64, id: u64) {
        self.0.push(Value { stamp, id, done: false });
    }

    /// What was begun last is over.
    pub(super) fn end(&mut self) {
        if let Some(value) = self.0.last_mut() {
            value.done = true;
        }
    }

    /// Which value a flush that begins now covers.
    fn covered(&self) -> u64 {
        self.0.iter().rposition(|value| value.done).map_or(0, |at| self.0[at].id)
    }

    /// A flush is over: what came before this value is gone.
    fn flushed(&mut self, covered: u64) {
        if let Some(at) = self.0.iter().position(|value| value.id == covered) {
            self.0.drain(..at);
        }
    }

    fn last(&self) -> u64 {
        self.0.iter().rfind(|value| value.done).map_or(0, |value| value.stamp)
    }

    fn may_be(&self, stamp: u64) -> bool {
        self.0.iter().any(|value| value.stamp == stamp)
    }
}

/// What a flush covers: of each sector, and of the length.
pub(super) type Covered = (Vec<u64>, u64);

/// A disk, in sectors.
#[derive(Clone, Debug)]
pub(super) struct World {
    sectors: Vec<History>,
    pub(super) length: History,
}

impl World {
    /// A disk of `length` sectors with these stamps; those past its end are there already.
    pub(super) fn new(stamps: impl Iterator<Item = u64>, length: usize, id: u64) -> Self {
        let history = |stamp| History(vec![Value { stamp, id, done: true }]);
        Self { sectors: stamps.map(history).collect(), length: history(length as u64) }
    }

    pub(super) fn length_now(&self) -> usize {
        self.length.last() as usize
    }

    pub(super) fn covered(&self) -> Covered {
        (self.sectors.iter().map(History::covered).collect(), self.length.covered())
    }

    pub(super) fn flushed(&mut self, (sectors, length): &Covered) {
        self.sectors.iter_mut().zip(sectors).for_each(|(sector, id)| sector.flushed(*id));
        self.length.flushed(*length);
    }

    /// What these sectors were set to last is what they have.
    pub(super) fn forget_older(&mut self, range: Range<usize>) {
        for sector in &mut self.sectors[range] {
            let last = sector.0.len() - 1;
            sector.0.drain(..last);
        }
    }

    fn check(&self, guest: &[u8]) -> Result<(), String> {
        let length = guest.len() / SECTOR;
        if !guest.len().is_multiple_of(SECTOR) || !self.length.may_be(length as u64) {
            return Err(format!(
                "the disk is {} bytes long, and its length in sectors is one of {:?}",
                guest.len(),
                self.length
            ));
        }
        for (at, (history, sector)) in self.sectors.iter().zip(guest.chunks(SECTOR)).enumerate() {
            let stamp = stamp_of(sector).ok_or_else(|| format!("sector {at} was never written like this"))?;
            if !history.may_be(stamp) {
                return Err(format!("sector {at} has {stamp:#x}, which is none of {history:?}"));
            }
        }
        Ok(())
    }
}

/// Where a snapshot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Coming,
    There,
    Going,
}

/// A snapshot, and what it has.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) name: String,
    pub(super) state: State,
    stamps: Arc<Vec<u64>>,
}

impl Taken {
    fn check(&self, guest: Option<&[u8]>) -> Result<(), String> {
        let Some(guest) = guest else {
            return if self.state == State::There { Err(format!("snapshot '{}' is gone", self.name)) } else { Ok(()) };
        };
        let is_same = |(sector, stamp): (&[u8], &u64)| stamp_of(sector) == Some(*stamp);
        let wrong = guest.chunks(SECTOR).zip(self.stamps.iter()).position(|both| !is_same(both));
        match wrong {
            _ if guest.len() != self.stamps.len() * SECTOR => Err(format!(
                "snapshot '{}' is {} bytes long, not {} sectors",
                self.name,
                guest.len(),
                self.stamps.len()
            )),
            Some(at) => Err(format!(
                "sector {at} of snapshot '{}' has {:?}, not {:#x}",
                self.name,
                stamp_of(&guest[at * SECTOR..(at + 1) * SECTOR]),
                self.stamps[at]
            )),
            None => Ok(()),
        }
    }
}

/// What an image may have.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) world: World,
    /// While a snapshot is applied: the disk as it will be. It is the one or the other, and no mixture.
    other: Option<World>,
    pub(super) snapshots: Vec<Taken>,
    /// The bitmap as the image's end will leave it.
    pub(super) bitmap: Option<Found>,
    next: u64,
    /// How often each event has begun, and was over.
    events: [(u64, u64); Event::ALL.len()],
}

impl Model {
    pub(super) fn new(world: World) -> Self {
        let events = [(0, 0); Event::ALL.len()];
        Self { world, other: None, snapshots: Vec::new(), bitmap: None, next: 1, events }
    }

    pub(super) fn began(&mut self, event: Event) {
        self.events[event as usize].0 += 1;
    }

    pub(super) fn ended(&mut self, event: Event) {
        self.events[event as usize].1 += 1;
    }

    /// Whether it has begun, and is not over.
    pub(super) fn goes_on(&self, event: Event) -> bool {
        let (began, ended) = self.events[event as usize];
        began > ended
    }

    /// Whether one was over.
    pub(super) fn was(&self, event: Event) -> bool {
        self.events[event as usize].1 > 0
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Sectors get this stamp, or one of their own, which is returned.
    pub(super) fn begin(&mut self, event: Event, range: Range<usize>, stamp: Option<u64>) -> u64 {
        self.began(event);
        let id = self.id();
        let stamp = stamp.unwrap_or(id);
        self.world.sectors[range].iter_mut().for_each(|sector| sector.begin(stamp, id));
        stamp
    }

    pub(super) fn end(&mut self, event: Event, range: Range<usize>) {
        self.ended(event);
        self.world.sectors[range].iter_mut().for_each(History::end);
    }

    pub(super) fn begin_length(&mut self, sectors: usize) {
        let id = self.id();
        self.world.length.begin(sectors as u64, id);
    }

    /// Nobody works, and this is what there is.
    pub(super) fn seen(&mut self, guest: &[u8]) {
        let id = self.id();
        for (at, sector) in guest.chunks(SECTOR).enumerate() {
            let stamp = stamp_of(sector).unwrap_or_else(|| panic!("sector {at} was never written like this"));
            let history = &mut self.world.sectors[at];
            assert!(history.may_be(stamp), "sector {at} reads as {stamp:#x}, which is none of {history:?}");
            history.begin(stamp, id);
            history.end();
        }
    }

    /// Everything is on the disk.
    pub(super) fn settled(&mut self) {
        let covered = self.world.covered();
        self.world.flushed(&covered);
    }

    pub(super) fn snapshot(&mut self, name: &str) -> &mut Taken {
        self.snapshots.iter_mut().find(|taken| taken.name == name).expect("it was taken")
    }

    /// A snapshot is taken of what was seen.
    pub(super) fn take(&mut self, name: &str) {
        self.began(Event::Take);
        let stamps = self.world.sectors[..self.world.length_now()].iter().map(History::last).collect();
        self.snapshots.push(Taken { name: name.into(), state: State::Coming, stamps: Arc::new(stamps) });
    }

    pub(super) fn taken(&mut self, name: &str, done: bool) {
        self.ended(Event::Take);
        match done {
            true => self.snapshot(name).state = State::There,
            false => self.snapshots.retain(|taken| taken.name != name),
        }
    }

    /// The disk becomes what a snapshot has.
    pub(super) fn apply(&mut self, name: &str) {
        self.began(Event::Apply);
        let (id, all) = (self.id(), self.world.sectors.len());
        let stamps = self.snapshot(name).stamps.clone();
        let whole = stamps.iter().copied().chain(std::iter::repeat(0)).take(all);
        self.other = Some(World::new(whole, stamps.len(), id));
    }

    pub(super) fn applied(&mut self, done: bool) {
        self.ended(Event::Apply);
        let other = self.other.take();
        if let Some(other) = other.filter(|_| done) {
            self.world = other;
        }
    }

    /// What is found may be.
    pub(super) fn check(&self, report: &Report) -> Result<(), String> {
        let is_other = self.other.as_ref().is_some_and(|other| other.check(&report.guest).is_ok());
        if !is_other {
            self.world.check(&report.guest)?;
        }
        for taken in &self.snapshots {
            let found = report.snapshots.iter().find(|found| found.name == taken.name);
            taken.check(found.map(|found| found.guest.as_slice()))?;
        }
        let is_known = |name: &str| self.snapshots.iter().any(|taken| taken.name == name);
        if let Some(found) = report.snapshots.iter().find(|found| !is_known(&found.name)) {
            return Err(format!("snapshot '{}' was deleted, or never taken", found.name));
        }
        // Rule qcow2-6.
        for found in &report.bitmaps {
            let is_stored = self.bitmap.as_ref() == Some(found);
            let is_stale = found.flags.contains(BitmapFlags::IN_USE) && !self.was(Event::Close);
            if !is_stored && !is_stale {
                return Err(format!("bitmap '{}' is not in use, and not as it was", found.name));
            }
        }
        Ok(())
    }
}

/// A sector with this stamp.
pub(super) fn filled(stamp: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    for (i, bytes) in sector.chunks_exact_mut(8).enumerate() {
        // Every word tells where it is, and the first bytes compress.
        bytes.copy_from_slice(&(if stamp == 0 { 0 } else { stamp + ((i as u64 & 3) << 56) }).to_be_bytes());
    }
    sector
}

/// The stamp of a sector, if it is one of ours.
fn stamp_of(sector: &[u8]) -> Option<u64> {
    let stamp = u64::from_be_bytes(sector.get(..8)?.try_into().ok()?);
    (sector == filled(stamp)).then_some(stamp)
}
