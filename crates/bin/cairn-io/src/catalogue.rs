//! The commands: names, how many arguments, what they need, what `help` says about them.
//!
//! How their arguments are read is in `parse`.

use Needs::{Nothing, Reading, Resizing, Writing};

/// What a command needs before its arguments are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// It works without an image.
    Nothing,
    /// An open image.
    Reading,
    /// An open image, and the right to write to it.
    Writing,
    /// An open image, and the rights to write to it and to change its length.
    Resizing,
}

/// A command's number, so to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the commands' names")]
pub enum Name {
    Abort,
    AioFlush,
    AioRead,
    AioWrite,
    Alloc,
    Break,
    Close,
    Discard,
    Flush,
    Help,
    Info,
    Length,
    Map,
    Open,
    Quit,
    Read,
    Readv,
    RemoveBreak,
    Reopen,
    Resume,
    Sigraise,
    Sleep,
    Truncate,
    WaitBreak,
    Write,
    Writev,
    ZoneAppend,
    ZoneClose,
    ZoneFinish,
    ZoneOpen,
    ZoneReport,
    ZoneReset,
}

/// One command.
#[derive(Debug)]
pub struct Entry {
    /// Which one.
    pub name: Name,
    /// What it is called.
    pub word: &'static str,
    /// What else it is called; may be empty.
    pub alias: &'static str,
    /// The least number of arguments.
    pub args_min: usize,
    /// The largest number of arguments, if there is one.
    pub args_max: Option<usize>,
    /// What has to be there.
    pub needs: Needs,
    /// Its arguments, as `help` shows them. `None` if it has none to show.
    pub args: Option<&'static str>,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What it does, at length; may be empty.
    pub help: &'static str,
}

const fn entry(
    name: Name,
    words: (&'static str, &'static str),
    count: (usize, Option<usize>),
    needs: Needs,
    args: Option<&'static str>,
    summary: &'static str,
) -> Entry {
    let (word, alias) = words;
    Entry { name, word, alias, args_min: count.0, args_max: count.1, needs, args, summary, help: "" }
}

impl Entry {
    const fn with_help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }

    /// Name, arguments and summary in one line, its end included. `called` is what the user calls the command.
    pub fn line(&self, called: &[u8]) -> Vec<u8> {
        let args = self.args.map(|args| format!(" {args}")).unwrap_or_default();
        [called, args.as_bytes(), b" -- ", self.summary.as_bytes(), b"\n"].concat()
    }

    /// What is told after a mistake.
    pub fn usage(&self) -> Vec<u8> {
        self.line(self.word.as_bytes())
    }

    /// Check the number of arguments.
    ///
    /// # Errors
    /// The message for the user, line end included.
    pub fn check_count(&self, called: &[u8], count: usize) -> Result<(), Vec<u8>> {
        if count >= self.args_min && self.args_max.is_none_or(|max| count <= max) {
            return Ok(());
        }
        let expected = match self.args_max {
            None => format!("at least {} arguments", self.args_min),
            Some(max) if max == self.args_min => format!("{max} arguments"),
            Some(max) => format!("between {} and {max} arguments", self.args_min),
        };
        Err([
            format!("bad argument count {count} to ").as_bytes(),
            called,
            format!(", expected {expected}\n").as_bytes(),
        ]
        .concat())
    }
}

/// The command called `word`.
pub fn find(word: &[u8]) -> Option<&'static Entry> {
    let is_it = |entry: &&Entry| entry.word.as_bytes() == word || (entry.alias.as_bytes() == word && !word.is_empty());
    COMMANDS.iter().find(is_it)
}

const NO_ARGS: (usize, Option<usize>) = (0, Some(0));
const fn exactly(count: usize) -> (usize, Option<usize>) {
    (count, Some(count))
}
const fn at_least(count: usize) -> (usize, Option<usize>) {
    (count, None)
}

