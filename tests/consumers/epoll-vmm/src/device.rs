//! One I/O thread of the device: from a ring in guest memory to the backend, and back.

use crate::AnyError;
use crate::event::{Doorbell, Poller};
use crate::ring::{self, Chain, DeviceEnd, Memory};
use block_backend_io::BackendIo;
use block_common::{GuestMemoryRef, RequestFlags, VmMemory};
use block_io::{Completed, Queue, Request};
use std::sync::Arc;

const DOORBELL: u64 = 1;
const COMPLETIONS: u64 = 2;
const STOP: u64 = 3;

/// The bells of one queue.
pub(crate) struct Bells {
    /// The guest has offered something.
    pub(crate) doorbell: Arc<Doorbell>,
    /// The device has used something.
    pub(crate) interrupt: Arc<Doorbell>,
    /// The machine is going down.
    pub(crate) stop: Arc<Doorbell>,
}

struct Device {
    memory: GuestMemoryRef,
    ring: DeviceEnd,
    backend: BackendIo,
    queue: Queue,
    /// Where the status of each chain in flight goes, by its head.
    status_at: Vec<u64>,
    completed: Vec<Completed>,
    served: u64,
}

/// Serve one queue until the machine stops. Returns how many requests that were.
pub(crate) fn run(number: u64, memory: Memory, backend: BackendIo, bells: &Bells) -> Result<u64, AnyError> {
    let queue = Queue::new()?;
    let poller = Poller::new()?;
    poller.add(&*bells.doorbell, DOORBELL)?;
    poller.add(queue.event(), COMPLETIONS)?;
    poller.add(&*bells.stop, STOP)?;
    let ring = DeviceEnd::new(memory.clone(), number * ring::QUEUE_BYTES);
    let memory = GuestMemoryRef::new(Arc::new(VmMemory::new(memory)?));
    let status_at = vec![0; usize::from(ring::QUEUE_SIZE)];
    let mut device = Device { memory, ring, backend, queue, status_at, completed: Vec::new(), served: 0 };
    loop {
        for token in poller.wait()? {
            match token {
                DOORBELL => drop(bells.doorbell.clear()?),
                COMPLETIONS => device.queue.acknowledge(),
                _ if device.queue.pending() == 0 => return Ok(device.served),
                _ => {}
            }
        }
        while device.step()? {
            bells.interrupt.ring();
        }
    }
}

impl Device {
    /// Take what is offered, give back what is complete. Whether anything was given back.
    fn step(&mut self) -> Result<bool, AnyError> {
        let before = self.served;
        while let Some(chain) = self.ring.take()? {
            self.submit(chain)?;
        }
        self.queue.kick();
        let mut completed = std::mem::take(&mut self.completed);
        self.queue.reap(&mut completed);
        for Completed { tag, done } in completed.drain(..) {
            let status = if done.result.is_ok() { ring::STATUS_OK } else { ring::STATUS_IOERR };
            self.complete(tag as u16, status)?;
        }
        self.completed = completed;
        Ok(self.served > before)
    }

    fn submit(&mut self, chain: Chain) -> Result<(), AnyError> {
        let head = chain.head;
        self.status_at[usize::from(head)] = chain.status;
        let offset = chain.sector.saturating_mul(512);
        // The guest's own memory: what the guest names must be mapped, and is never read twice.
        let request = match (chain.kind, self.memory.buf(&chain.data)) {
            (ring::IN, Ok(buf)) => Request::read(offset, buf),
            (ring::OUT, Ok(buf)) => Request::write(offset, buf, RequestFlags::empty()),
            (ring::FLUSH, _) => Request::flush(),
            (ring::EJECT, _) => {
                self.backend.eject(true);
                return self.complete(head, ring::STATUS_OK);
            }
            (ring::IN | ring::OUT, Err(_)) => return self.complete(head, ring::STATUS_IOERR),
            _ => return self.complete(head, ring::STATUS_UNSUPPORTED),
        };
        match self.backend.entry() {
            Ok(root) => {
                self.queue.submit(root, request, head.into());
                Ok(())
            }
            Err(_) => self.complete(head, ring::STATUS_IOERR),
        }
    }

    fn complete(&mut self, head: u16, status: u8) -> Result<(), AnyError> {
        self.served += 1;
        self.ring.complete(head, self.status_at[usize::from(head)], status)
    }
}
