//! The command line as the field's tools understand it: clap does the parsing, the words of its errors are getopt's.
//!
//! What single commands take is in their modules.

use crate::PROGRAM;
use crate::layer::BlockLayer;
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::borrow::Cow;
use std::error::Error as _;
use std::ffi::OsString;
use std::fmt;

/// Disk image utility.
#[derive(Debug, Parser)]
#[command(
    name = PROGRAM,
    version = concat!("version ", env!("CARGO_PKG_VERSION")),
    infer_long_args = true,
    override_usage = "cairn-img [standard options] COMMAND [--help | command options]",
    after_help = "Commands:\n  \
                  amend    Change options of an image's format\n  \
                  bench    Run a simple image benchmark\n  \
                  bitmap   Make, remove or change a bitmap that is kept in an image\n  \
                  check    Check an image, and repair it\n  \
                  commit   Write what an image has into the one that it is on top of\n  \
                  compare  Check if two images have the same contents\n  \
                  convert  Copy one or more images to another\n  \
                  create   Create a new image\n  \
                  dd       Copy blocks of an image to another\n  \
                  info     Display information about an image\n  \
                  map      Show which parts of an image hold data\n  \
                  measure  Calculate the file size that a new image needs\n  \
                  rebase   Put an image on top of another one\n  \
                  resize   Change the size of an image\n  \
                  snapshot List, take, apply or delete the snapshots in an image\n\n\
                  Run `cairn-img COMMAND --help` for the options of a command."
)]
pub(crate) struct CommandLine {
    /// What to log, and where.
    #[arg(help = "Log what matches FILTER to stderr, or to a file: [[enable=]FILTER][,events=FILE][,file=FILE]")]
    #[arg(short = 'T', long, value_name = "TRACE", allow_hyphen_values = true, action = clap::ArgAction::Append)]
    pub(crate) trace: Vec<String>,
    /// The command and what follows it.
    #[arg(hide = true, trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

/// A command with its options.
pub(crate) trait Command: Parser {
    /// The command line as the parser shall see it.
    fn prepare(words: Vec<OsString>) -> Vec<OsString> {
        words
    }

    /// The exit status when an object cannot be made.
    const REFUSED_OBJECT: u8 = 1;

    /// The texts that describe objects. They are made before anything else is done.
    fn objects(&self) -> &[String] {
        &[]
    }

    /// Carry it out on `layer`, which has the objects.
    ///
    /// # Errors
    /// What the user is told, and the exit status.
    fn run(self, layer: BlockLayer) -> Result<(), Failure>;
}

/// Why the program fails. Displays everything that goes to stderr, line ends included.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    status: u8,
}

impl Failure {
    /// Something went wrong.
    pub(crate) fn message(text: impl fmt::Display) -> Self {
        Self::new(format!("{PROGRAM}: {text}\n"))
    }

    /// The command line makes no sense; `command` knows more.
    pub(crate) fn usage(command: Option<&str>, text: impl fmt::Display) -> Self {
        Self::new(format!("{PROGRAM}: {text}\n{}", try_help(command)))
    }

    /// As [`Failure::usage`], for what getopt would find, which names the command as well.
    fn getopt(command: Option<&str>, text: impl fmt::Display) -> Self {
        let name = command.map(|command| format!(" {command}")).unwrap_or_default();
        Self::new(format!("{PROGRAM}{name}: {text}\n{}", try_help(command)))
    }

    /// This one first, then the other.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { text: self.text + &other.text, ..self }
    }

    /// What a command found makes it fail, and the user was told already.
    pub(crate) fn told() -> Self {
        Self::new(String::new())
    }

    /// The program's exit status is `status` instead of 1.
    pub(crate) fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// The program's exit status.
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    fn new(text: String) -> Self {
        Self { text, status: 1 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn try_help(command: Option<&str>) -> String {
    let command = command.map(|command| format!(" {command}")).unwrap_or_default();
    format!("Try '{PROGRAM}{command} --help' for more info\n")
}

/// Parse `args`, the first of which is the name of the program or command. `None` when that was all: the user wanted
/// to see the help or the version, and has.
pub(crate) fn parse<T: Parser>(
    command: Option<&str>,
    args: impl IntoIterator<Item = OsString>,
) -> Result<Option<T>, Failure> {
    let args: Vec<_> = args.into_iter().collect();
    match T::try_parse_from(&args) {
        Ok(parsed) => Ok(Some(parsed)),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            crate::say(error.to_string().trim_end())?;
            Ok(None)
        }
        Err(error) => {
            let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
            Err(failure(command, &error, &T::command(), &args))
        }
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    }
}

/// Clap's error about `args` in getopt's words.
fn failure(command: Option<&str>, error: &clap::Error, parser: &clap::Command, args: &[Cow<'_, str>]) -> Failure {
    // An option comes as clap prints it: with its value's name behind it.
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let option = argument.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::ValueValidation => match error.source() {
            Some(why) => Failure::message(why),
            None => Failure::getopt(command, format_args!("invalid value for {option}")),
        },
        ErrorKind::UnknownArgument => match option.strip_prefix("--") {
            Some(long) => unknown_long(command, long, parser, args),
            None => Failure::getopt(command, format_args!("invalid option -- '{}'", option.trim_start_matches('-'))),
        },
        ErrorKind::InvalidValue if context(error, ContextKind::InvalidValue).is_some_and(str::is_empty) => {
            missing_value(command, option, parser, args)
        }
        ErrorKind::TooManyValues => {
            Failure::getopt(command, format_args!("option '{option}' doesn't allow an argument"))
        }
        ErrorKind::InvalidUtf8 => Failure::message("arguments must be valid UTF-8"),
        _ => Failure::getopt(command, error.to_string().lines().next().unwrap_or_default()),
    }
}

/// No option, or too short a beginning of several.
fn unknown_long(command: Option<&str>, long: &str, parser: &clap::Command, args: &[Cow<'_, str>]) -> Failure {
    let longs = parser.get_arguments().filter_map(clap::Arg::get_long);
    let possible: Vec<_> = longs.filter(|name| name.starts_with(long)).map(|name| format!("'--{name}'")).collect();
    match possible.len() {
        0 | 1 => {
            // As it was written: with the value behind it.
            let is_it =
                |arg: &&Cow<'_, str>| arg.strip_prefix("--").and_then(|arg| arg.split('=').next()) == Some(long);
            let written = args.iter().find(is_it).map_or(long, |arg| &arg[2..]);
            Failure::getopt(command, format_args!("unrecognized option '--{written}'"))
        }
        _ => {
            let possible = possible.join(" ");
            Failure::getopt(command, format_args!("option '--{long}' is ambiguous; possibilities: {possible}"))
        }
    }
}

/// Clap names the option by its long form, whichever was written; getopt by the one that was. An option whose value
/// is missing is the last argument.
fn missing_value(command: Option<&str>, option: &str, parser: &clap::Command, args: &[Cow<'_, str>]) -> Failure {
    let last = args.last().map(|last| &**last).unwrap_or_default();
    let argument = parser.get_arguments().find(|arg| arg.get_long().is_some_and(|long| option == format!("--{long}")));
    match argument.and_then(clap::Arg::get_short) {
        Some(short) if !last.starts_with("--") => {
            Failure::getopt(command, format_args!("option requires an argument -- '{short}'"))
        }
        _ => Failure::getopt(command, format_args!("option '{option}' requires an argument")),
    }
}
