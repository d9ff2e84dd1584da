//! The machine's control, as one task of the block layer's main loop: opens the disk, starts the threads, swaps nodes
//! under them, takes the medium out, closes.

use crate::AnyError;
use crate::device::{self, Bells};
use crate::event::Doorbell;
use crate::guest::{GUESTS, Guest, Model, Report, Step};
use crate::passthrough::{PassthroughControl, PassthroughType};
use crate::ring::{Memory, QUEUE_BYTES};
use block_backend::{Backend, BackendOptions, NamedDevice};
use block_backend_io::BackendSettings;
use block_common::options::{Dialect, Dict};
use block_common::{Options, Perm, PermPair};
use block_gs::{Event, GlobalOptions, GlobalState, MainLoop, NodeRef, Users};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use vm_memory::GuestAddress;

/// Something that the main thread's epoll saw, for a task to await.
#[derive(Default)]
pub(crate) struct Seen {
    count: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Seen {
    pub(crate) fn add(&self, count: u64) {
        self.count.set(self.count.get() + count);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Wait until it was seen again.
    async fn next(&self) {
        poll_fn(|cx| {
            if self.count.replace(0) > 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A guest's thread and a device's.
struct Pair {
    guest: JoinHandle<Result<Model, AnyError>>,
    device: JoinHandle<Result<u64, AnyError>>,
    steps: Sender<Step>,
    stop: Arc<Doorbell>,
}

pub(crate) struct Machine {
    gs: GlobalState,
    disk: Options,
    memory: Memory,
    /// Rung by threads that are done with a step, or have failed.
    bell: Arc<Doorbell>,
    ticks: Rc<Seen>,
    bells: Rc<Seen>,
}

impl Machine {
    pub(crate) fn new(
        main_loop: &MainLoop,
        disk: &Path,
        bell: Arc<Doorbell>,
        ticks: Rc<Seen>,
        bells: Rc<Seen>,
    ) -> Result<Self, AnyError> {
        let gs = GlobalState::new(main_loop, GlobalOptions::default())?;
        block_drivers::register_all(&gs);
        gs.register(Rc::new(PassthroughType));
        let mut file = Dict::new();
        file.insert("driver", "file")?;
        file.insert("filename", disk.to_str().ok_or("an odd name for a temporary file")?)?;
        let mut options = Options::new(Dialect::Qmp);
        options.insert("driver", "raw")?;
        options.insert("node-name", "disk0")?;
        options.insert("file", file)?;
        let memory = Memory::from_ranges(&[(GuestAddress(0), (GUESTS * QUEUE_BYTES) as usize)])?;
        Ok(Self { gs, disk: options, memory, bell, ticks, bells })
    }

    /// The whole life of the machine. Returns what the guests believe to be on their disk.
    pub(crate) async fn run(self) -> Result<Vec<Model>, AnyError> {
        let gs = &self.gs;
        let mut events = gs.take_events().ok_or("somebody else reads the events")?;
        let disk = gs.open(self.disk.clone()).await?;
        let backend = Backend::new(
            gs,
            BackendOptions {
                name: "drive0".into(),
                perm: PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all()),
                home: gs.main_io(),
                settings: BackendSettings::default(),
            },
        )?;
        backend.attach_device(NamedDevice::new("virtio0"))?;
        backend.insert(&disk).await?;
        let (to, done) = channel();
        let report = Report { to, bell: self.bell.clone() };
        let pairs = (0..GUESTS).map(|number| self.start(number, &backend, &report)).collect::<Result<Vec<_>, _>>()?;

        tell(&pairs, Step::Load)?;
        let loaded = Waiting::new(&done, &self.bells, pairs.len());
        let (swaps, seen) = self.swap_until(&disk, loaded).await?;
        println!("{swaps} times a filter came and went under load; it saw {seen} requests");

        pairs[0].steps.send(Step::Eject)?;
        Waiting::new(&done, &self.bells, 1).finish().await?;
        match events.next().await {
            Some(Event::TrayMoved { backend, open: true, .. }) => println!("the guest opened the tray of {backend}"),
            other => return Err(format!("expected a tray to move, got {other:?}").into()),
        }
        backend.remove().await?;
        tell(&pairs, Step::FindNothing)?;
        Waiting::new(&done, &self.bells, pairs.len()).finish().await?;
        println!("the medium is out, and requests fail");

        let mut models = Vec::new();
        for pair in pairs {
            let (model, served) = pair.end()?;
            println!("an I/O thread served {served} requests");
            models.push(model);
        }
        backend.detach_device();
        drop((backend, disk));
        gs.close_all().await?;
        if !gs.nodes().is_empty() {
            return Err(format!("after closing everything there is {:?}", gs.nodes()).into());
        }
        Ok(models)
    }

    fn start(&self, number: u64, backend: &Backend, report: &Report) -> Result<Pair, AnyError> {
        let (doorbell, interrupt) = (Arc::new(Doorbell::new()?), Arc::new(Doorbell::new()?));
        let stop = Arc::new(Doorbell::new()?);
        let guest = Guest::new(number, self.memory.clone(), doorbell.clone(), interrupt.clone())?;
        let (steps, to_do) = channel();
        let own = report.clone();
        let guest = thread(report, move || guest.run(&to_do, &own));
        let (memory, io) = (self.memory.clone(), backend.io());
        let bells = Bells { doorbell, interrupt, stop: stop.clone() };
        let device = thread(report, move || device::run(number, memory, io, &bells));
        Ok(Pair { guest, device, steps, stop })
    }

    /// Put a filter above the disk and take it away, tick by tick, until the guests are done. How often, and what it
    /// saw.
    async fn swap_until(&self, disk: &NodeRef, mut loaded: Waiting<'_>) -> Result<(u64, u64), AnyError> {
        let gs = &self.gs;
        let (mut swaps, mut seen) = (0, 0);
        while !loaded.is_over()? {
            let options = format!("passthrough,node-name=filter{swaps},file={}", disk.name());
            let filter = gs.insert_node(disk, Users::All, Options::parse_blockdev(&options)?).await?;
            self.ticks.next().await;
            gs.drop_filter(&filter).await?;
            seen += gs.with_control(&filter, |control: &mut PassthroughControl| control.seen())?;
            gs.close(filter).await?;
            self.ticks.next().await;
            swaps += 1;
        }
        Ok((swaps, seen))
    }
}

/// A thread whose failure the main thread hears of at once.
fn thread<T: Send + 'static>(
    report: &Report,
    body: impl FnOnce() -> Result<T, AnyError> + Send + 'static,
) -> JoinHandle<Result<T, AnyError>> {
    let report = report.clone();
    std::thread::spawn(move || body().inspect_err(|error| report.tell(Err(error.to_string()))))
}

fn tell(pairs: &[Pair], step: Step) -> Result<(), AnyError> {
    for pair in pairs {
        pair.steps.send(step)?;
    }
    Ok(())
}

/// For guests to be done with a step.
struct Waiting<'a> {
    done: &'a Receiver<Result<(), String>>,
    bells: &'a Seen,
    left: usize,
}

impl<'a> Waiting<'a> {
    fn new(done: &'a Receiver<Result<(), String>>, bells: &'a Seen, left: usize) -> Self {
        Self { done, bells, left }
    }

    fn is_over(&mut self) -> Result<bool, AnyError> {
        while self.left > 0 {
            match self.done.try_recv() {
                Ok(told) => told?,
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => return Err("the guests are gone".into()),
            }
            self.left -= 1;
        }
        Ok(true)
    }

    async fn finish(mut self) -> Result<(), AnyError> {
        while !self.is_over()? {
            self.bells.next().await;
        }
        Ok(())
    }
}

impl Pair {
    /// Stop both threads.
    fn end(self) -> Result<(Model, u64), AnyError> {
        drop(self.steps);
        let model = self.guest.join().map_err(|_| "a guest panicked")??;
        self.stop.ring();
        let served = self.device.join().map_err(|_| "a device's thread panicked")??;
        Ok((model, served))
    }
}
