//! The demonstration that `cargo xtask demo` runs: Cairn's main job on real data, in three acts.
//!
//! First the tools: a disk image with a partition and a real file system goes through the commands of cairn-img, beside
//! qemu-img where that is installed. Then the block layer itself: a disk that is copied while it is written. Then
//! the daemon: snapshots, other media, other options, while guests use its devices.
//! All files are in one temporary folder, which goes away, whatever happens.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program that makes files, sockets and threads of its own"
)]

mod tools;

mod acts;

mod live;

mod device;
mod disk;

mod served;

mod hands;
mod qmp;

use anyhow::{Context, Result, bail};
use qmp::Leash;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::time::Duration;

/// What the acts are called on the command line.
const ACTS: [&str; 3] = ["tools", "copy", "daemon"];

fn main() -> Result<()> {
    let asked: Vec<_> = std::env::args().skip(1).collect();
    if let Some(other) = asked.iter().find(|name| !ACTS.contains(&name.as_str())) {
        bail!("no act is called '{other}'; there are {}", ACTS.join(", "));
    }
    let dir = tempfile::Builder::new().prefix("cairn-demo-").tempdir()?;
    let leash = Leash::default();
    end_upon_signals(dir.path().to_owned(), leash.clone())?;
    let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    for name in ACTS.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|asked| asked == name)) {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder)?;
        match name {
            "tools" => {
                println!("--- first act: the tools\n");
                acts::run(&folder)?;
            }
            "copy" => {
                println!("\n--- second act: a disk that is copied while it is written\n");
                live::run(&folder, seed)?;
            }
            _ => {
                println!("\n--- third act: a daemon whose disks and media are changed while they are used\n");
                served::run(&folder, seed, &leash)?;
            }
        }
        std::fs::remove_dir_all(&folder)?;
    }
    dir.close().context("removing the temporary folder")
}

/// Interrupted, the program ends the daemon and removes its files before it ends as the signal would end it.
fn end_upon_signals(dir: PathBuf, leash: Leash) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for signal in &mut signals {
            leash.cut();
            // A program that is just being run may still make files.
            for _ in 0..100 {
                if std::fs::remove_dir_all(&dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            // It ends here; if it cannot, the demo goes on without its files and fails by itself.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    Ok(())
}
