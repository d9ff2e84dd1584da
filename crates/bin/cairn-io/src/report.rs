//! What is printed about a request that succeeded: its numbers, and its data.

use crate::command::Report;
use crate::number::amount;
use std::time::Duration;

/// The report of one request for `bytes` bytes at `offset` that took `time`, line ends included. `what` is the verb;
/// `bytes` were asked for and done.
pub fn request(report: Report, what: &str, offset: u64, bytes: u64, time: Duration) -> String {
    // A clock that stood still is not to be divided by.
    let seconds = time.as_secs_f64().max(1e-9);
    let (rate, ops) = (bytes as f64 / seconds, 1.0 / seconds);
    match report {
        Report { quiet: true, .. } => String::new(),
        Report { machine: true, .. } => format!("{bytes},1,{},{rate:.3},{ops:.3}\n", clock(time)),
        Report { .. } => {
            let time = if time.as_secs() == 0 { format!("{seconds:05.2} sec") } else { clock(time) };
            let (amount, rate) = (amount(bytes as f64), amount(rate));
            let speed = format!("{rate}/sec and {ops:.4} ops/sec");
            format!("{what} {bytes}/{bytes} bytes at offset {offset}\n{amount}, 1 ops; {time} ({speed})\n")
        }
    }
}

/// `hours:minutes:seconds`.
fn clock(time: Duration) -> String {
    let (hours, minutes) = (time.as_secs() / 3600, time.as_secs() / 60 % 60);
    let seconds = (time.as_secs() % 60) as f64 + f64::from(time.subsec_nanos()) / 1e9;
    format!("{hours}:{minutes:02}:{seconds:05.2}")
}

/// Print `data` in rows of sixteen bytes, as numbers and as characters; the first of them is at `offset` of the image.
/// Each row, line end included, goes to `print` by itself: all of them together may be larger than memory.
pub fn dump(offset: u64, data: &[u8], mut print: impl FnMut(&[u8])) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Vec::new();
    for (row, at) in data.chunks(16).zip((offset..).step_by(16)) {
        text.clear();
        text.extend(format!("{at:08x}:  ").bytes());
        for byte in row {
            text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)], b' ']);
        }
        text.push(b' ');
        text.extend(row.iter().map(|byte| if byte.is_ascii_alphanumeric() { *byte } else { b'.' }));
        text.push(b'\n');
        print(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(report: Report, bytes: u64, millis: u64, expected: &str) {
        assert_eq!(request(report, "read", 512, bytes, Duration::from_millis(millis)), expected);
    }

    #[test]
    fn a_request_is_reported_in_one_of_two_ways() {
        let (people, machine) = (Report::default(), Report { machine: true, quiet: false });
        check(
            people,
            4096,
            300,
            "read 4096/4096 bytes at offset 512\n4 KiB, 1 ops; 00.30 sec (13.333 KiB/sec and 3.3333 ops/sec)\n",
        );
        check(
            people,
            0,
            999,
            "read 0/0 bytes at offset 512\n0 bytes, 1 ops; 01.00 sec (0 bytes/sec and 1.0010 ops/sec)\n",
        );
        check(
            people,
            4096,
            61_306,
            "read 4096/4096 bytes at offset 512\n4 KiB, 1 ops; 0:01:01.31 (66.812384 bytes/sec and 0.0163 ops/sec)\n",
        );
        check(machine, 4096, 300, "4096,1,0:00:00.30,13653.333,3.333\n");
        check(machine, 1 << 30, 3_725_250, "1073741824,1,1:02:05.25,288233.494,0.000\n");
        check(Report { quiet: true, machine: true }, 1, 1, "");
        // However fast it was, there are numbers.
        assert!(!request(people, "read", 0, 1, Duration::ZERO).contains("inf"));
    }

    #[test]
    fn data_is_dumped_in_rows() {
        let mut text = Vec::new();
        dump(0xffff_fff8, b"aZ09 !~\x7f\x80\xffABCDEFG", |row| text.extend_from_slice(row));
        let expected =
            "fffffff8:  61 5a 30 39 20 21 7e 7f 80 ff 41 42 43 44 45 46  aZ09......ABCDEF\n100000008:  47  G\n";
        assert_eq!(String::from_utf8_lossy(&text), expected);
        dump(u64::MAX, b"", |_| unreachable!("there is nothing to print"));
    }
}
