//! Any line as a command of cairn-io, and any words as its command line: nothing panics, and nothing exceeds its limits.
#![no_main]

use cairn_io::command::{Command, Source};
use cairn_io::number::REQUEST_BYTES_MAX;
use cairn_io::{catalogue, parse, program};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| {
    let words = parse::split(line);
    let args: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
    let _ = program::parse(b"cairn-io", &args);
    let Some(called) = words.first() else { return };
    let Some(entry) = catalogue::find(called) else { return };
    if entry.check_count(called, words.len() - 1).is_err() {
        return;
    }
    match parse::parse(entry, &words) {
        Ok(Command::Read(read) | Command::Readv(read) | Command::AioRead(read)) => {
            assert!(read.len as u64 <= REQUEST_BYTES_MAX);
            assert!(read.pattern.is_none_or(|pattern| pattern.start + pattern.len <= read.len));
        }
        Ok(Command::Write(write) | Command::Writev(write) | Command::AioWrite(write)) => {
            assert!(matches!(write.source, Source::Zeroes { .. }) || write.len <= REQUEST_BYTES_MAX);
        }
        Ok(_) => {}
        Err(told) => assert!(!told.is_empty()),
    }
});
