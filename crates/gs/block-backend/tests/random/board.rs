//! What each medium may hold, byte for byte, and what is under way: the model. Media keep theirs wherever they go.
//!
//! A disk is units of a sector. Each has a set of contents that it may have: one as a rule; more while a write is in flight, after a discard, and after a write of which
//! nobody can say which medium it met. A content is a number: what the write of that number puts there; 0 are zeroes. Nothing here waits or sends requests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a unit.
pub(crate) const UNIT: usize = 512;
/// Units of the largest disk.
pub(crate) const UNITS: usize = 4096;

/// A drive as its guest finds it. What a request met while it was under way is the union of these.
pub(crate) mod phase {
    /// There is a medium, and the tray is closed.
    pub(crate) const PRESENT: u8 = 1;
    /// Somebody is at it.
    pub(crate) const CHANGING: u8 = 2;
    /// There is no medium to be had.
    pub(crate) const ABSENT: u8 = 4;
    /// The drive is being taken away.
    pub(crate) const GOING: u8 = 8;
}

/// Contents that a unit may have.
pub(crate) type Allowed = Vec<u64>;

fn add(to: &mut Allowed, content: u64) {
    if !to.contains(&content) {
        to.push(content);
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Read,
    /// With this content.
    Write(u64),
    Zero,
    /// What is there stays, or goes.
    Discard,
    Flush,
}

impl Act {
    fn content(self) -> Option<u64> {
        match self {
            Self::Read | Self::Flush => None,
            Self::Write(content) => Some(content),
            Self::Zero | Self::Discard => Some(0),
        }
    }
}

#[derive(Debug)]
struct Medium {
    units: Vec<Allowed>,
    /// The units that guests use: those that there are, but for the time of a change of that.
    limit: usize,
}

#[derive(Debug)]
struct Drive {
    /// The media that a request may meet.
    media: Vec<usize>,
    phase: u8,
    is_writable: bool,
}

/// A request under way, or somebody who watches a disk like one.
#[derive(Debug)]
struct Flight {
    drive: usize,
    act: Act,
    at: usize,
    count: usize,
    /// Those that it may have met.
    media: Vec<usize>,
    /// Of a read: what each unit may have been since it began.
    allowed: Vec<Allowed>,
    /// What the drive was like since then.
    phases: u8,
    /// A medium that it may have met has gone: nothing is sure any more.
    is_vague: bool,
    /// Somebody was writing what it reads, or began to.
    is_touched: bool,
}

impl Flight {
    fn overlaps(&self, at: usize, count: usize) -> bool {
        self.at < at + count && at < self.at + self.count
    }
}

#[derive(Debug, Default)]
struct Inner {
    media: Vec<Medium>,
    drives: Vec<Drive>,
    flights: BTreeMap<u64, Flight>,
    last: u64,
    done: u64,
    compared: u64,
    refused: u64,
}

/// The model, which guests' threads and the main loop share.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Inner>);

/// How a request ended, as far as the model is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    NoMedium,
    /// The drive may not write.
    Refused,
    /// Past the end.
    Outside,
    Closed,
    /// None of these.
    Failed,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A medium full of zeroes.
    pub(crate) fn new_medium(&self, limit: usize) -> usize {
        let mut inner = self.lock();
        inner.media.push(Medium { units: vec![vec![0]; UNITS], limit });
        inner.media.len() - 1
    }

    pub(crate) fn new_drive(&self, phase: u8, is_writable: bool) -> usize {
        let mut inner = self.lock();
        inner.drives.push(Drive { media: Vec::new(), phase, is_writable });
        inner.drives.len() - 1
    }

    /// From now on requests of `drive` may meet `medium`.
    pub(crate) fn arrive(&self, drive: usize, medium: usize) {
        let inner = &mut *self.lock();
        inner.drives[drive].media.push(medium);
        let mut written = Vec::new();
        for flight in inner.flights.values_mut().filter(|flight| flight.drive == drive) {
            if flight.media.contains(&medium) {
                continue;
            }
            flight.media.push(medium);
            for (i, allowed) in flight.allowed.iter_mut().enumerate() {
                inner.media[medium].units[flight.at + i].iter().for_each(|content| add(allowed, *content));
            }
            written.extend(flight.act.content().map(|content| (flight.at, flight.count, content)));
        }
        for (at, count, content) in written {
            inner.may_write(medium, at, count, content);
        }
    }

    /// No request of `drive` meets `medium` any more.
    pub(crate) fn leave(&self, drive: usize, medium: usize) {
        let inner = &mut *self.lock();
        inner.drives[drive].media.retain(|there| *there != medium);
        for flight in inner.flights.values_mut().filter(|flight| flight.drive == drive) {
            flight.is_vague |= flight.media.contains(&medium);
        }
    }

    pub(crate) fn set_phase(&self, drive: usize, phase: u8) {
        let inner = &mut *self.lock();
        inner.drives[drive].phase = phase;
        for flight in inner.flights.values_mut().filter(|flight| flight.drive == drive) {
            flight.phases |= phase;
        }
    }

    /// While somebody is at the drive.
    pub(crate) fn set_writable(&self, drive: usize, is_writable: bool) {
        self.lock().drives[drive].is_writable = is_writable;
    }

    pub(crate) fn limit(&self, medium: usize) -> usize {
        self.lock().media[medium].limit
    }

    /// Guests use this many units of `medium` from now on. Whether nothing is under way past that.
    pub(crate) fn set_limit(&self, medium: usize, limit: usize) {
        self.lock().media[medium].limit = limit;
    }

    pub(crate) fn is_quiet_past(&self, medium: usize, limit: usize) -> bool {
        let past = |flight: &Flight| flight.media.contains(&medium) && flight.at + flight.count > limit;
        !self.lock().flights.values().any(past)
    }

    /// The units from `from` on are zeroes: there were none, or are none any more.
    pub(crate) fn clear_from(&self, medium: usize, from: usize) {
        self.lock().media[medium].units[from..].iter_mut().for_each(|unit| *unit = vec![0]);
    }

    /// A request of `drive` on some units that are chosen by `choose` among as many as there are, and what it does. `None` when another one is in the way.
    pub(crate) fn begin(
        &self,
        drive: usize,
        choose: impl FnOnce(usize) -> (usize, usize),
        act: impl FnOnce(u64) -> Act,
    ) -> Option<(u64, Act, usize, usize)> {
        let inner = &mut *self.lock();
        let there = &inner.drives[drive];
        let limit = there.media.iter().map(|medium| inner.media[*medium].limit).min().unwrap_or(UNITS / 2);
        let (at, count) = choose(limit);
        inner.last += 1;
        let (id, act) = (inner.last, act(inner.last));
        let (media, phases) = (there.media.clone(), there.phase);
        if let Some(content) = act.content() {
            let is_in_the_way = |flight: &Flight| {
                let shares = flight.drive == drive || flight.media.iter().any(|medium| media.contains(medium));
                flight.act.content().is_some() && flight.overlaps(at, count) && shares
            };
            if inner.flights.values().any(is_in_the_way) {
                return None;
            }
            media.iter().for_each(|medium| inner.may_write(*medium, at, count, content));
        }
        // One that is under way already may be seen or not, and may be over when the read is.
        let is_written = |flight: &Flight| {
            let shares = flight.media.iter().any(|medium| media.contains(medium));
            flight.act.content().is_some() && flight.overlaps(at, count) && shares
        };
        let is_touched = inner.flights.values().any(is_written);
        let allowed = if act == Act::Read { inner.allowed(&media, at, count) } else { Vec::new() };
        let count = if act == Act::Flush { 0 } else { count };
        inner.flights.insert(id, Flight { drive, act, at, count, media, allowed, phases, is_vague: false, is_touched });
        Some((id, act, at, count))
    }

    /// A request is over. `bytes` are what was read.
    ///
    /// # Errors
    /// What should not be.
    pub(crate) fn end(&self, id: u64, end: End, bytes: &[u8]) -> Result<(), String> {
        let inner = &mut *self.lock();
        let Some(flight) = inner.flights.remove(&id) else { return Err("it was over".into()) };
        let is_writable = inner.drives[flight.drive].is_writable;
        check_end(&flight, end, is_writable)?;
        inner.done += 1;
        if end != End::Done {
            inner.refused += 1;
            return Ok(());
        }
        let sure = (!flight.is_vague && flight.media.len() == 1).then(|| flight.media[0]);
        match (flight.act, sure) {
            (Act::Read, _) => {
                inner.compared += bytes.len() as u64;
                for (i, unit) in bytes.chunks(UNIT).enumerate() {
                    check_unit(&flight.allowed[i], flight.at + i, unit)?;
                    inner.narrow(&flight, sure, i, unit);
                }
            }
            (Act::Write(content), Some(medium)) => inner.set(medium, &flight, content),
            (Act::Zero, Some(medium)) => inner.set(medium, &flight, 0),
            _ => {}
        }
        Ok(())
    }

    /// Begin to watch all of `medium`, by itself.
    pub(crate) fn watch(&self, medium: usize) -> u64 {
        let inner = &mut *self.lock();
        inner.last += 1;
        let allowed = inner.allowed(&[medium], 0, UNITS);
        let media = vec![medium];
        let (act, phases) = (Act::Read, phase::PRESENT);
        let (at, count, is_touched) = (0, 0, false);
        let flight = Flight { drive: usize::MAX, act, at, count, media, allowed, phases, is_vague: true, is_touched };
        // Zero units long, so that nobody waits for it; `may_write` looks at what it allows.
        inner.flights.insert(inner.last, flight);
        inner.last
    }

    /// What each unit may have held at any time since [`Board::watch`].
    pub(crate) fn watched(&self, id: u64) -> Vec<Allowed> {
        self.lock().flights.remove(&id).map(|flight| flight.allowed).unwrap_or_default()
    }

    /// Requests that are over; bytes that were compared; requests that were refused, as they had to be or could be.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let inner = self.lock();
        (inner.done, inner.compared, inner.refused)
    }

    /// What is under way, for whoever finds that something hangs.
    pub(crate) fn describe(&self) -> String {
        let inner = self.lock();
        let flight = |(id, flight): (&u64, &Flight)| {
            let Flight { drive, act, at, count, media, phases, .. } = flight;
            format!("#{id}: {act:?} of {count} units at {at} by drive {drive}, media {media:?}, phases {phases}")
        };
        let all: Vec<_> = inner.flights.iter().map(flight).collect();
        format!("{:#?}\n{}", inner.drives, all.join("\n"))
    }
}

