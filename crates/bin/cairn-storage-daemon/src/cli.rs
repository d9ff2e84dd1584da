//! The command line: which options there are, and in which order they were given, for each may use what one before it made.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

/// What an option is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Add a node.
    Blockdev(String),
    /// Make an object.
    Object(String),
    /// Stand for a guest's device.
    Device(String),
    /// Make something that bytes go through.
    Chardev(String),
    /// Talk to whoever is at the other end of one.
    Monitor(String),
    /// Something that later parts bring.
    NotBuilt(String, &'static str),
}

impl Act {
    /// The option's value, as messages repeat it. That of an object may be secret.
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::Object(text) if text.contains("data") => {
                text.split(',').next().filter(|word| !word.contains(['=', '{'])).unwrap_or("…")
            }
            Self::Object(text)
            | Self::Device(text)
            | Self::Blockdev(text)
            | Self::Chardev(text)
            | Self::Monitor(text)
            | Self::NotBuilt(text, _) => text,
        }
    }
}

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// What to do, in order, with the options' names.
    pub(crate) acts: Vec<(&'static str, Act)>,
    pub(crate) daemonize: bool,
    /// This process is the one in the background.
    pub(crate) in_background: bool,
    pub(crate) pidfile: Option<PathBuf>,
}

/// What is to be told instead of doing anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Help(String),
    Mistake(String),
}

impl Told {
    pub(crate) fn print(&self) -> ExitCode {
        match self {
            Self::Help(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Self::Mistake(text) => {
                eprintln!("{}: {text}", program());
                ExitCode::FAILURE
            }
        }
    }
}

/// The name that the program was called by.
pub(crate) fn program() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let called = std::env::args_os().next().map(PathBuf::from);
        let name = called.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| env!("CARGO_PKG_NAME").into())
    })
}

const HELP: &str = "\
Usage: {name} [options]
A block layer by itself, driven by QMP

  -h, --help             show this help and leave
  -V, --version          show the version and leave
  -T, --trace <options>  (not supported)

  --blockdev [driver=]<driver>,node-name=<name>[,<option>=<value>...]
                         add a block node; a JSON object will do as well
  --chardev stdio,id=<id>
  --chardev socket,id=<id>,path=<path>,server=on[,wait=off]
  --chardev socket,id=<id>,host=<host>,port=<port>,server=on[,wait=off]
  --chardev null,id=<id>
                         make something that a monitor talks through
  --device [driver=]disk|cd|floppy,id=<id>[,drive=<node-name>][,<option>=<value>...]
                         stand for a guest's device, which commands about media
                         act on
  --daemonize            go into the background once everything is set up
  --export <options>     (not supported)
  --monitor [chardev=]<id>[,mode=control][,pretty[=on|off]]
                         talk QMP through a character device
  --nbd-server <options> (not supported)
  --object <type>,id=<id>[,<property>=<value>...]
                         make an object; '--object help' lists the types
  --pidfile <path>       write the process's number to a file

Options are carried out in the order in which they are given.
";

/// Options with a value that are carried out in order, and what they do.
const ORDERED: [(&str, fn(String) -> Act); 7] = [
    ("blockdev", Act::Blockdev),
    ("object", Act::Object),
    ("device", Act::Device),
    ("chardev", Act::Chardev),
    ("monitor", Act::Monitor),
    ("export", |text| Act::NotBuilt(text, "exports")),
    ("nbd-server", |text| Act::NotBuilt(text, "NBD servers")),
];

/// Said to the process that goes into the background, by the one that starts it.
pub(crate) const IN_BACKGROUND: &str = "x-in-background";

fn command() -> Command {
    let ordered =
        ORDERED.map(|(name, _)| Arg::new(name).long(name).action(ArgAction::Append).allow_hyphen_values(true));
    Command::new("cairn-storage-daemon")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .args(ordered)
        .arg(Arg::new("trace").long("trace").short('T').allow_hyphen_values(true))
        .arg(Arg::new("pidfile").long("pidfile").value_parser(clap::value_parser!(PathBuf)))
        .arg(Arg::new("daemonize").long("daemonize").action(ArgAction::SetTrue))
        .arg(Arg::new(IN_BACKGROUND).long(IN_BACKGROUND).hide(true).action(ArgAction::SetTrue))
        .arg(Arg::new("help").long("help").short('h').action(ArgAction::SetTrue))
        .arg(Arg::new("version").long("version").short('V').action(ArgAction::SetTrue))
}

