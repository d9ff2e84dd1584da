//! A little virtual machine monitor on plain epoll, with a disk from Cairn. No async runtime in its code, nor in its
//! manifest.
//!
//! Two "virtual CPUs" play the guest: each has a ring of descriptors in guest memory, laid out as virtio does it, and
//! half of the disk. Two I/O threads play the device: each waits in its own epoll for its ring's doorbell and for its
//! `Queue`, and sends what it finds in the ring to the one backend; data goes between the file and guest memory without
//! a copy. The main thread's epoll has the main loop of the block layer, as one descriptor among others: a timer, and a
//! bell that the guest's threads ring.
//!
//! What happens: the disk is opened by options; while both guests read and write, a filter of our own is put above it
//! and taken away again, over and over; then the guest opens the tray, the medium is taken out, and requests fail as
//! they should; everything is closed, and the file is compared with what the guests wrote, byte by byte.
//!
//! Reading order: `event`, `ring`, `guest`, `device`; then `passthrough` and `machine`, which are the block layer's
//! side.

mod event;

mod ring;

mod guest;

mod device;

mod passthrough;

mod machine;

use event::{Doorbell, Poller};
use machine::{Machine, Seen};
use std::cell::RefCell;
use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Errors of a program that only has to say what went wrong.
pub(crate) type AnyError = Box<dyn Error + Send + Sync>;

/// How often the main thread swaps nodes.
const TICK: Duration = Duration::from_millis(4);

const MAIN_LOOP: u64 = 1;
const TIMER: u64 = 2;
const GUESTS: u64 = 3;

/// A file that goes when the program does, however that ends.
struct TempFile(PathBuf);

impl TempFile {
    fn new(len: u64) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("cairn-epoll-vmm-{}", std::process::id()));
        File::create(&path)?.set_len(len)?;
        Ok(Self(path))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() -> Result<(), AnyError> {
    let disk = TempFile::new(guest::DISK_BYTES)?;
    let main_loop = block_gs::MainLoop::new()?;
    let (ticks, bells) = (Rc::new(Seen::default()), Rc::new(Seen::default()));
    let bell = Arc::new(Doorbell::new()?);

    let machine = Machine::new(&main_loop, &disk.0, bell.clone(), ticks.clone(), bells.clone())?;
    let outcome = Rc::new(RefCell::new(None));
    let told = outcome.clone();
    drop(main_loop.handle().spawn(async move { *told.borrow_mut() = Some(machine.run().await) }));

    let timer = event::ticker(TICK)?;
    let poller = Poller::new()?;
    poller.add(main_loop.fd(), MAIN_LOOP)?;
    poller.add(&timer, TIMER)?;
    poller.add(&*bell, GUESTS)?;
    let mut wakes = 0u64;
    while outcome.borrow().is_none() {
        for token in poller.wait()? {
            match token {
                MAIN_LOOP => drop(main_loop.turn()),
                TIMER => ticks.add(event::expirations(&timer)?),
                GUESTS => bells.add(bell.clear()?),
                other => return Err(format!("epoll told of {other}, which nobody registered").into()),
            }
        }
        wakes += 1;
    }
    let Some(outcome) = outcome.take() else { return Err("the machine stopped without a word".into()) };
    let models = outcome?;
    println!("main thread: {wakes} wakes from epoll");

    let bytes = std::fs::read(&disk.0)?;
    for model in models {
        model.compare(&bytes)?;
    }
    println!("every byte of the disk is what its guest wrote last");
    Ok(())
}
