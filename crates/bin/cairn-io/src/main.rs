//! `cairn-io`: exercises the I/O path of an image, by commands. The command line and the commands are those of qemu-io.
//!
//! This file sets up the block layer, feeds commands to a session, and sees to it that everything is closed.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a program without I/O threads of its own: it may block on files and threads"
)]

mod image;
mod requests;
mod session;

mod input;
mod output;
mod trace;

use block_common::Options;
use block_common::options::Dialect;
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, MainLoop};
use cairn_io::program::{Program, Work, parse, usage};
use image::{Image, parse_options, text};
use input::Input;
use output::Output;
use requests::{Failed, Outcome};
use session::{Next, Session};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    let called = if args.is_empty() { b"cairn-io".to_vec() } else { args.remove(0) };
    let name = called.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let out = Output::new(String::from_utf8_lossy(name).into_owned());
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    let done = match parse(&called, &args) {
        Ok(Program::Help) => {
            out.print(usage(out.name()));
            Ok(())
        }
        Ok(Program::Version) => {
            out.print(format!("{} version {}\n", out.name(), env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Ok(Program::Work(work)) => run(work, &out),
        Err(bad) => {
            bad.line.iter().for_each(|line| out.tell(line));
            if bad.usage {
                out.print(usage(out.name()));
            }
            Err(Failed)
        }
    };
    out.flush();
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(work: Work, out: &Output) -> Outcome {
    let fail = |message: String| {
        out.fail(message);
        Failed
    };
    trace::start(&work.traces, out).map_err(fail)?;
    refuse_objects(&work.objects, out).map_err(fail)?;
    let set_up = |error| fail(format!("could not set up the block layer: {error}"));
    let main = MainLoop::new().map_err(set_up)?;
    let gs = GlobalState::new(&main, GlobalOptions::default()).map_err(set_up)?;
    register_all(&gs);
    main.run(async {
        let worked = carry_out(work, &gs, out).await;
        let closed = gs.close_all().await.map_err(|error| fail(error.to_string()));
        worked.and(closed)
    })
}

/// There are no objects yet that an image could refer to.
fn refuse_objects(texts: &[Vec<u8>], out: &Output) -> Result<(), String> {
    let Some(described) = texts.first() else { return Ok(()) };
    let described = text(described)?;
    let options = Options::parse_keyval(&described, Some("qom-type")).map_err(|error| error.to_string())?;
    let Some(kind) = options.lookup("qom-type") else { return Err("Parameter 'qom-type' is missing".into()) };
    if options.lookup("id").is_none() {
        return Err("Parameter 'id' is missing".into());
    }
    let kind = format!("{kind}");
    let kind = kind.trim_matches('"');
    if !["secret", "secret_keyring", "throttle-group", "iothread"].contains(&kind) && !kind.starts_with("tls-creds-") {
        return Err(format!("Parameter 'qom-type' does not accept value '{kind}'"));
    }
    out.flush();
    Err(format!("objects of type '{kind}' are not supported yet"))
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
