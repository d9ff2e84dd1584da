//! Limits that a node is told to have, within what is possible above its child.

use block_common::{GuestRange, Limits};

/// The limits of a blkdebug node, in bytes; what is not given is the child's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkdebugLimits {
    /// Request alignment.
    pub align: Option<u64>,
    /// The longest read or write.
    pub max_transfer: Option<u64>,
    /// Zero writes are cheap at multiples of this; others are refused.
    pub opt_write_zero: Option<u64>,
    /// The longest zero write.
    pub max_write_zero: Option<u64>,
    /// Discards have an effect at multiples of this; others are refused.
    pub opt_discard: Option<u64>,
    /// The longest discard.
    pub max_discard: Option<u64>,
}

/// A limit that makes no sense with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot meet constraints with {name} {value}")]
pub struct LimitsError {
    /// The limit's name as an option.
    pub name: &'static str,
    /// Its value in bytes.
    pub value: u64,
}

const INT_MAX: u64 = i32::MAX as u64;

impl BlkdebugLimits {
    /// Whether a zero write may be this.
    pub(crate) fn zeroes(&self, range: GuestRange) -> bool {
        is_multiple(range, self.opt_write_zero)
    }

    /// Whether a discard may be this.
    pub(crate) fn discards(&self, range: GuestRange) -> bool {
        is_multiple(range, self.opt_discard)
    }

    /// The limits of a node that has these above a child that has `below`.
    ///
    /// # Errors
    /// [`LimitsError`] names the first that cannot be had: no power of two, or no multiple of what it must be one of.
    pub(crate) fn over(self, below: Limits) -> Result<Limits, LimitsError> {
        fn error<T>(name: &'static str, value: u64) -> Result<T, LimitsError> {
            Err(LimitsError { name, value })
        }
        if let Some(align) = self.align
            && (align == 0 || align >= INT_MAX || !align.is_power_of_two())
        {
            return error("align", align);
        }
        let align = self.align.unwrap_or(0).max(below.request_alignment.into()).max(1);
        let multiple = |name, value: Option<u64>, of: u64| match value {
            Some(bytes) if bytes == 0 || bytes >= INT_MAX || !bytes.is_multiple_of(of) => error(name, bytes),
            _ => Ok(()),
        };
        multiple("max-transfer", self.max_transfer, align)?;
        multiple("opt-write-zero", self.opt_write_zero, align)?;
        multiple("max-write-zero", self.max_write_zero, self.opt_write_zero.unwrap_or(0).max(align))?;
        multiple("opt-discard", self.opt_discard, align)?;
        multiple("max-discard", self.max_discard, self.opt_discard.unwrap_or(0).max(align))?;
        Ok(Limits {
            request_alignment: align as u32,
            // Who asks for blocks wants to see them read.
            read_alignment: if self.align.is_some() { 0 } else { below.read_alignment },
            transfer_max: self.max_transfer.map_or(below.transfer_max, |bytes| bytes as u32),
            zero_alignment: self.opt_write_zero.map_or(below.zero_alignment, |bytes| bytes as u32),
            zero_max: self.max_write_zero.unwrap_or(below.zero_max),
            discard_alignment: self.opt_discard.map_or(below.discard_alignment, |bytes| bytes as u32),
            discard_max: self.max_discard.unwrap_or(below.discard_max),
            ..below
        })
    }
}

fn is_multiple(range: GuestRange, of: Option<u64>) -> bool {
    of.is_none_or(|of| range.offset().0.is_multiple_of(of) && range.len().is_multiple_of(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: impl FnOnce(&mut BlkdebugLimits)) -> Result<Limits, String> {
        let mut limits = BlkdebugLimits::default();
        set(&mut limits);
        limits.over(Limits { request_alignment: 512, ..Limits::NONE }).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_fit_each_other() {
        assert_eq!(with(|_| {}).map(|limits| limits.request_alignment), Ok(512));
        assert_eq!(with(|limits| limits.align = Some(4096)).map(|limits| limits.request_alignment), Ok(4096));
        assert_eq!(with(|limits| limits.align = Some(1)).map(|limits| limits.request_alignment), Ok(512));
        let refused = |set: fn(&mut BlkdebugLimits)| with(set).expect_err("it makes no sense");
        assert_eq!(refused(|limits| limits.align = Some(3)), "Cannot meet constraints with align 3");
        assert_eq!(refused(|limits| limits.max_transfer = Some(100)), "Cannot meet constraints with max-transfer 100");
        assert_eq!(refused(|limits| limits.opt_discard = Some(3)), "Cannot meet constraints with opt-discard 3");
        let three = BlkdebugLimits { opt_discard: Some(3), ..BlkdebugLimits::default() };
        assert_eq!(three.over(Limits::NONE).map(|limits| limits.discard_alignment), Ok(3));
        assert_eq!(refused(|limits| limits.max_discard = Some(1)), "Cannot meet constraints with max-discard 1");
    }
}
