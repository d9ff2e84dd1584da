//! The command line of the program: what it asks for, and what is said about one that makes no sense.
//!
//! It is read from left to right; the first mistake, and the first `-h` or `-V`, is the last thing that is looked at. Objects that come before
//! it are made all the same.

use crate::command::Open;
use crate::getopt::{Getopt, Known, Long};
use crate::parse::Line;
use std::fmt;

const fn long(name: &'static str, takes_value: bool, letter: u8) -> Long {
    Long { name, takes_value, letter }
}

/// Long options without a short one.
const IMAGE_OPTS: u8 = 1;
const OBJECT: u8 = 2;

const KNOWN: Known = Known {
    short: "hVc:d:f:rsnCmki:t:T:U",
    long: &[
        long("help", false, b'h'),
        long("version", false, b'V'),
        long("cmd", true, b'c'),
        long("format", true, b'f'),
        long("read-only", false, b'r'),
        long("snapshot", false, b's'),
        long("nocache", false, b'n'),
        long("copy-on-read", false, b'C'),
        long("misalign", false, b'm'),
        long("native-aio", false, b'k'),
        long("aio", true, b'i'),
        long("discard", true, b'd'),
        long("cache", true, b't'),
        long("trace", true, b'T'),
        long("force-share", false, b'U'),
        long("object", true, OBJECT),
        long("image-opts", false, IMAGE_OPTS),
    ],
};

/// What a command line asks for.
#[derive(Clone)]
pub struct CommandLine {
    /// Texts that describe objects: these are made first.
    pub objects: Vec<Vec<u8>>,
    /// What is done then.
    pub then: Result<Program, BadLine>,
}

/// There may be passwords among the objects.
impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandLine({} objects, then {:?})", self.objects.len(), self.then)
    }
}

/// What the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// Print [`usage`].
    Help,
    /// Print the version.
    Version,
    /// Work on an image, or on those that the commands open.
    Work(Work),
}

/// What to work on, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The image. Its path is that of the command line; without one, none is opened.
    pub open: Open,
    /// The path is options.
    pub image_opts: bool,
    /// The image's format.
    pub format: Option<Vec<u8>>,
    /// Let buffers begin where no driver likes it.
    pub misalign: bool,
    /// Commands; if there are none, they are asked for.
    pub commands: Vec<Vec<u8>>,
    /// Texts that say what is to be logged.
    pub traces: Vec<Vec<u8>>,
}

/// Why a command line is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadLine {
    /// What is told.
    pub line: Option<Line>,
    /// Show the usage as well.
    pub usage: bool,
}

/// Read the command line: `program` is how it was called, `args` is what follows.
pub fn parse(program: &[u8], args: &[&[u8]]) -> CommandLine {
    let mut objects = Vec::new();
    let then = read(program, args, &mut objects);
    CommandLine { objects, then }
}

fn read(program: &[u8], args: &[&[u8]], objects: &mut Vec<Vec<u8>>) -> Result<Program, BadLine> {
    let mut work = Work::default();
    let mut walk = Getopt::new(KNOWN, args.iter().copied());
    for found in walk.by_ref() {
        let found = found.map_err(|words| {
            let line = [program, b": ", words.as_slice()].concat();
            BadLine { line: Some(Line::Err(line)), usage: true }
        })?;
        match found.letter {
            b'h' => return Ok(Program::Help),
            b'V' => return Ok(Program::Version),
            b'c' => work.commands.push(found.value.into()),
            b'f' => work.format = Some(found.value.into()),
            b'm' => work.misalign = true,
            b'T' => work.traces.push(found.value.into()),
            OBJECT => objects.push(found.value.into()),
            IMAGE_OPTS => work.image_opts = true,
            letter => work.open.option(letter, found.value).map_err(message)?,
        }
    }
    match walk.operands() {
        [] => {}
        [path] => work.open.path = Some(path.to_vec()),
        _ => return Err(BadLine { line: None, usage: true }),
    }
    if work.image_opts && work.format.is_some() {
        return Err(message(b"--image-opts and -f are mutually exclusive".to_vec()));
    }
    Ok(Program::Work(work))
}

fn message(text: Vec<u8>) -> BadLine {
    BadLine { line: Some(Line::Program(text)), usage: false }
}

