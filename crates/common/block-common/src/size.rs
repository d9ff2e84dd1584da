//! Sizes as users write them (`1.5G`) and as tools print them (`1.5 GiB`).
//!
//! The numbers are bytes. Rounding to sectors or clusters, and whether a size makes sense for an image, is for others to
//! decide.

use crate::LENGTH_MAX;
use std::fmt;

/// The suffixes with their shifts; either case is understood.
const SUFFIXES: [(u8, u32); 7] = [(b'b', 0), (b'k', 10), (b'm', 20), (b'g', 30), (b't', 40), (b'p', 50), (b'e', 60)];

/// Digits of a fraction that count: more cannot change a byte below 2^60, and 10^18 * 2^60 fits in 128 bits.
const FRACTION_DIGITS_MAX: usize = 18;

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number with an optional suffix, or a number that is not whole bytes.
    #[error("not a size: expected a number, which may have a fraction if a suffix k, M, G, T, P or E follows")]
    NotANumber,
    /// A well-formed number below zero.
    #[error("a size cannot be negative")]
    Negative,
    /// More than [`LENGTH_MAX`].
    #[error("a size cannot exceed 2^63 - 1 bytes")]
    TooLarge,
}

/// The number of bytes, at most [`LENGTH_MAX`], that `text` states: decimal digits, a fraction, and one of the suffixes
/// b, k, M, G, T, P, E (powers of 1024, either case), or hexadecimal digits after `0x` with neither. A fraction is rounded to
/// the nearest byte; without a suffix it has to be zero. White space and a sign may stand in front. There are no octal
/// numbers.
///
/// # Errors
/// [`SizeError`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    parse_size_64(text).and_then(|bytes| if bytes <= LENGTH_MAX { Ok(bytes) } else { Err(SizeError::TooLarge) })
}

/// As [`parse_size`], for numbers of up to 64 bits.
///
/// # Errors
/// [`SizeError`].
pub fn parse_size_64(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    if let Some(rest) = text.strip_prefix('-') {
        // Words that are no number stay that, whatever stands before them.
        return if parse_unsigned(rest)? == 0 { Ok(0) } else { Err(SizeError::Negative) };
    }
    let bytes = parse_unsigned(text.strip_prefix('+').unwrap_or(text))?;
    u64::try_from(bytes).map_err(|_| SizeError::TooLarge)
}

/// As [`parse_size`], without sign and with its limit far away: a number that is too large stays too large.
fn parse_unsigned(text: &str) -> Result<u128, SizeError> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(SizeError::NotANumber);
        }
        return Ok(u128::from_str_radix(digits, 16).unwrap_or(u128::MAX));
    }
    let (whole, rest) = split_digits(text);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::NotANumber);
    }
    let shift = match suffix.as_bytes() {
        [] => 0,
        [byte] => suffix_shift(*byte).ok_or(SizeError::NotANumber)?,
        _ => return Err(SizeError::NotANumber),
    };
    if shift == 0 && (whole.is_empty() || fraction.bytes().any(|b| b != b'0')) {
        return Err(SizeError::NotANumber);
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(u128::MAX) };
    Ok(whole.saturating_mul(1 << shift).saturating_add(fraction_bytes(fraction, shift)))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

fn suffix_shift(byte: u8) -> Option<u32> {
    SUFFIXES.iter().find(|(suffix, _)| *suffix == byte.to_ascii_lowercase()).map(|(_, shift)| *shift)
}

/// `0.digits` times `2^shift`, to the nearest whole number, halves up.
fn fraction_bytes(digits: &str, shift: u32) -> u128 {
    let digits = &digits[..digits.len().min(FRACTION_DIGITS_MAX)];
    let scale = 10u128.pow(digits.len() as u32);
    let value: u128 = digits.parse().unwrap_or(0);
    ((value << shift) + scale / 2) / scale
}

/// Displays a number of bytes in the largest unit that leaves a value of about one or more, with three significant
/// digits: `1.5 GiB`, `0.977 MiB` (from 1000 KiB on), `1e+03 KiB`. That is how `qemu-img info` prints sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanSize(pub u64);

impl fmt::Display for HumanSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        // A unit begins at 1000/1024 of itself, so that no value has four digits before the point.
        let scaled = u128::from(self.0) * 1024;
        let unit = (1..UNITS.len()).take_while(|unit| scaled >= 1000u128 << (10 * unit)).last().unwrap_or(0);
        let value = self.0 as f64 / (1u64 << (10 * unit)) as f64;
        f.pad(&format!("{} {}B", three_digits(value), UNITS[unit]))
    }
}

