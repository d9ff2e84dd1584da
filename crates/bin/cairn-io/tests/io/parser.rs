//! The language takes anything: no input makes it panic, and no result exceeds its limits.

use cairn_io::catalogue::{COMMANDS, Entry, find};
use cairn_io::command::{Command, Source};
use cairn_io::number::REQUEST_BYTES_MAX;
use cairn_io::parse::{Line, parse, split};
use cairn_io::{program, report};
use proptest::prelude::*;
use std::time::Duration;

/// Parse a line as the program does.
fn parse_line(line: &[u8]) -> Option<Result<Command, Vec<Line>>> {
    let words = split(line);
    let entry: &Entry = find(words.first()?)?;
    let called = words[0];
    match entry.check_count(called, words.len() - 1) {
        Ok(()) => Some(parse(entry, &words)),
        Err(message) => {
            assert!(message.ends_with(b"\n"));
            None
        }
    }
}

/// What may be asked of the program's memory, and of an image.
fn check_limits(command: &Command) {
    match command {
        Command::Read(read) | Command::Readv(read) | Command::AioRead(read) => {
            assert!(read.len as u64 <= REQUEST_BYTES_MAX && read.offset <= i64::MAX as u64);
            if let Some(pattern) = read.pattern {
                assert!(pattern.start + pattern.len <= read.len);
            }
        }
        Command::Write(write) | Command::Writev(write) | Command::AioWrite(write) => {
            let has_buffer = !matches!(write.source, Source::Zeroes { .. });
            assert!(!has_buffer || write.len <= REQUEST_BYTES_MAX);
            assert!(write.offset <= i64::MAX as u64 && write.len <= i64::MAX as u64);
        }
        Command::Discard { offset, len, .. } => assert!(*len <= REQUEST_BYTES_MAX && *offset <= i64::MAX as u64),
        Command::Sigraise(signal) => assert!((0..=65).contains(signal)),
        Command::Sleep(millis) => assert!(*millis >= 0),
        _ => {}
    }
}

/// Lines that are nearly right.
fn line() -> impl Strategy<Value = String> {
    let names: Vec<&str> = COMMANDS.iter().flat_map(|entry| [entry.word, entry.alias]).collect();
    let word = prop_oneof![
        "-[a-zA-Z]{1,4}",
        "[-+]?(0x)?[0-9]{1,20}[.]?[0-9]{0,3}[bkMGTPEx]?",
        "[0-9]{1,3}",
        "(off|full|falloc|bogus|none|-P|-s|-l|-m|-o|-t|--|-)",
        "driver=raw,[a-z.=,]{0,20}",
        "\\PC{0,8}",
    ];
    (proptest::sample::select(names), proptest::collection::vec(word, 0..8))
        .prop_map(|(name, words)| format!("{name} {}", words.join(" ")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(Ok(command)) = parse_line(&line) {
            check_limits(&command);
        }
    }

    #[test]
    fn no_nearly_right_line_panics(line in line()) {
        match parse_line(line.as_bytes()) {
            Some(Ok(command)) => check_limits(&command),
            Some(Err(told)) => prop_assert!(!told.is_empty()),
            None => {}
        }
    }

    #[test]
    fn no_command_line_panics(args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..6)) {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let _ = program::parse(b"cairn-io", &args);
    }

    #[test]
    fn no_nearly_right_command_line_panics(
        args in proptest::collection::vec("(-[a-zA-Z]{1,3}|--[a-z]{0,6}(=[a-z]{0,4})?|none|raw|x)", 0..8)
    ) {
        let args: Vec<&[u8]> = args.iter().map(String::as_bytes).collect();
        let _ = program::parse(b"cairn-io", &args);
    }

    #[test]
    fn no_time_makes_a_report_odd(bytes in 0..=REQUEST_BYTES_MAX, nanos in any::<u64>(), machine in any::<bool>()) {
        let how = cairn_io::command::Report { quiet: false, machine };
        let text = report::request(how, "read", 0, bytes, Duration::from_nanos(nanos));
        prop_assert!(!text.contains("inf") && !text.contains("NaN"), "{}", text);
        prop_assert_eq!(text.lines().count(), if machine { 1 } else { 2 });
    }
}

#[test]
fn a_long_line_takes_no_more_than_its_length() {
    // A hundred thousand lengths add up until they are too much.
    let line = format!("readv 0 {}", "1M ".repeat(100_000));
    let told = parse_line(line.as_bytes()).expect("a command").expect_err("too much");
    assert_eq!(told, [Line::Out(b"The total number of bytes exceed the maximum size 2147483136".to_vec())]);
    let line = format!("open -o {}", "a".repeat(1 << 20));
    assert!(matches!(parse_line(line.as_bytes()), Some(Ok(Command::Open(_)))));
}
