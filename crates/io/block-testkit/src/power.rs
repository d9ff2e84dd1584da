//! What storage holds, and what is left of it after a power cut.
//!
//! Writes that were not flushed may or may not have reached the medium, sector by sector, in any combination. Which
//! requests there are and when they complete is `mem`'s business.

use block_common::IoBuf;
use std::collections::VecDeque;

/// A medium stores this many bytes whole or not at all.
const SECTOR: u64 = 512;
/// To compare with, a piece at a time.
static ZEROES: [u8; 4096] = [0; 4096];

pub(crate) struct Content {
    bytes: Vec<u8>,
    journal: Option<Journal>,
}

/// Everything since the last flush.
struct Journal {
    /// What is on the medium for certain.
    base: Vec<u8>,
    effects: VecDeque<Effect>,
    next: u64,
}

struct Effect {
    id: u64,
    /// It went past the cache.
    durable: bool,
    what: What,
}

enum What {
    Write(usize, Box<[u8]>),
    Fill(usize, usize),
    /// Lengths are the host file system's, which keeps them.
    Length(usize),
}

impl What {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                reach(bytes, at + data.len());
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Fill(at, len) => {
                reach(bytes, at + len);
                bytes[*at..at + len].fill(0);
            }
            Self::Length(len) => bytes.resize(*len, 0),
        }
    }

    /// Apply the sectors that `keep` names.
    fn apply_some(&self, bytes: &mut Vec<u8>, keep: &mut dyn FnMut(u64, u64) -> bool) {
        let (at, len) = match self {
            Self::Write(at, data) => (*at, data.len()),
            Self::Fill(at, len) => (*at, *len),
            Self::Length(len) => return bytes.resize(*len, 0),
        };
        reach(bytes, at + len);
        let mut done = 0;
        while done < len {
            let offset = (at + done) as u64;
            let n = ((SECTOR - offset % SECTOR) as usize).min(len - done);
            if keep(offset, n as u64) {
                match self {
                    Self::Write(_, data) => bytes[at + done..at + done + n].copy_from_slice(&data[done..done + n]),
                    _ => bytes[at + done..at + done + n].fill(0),
                }
            }
            done += n;
        }
    }
}

fn reach(bytes: &mut Vec<u8>, end: usize) {
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
}

impl Content {
    pub(crate) fn new(bytes: Vec<u8>, journal: bool) -> Self {
        let journal = journal.then(|| Journal { base: bytes.clone(), effects: VecDeque::new(), next: 0 });
        Self { bytes, journal }
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Past the end there are zeroes.
    pub(crate) fn read(&self, offset: u64, len: u64, buf: &IoBuf) {
        let len = len as usize;
        let from = (offset as usize).min(self.bytes.len());
        let there = (self.bytes.len() - from).min(len);
        buf.copy_from_slice(0, &self.bytes[from..from + there]);
        buf.fill(there, len - there, 0);
    }

    pub(crate) fn write(&mut self, offset: u64, len: u64, buf: &IoBuf, durable: bool) {
        let (at, len) = (offset as usize, len as usize);
        reach(&mut self.bytes, at + len);
        buf.slice(0, len).copy_to_slice(0, &mut self.bytes[at..at + len]);
        if self.journal.is_some() {
            let data = self.bytes[at..at + len].into();
            self.note(durable, What::Write(at, data));
        }
    }

    pub(crate) fn fill(&mut self, offset: u64, len: u64, durable: bool) {
        let what = What::Fill(offset as usize, len as usize);
        what.apply(&mut self.bytes);
        self.note(durable, what);
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        let what = What::Length(len as usize);
        what.apply(&mut self.bytes);
        self.note(false, what);
    }

    fn note(&mut self, durable: bool, what: What) {
        if let Some(journal) = &mut self.journal {
            journal.effects.push_back(Effect { id: journal.next, durable, what });
            journal.next += 1;
        }
    }

    /// A flush that begins now makes durable what was done before this mark.
    pub(crate) fn mark(&self) -> u64 {
        self.journal.as_ref().map_or(0, |journal| journal.next)
    }

    /// A flush that began at `mark` is over.
    pub(crate) fn flushed(&mut self, mark: u64) {
        let Some(journal) = &mut self.journal else { return };
        while journal.effects.front().is_some_and(|effect| effect.id < mark) {
            if let Some(effect) = journal.effects.pop_front() {
                effect.what.apply(&mut journal.base);
            }
        }
    }

    /// What is on the medium if the power fails now: everything durable, and of the rest the sectors that `keep` names.
    pub(crate) fn after_power_cut(&self, keep: &mut dyn FnMut(u64, u64) -> bool) -> Option<Vec<u8>> {
        let journal = self.journal.as_ref()?;
        let mut bytes = journal.base.clone();
        for effect in &journal.effects {
            if effect.durable {
                effect.what.apply(&mut bytes);
            } else {
                effect.what.apply_some(&mut bytes, keep);
            }
        }
        Some(bytes)
    }

    /// For how many bytes from `offset` on (a multiple of `block`) the content is zero, or is not, looking at `len`
    /// bytes at most.
    pub(crate) fn zero_run(&self, offset: u64, len: u64, block: u64) -> (bool, u64) {
        let is_zero = |at: u64| {
            let end = (at / block * block + block).min(offset + len);
            let from = (at as usize).min(self.bytes.len());
            let to = (end as usize).min(self.bytes.len());
            (self.bytes[from..to].chunks(ZEROES.len()).all(|part| part == &ZEROES[..part.len()]), end)
        };
        let (zero, mut end) = is_zero(offset);
        while end < offset + len {
            let (next, next_end) = is_zero(end);
            if next != zero {
                break;
            }
            end = next_end;
        }
        (zero, end - offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_common::AlignedBuf;

    fn content() -> Content {
        Content::new(vec![0; 4096], true)
    }

    fn put(content: &mut Content, offset: u64, byte: u8, len: usize, durable: bool) {
        let mut data = AlignedBuf::zeroed(len, 1);
        data.fill(byte);
        content.write(offset, len as u64, &data.into_io(), durable);
    }

    #[test]
    fn flushed_and_durable_writes_survive_and_others_may_not() {
        let mut content = content();
        put(&mut content, 0, 1, 512, false);
        let mark = content.mark();
        put(&mut content, 512, 2, 512, false);
        content.flushed(mark);
        put(&mut content, 1024, 3, 512, true);
        let lost = content.after_power_cut(&mut |_, _| false).expect("a journal");
        assert_eq!((lost[0], lost[512], lost[1024]), (1, 0, 3));
        let kept = content.after_power_cut(&mut |_, _| true).expect("a journal");
        assert_eq!(kept, content.bytes());
    }

    #[test]
    fn writes_tear_between_sectors() {
        let mut content = content();
        put(&mut content, 100, 7, 1024, false);
        let mut asked = Vec::new();
        let torn = content.after_power_cut(&mut |offset, len| {
            asked.push((offset, len));
            offset == 512
        });
        assert_eq!(asked, [(100, 412), (512, 512), (1024, 100)]);
        let torn = torn.expect("a journal");
        assert_eq!((torn[511], torn[512], torn[1023], torn[1024]), (0, 7, 7, 0));
    }

    #[test]
    fn runs_end_where_the_content_changes() {
        let mut content = content();
        put(&mut content, 1024, 1, 1, false);
        assert_eq!(content.zero_run(0, 4096, 512), (true, 1024));
        assert_eq!(content.zero_run(1024, 4096, 512), (false, 512));
        assert_eq!(content.zero_run(1536, 10_000, 512), (true, 10_000));
    }
}