impl Inner {
    fn allowed(&self, media: &[usize], at: usize, count: usize) -> Vec<Allowed> {
        let mut allowed = vec![Vec::new(); count];
        for medium in media {
            for (to, from) in allowed.iter_mut().zip(&self.media[*medium].units[at..at + count]) {
                from.iter().for_each(|content| add(to, *content));
            }
        }
        allowed
    }

    /// A write that begins may be seen from now on.
    fn may_write(&mut self, medium: usize, at: usize, count: usize, content: u64) {
        self.media[medium].units[at..at + count].iter_mut().for_each(|unit| add(unit, content));
        for flight in self.flights.values_mut().filter(|flight| flight.media.contains(&medium)) {
            let seen = flight.at..flight.at + flight.allowed.len();
            for unit in (at..at + count).filter(|unit| seen.contains(unit)) {
                flight.is_touched = true;
                add(&mut flight.allowed[unit - flight.at], content);
            }
        }
    }

    fn set(&mut self, medium: usize, flight: &Flight, content: u64) {
        self.media[medium].units[flight.at..flight.at + flight.count].fill(vec![content]);
    }

    /// What was read of a unit that nobody has been writing meanwhile is what it holds from then on, whatever else it might have been.
    fn narrow(&mut self, flight: &Flight, sure: Option<usize>, i: usize, bytes: &[u8]) {
        let (Some(medium), at) = (sure.filter(|_| !flight.is_touched), flight.at + i) else { return };
        let is_written =
            |other: &Flight| other.act.content().is_some() && other.overlaps(at, 1) && other.media.contains(&medium);
        let unit = &mut self.media[medium].units[at];
        if unit.len() < 2 || *unit != flight.allowed[i] || self.flights.values().any(is_written) {
            return;
        }
        unit.retain(|content| is_content(*content, at, bytes));
        assert!(!unit.is_empty(), "it was checked");
    }
}

