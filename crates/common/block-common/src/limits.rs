//! What a node can do in one request.

/// The limits of a node, as its driver states them. All numbers are bytes unless they say otherwise; zero means "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths are multiples of this power of two; at least 1.
    pub request_alignment: u32,
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
    /// What both allow: of a node that makes every request on two children.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            request_alignment: self.request_alignment.max(other.request_alignment),
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
    }
}