/// Read the command line.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Told> {
    let mut found = command().try_get_matches_from(args).map_err(|error| Told::Mistake(words(&error)))?;
    if found.get_flag("help") {
        return Err(Told::Help(HELP.replace("{name}", program())));
    }
    if found.get_flag("version") {
        return Err(Told::Help(format!("{} version {}\n", program(), env!("CARGO_PKG_VERSION"))));
    }
    if found.contains_id("trace") {
        return Err(Told::Mistake("-T, --trace is not supported".into()));
    }
    let mut acts = Vec::new();
    for (name, act) in ORDERED {
        let places: Vec<_> = found.indices_of(name).into_iter().flatten().collect();
        let values = found.remove_many::<String>(name).into_iter().flatten();
        acts.extend(places.into_iter().zip(values).map(|(place, value)| (place, name, act(value))));
    }
    acts.sort_by_key(|(place, ..)| *place);
    let acts = acts.into_iter().map(|(_, name, act)| (with_dashes(name), act)).collect();
    let [daemonize, in_background] = ["daemonize", IN_BACKGROUND].map(|flag| found.get_flag(flag));
    Ok(CommandLine { acts, daemonize, in_background, pidfile: found.remove_one("pidfile") })
}

fn with_dashes(name: &str) -> &'static str {
    match name {
        "blockdev" => "--blockdev",
        "object" => "--object",
        "device" => "--device",
        "chardev" => "--chardev",
        "monitor" => "--monitor",
        "export" => "--export",
        _ => "--nbd-server",
    }
}

/// A mistake in the words of the field.
fn words(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.split([' ', '=']).next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let arg = context(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument if arg.starts_with("--") => format!("unrecognized option '{arg}'"),
        ErrorKind::UnknownArgument if arg.starts_with('-') => {
            format!("invalid option -- '{}'", arg.trim_start_matches('-'))
        }
        ErrorKind::UnknownArgument => format!("{arg}: Unexpected argument"),
        ErrorKind::InvalidValue | ErrorKind::NoEquals | ErrorKind::WrongNumberOfValues => {
            format!("option '{arg}' requires an argument")
        }
        ErrorKind::TooManyValues => format!("option '{arg}' doesn't allow an argument"),
        ErrorKind::InvalidUtf8 => "an argument is not valid UTF-8".into(),
        _ => error.to_string().trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(args: &[&str]) -> Result<CommandLine, Told> {
        parse(std::iter::once("daemon").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn options_stay_in_their_order() {
        let line = check(&[
            "--object",
            "o",
            "--blockdev=b1",
            "--chardev",
            "c",
            "--blockdev",
            "b2",
            "--monitor",
            "m",
            "--daemonize",
        ]);
        let line = line.expect("a command line");
        let acts: Vec<_> = line.acts.iter().map(|(name, act)| format!("{name} {}", act.shown())).collect();
        assert_eq!(acts, ["--object o", "--blockdev b1", "--chardev c", "--blockdev b2", "--monitor m"]);
        assert!(line.daemonize && line.pidfile.is_none());
    }

    #[test]
    fn mistakes_have_the_fields_words() {
        for (args, told) in [
            (&["--bogus"][..], "unrecognized option '--bogus'"),
            (&["--bogus=5"], "unrecognized option '--bogus'"),
            (&["foo"], "foo: Unexpected argument"),
            (&["--blockdev"], "option '--blockdev' requires an argument"),
            (&["-x"], "invalid option -- 'x'"),
            (&["-T", "x"], "-T, --trace is not supported"),
        ] {
            assert_eq!(check(args), Err(Told::Mistake(told.into())), "{args:?}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_repeated() {
        let shown = |text: &str| Act::Object(text.into()).shown().to_owned();
        assert_eq!(shown("secret,id=a,data=abc"), "secret");
        assert_eq!(shown("secret,id=a"), "secret,id=a");
        assert_eq!(shown("data=abc,qom-type=secret"), "…");
        assert_eq!(shown(r#"{"data": "abc"}"#), "…");
    }
}
