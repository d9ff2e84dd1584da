//! `cairn-io`: exercises the I/O path of an image, by commands. The command line and the commands are those of qemu-io.
//!
//! This file sets up the block layer, feeds commands to a session, and sees to it that everything is closed.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a program without I/O threads of its own: it may block on files and threads"
)]

mod input;
mod trace;

use block_common::Options;
use block_common::options::Dialect;
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, MainLoop, ObjectText};
use cairn_io::image::{Image, parse_options, text};
use cairn_io::output::Output;
use cairn_io::program::{BadLine, Program, Work, parse, usage};
use cairn_io::session::{Next, Session};
use cairn_io::{Failed, Outcome};
use input::Input;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    let called = if args.is_empty() { b"cairn-io".to_vec() } else { args.remove(0) };
    let name = called.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let out = Output::new(String::from_utf8_lossy(name).into_owned());
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let line = parse(&called, &args);
    let done = match make_objects(&line.objects) {
        Ok(Made::Objects(layer)) => then(line.then, layer, &out),
        Ok(Made::Help(help)) => {
            out.print(help);
            Ok(())
        }
        Err(message) => {
            out.fail(message);
            Err(Failed)
        }
    };
    out.flush();
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is done when the objects are there; they are in `layer`.
fn then(program: Result<Program, BadLine>, layer: Option<Layer>, out: &Output) -> Outcome {
    match program {
        Ok(Program::Help) => {
            out.print(usage(out.name()));
            Ok(())
        }
        Ok(Program::Version) => {
            out.print(format!("{} version {}\n", out.name(), env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Ok(Program::Work(work)) => run(work, layer, out),
        Err(bad) => {
            bad.line.iter().for_each(|line| out.tell(line));
            if bad.usage {
                out.print(usage(out.name()));
            }
            Err(Failed)
        }
    }
}

/// The block layer, and the loop that it runs on. The loop goes last.
struct Layer {
    gs: GlobalState,
    main: MainLoop,
}

impl Layer {
    fn new() -> Result<Self, String> {
        let refused = |error| format!("could not set up the block layer: {error}");
        let main = MainLoop::new().map_err(refused)?;
        let gs = GlobalState::new(&main, GlobalOptions::default()).map_err(refused)?;
        register_all(&gs);
        Ok(Self { gs, main })
    }
}

/// What texts that describe objects come to.
enum Made {
    /// A block layer with the objects, if there are any.
    Objects(Option<Layer>),
    /// What the user wants to be told instead.
    Help(String),
}

/// Make the objects, one after the other.
fn make_objects(texts: &[Vec<u8>]) -> Result<Made, String> {
    if texts.is_empty() {
        return Ok(Made::Objects(None));
    }
    let layer = Layer::new()?;
    for described in texts {
        // What it is stays untold.
        let described = std::str::from_utf8(described).map_err(|_| "an object's description is not valid UTF-8")?;
        match ObjectText::parse(described).map_err(|error| error.report())? {
            ObjectText::Help(help) => return Ok(Made::Help(help)),
            ObjectText::Make(options) => {
                layer.main.run(layer.gs.add_object(options)).map_err(|error| error.report())?;
            }
        }
    }
    Ok(Made::Objects(Some(layer)))
}

fn run(work: Work, layer: Option<Layer>, out: &Output) -> Outcome {
    let fail = |message: String| {
        out.fail(message);
        Failed
    };
    trace::start(&work.traces, out).map_err(fail)?;
    let Layer { gs, main } = &layer.map_or_else(Layer::new, Ok).map_err(fail)?;
    main.run(async {
        let worked = carry_out(work, gs, out).await;
        let closed = gs.close_all().await.map_err(|error| fail(error.to_string()));
        worked.and(closed)
    })
}

/// Open the image, if there is one, and carry out all commands. A failure of one does not keep the next ones from being
/// carried out.
async fn carry_out(work: Work, gs: &GlobalState, out: &Output) -> Outcome {
    let mut session = Session::new(gs.clone(), out.clone(), work.misalign);
    if work.open.path.is_some() {
        let image = describe(&work, out).map_err(|message| {
            out.fail(message);
            Failed
        })?;
        session.open(image).await?;
    }
    let mut outcome = Ok(());
    let mut input = work.commands.is_empty().then(|| Input::new(out.clone()));
    let mut commands = work.commands.into_iter();
    loop {
        let line = match &mut input {
            Some(input) => input.line().await,
            None => commands.next(),
        };
        let Some(line) = line else { break };
        match session.run(&line).await {
            Ok(Next::Go) => {}
            Ok(Next::Quit) => break,
            Err(failed) => outcome = Err(failed),
        }
    }
    let closed = session.close().await;
    outcome.and(closed)
}

/// The image of the command line.
fn describe(work: &Work, out: &Output) -> Result<Image, String> {
    let path = work.open.path.clone().unwrap_or_default();
    let format = work.format.as_deref().map(text).transpose()?;
    let (name, options) = match work.image_opts {
        true => (None, parse_options(&[path], out).map_err(|message| format!("can't open: {message}"))?),
        false => (Some(text(&path)?), Options::new(Dialect::Legacy)),
    };
    Ok(Image { name, options, format, how: work.open.clone() })
}
