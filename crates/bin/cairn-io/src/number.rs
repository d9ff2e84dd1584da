//! Numbers as the commands read and print them: offsets with suffixes, pattern bytes, amounts in binary units.
//!
//! Errors are whole lines for the user. Whether an offset lies inside the image is not asked here.

use block_common::{SizeError, parse_size};

/// The most bytes that one request may have: what fits into 31 bits, in whole sectors.
pub const REQUEST_BYTES_MAX: u64 = (i32::MAX as u64) & !511;

/// The largest length that an image can be given: 2^63 bytes, less the last GiB.
pub const IMAGE_BYTES_MAX: u64 = (i64::MAX as u64) & !((1 << 30) - 1);

/// An offset or length in bytes; see [`parse_size`]. `shown` is what the message shows, should it be wrong.
///
/// # Errors
/// The message for the user.
pub fn offset(text: &[u8], shown: &[u8]) -> Result<u64, Vec<u8>> {
    let text = std::str::from_utf8(text).unwrap_or("?").trim_start_matches(|c: char| c.is_ascii_whitespace());
    let read = match text.strip_prefix('-') {
        // No negative number has a suffix: those that look like it are no numbers to begin with.
        Some(digits) if is_plain(digits) => Err(SizeError::Negative),
        Some(_) => Err(SizeError::NotANumber),
        None if overflows_before_suffix(text) => Err(SizeError::NotANumber),
        None => parse_size(text),
    };
    read.map_err(|error| match error {
        SizeError::Negative | SizeError::TooLarge => [b"Parsing error: argument too large -- ", shown].concat(),
        _ => [b"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ", shown].concat(),
    })
}

/// Digits alone, or digits behind a point.
fn is_plain(text: &str) -> bool {
    let digits = text.strip_prefix('.').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether more follows a whole number that does not fit into 64 bits.
fn overflows_before_suffix(text: &str) -> bool {
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    digits < text.len() && digits > 0 && text[..digits].parse::<u64>().is_err()
}

/// C's `strtol` with base 0, on the whole of `text`: decimal, hexadecimal after `0x`, octal after `0`, with a sign or
/// white space in front. Numbers beyond 64 bits become the nearest that there is.
pub fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let limit = if negative { i64::MIN } else { i64::MAX };
    let value = i128::from_str_radix(digits, radix).ok();
    let value = value.and_then(|value| i64::try_from(if negative { -value } else { value }).ok());
    Some(value.unwrap_or(limit))
}

/// A byte to fill buffers with.
///
/// # Errors
/// The message for the user.
pub fn pattern(text: &[u8]) -> Result<u8, Vec<u8>> {
    let byte = integer(text).and_then(|value| u8::try_from(value).ok());
    byte.ok_or_else(|| [text, b" is not a valid pattern byte"].concat())
}

/// An amount in the largest binary unit of which there is at least one: `1.500 KiB`, `4 MiB`, `23 bytes`.
pub fn amount(value: f64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (1..=UNITS.len()).rev().find(|unit| value >= (1u64 << (10 * unit)) as f64);
    let (number, unit) = match unit {
        Some(unit) => (format!("{:.3}", value / (1u64 << (10 * unit)) as f64), UNITS[unit - 1]),
        None => (format!("{value:.6}"), "bytes"),
    };
    let whole = number.split_once('.').filter(|(_, fraction)| fraction.bytes().all(|byte| byte == b'0'));
    format!("{} {unit}", whole.map_or(number.as_str(), |(whole, _)| whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_offset(text: &str, expected: Result<u64, &str>) {
        let message = |error: Vec<u8>| String::from_utf8(error).expect("the text is UTF-8");
        let expected = expected.map_err(|start| format!("{start} -- {text}"));
        assert_eq!(offset(text.as_bytes(), text.as_bytes()).map_err(message), expected, "{text:?}");
    }

    #[test]
    fn offsets_are_read_as_qemu_io_reads_them() {
        const NO_NUMBER: &str = "Parsing error: non-numeric argument, or extraneous/unrecognized suffix";
        const TOO_LARGE: &str = "Parsing error: argument too large";
        for (text, bytes) in
            [("0", 0), ("1.5k", 1536), ("010", 10), ("0x10", 16), ("+5", 5), ("\t5", 5), ("1E", 1 << 60)]
        {
            check_offset(text, Ok(bytes));
        }
        for text in ["-0", "-1", "-.5", "-.0", "-99999999999999999999", "8E", "9223372036854775808", "17E"] {
            check_offset(text, Err(TOO_LARGE));
        }
        for text in ["", "x", "-", "--", "-1\t", "-1k", "-1.", "-1.5", "-.5k", "-0x1", "+-1", "1kb", "1.5", "0x", "1e3"]
        {
            check_offset(text, Err(NO_NUMBER));
        }
        for text in ["18446744073709551616k", "99999999999999999999x", "99999999999999999999.5k"] {
            check_offset(text, Err(NO_NUMBER));
        }
        check_offset("18446744073709551615k", Err(TOO_LARGE));
    }

    #[test]
    fn patterns_are_what_strtol_reads() {
        for (text, byte) in [("0", 0), ("255", 255), ("0xff", 255), ("0X7F", 127), ("010", 8), ("+5", 5), ("-0", 0)] {
            assert_eq!(pattern(text.as_bytes()), Ok(byte), "{text}");
        }
        for text in ["", "x", "256", "-1", "08", "1k", "0x", "0b1", "5 ", "99999999999999999999999", "0x-1"] {
            assert_eq!(pattern(text.as_bytes()), Err(format!("{text} is not a valid pattern byte").into_bytes()));
        }
        assert_eq!(integer(b"99999999999999999999"), Some(i64::MAX));
        assert_eq!(integer(b"-99999999999999999999"), Some(i64::MIN));
    }

    #[test]
    fn amounts_are_printed_as_qemu_io_prints_them() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1025, "1.001 KiB"),
            (1536, "1.500 KiB"),
            (1_048_064, "1023.500 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 30) - 1, "1024 MiB"),
            (1_234_567_890_944, "1.123 TiB"),
            (u64::MAX >> 1, "8 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(amount(bytes as f64), text);
        }
        assert_eq!(amount(334.056418), "334.056418 bytes");
    }
}
