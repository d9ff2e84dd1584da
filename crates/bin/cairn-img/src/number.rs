//! Numbers on the command line, with the field's words for what is wrong with them.
//!
//! Counts are what C's `strtol` reads; sizes may have suffixes. Ranges are the options' own.

use block_common::{SizeError, parse_size};
use std::ops::RangeInclusive;

/// A whole number in `range`: decimal, octal after `0`, hexadecimal after `0x`.
///
/// # Errors
/// The message for the user; `what` is the thing that the number is for.
pub(crate) fn count(text: &str, what: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    match strtol(text) {
        None => Err(format!("Invalid {what} specified: '{text}'.")),
        Some(value) => within(value.try_into().ok(), what, range),
    }
}

/// A number of bytes in `range`, suffixes allowed.
///
/// # Errors
/// As [`count`].
pub(crate) fn size(text: &str, what: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    // A plain number below zero is one, and out of range; a negative size with a suffix is none.
    if let Some(digits) = text.trim_start_matches(is_space).strip_prefix('-') {
        return match !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => within(None, what, range),
            false => Err(format!("Invalid {what} specified: '{text}'.")),
        };
    }
    match parse_size(text) {
        Ok(value) => within(Some(value), what, range),
        Err(SizeError::TooLarge) => within(None, what, range),
        Err(_) => Err(format!("Invalid {what} specified: '{text}'.")),
    }
}

fn within(value: Option<u64>, what: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    value
        .filter(|value| range.contains(value))
        .ok_or_else(|| format!("Invalid {what} specified. Must be between {} and {}.", range.start(), range.end()))
}

/// What C's locale calls white space.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// The whole of `text` as a number, as far away from zero as it is said to be.
fn strtol(text: &str) -> Option<i128> {
    let text = text.trim_start_matches(is_space);
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, text),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        parse: fn(&str, &str, RangeInclusive<u64>) -> Result<u64, String>,
        text: &str,
        expected: Result<u64, &str>,
    ) {
        let expected = expected.map_err(|why| match why {
            "range" => "Invalid thing specified. Must be between 1 and 4096.".to_owned(),
            _ => format!("Invalid thing specified: '{text}'."),
        });
        assert_eq!(parse(text, "thing", 1..=4096), expected, "{text:?}");
    }

    #[test]
    fn counts_are_what_strtol_reads() {
        // Each is what `qemu-img bench -c` makes of it, 10.0.2.
        for (text, value) in [("1", 1), ("0x10", 16), ("010", 8), (" 5", 5), ("\t5", 5), ("+5", 5), ("4096", 4096)] {
            check(count, text, Ok(value));
        }
        for text in ["", "abc", "1k", "1.5", "5 ", "0x", "08", "1e", "-1k", "--1", "10x", "=5"] {
            check(count, text, Err("word"));
        }
        for text in ["0", "-0", "-1", "-0x10", "4097", "99999999999999999999", &"9".repeat(100)] {
            check(count, text, Err("range"));
        }
    }

    #[test]
    fn sizes_have_suffixes() {
        for (text, value) in [("1k", 1024), ("1.5k", 1536), ("0x10", 16), ("4096", 4096), ("4b", 4), (" 5", 5)] {
            check(size, text, Ok(value));
        }
        for text in ["", "abc", "1.5", "-1k", "-x", "5 ", "0x"] {
            check(size, text, Err("word"));
        }
        for text in ["0", "-0", "-1", "8k", "8E", "99999999999999999999"] {
            check(size, text, Err("range"));
        }
    }
}