/// How the program, called `name`, is used.
pub fn usage(name: &str) -> String {
    format!(
        "Usage: {name} [OPTIONS]... [-c STRING]... [file]
Cairn disk exerciser

  --object OBJECTDEF   define an object such as 'secret' for
                       passwords and/or encryption keys
  --image-opts         treat file as option string
  -c, --cmd STRING     execute command with its arguments
                       from the given string
  -f, --format FMT     specifies the block driver to use
  -r, --read-only      export read-only
  -s, --snapshot       use snapshot file
  -n, --nocache        disable host cache, short for -t none
  -C, --copy-on-read   enable copy-on-read
  -m, --misalign       misalign allocations for O_DIRECT
  -k, --native-aio     use kernel AIO implementation
                       (Linux only, prefer use of -i)
  -i, --aio=MODE       use AIO mode (threads, native or io_uring)
  -t, --cache=MODE     use the given cache mode for the image
  -d, --discard=MODE   use the given discard mode for the image
  -T, --trace [[enable=]<filter>][,events=<file>][,file=<file>]
                       log what the filters ask for
  -U, --force-share    force shared permissions
  -h, --help           display this help and exit
  -V, --version        output version information and exit

See '{name} -c help' for information on available commands.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_common::{AioMode, CacheFlags};

    fn read(args: &str) -> Result<Program, BadLine> {
        let words: Vec<&[u8]> = args.split(' ').filter(|word| !word.is_empty()).map(str::as_bytes).collect();
        parse(b"/x/cairn-io", &words).then
    }

    fn work(args: &str) -> Work {
        match read(args) {
            Ok(Program::Work(work)) => work,
            other => panic!("{args}: {other:?}"),
        }
    }

    #[test]
    fn options_stand_in_any_order_and_the_last_one_wins() {
        let this = work("t.raw -f raw -c length --cmd=map -rU --aio io_uring -k");
        assert_eq!(this.open.path.as_deref(), Some(&b"t.raw"[..]));
        assert_eq!(this.commands, [&b"length"[..], b"map"]);
        assert!(this.open.read_only && this.open.force_share && this.open.aio == Some(AioMode::Native));
        assert_eq!(read("-rV -t bogus"), Ok(Program::Version));
        assert_eq!(read("--he"), Ok(Program::Help));
    }

    #[test]
    fn objects_are_those_before_the_first_mistake() {
        let check = |args: &str, expected: &[&[u8]]| {
            let words: Vec<&[u8]> = args.split(' ').map(str::as_bytes).collect();
            let line = parse(b"cairn-io", &words);
            assert_eq!(line.objects, expected, "{args}");
            assert!(!format!("{line:?}").contains("hunter2"), "{args}");
        };
        check("--object secret,data=hunter2 --object b t.raw", &[b"secret,data=hunter2", b"b"]);
        check("t.raw --object a -z --object b", &[b"a"]);
        check("--object=a -V --object b", &[b"a"]);
        check("--object a b c --object d", &[b"a", b"d"]);
    }

    #[test]
    fn writes_are_durable_unless_a_cache_mode_says_otherwise() {
        let flags = |direct, no_flush, writethrough| CacheFlags { direct, no_flush, writethrough };
        for (args, expected) in [
            ("", flags(false, false, true)),
            ("-n", flags(true, false, false)),
            ("-t unsafe -n", flags(true, true, false)),
            ("-n -t unsafe", flags(false, true, false)),
            ("-t directsync -n", flags(true, false, false)),
        ] {
            assert_eq!(work(args).open.cache.0, expected, "{args}");
        }
    }

    #[test]
    fn mistakes_are_told_in_the_fields_words() {
        let check = |args: &str, line: Option<Line>, usage: bool| {
            assert_eq!(read(args), Err(BadLine { line, usage }), "{args}");
        };
        let err = |text: &str| Some(Line::Err(format!("/x/cairn-io: {text}").into_bytes()));
        let program = |text: &str| Some(Line::Program(text.into()));
        check("-z", err("invalid option -- 'z'"), true);
        check("--c", err("option '--c' is ambiguous; possibilities: '--cmd' '--copy-on-read' '--cache'"), true);
        check("--n", err("option '--n' is ambiguous; possibilities: '--nocache' '--native-aio'"), true);
        check("--f", err("option '--f' is ambiguous; possibilities: '--format' '--force-share'"), true);
        check("--d", err("option '--discard' requires an argument"), true);
        check("a b", None, true);
        check("-i threads -i bogus", program("Invalid aio option: bogus"), false);
        check("--image-opts -f raw x", program("--image-opts and -f are mutually exclusive"), false);
        check("--image-opts -f raw a b", None, true);
    }
}
