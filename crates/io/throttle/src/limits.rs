//! Limits: six rates with their bursts, checked together. How they are enforced is not here.

use std::fmt;
use std::ops::{Index, IndexMut};

/// The largest rate or burst, and the most that one burst may let through.
pub const VALUE_MAX: u64 = 1_000_000_000_000_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitKind {
    /// Bytes a second, read and written.
    BpsTotal,
    /// Bytes a second that are read.
    BpsRead,
    /// Bytes a second that are written, zeroed or discarded.
    BpsWrite,
    /// Requests a second.
    IopsTotal,
    /// Reads a second.
    IopsRead,
    /// Writes, zero writes and discards a second.
    IopsWrite,
}

impl LimitKind {
    /// All of them, in the order in which they are checked.
    pub const ALL: [Self; 6] =
        [Self::BpsTotal, Self::BpsRead, Self::BpsWrite, Self::IopsTotal, Self::IopsRead, Self::IopsWrite];

    /// The option's name; a burst's ends with `-max`, its length's with `-max-length`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BpsTotal => "bps-total",
            Self::BpsRead => "bps-read",
            Self::BpsWrite => "bps-write",
            Self::IopsTotal => "iops-total",
            Self::IopsRead => "iops-read",
            Self::IopsWrite => "iops-write",
        }
    }

    /// Whether it counts bytes, and not requests.
    pub fn is_bps(self) -> bool {
        matches!(self, Self::BpsTotal | Self::BpsRead | Self::BpsWrite)
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One limit, in bytes or requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is let through each second in the long run. 0: everything.
    pub rate: u64,
    /// What is let through each second of a burst. 0: no bursts.
    pub max: u64,
    /// How many seconds a burst lasts at that rate.
    pub max_length: u64,
}

impl Default for Limit {
    /// No limit, and bursts of a second.
    fn default() -> Self {
        Self { rate: 0, max: 0, max_length: 1 }
    }
}

/// Limits as somebody has written them down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitSettings {
    limits: [Limit; 6],
    /// In the eyes of the limits on requests, a larger request is as many as it has times this many bytes. 0: every request is one.
    pub iops_size: u64,
}

impl Index<LimitKind> for LimitSettings {
    type Output = Limit;
    fn index(&self, kind: LimitKind) -> &Limit {
        &self.limits[kind as usize]
    }
}

impl IndexMut<LimitKind> for LimitSettings {
    fn index_mut(&mut self, kind: LimitKind) -> &mut Limit {
        &mut self.limits[kind as usize]
    }
}

/// Why limits do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// A limit for everything, and one for a part of it.
    #[error("bps/iops/max total values and read/write values cannot be used at the same time")]
    TotalAndParts,
    /// A size of requests that nobody counts.
    #[error("iops size requires an iops value to be set")]
    SizeAlone,
    /// A rate or a burst is too high.
    #[error("bps/iops/max values must be within [0, {VALUE_MAX}]")]
    OutOfRange,
    /// A burst without length.
    #[error("the burst length cannot be 0")]
    ZeroLength,
    /// A length without a burst.
    #[error("burst length set without burst rate")]
    LengthAlone,
    /// A burst that lets through more than [`VALUE_MAX`].
    #[error("burst length too high for this burst rate")]
    TooLong,
    /// A burst of what is not limited.
    #[error("bps_max/iops_max require corresponding bps/iops values")]
    MaxAlone,
    /// A burst that is slower than what is let through anyway.
    #[error("bps_max/iops_max cannot be lower than bps/iops")]
    MaxBelowRate,
}

/// Limits that go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleLimits(LimitSettings);

impl ThrottleLimits {
    /// Check `settings`.
    ///
    /// # Errors
    /// [`LimitsError`] says what does not go together, the first of several things in the order in which the field looks for them.
    pub fn new(settings: LimitSettings) -> Result<Self, LimitsError> {
        if [total_and_parts(&settings, |limit| limit.rate), total_and_parts(&settings, |limit| limit.max)]
            .contains(&true)
        {
            return Err(LimitsError::TotalAndParts);
        }
        let counts_requests = LimitKind::ALL.iter().any(|kind| !kind.is_bps() && settings[*kind].rate > 0);
        if settings.iops_size > 0 && !counts_requests {
            return Err(LimitsError::SizeAlone);
        }
        LimitKind::ALL.iter().try_for_each(|kind| check(settings[*kind]))?;
        Ok(Self(settings))
    }

    /// What they were made from.
    pub fn settings(&self) -> &LimitSettings {
        &self.0
    }

