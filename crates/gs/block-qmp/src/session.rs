//! The conversation with one client: greeting, negotiation, commands one after the other, and what goes back.
//!
//! What a client sends has been split into texts by the time it comes here; how lines reach the client is not known here either.

use crate::commands;
use crate::error::{ErrorClass, QmpError, QmpResult};
use crate::monitor::Monitor;
use block_common::options::{Dict, Value};
use block_common::{Options, OptionsError};
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Value as Json, json};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// The capability of letting commands overtake others. It may be asked for; there is no command yet that can do it.
const OOB: &str = "oob";
/// How many texts wait to be read as commands; nothing more is read from the client then.
const INCOMING_MAX: usize = 8;
/// How many lines wait for a client before events are left out.
const WAITING_MAX: usize = 4096;

/// What comes from a client.
pub type Incoming = mpsc::Sender<crate::stream::Text>;

/// A client: where its texts come from, and where lines go to it.
#[derive(Debug)]
pub struct Client {
    texts: mpsc::Receiver<crate::stream::Text>,
    lines: Outgoing,
}

/// The way to a client. It is gone when nobody takes what comes out of it.
#[derive(Clone)]
pub(crate) struct Outgoing {
    lines: mpsc::UnboundedSender<String>,
    waiting: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
    is_pretty: bool,
    /// Whether it is told of events.
    hears: Arc<AtomicBool>,
}

/// The lines for a client, for whoever brings them there.
#[derive(Debug)]
pub struct Lines {
    lines: mpsc::UnboundedReceiver<String>,
    waiting: Arc<AtomicUsize>,
    /// The line that was taken last has reached the client: whoever asks for the next one says so.
    is_out: bool,
}

impl Client {
    /// A client, and the other ends: what it sends goes into the first, what it is sent comes out of the second.
    pub fn new() -> (Self, Incoming, Lines) {
        let (send, texts) = mpsc::channel(INCOMING_MAX);
        let (lines, receive) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (lost, hears) = (Arc::default(), Arc::default());
        let outgoing = Outgoing { lines, waiting: waiting.clone(), lost, is_pretty: false, hears };
        (Self { texts, lines: outgoing }, send, Lines { lines: receive, waiting, is_out: true })
    }

    /// Answer over several lines, with spaces, for people.
    pub fn set_pretty(&mut self, is_pretty: bool) {
        self.lines.is_pretty = is_pretty;
    }
}

impl Lines {
    /// The next line, with its end. `None` when there will be none.
    pub async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.is_out, true) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let line = self.lines.recv().await?;
        self.is_out = false;
        Some(line)
    }
}

impl Outgoing {
    /// Send an event. `false` when the client is gone.
    pub(crate) fn tell(&self, event: &Json) -> bool {
        if !self.hears.load(Ordering::Relaxed) {
            return !self.lines.is_closed();
        }
        if self.waiting.load(Ordering::Relaxed) < WAITING_MAX {
            return self.answer(event);
        }
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if lost.is_power_of_two() {
            tracing::warn!(lost, "a monitor's client does not read: it misses events");
        }
        !self.lines.is_closed()
    }

    /// Whether all lines have reached the client, or it has gone.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0 || self.lines.is_closed()
    }

    /// Whether these are two ways to one client.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.waiting, &other.waiting)
    }

    fn answer(&self, answer: &Json) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.lines.send(line(answer, self.is_pretty)).is_ok()
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} lines wait)", self.waiting.load(Ordering::Relaxed))
    }
}

/// A value on one line, with a space behind commas and colons as the field has it.
struct OnOneLine;

impl Formatter for OnOneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}

fn line(value: &Json, is_pretty: bool) -> String {
    let mut bytes = Vec::new();
    let written = match is_pretty {
        true => {
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        false => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, OnOneLine)),
    };
    // Memory takes everything, and the keys are text.
    debug_assert!(written.is_ok(), "{written:?}");
    bytes.extend_from_slice(b"\r\n");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command, as it was understood.
struct Command {
    name: String,
    arguments: Dict,
    /// It is to be carried out before others that wait.
    overtakes: bool,
}

