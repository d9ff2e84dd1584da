//! Memory that is registered with a ring: the kernel holds its pages, and requests around the page cache need not look them up each time.
//!
//! What the kernel knows of it is a table of pieces, each at a number. An operation whose memory lies within one piece names that number.
//! Which operations do, and what happens to them, is in `context`.

use block_common::{IoBuf, Segment};

/// How many pieces a ring takes.
pub(crate) const PIECES_MAX: u32 = 1024;
/// The longest piece that the kernel takes, in bytes.
const PIECE_LEN_MAX: usize = 1 << 30;

/// Memory that is registered with a [`Queue`](crate::Queue): see [`Queue::register`](crate::Queue::register).
#[derive(Debug)]
pub struct RegisteredBuf {
    /// The ring's context, and the pieces' numbers there.
    pub(crate) context: u64,
    pub(crate) pieces: Vec<u16>,
}

struct Piece {
    base: usize,
    len: usize,
    /// Operations in the ring that name it.
    users: u32,
    /// No more operations are to name it.
    going: bool,
    /// Keeps the memory.
    _memory: IoBuf,
}

impl Piece {
    fn holds(&self, segment: Segment) -> bool {
        let start = (segment.base.as_ptr() as usize).checked_sub(self.base);
        !self.going && start.is_some_and(|start| start <= self.len && segment.len <= self.len - start)
    }
}

/// The table of one ring.
#[derive(Default)]
pub(crate) struct Pieces {
    /// Whether the kernel has an empty table.
    pub(crate) has_table: bool,
    table: Vec<Option<Piece>>,
    count: usize,
    /// Where a piece was found last.
    last: usize,
}

impl Pieces {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of the piece in which `segment` lies. It is looked for where the last one was found first.
    pub(crate) fn find(&mut self, segment: Segment) -> Option<u16> {
        let holds = |piece: &Option<Piece>| piece.as_ref().is_some_and(|piece| piece.holds(segment));
        if !self.table.get(self.last).is_some_and(holds) {
            self.last = self.table.iter().position(holds)?;
        }
        u16::try_from(self.last).ok()
    }

    /// A free number, if there is one.
    pub(crate) fn free(&mut self) -> Option<u16> {
        let free = self.table.iter().position(Option::is_none).unwrap_or(self.table.len());
        if free >= PIECES_MAX as usize {
            return None;
        }
        if free == self.table.len() {
            self.table.push(None);
        }
        u16::try_from(free).ok()
    }

    pub(crate) fn insert(&mut self, number: u16, segment: Segment, memory: &IoBuf) {
        let piece = Piece {
            base: segment.base.as_ptr() as usize,
            len: segment.len,
            users: 0,
            going: false,
            _memory: memory.clone(),
        };
        self.table[usize::from(number)] = Some(piece);
        self.count += 1;
    }

    pub(crate) fn remove(&mut self, number: u16) {
        self.table[usize::from(number)] = None;
        self.count -= 1;
    }

    /// Let no more operations name these. Tells whether some still do.
    pub(crate) fn retire(&mut self, numbers: &[u16]) -> bool {
        let mut used = false;
        for number in numbers {
            if let Some(piece) = &mut self.table[usize::from(*number)] {
                piece.going = true;
                used |= piece.users > 0;
            }
        }
        used
    }

    /// An operation that names the piece was given to the ring.
    pub(crate) fn taken(&mut self, number: u16) {
        if let Some(piece) = &mut self.table[usize::from(number)] {
            piece.users += 1;
        }
    }

    /// Such an operation was answered.
    pub(crate) fn given_back(&mut self, number: u16) {
        if let Some(piece) = &mut self.table[usize::from(number)] {
            piece.users -= 1;
        }
    }

    #[cfg(test)]
    pub(crate) fn stretch(&mut self, number: u16, len: usize) {
        if let Some(piece) = &mut self.table[usize::from(number)] {
            piece.len = len;
        }
    }
}

/// The pieces that the kernel takes `memory` in.
pub(crate) fn pieces_of(memory: &IoBuf) -> impl Iterator<Item = Segment> {
    memory.segments().iter().flat_map(|segment| {
        (0..segment.len).step_by(PIECE_LEN_MAX).map(|at| {
            let base = segment.base.map_addr(|base| base.saturating_add(at));
            Segment { base, len: (segment.len - at).min(PIECE_LEN_MAX) }
        })
    })
}