    /// Whether everything is let through.
    pub fn is_unlimited(&self) -> bool {
        LimitKind::ALL.iter().all(|kind| self.0[*kind].rate == 0)
    }
}

impl From<ThrottleLimits> for LimitSettings {
    fn from(limits: ThrottleLimits) -> Self {
        limits.0
    }
}

/// Whether of bytes, or of requests, both the total and a part have a value.
fn total_and_parts(settings: &LimitSettings, value: impl Fn(&Limit) -> u64) -> bool {
    let has = |kind: LimitKind| value(&settings[kind]) > 0;
    use LimitKind::*;
    (has(BpsTotal) && (has(BpsRead) || has(BpsWrite))) || (has(IopsTotal) && (has(IopsRead) || has(IopsWrite)))
}

/// What is wrong with one limit by itself.
fn check(Limit { rate, max, max_length }: Limit) -> Result<(), LimitsError> {
    match () {
        () if rate > VALUE_MAX || max > VALUE_MAX => Err(LimitsError::OutOfRange),
        () if max_length == 0 => Err(LimitsError::ZeroLength),
        () if max_length > 1 && max == 0 => Err(LimitsError::LengthAlone),
        () if max > 0 && max_length > VALUE_MAX / max => Err(LimitsError::TooLong),
        () if max > 0 && rate == 0 => Err(LimitsError::MaxAlone),
        () if max > 0 && max < rate => Err(LimitsError::MaxBelowRate),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::LimitKind::*;
    use super::*;

    fn settings(limits: &[(LimitKind, u64, u64, u64)], iops_size: u64) -> LimitSettings {
        let mut settings = LimitSettings { iops_size, ..LimitSettings::default() };
        for &(kind, rate, max, max_length) in limits {
            settings[kind] = Limit { rate, max, max_length };
        }
        settings
    }

    fn check(limits: &[(LimitKind, u64, u64, u64)], iops_size: u64, expected: Result<(), LimitsError>) {
        assert_eq!(ThrottleLimits::new(settings(limits, iops_size)).map(drop), expected, "{limits:?} {iops_size}");
    }

    #[test]
    fn what_goes_together() {
        check(&[], 0, Ok(()));
        check(&[(BpsTotal, 1, 0, 1), (IopsRead, 1, 0, 1), (IopsWrite, 2, 0, 1)], 512, Ok(()));
        check(&[(BpsTotal, 100, 100, 1)], 0, Ok(()));
        check(&[(BpsTotal, VALUE_MAX, VALUE_MAX, 1)], 0, Ok(()));
        check(&[(BpsTotal, 10, 500_000_000_000_000, 2)], 0, Ok(()));
        check(&[(IopsRead, 1, 1, VALUE_MAX)], u64::MAX, Ok(()));
    }

    #[test]
    fn what_does_not() {
        use LimitsError::*;
        check(&[(BpsTotal, 1, 0, 1), (BpsWrite, 1, 0, 1)], 0, Err(TotalAndParts));
        check(&[(IopsTotal, 1, 0, 1), (IopsRead, 1, 0, 1)], 4096, Err(TotalAndParts));
        check(&[(BpsTotal, 0, 1, 1), (BpsRead, 0, 1, 1)], 0, Err(TotalAndParts));
        check(&[(BpsTotal, 1, 0, 1)], 512, Err(SizeAlone));
        check(&[(BpsTotal, VALUE_MAX + 1, 0, 0)], 0, Err(OutOfRange));
        check(&[(BpsTotal, 1, VALUE_MAX + 1, 1)], 0, Err(OutOfRange));
        check(&[(BpsTotal, 10, 5, 0)], 0, Err(ZeroLength));
        check(&[(BpsTotal, 10, 0, 5)], 0, Err(LengthAlone));
        check(&[(BpsTotal, 10, 500_000_000_000_001, 2)], 0, Err(TooLong));
        check(&[(BpsTotal, 10, 20, u64::MAX)], 0, Err(TooLong));
        check(&[(BpsTotal, 0, 20, 1)], 0, Err(MaxAlone));
        check(&[(BpsTotal, 10, 9, 1)], 0, Err(MaxBelowRate));
        // Bytes before requests, the total before its parts.
        check(&[(IopsTotal, 10, 5, 1), (BpsRead, 0, 3, 1)], 0, Err(MaxAlone));
        check(&[(BpsRead, 10, 5, 1), (BpsWrite, 0, 4, 1)], 0, Err(MaxBelowRate));
    }
}