/// C's `%.3g`.
fn three_digits(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        exponent @ -4..3 => trim_zeroes(&format!("{value:.*}", (2 - exponent) as usize)).to_owned(),
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", trim_zeroes(mantissa), exponent.unsigned_abs())
        }
    }
}

fn trim_zeroes(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SizeError::{Negative, NotANumber, TooLarge};
    use proptest::prelude::*;

    fn check(text: &str, expected: Result<u64, SizeError>) {
        assert_eq!(parse_size(text), expected, "{text:?}");
    }

    #[test]
    fn reads_what_qemu_img_reads() {
        // Each pair is from `qemu-img create -f raw t.raw <size>`, 10.0.2.
        let cases = [
            ("0", 0),
            ("00", 0),
            ("1.0", 1),
            ("1.", 1),
            ("1.0b", 1),
            ("+5", 5),
            (" 5", 5),
            ("0x10", 16),
            ("1b", 1),
            ("1k", 1 << 10),
            ("1K", 1 << 10),
            ("010k", 10 << 10),
            ("1.k", 1 << 10),
            (".5G", 1 << 29),
            ("1.5G", 3 << 29),
            ("1T", 1 << 40),
            ("1p", 1 << 50),
            ("1e", 1 << 60),
            ("1E", 1 << 60),
            ("0.1k", 102),
            ("1.3k", 1331),
            ("0.0007k", 1),
            ("0.00049k", 1),
            ("0.00048k", 0),
            ("0.9999k", 1024),
            ("1.9995k", 2047),
            ("1.5000000000000001k", 1536),
            ("1.00000000000000000000000000000000000000000000000000000000000000005k", 1024),
            ("9223372036854775807", LENGTH_MAX),
        ];
        for (text, expected) in cases {
            check(text, Ok(expected));
        }
        // QEMU goes through a double here and is ten bytes off.
        check("7.99E", Ok(9211842821808707338));
    }

    #[test]
    fn refuses_what_qemu_img_refuses() {
        let words = [
            "", ".", "k", ".k", "0x", "0x1.8", "0x10k", "1.5", "1.5b", ".5", "1x", "1e3", "1KB", "1Ki", "1kk", "1s",
            "5 ", "1.5.5k", "1,5k", "1_000", "0b1", "inf", "nan", "١", "1ä", "-", "-x", "--1", "+-1", "- 1",
        ];
        for text in words {
            check(text, Err(NotANumber));
        }
        for text in [
            "8E",
            "16E",
            "9223372036854775808",
            "99999999999999999999",
            "0xffffffffffffffff",
            "8191.99999999999999999P",
        ] {
            check(text, Err(TooLarge));
        }
        check(&"9".repeat(1000), Err(TooLarge));
        check(&format!("{}k", "9".repeat(60)), Err(TooLarge));
        check("-1", Err(Negative));
        check("-1.5k", Err(Negative));
        check("-0", Ok(0));
    }

    #[test]
    fn prints_as_qemu_img_info_does() {
        // "virtual size" of a null-co node of each length, 10.0.2.
        let cases = [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10240, "10 KiB"),
            (1022976, "999 KiB"),
            (1023488, "1e+03 KiB"),
            (1024000, "0.977 MiB"),
            (1048576, "1 MiB"),
            (1049600, "1 MiB"),
            (1572864, "1.5 MiB"),
            (1073741824, "1 GiB"),
            (1073741824000, "0.977 TiB"),
            (1072668082176, "999 GiB"),
            (1047527424, "999 MiB"),
            (1048051712, "1e+03 MiB"),
            (12345679360, "11.5 GiB"),
            (104857600, "100 MiB"),
            (1 << 50, "1 PiB"),
            (1 << 60, "1 EiB"),
            (1234567890123457024, "1.07 EiB"),
            (u64::MAX, "16 EiB"),
            (1, "1 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(HumanSize(bytes).to_string(), expected, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn every_number_of_bytes_reads_back(bytes in 0..=LENGTH_MAX) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
            prop_assert_eq!(parse_size(&format!("{bytes:#x}")), Ok(bytes));
        }

        #[test]
        fn what_is_printed_is_close(bytes in any::<u64>().prop_map(|b| b >> 2)) {
            let text = HumanSize(bytes).to_string().replace("1e+03", "1000");
            let (number, unit) = text.split_once(' ').expect("a space");
            let suffix = unit.trim_end_matches('B').trim_end_matches('i');
            let back = parse_size(&format!("{number}{suffix}")).expect("reads back");
            prop_assert!(back.abs_diff(bytes) as u128 * 150 <= u128::from(bytes), "{} {} {}", bytes, text, back);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn no_number_panics(text in "[-+]?[0-9]{0,40}[.]?[0-9]{0,40}[bkMGTPEx]?") {
            let _ = parse_size(&text);
        }
    }
}
