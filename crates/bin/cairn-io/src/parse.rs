//! From a line to a command: words, options, numbers, and what is said about those that make no sense.
//!
//! Nothing here looks at an image, a file or a terminal, so all of it can be fed with anything. The order in which
//! mistakes are found is the field's.

use crate::catalogue::{Entry, Name};
use crate::command::{Command, Open, Pattern, Read, Reopen, Report, Source, Write};
use crate::getopt::{Getopt, Known};
use crate::number::{REQUEST_BYTES_MAX, integer, offset, pattern};
use block_common::{AioMode, CacheMode, DiscardMode, Preallocation};
use std::str::FromStr;

/// The byte that writes fill with, unless told otherwise.
const FILL: u8 = 0xcd;
/// Requests on compressed clusters and on the state of a virtual machine count in these.
const SECTOR: u64 = 512;

/// A line that is told to the user, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// On standard output.
    Out(Vec<u8>),
    /// On standard error.
    Err(Vec<u8>),
    /// On standard error, behind the program's name.
    Program(Vec<u8>),
}

/// Why a command is not carried out: what is told, in this order. Never empty.
pub type Refusal = Vec<Line>;

type Parsed<T> = Result<T, Refusal>;
type Words<'a> = &'a [&'a [u8]];

/// The words of a line: they have spaces between them, and nothing else has a meaning. A line ends at its first zero
/// byte.
pub fn split(line: &[u8]) -> Vec<&[u8]> {
    let line = line.split(|&byte| byte == 0).next().unwrap_or_default();
    line.split(|&byte| byte == b' ').filter(|word| !word.is_empty()).collect()
}

/// The command that `words` ask for: its name, which is `entry`'s, and arguments whose number has been checked.
///
/// # Errors
/// What is wrong with them.
pub fn parse(entry: &Entry, words: &[&[u8]]) -> Result<Command, Refusal> {
    let (called, args) = words.split_first().map_or((&b""[..], &[][..]), |(called, args)| (*called, args));
    let this = Call { entry, called, args };
    let arg = |at: usize| args.get(at).copied().unwrap_or_default();
    match entry.name {
        Name::Abort => Ok(Command::Abort),
        Name::AioFlush => Ok(Command::AioFlush),
        Name::AioRead => this.aio_read(),
        Name::AioWrite => this.aio_write(),
        Name::Alloc => {
            let at = number(arg(0))?;
            Ok(Command::Alloc { offset: at, len: if args.len() > 1 { number(arg(1))? } else { SECTOR } })
        }
        Name::Break => Ok(Command::Break { event: arg(0).into(), tag: arg(1).into() }),
        Name::Close => Ok(Command::Close),
        Name::Discard => this.discard(),
        Name::Flush => Ok(Command::Flush),
        Name::Help => Ok(Command::Help(args.first().map(|name| name.to_vec()))),
        Name::Info => Ok(Command::Info),
        Name::Length => Ok(Command::Length),
        Name::Map => Ok(Command::Map),
        Name::Open => this.open(),
        Name::Quit => Ok(Command::Quit),
        Name::Read => this.read(),
        Name::Readv => this.readv().map(Command::Readv),
        Name::RemoveBreak => Ok(Command::RemoveBreak(arg(0).into())),
        Name::Reopen => this.reopen(),
        Name::Resume => Ok(Command::Resume(arg(0).into())),
        Name::Sigraise => signal(arg(0)).map(Command::Sigraise),
        Name::Sleep => {
            let time = integer(arg(0)).filter(|&millis| millis >= 0);
            time.map(Command::Sleep).ok_or_else(|| out([arg(0), b" is not a valid number"].concat()))
        }
        Name::Truncate => this.truncate(),
        Name::WaitBreak => Ok(Command::WaitBreak(arg(0).into())),
        Name::Write => this.write(),
        Name::Writev => this.writev(),
        Name::ZoneReport => zone_report(arg(0), arg(1)),
        Name::ZoneOpen => zone_range("open", arg(0), arg(1)),
        Name::ZoneClose => zone_range("close", arg(0), arg(1)),
        Name::ZoneFinish => zone_range("finish", arg(0), arg(1)),
        Name::ZoneReset => zone_range("reset", arg(0), arg(1)),
        Name::ZoneAppend => this.zone_append(),
    }
}

/// The cache mode of `-t` or `-c`.
///
/// # Errors
/// The message for the user.
pub fn cache_mode(name: &[u8]) -> Result<CacheMode, Vec<u8>> {
    named(name, b"Invalid cache option: ")
}

/// The mode of `-i`.
///
/// # Errors
/// The message for the user.
pub fn aio_mode(name: &[u8]) -> Result<AioMode, Vec<u8>> {
    named(name, b"Invalid aio option: ")
}

/// The mode of `-d`.
///
/// # Errors
/// The message for the user.
pub fn discard_mode(name: &[u8]) -> Result<DiscardMode, Vec<u8>> {
    named(name, b"Invalid discard option: ")
}

fn named<T: FromStr>(name: &[u8], otherwise: &[u8]) -> Result<T, Vec<u8>> {
    let mode = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
    mode.ok_or_else(|| [otherwise, name].concat())
}

fn out(text: impl Into<Vec<u8>>) -> Refusal {
    vec![Line::Out(text.into())]
}

fn program(text: impl Into<Vec<u8>>) -> Refusal {
    vec![Line::Program(text.into())]
}

fn number(text: &[u8]) -> Parsed<u64> {
    offset(text, text).map_err(out)
}

/// The length of a request that has a buffer.
fn length(text: &[u8]) -> Parsed<usize> {
    let len = number(text)?;
    if len > REQUEST_BYTES_MAX {
        let message = format!("length cannot exceed {REQUEST_BYTES_MAX}, given ");
        return Err(out([message.as_bytes(), text].concat()));
    }
    Ok(len as usize)
}

/// The length of several buffers together.
fn vector(lens: Words<'_>) -> Parsed<usize> {
    let mut total = 0;
    for text in lens {
        let len = number(text)?;
        if len > REQUEST_BYTES_MAX {
            let message = format!("' exceeds maximum size {REQUEST_BYTES_MAX}");
            return Err(out([b"Argument '", *text, message.as_bytes()].concat()));
        }
        if len > REQUEST_BYTES_MAX - total {
            return Err(out(format!("The total number of bytes exceed the maximum size {REQUEST_BYTES_MAX}")));
        }
        total += len;
    }
    Ok(total as usize)
}

/// Sectors are counted where clusters or the state of a machine are addressed.
fn whole_sectors(offset: u64, len: u64) -> Parsed<()> {
    for (value, name) in [(offset, "offset"), (len, "count")] {
        if !value.is_multiple_of(SECTOR) {
            return Err(out(format!("{value} is not a sector-aligned value for '{name}'")));
        }
    }
    Ok(())
}

fn signal(text: &[u8]) -> Parsed<i32> {
    /// One more than there are signals.
    const SIGNALS: u64 = 65;
    match number(text)? {
        number if number <= SIGNALS => Ok(number as i32),
        _ => Err(out([b"signal argument '", text, b"' is too large to be a valid signal"].concat())),
    }
}

fn zone_report(offset: &[u8], count: &[u8]) -> Parsed<Command> {
    number(offset)?;
    if number(count)? > u64::from(u32::MAX) {
        return Err(out("Number of zones must be less than 2^32"));
    }
    Ok(Command::Zone { what: "report", range: None })
}

fn zone_range(what: &'static str, offset: &[u8], len: &[u8]) -> Parsed<Command> {
    let offset = number(offset)?;
    Ok(Command::Zone { what, range: Some((offset, number(len)?)) })
}

/// A command's name and arguments.
struct Call<'a> {
    entry: &'a Entry,
    called: &'a [u8],
    args: Words<'a>,
}