/// All commands, in the order of their names.
pub static COMMANDS: [Entry; 32] = [
    entry(Name::Abort, ("abort", ""), NO_ARGS, Nothing, None, "simulate a program crash using abort(3)"),
    entry(Name::AioFlush, ("aio_flush", ""), NO_ARGS, Reading, None, "completes all outstanding aio requests"),
    entry(
        Name::AioRead,
        ("aio_read", ""),
        at_least(2),
        Reading,
        Some("[-Ciqrv] [-P pattern] off len [len..]"),
        "asynchronously reads a number of bytes",
    )
    .with_help(include_str!("help/aio_read.txt")),
    entry(
        Name::AioWrite,
        ("aio_write", ""),
        at_least(2),
        Writing,
        Some("[-Cfiqruz] [-P pattern] off len [len..]"),
        "asynchronously writes a number of bytes",
    )
    .with_help(include_str!("help/aio_write.txt")),
    entry(
        Name::Alloc,
        ("alloc", "a"),
        (1, Some(2)),
        Reading,
        Some("offset [count]"),
        "checks if offset is allocated in the file",
    ),
    entry(
        Name::Break,
        ("break", ""),
        exactly(2),
        Reading,
        Some("event tag"),
        "sets a breakpoint on event and tags the stopped request as tag",
    ),
    entry(Name::Close, ("close", "c"), NO_ARGS, Reading, None, "close the current open file"),
    entry(
        Name::Discard,
        ("discard", "d"),
        at_least(2),
        Writing,
        Some("[-Cq] off len"),
        "discards a number of bytes at a specified offset",
    )
    .with_help(include_str!("help/discard.txt")),
    entry(Name::Flush, ("flush", "f"), NO_ARGS, Reading, None, "flush all in-core file state to disk"),
    entry(Name::Help, ("help", "?"), (0, Some(1)), Nothing, Some("[command]"), "help for one or all commands"),
    entry(Name::Info, ("info", "i"), NO_ARGS, Reading, None, "prints information about the current file"),
    entry(Name::Length, ("length", "l"), NO_ARGS, Reading, None, "gets the length of the current file"),
    entry(Name::Map, ("map", ""), NO_ARGS, Reading, Some(""), "prints the allocated areas of a file"),
    entry(
        Name::Open,
        ("open", "o"),
        at_least(1),
        Nothing,
        Some("[-rsCnkU] [-t cache] [-d discard] [-o options] [path]"),
        "open the file specified by path",
    )
    .with_help(include_str!("help/open.txt")),
    entry(Name::Quit, ("quit", "q"), at_least(0), Nothing, None, "exit the program"),
    entry(
        Name::Read,
        ("read", "r"),
        at_least(2),
        Reading,
        Some("[-abCqrv] [-P pattern [-s off] [-l len]] off len"),
        "reads a number of bytes at a specified offset",
    )
    .with_help(include_str!("help/read.txt")),
    entry(
        Name::Readv,
        ("readv", ""),
        at_least(2),
        Reading,
        Some("[-Cqrv] [-P pattern] off len [len..]"),
        "reads a number of bytes at a specified offset",
    )
    .with_help(include_str!("help/readv.txt")),
    entry(Name::RemoveBreak, ("remove_break", ""), exactly(1), Reading, Some("tag"), "remove a breakpoint by tag"),
    entry(
        Name::Reopen,
        ("reopen", ""),
        at_least(0),
        Reading,
        Some("[(-r|-w)] [-c cache] [-o options]"),
        "reopens an image with new options",
    )
    .with_help(include_str!("help/reopen.txt")),
    entry(Name::Resume, ("resume", ""), exactly(1), Reading, Some("tag"), "resumes the request tagged as tag"),
    entry(Name::Sigraise, ("sigraise", ""), exactly(1), Nothing, Some("signal"), "raises a signal")
        .with_help(include_str!("help/sigraise.txt")),
    entry(Name::Sleep, ("sleep", ""), exactly(1), Nothing, None, "waits for the given value in milliseconds"),
    entry(
        Name::Truncate,
        ("truncate", "t"),
        (1, Some(3)),
        Resizing,
        Some("[-m prealloc_mode] off"),
        "truncates the current file at the given offset",
    ),
    entry(
        Name::WaitBreak,
        ("wait_break", ""),
        exactly(1),
        Reading,
        Some("tag"),
        "waits for the suspension of a request",
    ),
    entry(
        Name::Write,
        ("write", "w"),
        at_least(2),
        Writing,
        Some("[-bcCfnqruz] [-P pattern | -s source_file] off len"),
        "writes a number of bytes at a specified offset",
    )
    .with_help(include_str!("help/write.txt")),
    entry(
        Name::Writev,
        ("writev", ""),
        at_least(2),
        Writing,
        Some("[-Cfqr] [-P pattern] off len [len..]"),
        "writes a number of bytes at a specified offset",
    )
    .with_help(include_str!("help/writev.txt")),
    entry(
        Name::ZoneAppend,
        ("zone_append", "zap"),
        (3, Some(4)),
        Reading,
        Some("offset len [len..]"),
        "append write a number of bytes at a specified offset",
    ),
    entry(
        Name::ZoneClose,
        ("zone_close", "zc"),
        exactly(2),
        Reading,
        Some("offset len"),
        "close a range of zones in zone block device",
    ),
    entry(
        Name::ZoneFinish,
        ("zone_finish", "zf"),
        exactly(2),
        Reading,
        Some("offset len"),
        "finish a range of zones in zone block device",
    ),
    entry(
        Name::ZoneOpen,
        ("zone_open", "zo"),
        exactly(2),
        Reading,
        Some("offset len"),
        "explicit open a range of zones in zone block device",
    ),
    entry(
        Name::ZoneReport,
        ("zone_report", "zrp"),
        exactly(2),
        Reading,
        Some("offset number"),
        "report zone information",
    ),
    entry(
        Name::ZoneReset,
        ("zone_reset", "zrs"),
        exactly(2),
        Reading,
        Some("offset len"),
        "reset a zone write pointer in zone block device",
    ),
];