impl Monitor {
    /// Talk to `client` until it goes, or somebody says `quit`.
    #[doc(alias = "qmp_dispatch")]
    pub async fn serve(&self, mut client: Client) {
        let [major, minor, micro] = self.0.options.version;
        let version =
            json!({ "qemu": { "micro": micro, "minor": minor, "major": major }, "package": self.0.options.package });
        self.connect(client.lines.clone());
        client.lines.answer(&json!({ "QMP": { "version": version, "capabilities": [OOB] } }));
        let (mut has_negotiated, mut may_overtake) = (false, false);
        while let Some(text) = client.texts.recv().await {
            let (id, command) = match read(text, may_overtake) {
                Ok((id, command)) => (id, command),
                Err(error) => {
                    client.lines.answer(&answer(None, Err(error)));
                    continue;
                }
            };
            let answered = match command {
                Err(error) => Err(error),
                Ok(command) if command.name == "qmp_capabilities" && !command.overtakes => {
                    negotiate(command, has_negotiated).map(|asked| {
                        (has_negotiated, may_overtake) = (true, asked);
                        client.lines.hears.store(true, Ordering::Relaxed);
                        json!({})
                    })
                }
                Ok(_) if !has_negotiated => {
                    let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
                    Err(QmpError::of(ErrorClass::CommandNotFound, desc))
                }
                Ok(Command { name, overtakes: true, .. }) => Err(commands::cannot_overtake(&name)),
                Ok(Command { name, arguments, .. }) => commands::run(self, &name, arguments).await,
            };
            self.tell_all();
            client.lines.answer(&answer(id, answered));
            if self.is_quitting() {
                return;
            }
        }
        self.forget(&client.lines);
    }
}

fn answer(id: Option<Json>, answered: QmpResult) -> Json {
    let mut line = match answered {
        Ok(value) => json!({ "return": value }),
        Err(error) => json!({ "error": error.to_json() }),
    };
    if let (Some(id), Some(line)) = (id, line.as_object_mut()) {
        line.insert("id".into(), id);
    }
    line
}

/// Whether the client wants to let commands overtake others.
fn negotiate(command: Command, has_negotiated: bool) -> Result<bool, QmpError> {
    if has_negotiated {
        let desc = "Capabilities negotiation is already complete, command ignored";
        return Err(QmpError::of(ErrorClass::CommandNotFound, desc));
    }
    let asked = Options::from_value(Value::Dict(command.arguments))?.read(|arguments| {
        Ok::<_, OptionsError>(arguments.take_list("enable", |item| item.into_str())?.unwrap_or_default())
    })?;
    match asked.iter().find(|name| name.as_str() != OOB) {
        Some(name) => Err(QmpError::new(format!("Parameter 'null' does not accept value '{name}'"))),
        None => Ok(!asked.is_empty()),
    }
}

/// What is in a text: an id, if there is one, and a command, or what is wrong with it.
fn read(text: crate::stream::Text, may_overtake: bool) -> Result<(Option<Json>, Result<Command, QmpError>), QmpError> {
    use crate::stream::Text;
    let text = match text {
        Text::Whole(text) => text,
        Text::TooLong => return Err(OptionsError::TooLong.into()),
        Text::NotUtf8 => return Err(QmpError::new("JSON parse error, invalid UTF-8 sequence in string")),
    };
    let Value::Dict(mut members) = Value::parse_json(&text)? else {
        return Err(QmpError::new("QMP input must be a JSON object"));
    };
    let id = members.remove("id").map(|id| serde_json::to_value(id).unwrap_or(Json::Null));
    Ok((id, command(members, may_overtake)))
}

fn command(mut members: Dict, may_overtake: bool) -> Result<Command, QmpError> {
    let member = |what: &str| QmpError::new(format!("QMP input member {what}"));
    let overtakes = may_overtake && members.contains_key("exec-oob") && !members.contains_key("execute");
    let key = if overtakes { "exec-oob" } else { "execute" };
    let name = members.remove(key);
    let arguments = members.remove("arguments");
    if let Some((key, _)) = members.iter().next() {
        return Err(member(&format!("'{key}' is unexpected")));
    }
    let name = match name {
        Some(Value::Str(name)) => name,
        Some(_) => return Err(member(&format!("'{key}' must be a string"))),
        None => return Err(QmpError::new("QMP input lacks member 'execute'")),
    };
    match arguments {
        None => Ok(Command { name, arguments: Dict::new(), overtakes }),
        Some(Value::Dict(arguments)) => Ok(Command { name, arguments, overtakes }),
        Some(_) => Err(member("'arguments' must be an object")),
    }
}
