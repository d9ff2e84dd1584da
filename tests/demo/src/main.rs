//! The demonstration that `cargo xtask demo` runs: Cairn's main job on real data, in two acts.
//!
//! First the tools: a disk image with a partition and a real file system goes through the commands of cairn-img, beside
//! qemu-img where that is installed. Then the block layer itself: a disk that is copied while it is written.
//! All files are in one temporary folder, which goes away, whatever happens.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a program that makes files and threads of its own")]

mod tools;

mod acts;

mod live;

mod device;
mod disk;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::time::Duration;

fn main() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("cairn-demo-").tempdir()?;
    remove_upon_signals(dir.path().to_owned())?;
    println!("--- first act: the tools\n");
    acts::run(&dir.path().join("tools"))?;
    println!("\n--- second act: a disk that is copied while it is written\n");
    let live = dir.path().join("live");
    std::fs::create_dir(&live)?;
    live::run(&live)?;
    dir.close().context("removing the temporary folder")
}

/// Interrupted, the program removes its files before it ends as the signal would end it.
fn remove_upon_signals(dir: PathBuf) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for signal in &mut signals {
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
