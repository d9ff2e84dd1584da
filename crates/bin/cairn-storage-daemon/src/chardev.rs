//! Character devices, as far as monitors need them: sockets and standard input and output.

use block_common::Options;
use block_common::options::Value;
use block_gs::GlobalState;
use block_io::IoThreadHandle;
use block_qmp::{Listener, Monitor, stdio};
use std::collections::BTreeMap;
use std::path::Path;

/// Kinds that QEMU has and this build does not.
const NOT_BUILT: [&str; 15] = [
    "braille", "dbus", "file", "hub", "memory", "msmouse", "mux", "parallel", "pipe", "pty", "ringbuf", "serial",
    "testdev", "udp", "vc",
];

/// Where bytes come from and go to.
enum Chardev {
    Stdio,
    Unix { path: String, wait: bool },
    Tcp { address: String, wait: bool },
    Null,
}

/// The character devices by id, and the monitors that talk through them.
pub(crate) struct Chardevs {
    gs: GlobalState,
    thread: IoThreadHandle,
    monitor: Monitor,
    /// `None` for one that a monitor has.
    known: BTreeMap<String, Option<Made>>,
    has_stdio: bool,
}

/// A device that nobody talks through yet. Sockets listen from the start.
enum Made {
    Stdio,
    Socket(Listener),
    Null,
}

impl Chardevs {
    pub(crate) fn new(gs: GlobalState, thread: IoThreadHandle, monitor: Monitor) -> Self {
        Self { gs, thread, monitor, known: BTreeMap::new(), has_stdio: false }
    }

    /// Make what `text` describes.
    pub(crate) async fn add(&mut self, text: &str) -> Result<(), String> {
        let (id, device) = parse(text)?;
        if self.known.contains_key(&id) {
            return Err(format!("Duplicate ID '{id}' for chardev"));
        }
        let made = match device {
            Chardev::Stdio if self.has_stdio => return Err("cannot use stdio by multiple character devices".into()),
            Chardev::Stdio => {
                self.has_stdio = true;
                Made::Stdio
            }
            Chardev::Null => Made::Null,
            Chardev::Unix { path, wait } => {
                let listener = Listener::unix(&self.thread, Path::new(&path)).await;
                self.listening(text, listener.map_err(|error| error.to_string())?, wait).await
            }
            Chardev::Tcp { address, wait } => {
                let listener = Listener::tcp(&self.thread, &address).await;
                self.listening(text, listener.map_err(|error| error.to_string())?, wait).await
            }
        };
        self.known.insert(id, Some(made));
        Ok(())
    }

    /// Wait for the first client where that is wanted.
    async fn listening(&self, text: &str, mut listener: Listener, wait: bool) -> Made {
        if wait {
            let (program, at) = (crate::cli::program(), listener.at());
            eprintln!("{program}: --chardev {text}: info: waiting for connection on: disconnected:{at},server=on");
            listener.connected().await;
        }
        Made::Socket(listener)
    }

    /// Talk QMP through the device that `text` names.
    pub(crate) fn monitor(&mut self, text: &str) -> Result<(), String> {
        let options = Options::parse_keyval(&with_values(text), Some("chardev")).map_err(|error| error.to_string())?;
        let read = options.read(|options| {
            let id = options.require_str("chardev")?;
            let mode = options.take_str("mode")?;
            Ok::<_, block_common::OptionsError>((id, mode, options.take_bool("pretty")?.unwrap_or(false)))
        });
        let (id, mode, is_pretty) = read.map_err(|error| error.to_string())?;
        match mode.as_deref() {
            None | Some("control") => {}
            Some("readline") => return Err("mode=readline is not supported".into()),
            Some(other) => return Err(format!("Parameter 'mode' does not accept value '{other}'")),
        }
        let device = self.known.get_mut(&id).ok_or_else(|| format!("chardev \"{id}\" not found"))?;
        let device = device.take().ok_or_else(|| format!("chardev '{id}' is already in use"))?;
        let monitor = self.monitor.clone();
        match device {
            // Nobody is there.
            Made::Null => {}
            Made::Stdio => {
                let client = stdio(&self.thread, is_pretty);
                drop(self.gs.main().spawn(async move { monitor.serve(client).await }));
            }
            Made::Socket(mut listener) => drop(self.gs.main().spawn(async move {
                while let Some(client) = listener.client(is_pretty).await {
                    monitor.serve(client).await;
                }
            })),
        }
        Ok(())
    }
}

/// Switches without a value, as of old, get one.
fn with_values(text: &str) -> String {
    let value = |part| match part {
        "server" | "wait" | "pretty" => format!("{part}=on"),
        "noserver" | "nowait" | "nopretty" => format!("{}=off", &part[2..]),
        part => part.to_owned(),
    };
    text.split(',').map(value).collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> Result<(String, Chardev), String> {
    let options = Options::parse_keyval(&with_values(text), Some("backend")).map_err(|error| error.to_string())?;
    let mut options = options.reader();
    let said = |error: block_common::OptionsError| error.to_string();
    let id = options.take_str("id").map_err(said)?.ok_or("chardev: no id specified")?;
    let backend = options.take_str("backend").map_err(said)?;
    let backend = backend.ok_or_else(|| format!("chardev: \"{id}\" missing backend"))?;
    let device = match backend.as_str() {
        "stdio" => {
            // The terminal is left as it is, which is what a signal that is none would need.
            if options.take_bool("signal").map_err(said)? == Some(false) {
                return Err("signal=off is not supported".into());
            }
            Chardev::Stdio
        }
        "null" => Chardev::Null,
        "socket" => {
            let [path, host, port] = ["path", "host", "port"].map(|key| options.take_str(key));
            let (path, host, port) = (path.map_err(said)?, host.map_err(said)?, port.map_err(said)?);
            let is_server = options.take_bool("server").map_err(said)?.unwrap_or(false);
            let wait = options.take_bool("wait").map_err(said)?;
            if !is_server {
                return Err("a socket without 'server=on' is not supported".into());
            }
            let wait = wait.unwrap_or(true);
            match (path, port) {
                (Some(path), _) => Chardev::Unix { path, wait },
                (None, Some(port)) => {
                    let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
                    let host = if host.contains(':') { format!("[{host}]") } else { host };
                    Chardev::Tcp { address: format!("{host}:{port}"), wait }
                }
                (None, None) => return Err("Parameter 'path' is missing".into()),
            }
        }
        name if NOT_BUILT.contains(&name) => return Err(format!("chardev backend '{name}' is not supported")),
        name => return Err(format!("'{name}' is not a valid char driver name")),
    };
    if let Some((key, _)) =
        options.into_rest().dict().iter().next().map(|(key, value): (&str, &Value)| (key.to_owned(), value.clone()))
    {
        return Err(format!("Invalid parameter '{key}'"));
    }
    Ok((id, device))
}
