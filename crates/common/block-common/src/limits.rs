//! What a node can do in one request.

/// The limits of a node, as its driver states them. All numbers are bytes unless they say otherwise; zero means "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths are multiples of this power of two; at least 1.
    pub request_alignment: u32,
    /// Those of reads are multiples of this smaller power of two; 0: as those of other requests are.
    pub read_alignment: u32,
    /// Buffers begin at multiples of this power of two; at least 1.
    pub memory_alignment: u32,
    /// The longest read or write.
    pub transfer_max: u32,
    /// The longest zero write.
    pub zero_max: u64,
    /// Zero writes are cheap at multiples of this; any number.
    pub zero_alignment: u32,
    /// The longest discard.
    pub discard_max: u64,
    /// Discards have an effect at multiples of this; any number.
    pub discard_alignment: u32,
    /// Requests of this size and multiples of it are cheapest.
    pub transfer_optimal: u32,
}

impl Limits {
    /// No limits: any offset, any length, any memory.
    pub const NONE: Self = Self {
        request_alignment: 1,
        read_alignment: 0,
        memory_alignment: 1,
        transfer_max: 0,
        zero_max: 0,
        zero_alignment: 1,
        discard_max: 0,
        discard_alignment: 1,
        transfer_optimal: 0,
    };
}

/// The shorter of two limits, of which zero is none.
const fn shorter(a: u64, b: u64) -> u64 {
    if a == 0 || (b != 0 && b < a) { b } else { a }
}

impl Limits {
    /// What offsets and lengths of reads are multiples of.
    pub const fn reads(&self) -> u32 {
        if self.read_alignment == 0 || self.read_alignment > self.request_alignment {
            self.request_alignment
        } else {
            self.read_alignment
        }
    }

    /// What both allow: of a node that makes every request on two children.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let request_alignment = self.request_alignment.max(other.request_alignment);
        let reads = self.reads().max(other.reads());
        Self {
            request_alignment,
            read_alignment: if reads == request_alignment { 0 } else { reads },
            memory_alignment: self.memory_alignment.max(other.memory_alignment),
            transfer_max: shorter(self.transfer_max.into(), other.transfer_max.into()) as u32,
            zero_max: shorter(self.zero_max, other.zero_max),
            zero_alignment: self.zero_alignment.max(other.zero_alignment),
            discard_max: shorter(self.discard_max, other.discard_max),
            discard_alignment: self.discard_alignment.max(other.discard_alignment),
            transfer_optimal: self.transfer_optimal.max(other.transfer_optimal),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_allow_what_each_does() {
        let one = Limits { request_alignment: 512, transfer_max: 4096, ..Limits::NONE };
        let two = Limits { memory_alignment: 4096, transfer_max: 1024, zero_max: 7, ..Limits::NONE };
        let both =
            Limits { request_alignment: 512, memory_alignment: 4096, transfer_max: 1024, zero_max: 7, ..Limits::NONE };
        assert_eq!((one.and(two), two.and(one), one.and(Limits::NONE)), (both, both, one));
        let clusters = Limits { request_alignment: 65_536, read_alignment: 1, ..Limits::NONE };
        let both = Limits { read_alignment: 512, ..clusters };
        assert_eq!((clusters.reads(), clusters.and(Limits { transfer_max: 0, ..one }).reads()), (1, 512));
        assert_eq!(clusters.and(Limits { request_alignment: 512, ..Limits::NONE }), both);
        // Never more than others need.
        assert_eq!((one.reads(), Limits { read_alignment: 4096, ..one }.reads()), (512, 512));
    }
}
