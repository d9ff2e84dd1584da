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

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}