fn check_end(flight: &Flight, end: End, is_writable: bool) -> Result<(), String> {
    let writes = flight.act.content().is_some();
    let is_right = match (flight.phases, end) {
        (_, End::Failed) => false,
        (phase::PRESENT, End::Refused) => writes && !is_writable,
        (phase::PRESENT, end) => end == End::Done && (!writes || is_writable),
        (phase::ABSENT, end) => end == End::NoMedium,
        (phases, End::Closed) => phases & phase::GOING != 0,
        (_, End::Refused) => writes,
        (_, End::Done | End::NoMedium | End::Outside) => true,
    };
    let Flight { drive, act, at, count, media, phases, .. } = flight;
    is_right.then_some(()).ok_or_else(|| {
        format!("{end:?}: {act:?} of {count} units at {at} by drive {drive}, media {media:?}, phases {phases}, writable {is_writable}")
    })
}

/// The eight bytes at `place` that a write with this content puts there.
fn word(content: u64, place: usize) -> [u8; 8] {
    match content {
        0 => [0; 8],
        _ => {
            let mixed =
                (content ^ (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ (mixed >> 29) | 1).to_le_bytes()
        }
    }
}

/// The bytes of `content` from the unit `at` on.
pub(crate) fn bytes_of(content: u64, at: usize, count: usize) -> Vec<u8> {
    (at * UNIT / 8..(at + count) * UNIT / 8).flat_map(|place| word(content, place)).collect()
}

fn is_content(content: u64, at: usize, bytes: &[u8]) -> bool {
    bytes.chunks(8).enumerate().all(|(i, eight)| word(content, at * UNIT / 8 + i) == eight)
}

/// Whether the unit at `at` may be `bytes`. Of several writes parts may be seen, in words: a page of the host's cache that is read while it is written.
///
/// # Errors
/// What it is instead.
pub(crate) fn check_unit(allowed: &[u64], at: usize, bytes: &[u8]) -> Result<(), String> {
    let fits = |(i, eight): (usize, &[u8])| allowed.iter().any(|content| word(*content, at * UNIT / 8 + i) == eight);
    if allowed.iter().any(|content| is_content(*content, at, bytes)) || bytes.chunks(8).enumerate().all(fits) {
        return Ok(());
    }
    let newest = (1..4_000_000).find(|content| is_content(*content, at, bytes));
    let found = match newest {
        Some(content) => format!("what request {content} wrote"),
        None if bytes.iter().all(|byte| *byte == 0) => "zeroes".into(),
        None => format!("{:02x?}…", &bytes[..16]),
    };
    Err(format!("unit {at} holds {found} instead of what one of {allowed:?} wrote"))
}