impl<'a> Call<'a> {
    fn options(&self, short: &'static str) -> Getopt<'a> {
        Getopt::new(Known { short, long: &[] }, self.args.iter().copied())
    }

    fn usage(&self) -> Refusal {
        let mut usage = self.entry.usage();
        usage.pop();
        out(usage)
    }

    /// What is told about an option that does not exist.
    fn bad_option(&self, words: &[u8]) -> Refusal {
        let mut told = vec![Line::Err([self.called, b": ", words].concat())];
        told.extend(self.usage());
        told
    }

    /// The two operands of `walk`, which has to be over.
    fn range(&self, walk: &Getopt<'a>) -> Parsed<[&'a [u8]; 2]> {
        walk.operands().try_into().map_err(|_| self.usage())
    }

    /// An offset and one length or more.
    fn ranges<'w>(&self, walk: &'w Getopt<'a>) -> Parsed<(&'a [u8], Words<'w>)> {
        match walk.operands() {
            [offset, lens @ ..] if !lens.is_empty() => Ok((offset, lens)),
            _ => Err(self.usage()),
        }
    }

    fn read(&self) -> Parsed<Command> {
        let mut read = Read {
            offset: 0,
            len: 0,
            pattern: None,
            dump: false,
            vm_state: false,
            registered: false,
            report: Report::default(),
        };
        let (mut byte, mut start, mut pattern_len) = (None, None, None);
        let mut walk = self.options("bCl:pP:qrs:v");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'b' => read.vm_state = true,
                b'C' => read.report.machine = true,
                b'l' => pattern_len = Some(number(found.value)?),
                b'P' => byte = Some(pattern(found.value).map_err(out)?),
                b'q' => read.report.quiet = true,
                b'r' => read.registered = true,
                b's' => start = Some(number(found.value)?),
                b'v' => read.dump = true,
                _ => {}
            }
        }
        let [offset, len] = self.range(&walk)?;
        read.offset = number(offset)?;
        read.len = length(len)?;
        if byte.is_none() && (start.is_some() || pattern_len.is_some()) {
            return Err(self.usage());
        }
        let start = start.unwrap_or(0);
        let end = pattern_len.map_or(Some(start.max(read.len as u64)), |len| start.checked_add(len));
        if start > read.len as u64 || end.is_none_or(|end| end > read.len as u64) {
            return Err(out("pattern verification range exceeds end of read data"));
        }
        let pattern_len = pattern_len.unwrap_or(read.len as u64 - start) as usize;
        read.pattern = byte.map(|byte| Pattern { byte, start: start as usize, len: pattern_len });
        if read.vm_state {
            whole_sectors(read.offset, read.len as u64)?;
        }
        Ok(Command::Read(read))
    }

    fn readv(&self) -> Parsed<Read> {
        let (mut dump, mut byte, mut registered, mut report) = (false, None, false, Report::default());
        let mut walk = self.options("CP:qrv");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'C' => report.machine = true,
                b'P' => byte = Some(pattern(found.value).map_err(out)?),
                b'q' => report.quiet = true,
                b'r' => registered = true,
                _ => dump = true,
            }
        }
        self.vectored_read(&walk, byte, dump, registered, report)
    }

    fn vectored_read(
        &self,
        walk: &Getopt<'a>,
        byte: Option<u8>,
        dump: bool,
        registered: bool,
        report: Report,
    ) -> Parsed<Read> {
        let (offset, lens) = self.ranges(walk)?;
        let offset = number(offset)?;
        let len = vector(lens)?;
        let pattern = byte.map(|byte| Pattern { byte, start: 0, len });
        Ok(Read { offset, len, pattern, dump, vm_state: false, registered, report })
    }

    fn aio_read(&self) -> Parsed<Command> {
        let (mut dump, mut byte, mut registered, mut report) = (false, None, false, Report::default());
        let mut walk = self.options("CP:iqrv");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'C' => report.machine = true,
                b'P' => byte = Some(pattern(found.value).map_err(out)?),
                b'i' => return Ok(Command::InvalidAio { is_write: false }),
                b'q' => report.quiet = true,
                b'r' => registered = true,
                _ => dump = true,
            }
        }
        self.vectored_read(&walk, byte, dump, registered, report).map(Command::AioRead)
    }

    fn write(&self) -> Parsed<Command> {
        let mut write = Write {
            offset: 0,
            len: 0,
            source: Source::Fill(FILL),
            fua: false,
            compressed: false,
            vm_state: false,
            registered: false,
            report: Report::default(),
        };
        let (mut zeroes, mut no_fallback, mut unmap, mut byte, mut file) = (false, false, false, None, None);
        let mut walk = self.options("bcCfnpP:qrs:uz");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'b' => write.vm_state = true,
                b'c' => write.compressed = true,
                b'C' => write.report.machine = true,
                b'f' => write.fua = true,
                b'n' => no_fallback = true,
                b'P' => byte = Some(pattern(found.value).map_err(out)?),
                b'q' => write.report.quiet = true,
                b'r' => write.registered = true,
                b's' => file = Some(found.value.to_vec()),
                b'u' => unmap = true,
                b'z' => zeroes = true,
                _ => {}
            }
        }
        let [offset, len] = self.range(&walk)?;
        let sources = usize::from(zeroes) + usize::from(byte.is_some()) + usize::from(file.is_some());
        let conflicts = [
            (write.vm_state && zeroes, "-b and -z cannot be specified at the same time"),
            (write.fua && (write.vm_state || write.compressed), "-f and -b or -c cannot be specified at the same time"),
            (no_fallback && !zeroes, "-n requires -z to be specified"),
            (unmap && !zeroes, "-u requires -z to be specified"),
            (sources > 1, "Only one of -z, -P, and -s can be specified at the same time"),
        ];
        if let Some((_, message)) = conflicts.into_iter().find(|(conflict, _)| *conflict) {
            return Err(out(message));
        }
        write.offset = number(offset)?;
        write.len = number(len)?;
        if write.len > REQUEST_BYTES_MAX && !no_fallback {
            let message = format!("length cannot exceed {REQUEST_BYTES_MAX} without -n, given ");
            return Err(out([message.as_bytes(), len].concat()));
        }
        if write.vm_state || write.compressed {
            whole_sectors(write.offset, write.len)?;
        }
        if zeroes && write.registered {
            return Err(out("cannot combine zero write with registered I/O buffer"));
        }
        write.source = match (zeroes, file) {
            (true, _) => Source::Zeroes { unmap, no_fallback },
            (false, Some(file)) => Source::File(file),
            (false, None) => Source::Fill(byte.unwrap_or(FILL)),
        };
        Ok(Command::Write(write))
    }

    fn vectored_write(
        &self,
        walk: &Getopt<'a>,
        byte: Option<u8>,
        fua: bool,
        registered: bool,
        report: Report,
    ) -> Parsed<Write> {
        let (offset, lens) = self.ranges(walk)?;
        let (offset, len) = (number(offset)?, vector(lens)? as u64);
        let source = Source::Fill(byte.unwrap_or(FILL));
        Ok(Write { offset, len, source, fua, compressed: false, vm_state: false, registered, report })
    }

    fn writev(&self) -> Parsed<Command> {
        let (mut byte, mut fua, mut registered, mut report) = (None, false, false, Report::default());
        let mut walk = self.options("CfP:qr");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'C' => report.machine = true,
                b'f' => fua = true,
                b'P' => byte = Some(pattern(found.value).map_err(out)?),
                b'q' => report.quiet = true,
                _ => registered = true,
            }
        }
        self.vectored_write(&walk, byte, fua, registered, report).map(Command::Writev)
    }

    fn aio_write(&self) -> Parsed<Command> {
        let (mut byte, mut fua, mut registered, mut report) = (None, false, false, Report::default());
        let (mut zeroes, mut unmap) = (false, false);
        let mut walk = self.options("CfiP:qruz");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'C' => report.machine = true,
                b'f' => fua = true,
                b'i' => return Ok(Command::InvalidAio { is_write: true }),
                b'P' => byte = Some(pattern(found.value).map_err(out)?),
                b'q' => report.quiet = true,
                b'r' => registered = true,
                b'u' => unmap = true,
                _ => zeroes = true,
            }
        }
        let (offset, lens) = self.ranges(&walk)?;
        let conflicts = [
            (zeroes && lens.len() != 1, "-z supports only a single length parameter"),
            (unmap && !zeroes, "-u requires -z to be specified"),
            (zeroes && registered, "cannot combine zero write with registered I/O buffer"),
        ];
        if let Some((_, message)) = conflicts.into_iter().find(|(conflict, _)| *conflict) {
            return Err(out(message));
        }
        if !zeroes {
            return self.vectored_write(&walk, byte, fua, registered, report).map(Command::AioWrite);
        }
        let (offset, len) = (number(offset)?, number(lens[0])?);
        let source = Source::Zeroes { unmap, no_fallback: false };
        Ok(Command::AioWrite(Write {
            offset,
            len,
            source,
            fua,
            compressed: false,
            vm_state: false,
            registered,
            report,
        }))
    }

    fn discard(&self) -> Parsed<Command> {
        let mut report = Report::default();
        let mut walk = self.options("Cq");
        for found in walk.by_ref() {
            match found.map_err(|words| self.bad_option(&words))?.letter {
                b'C' => report.machine = true,
                _ => report.quiet = true,
            }
        }
        let [offset, len] = self.range(&walk)?;
        let offset = number(offset)?;
        Ok(Command::Discard { offset, len: length(len)? as u64, report })
    }

    fn truncate(&self) -> Parsed<Command> {
        let mut preallocation = Preallocation::Off;
        let mut walk = self.options("m:");
        for found in walk.by_ref() {
            let name = found.map_err(|words| self.bad_option(&words))?.value;
            let mode = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            preallocation = mode.ok_or_else(|| program([b"Invalid preallocation mode '", name, b"'"].concat()))?;
        }
        // The message shows the first argument, whichever is wrong; what stands behind the length is nobody's.
        let len = walk.operands().first().copied().unwrap_or_default();
        Ok(Command::Truncate { len: offset(len, walk.first()).map_err(out)?, preallocation })
    }

    fn open(&self) -> Parsed<Command> {
        let mut open = Open::default();
        let mut walk = self.options("snCro:ki:t:d:U");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'o' => open.options.push(found.value.into()),
                letter => open.option(letter, found.value).map_err(program)?,
            }
        }
        match walk.operands() {
            [] => {}
            [path] => open.path = Some(path.to_vec()),
            _ => return Err(self.usage()),
        }
        Ok(Command::Open(open))
    }

    fn reopen(&self) -> Parsed<Command> {
        let mut reopen = Reopen::default();
        let mut walk = self.options("c:o:rw");
        for found in walk.by_ref() {
            let found = found.map_err(|words| self.bad_option(&words))?;
            match found.letter {
                b'c' => reopen.cache = Some(cache_mode(found.value).map_err(program)?.flags()),
                b'o' => reopen.options.push(found.value.into()),
                _ if reopen.read_only.is_some() => return Err(program("Only one -r/-w option may be given")),
                letter => reopen.read_only = Some(letter == b'r'),
            }
        }
        if walk.operands().is_empty() { Ok(Command::Reopen(reopen)) } else { Err(self.usage()) }
    }

    fn zone_append(&self) -> Parsed<Command> {
        let mut told = Vec::new();
        let mut walk = self.options("p");
        for found in walk.by_ref() {
            if let Err(words) = found {
                told.push(Line::Err([self.called, b": ", words.as_slice()].concat()));
            }
        }
        let (offset, lens) = self.ranges(&walk)?;
        match number(offset).and_then(|_| vector(lens)) {
            Ok(_) if told.is_empty() => Ok(Command::Zone { what: "append", range: None }),
            Ok(_) => {
                told.push(Line::Out(b"zone append failed: Operation not supported".to_vec()));
                Err(told)
            }
            Err(more) => {
                told.extend(more);
                Err(told)
            }
        }
    }
}

impl Open {
    /// Take the option `letter`, which the command `open` and the command line share.
    ///
    /// # Errors
    /// The message for the user.
    pub fn option(&mut self, letter: u8, value: &[u8]) -> Result<(), Vec<u8>> {
        match letter {
            b'r' => self.read_only = true,
            b's' => self.snapshot = true,
            b'C' => self.copy_on_read = true,
            b'U' => self.force_share = true,
            b'n' => self.cache.bypass(),
            b't' => self.cache.0 = cache_mode(value)?.flags(),
            b'k' => self.aio = Some(AioMode::Native),
            b'i' => self.aio = Some(aio_mode(value)?),
            b'd' => self.discard.0 = discard_mode(value)?,
            _ => {}
        }
        Ok(())
    }
}
