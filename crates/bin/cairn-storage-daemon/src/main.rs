//! `cairn-storage-daemon`: a block layer by itself, driven by QMP. The command line is that of qemu-storage-daemon.
//!
//! This file carries out the command line, one option behind the other, and then waits until somebody wants the program to end.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a program: its main thread may block on files before it serves anybody")]

mod chardev;
mod cli;
mod daemon;
mod human;

use block_backend::FrontEnd;
use block_common::Options;
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, MainLoop, ObjectText};
use block_io::{IoThread, IoThreadOptions};
use block_jobs::JobRegistry;
use block_qmp::{Monitor, MonitorOptions};
use chardev::Chardevs;
use cli::{Act, CommandLine};
use daemon::{PidFile, Ready};
use std::process::ExitCode;
use std::rc::Rc;
use tokio::sync::mpsc;

/// The version of QEMU that the commands are those of.
const VERSION: [u32; 3] = [10, 0, 2];

fn main() -> ExitCode {
    let line = match cli::parse(std::env::args_os()) {
        Ok(line) => line,
        Err(told) => return told.print(),
    };
    match run(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // The process in the background has told the rest.
            if !message.is_empty() {
                eprintln!("{}: {message}", cli::program());
            }
            ExitCode::FAILURE
        }
    }
}

fn run(line: CommandLine) -> Result<(), String> {
    let ready = match Ready::of_this_process(&line)? {
        Some(ready) => ready,
        // The other process is ready; this one was only there to say so.
        None => return Ok(()),
    };
    let refused = |error| format!("could not set up the block layer: {error}");
    let main = MainLoop::new().map_err(refused)?;
    let gs =
        GlobalState::new(&main, GlobalOptions { io_threads: true, ..GlobalOptions::default() }).map_err(refused)?;
    register_all(&gs);
    let thread = IoThread::spawn(IoThreadOptions::named("monitor")).map_err(refused)?;
    let package = format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let monitor = Monitor::new(&gs, MonitorOptions { version: VERSION, package });
    monitor.set_human(Rc::new(human::Human(gs.downgrade())));
    let mut signals = signals()?;
    let outcome = main.run(async {
        let mut chardevs = Chardevs::new(gs.clone(), thread.handle(), monitor.clone());
        let begun = begin(&gs, &mut chardevs, &line).await;
        let served = match begun {
            Err(message) => Err(message),
            Ok(Begun::Help(text)) => {
                print!("{text}");
                Ok(())
            }
            Ok(Begun::Serving) => match PidFile::create(line.pidfile.as_deref()) {
                Err(message) => Err(message),
                Ok(pid_file) => {
                    ready.say();
                    tokio::select! {
                        () = monitor.quit_asked() => {}
                        _ = signals.recv() => {}
                    }
                    drop(pid_file);
                    Ok(())
                }
            },
        };
        drop(chardevs);
        FrontEnd::remove_all(&gs).await;
        let closed = JobRegistry::close_all(&gs).await.map_err(|error| error.report());
        for object in gs.objects() {
            // What it holds is wiped.
            let _ = gs.remove_object(&object.id);
        }
        monitor.answers_out().await;
        served.and(closed)
    });
    drop(monitor);
    // Sockets that are files go with the tasks that wait there.
    drop((gs, main, thread));
    outcome
}

/// What the command line has come to.
enum Begun {
    Serving,
    /// The user wanted to be told something instead.
    Help(String),
}

async fn begin(gs: &GlobalState, chardevs: &mut Chardevs, line: &CommandLine) -> Result<Begun, String> {
    for (option, act) in &line.acts {
        match carry_out(gs, chardevs, act).await {
            Ok(None) => {}
            Ok(Some(help)) => return Ok(Begun::Help(help)),
            Err(message) => return Err(format!("{option} {}: {message}", act.shown())),
        }
    }
    Ok(Begun::Serving)
}

async fn carry_out(gs: &GlobalState, chardevs: &mut Chardevs, act: &Act) -> Result<Option<String>, String> {
    let report = |error: block_gs::GraphError| error.report();
    match act {
        Act::Blockdev(text) => {
            let options = Options::parse_blockdev(text).map_err(|error| error.to_string())?;
            if options.dict().contains_key("driver") && !options.dict().contains_key("node-name") {
                return Err("'node-name' must be specified for the root node".into());
            }
            let node = gs.open(options).await.map_err(report)?;
            gs.set_monitor_owned(&node, true);
        }
        Act::Object(text) => match ObjectText::parse_with_threads(text).map_err(report)? {
            ObjectText::Help(help) => return Ok(Some(help)),
            ObjectText::Make(options) => gs.add_object(options).await.map_err(report)?,
        },
        Act::Device(text) => {
            let options = match text.starts_with('{') {
                true => Options::parse_json(text),
                false => Options::parse_keyval(text, Some("driver")),
            };
            let options = options.map_err(|error| error.to_string())?;
            FrontEnd::open(gs, options.reader()).await.map_err(|error| error.to_string())?;
        }
        Act::Chardev(text) => chardevs.add(text).await?,
        Act::Monitor(text) => chardevs.monitor(text)?,
        Act::NotBuilt(_, what) => return Err(format!("{what} are not supported")),
    }
    Ok(None)
}

/// The signals that ask the program to end.
fn signals() -> Result<mpsc::UnboundedReceiver<()>, String> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|error| format!("could not wait for signals: {error}"))?;
    // Files that may not become longer give an error, and are no reason to end.
    let too_long = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, too_long).map_err(|error| error.to_string())?;
    let (tell, told) = mpsc::unbounded_channel();
    let wait = move || signals.forever().try_for_each(|_| tell.send(()).ok()).unwrap_or(());
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(|error| error.to_string())?;
    Ok(told)
}
