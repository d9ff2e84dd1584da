//! `human-monitor-command`: lines that people would type. There is one, `qemu-io`, which exercises a node or a device; what it does is the program's business.

use super::Call;
use crate::error::{QmpError, QmpResult};
use block_backend::Backend;
use block_gs::{GlobalState, NodeRef};
use std::future::Future;
use std::pin::Pin;

/// What is printed by a command while it is carried out.
pub type Printed = Pin<Box<dyn Future<Output = String>>>;

/// What is exercised.
#[derive(Clone, Debug)]
pub enum Exercised {
    /// A node, past whatever uses it.
    Node(NodeRef),
    /// What a device is plugged into, as its guest would.
    Device(Backend),
}

/// The commands for people that a program has.
pub trait HumanCommands {
    /// Carry out `command`, one of those of the I/O exerciser. Lines end as they do in text.
    fn qemu_io(&self, what: Exercised, command: Vec<u8>) -> Printed;
}

/// The command that there is.
const QEMU_IO: &str = "qemu-io";

/// A line, as it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing is to be done.
    Empty,
    /// Exercise the node, or what a device leads to, by a command.
    QemuIo { is_device: bool, name: String, command: String },
    /// It makes no sense; this is told.
    Wrong(String),
}

/// What is left of a line.
struct Words<'a>(&'a str);

impl Words<'_> {
    /// The next word, which may stand in quotation marks; `None` at the end.
    ///
    /// # Errors
    /// What is wrong with it.
    fn next(&mut self) -> Option<Result<String, String>> {
        self.0 = self.0.trim_start();
        if self.0.is_empty() {
            return None;
        }
        let Some(quoted) = self.0.strip_prefix('"') else {
            let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
            let (word, rest) = self.0.split_at(end);
            self.0 = rest;
            return Some(Ok(word.to_owned()));
        };
        let (mut word, mut chars) = (String::new(), quoted.chars());
        loop {
            match chars.next() {
                None => return Some(Err("unterminated string".to_owned())),
                Some('"') => break,
                Some('\\') => match chars.next() {
                    Some('n') => word.push('\n'),
                    Some('r') => word.push('\r'),
                    Some(plain @ ('\\' | '\'' | '"')) => word.push(plain),
                    Some(other) => return Some(Err(format!("unsupported escape code: '\\{other}'"))),
                    None => return Some(Err("unterminated string".to_owned())),
                },
                Some(plain) => word.push(plain),
            }
        }
        self.0 = chars.as_str();
        Some(Ok(word))
    }
}

impl Line {
    fn parse(line: &str) -> Self {
        let trimmed = line.trim_start();
        let (command, rest) = trimmed.split_at(trimmed.find(char::is_whitespace).unwrap_or(trimmed.len()));
        match command {
            "" => Self::Empty,
            QEMU_IO => Self::qemu_io(rest).unwrap_or_else(|wrong| {
                let advice = format!("Try \"help {QEMU_IO}\" for more information");
                Self::Wrong(format!("{wrong}\n{advice}\n"))
            }),
            _ => Self::Wrong(format!("unknown command: '{}'\n", trimmed.trim_end())),
        }
    }

    fn qemu_io(rest: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{QEMU_IO}: {what}");
        let mut words = Words(rest);
        let is_device = match words.0.trim_start().strip_prefix('-') {
            Some(option) => match option.strip_prefix('d').filter(|rest| !rest.starts_with(char::is_alphanumeric)) {
                Some(rest) => {
                    words.0 = rest;
                    true
                }
                None => return Err(wrong(&format!("unsupported option -{}", option.chars().next().unwrap_or(' ')))),
            },
            None => false,
        };
        let mut word = |missing: &str| match words.next() {
            Some(Ok(word)) => Ok(word),
            // What is wrong with it comes first.
            Some(Err(error)) => Err(format!("{error}\n{}", wrong(missing))),
            None => Err(wrong(missing)),
        };
        let (name, command) = (word("block device name expected")?, word("string expected")?);
        match words.0.trim().is_empty() {
            true => Ok(Self::QemuIo { is_device, name, command }),
            false => Err(wrong("extraneous characters at the end of line")),
        }
    }
}

/// What is called `name`, or why there is no such thing.
fn exercised(gs: &GlobalState, is_device: bool, name: &str) -> Result<Exercised, String> {
    if is_device {
        let backend = Backend::find_device(gs, name).ok_or_else(|| format!("Device '{name}' not found"))?;
        return Ok(Exercised::Device(backend));
    }
    let missing = |_| format!("Cannot find device='' nor node-name='{name}'");
    gs.find_node(name).map(Exercised::Node).map_err(missing)
}

pub(super) async fn command(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let line = call.arguments.require_str("command-line")?;
    let cpu = call.arguments.take_i64("cpu-index")?;
    let human = call.monitor.0.human.get().cloned();
    call.finish()?;
    if cpu.is_some() {
        // There are none.
        return Err(QmpError::new("Parameter 'cpu-index' expects a CPU number"));
    }
    let printed = match (Line::parse(&line), human) {
        (Line::Empty, _) => String::new(),
        (Line::Wrong(told), _) => told,
        (Line::QemuIo { .. }, None) => format!("unknown command: '{line}'\n"),
        (Line::QemuIo { is_device, name, command }, Some(human)) => match exercised(&gs, is_device, &name) {
            Ok(what) => human.qemu_io(what, command.into_bytes()).await,
            Err(told) => format!("Error: {told}\n"),
        },
    };
    Ok(printed.replace('\n', "\r\n").into())
}

#[cfg(test)]
mod tests {
    use super::Line;

    fn check(line: &str, expected: Result<(&str, &str), &str>) {
        let expected = match expected {
            Ok((name, command)) => {
                Line::QemuIo { is_device: false, name: name.to_owned(), command: command.to_owned() }
            }
            Err(told) => Line::Wrong(told.to_owned()),
        };
        assert_eq!(Line::parse(line), expected, "{line}");
    }

    #[test]
    fn lines_are_understood_as_in_the_field() {
        let help = |what: &str| format!("{what}\nTry \"help qemu-io\" for more information\n");
        check("qemu-io n length", Ok(("n", "length")));
        check("  qemu-io  \"n\"   \"read -P \\\"1\\\" 0 \\\\4k\"  ", Ok(("n", "read -P \"1\" 0 \\4k")));
        check("qemu-io", Err(&help("qemu-io: block device name expected")));
        check("qemu-io n", Err(&help("qemu-io: string expected")));
        check("qemu-io n a b", Err(&help("qemu-io: extraneous characters at the end of line")));
        check("qemu-io -z n a", Err(&help("qemu-io: unsupported option -z")));
        check("qemu-io n \"a", Err(&help("unterminated string\nqemu-io: string expected")));
        check("qemu-io \"\\q\" a", Err(&help("unsupported escape code: '\\q'\nqemu-io: block device name expected")));
        check("info block", Err("unknown command: 'info block'\n"));
        check("qemu-iox", Err("unknown command: 'qemu-iox'\n"));
        assert_eq!(Line::parse(" \t"), Line::Empty);
        let device = Line::QemuIo { is_device: true, name: "n".into(), command: "length".into() };
        assert_eq!(Line::parse("qemu-io -d n length"), device);
    }
}
