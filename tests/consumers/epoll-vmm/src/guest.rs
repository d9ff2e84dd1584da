//! One virtual CPU's guest: a disk driver that keeps its ring full, knows what every block of its half must hold, and
//! checks it.

use crate::AnyError;
use crate::event::{Doorbell, Poller};
use crate::ring::{self, DriverEnd, Memory};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use vm_memory::{Bytes, GuestAddress};

/// Guests, their queues and the device's threads.
pub(crate) const GUESTS: u64 = 2;
/// The disk, in bytes; each guest has an equal part.
pub(crate) const DISK_BYTES: u64 = 32 << 20;
/// Requests that a guest has in flight.
const SLOTS: u64 = 32;
/// Descriptors of a slot's chain: header, two pieces of data, status.
const CHAIN: u64 = 4;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = DISK_BYTES / GUESTS / BLOCK;
const REQUESTS: u64 = 20_000;

/// What the machine lets a guest do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Read and write.
    Load,
    /// Open the tray.
    Eject,
    /// See that there is no disk any more.
    FindNothing,
}

/// How a thread tells the main thread that a step is done, or that it has failed.
#[derive(Clone)]
pub(crate) struct Report {
    pub(crate) to: Sender<Result<(), String>>,
    pub(crate) bell: Arc<Doorbell>,
}

impl Report {
    pub(crate) fn tell(&self, what: Result<(), String>) {
        // A main thread that has given up needs no report.
        let _ = self.to.send(what);
        self.bell.ring();
    }
}

/// What a guest expects of its half of the disk.
pub(crate) struct Model {
    guest: u64,
    /// How often each block was written.
    versions: Vec<u64>,
}

impl Model {
    fn block(&self, number: u64) -> Vec<u8> {
        let version = self.versions[number as usize];
        let stamp = (self.guest << 56 | number << 24 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..BLOCK).map(|i| if version == 0 { 0 } else { (stamp >> (i % 8 * 8)) as u8 ^ (i / 8) as u8 }).collect()
    }

    /// Compare with the whole disk.
    pub(crate) fn compare(&self, disk: &[u8]) -> Result<(), AnyError> {
        let start = (self.guest * BLOCKS * BLOCK) as usize;
        let half = &disk[start..start + (BLOCKS * BLOCK) as usize];
        for (number, block) in half.chunks(BLOCK as usize).enumerate() {
            if block != self.block(number as u64) {
                return Err(format!("guest {}: block {number} of the file is wrong", self.guest).into());
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Reading(u64),
    Writing,
    Other,
}

/// A guest on a thread of its own.
pub(crate) struct Guest {
    memory: Memory,
    base: u64,
    driver: DriverEnd,
    slots: [Doing; SLOTS as usize],
    model: Model,
    random: u64,
    doorbell: Arc<Doorbell>,
    interrupt: Poller,
    interrupt_bell: Arc<Doorbell>,
}

impl Guest {
    pub(crate) fn new(
        guest: u64,
        memory: Memory,
        doorbell: Arc<Doorbell>,
        interrupt_bell: Arc<Doorbell>,
    ) -> Result<Self, AnyError> {
        let interrupt = Poller::new()?;
        interrupt.add(&*interrupt_bell, 0)?;
        let base = guest * ring::QUEUE_BYTES;
        Ok(Self {
            driver: DriverEnd::new(memory.clone(), base),
            memory,
            base,
            slots: [Doing::Nothing; SLOTS as usize],
            model: Model { guest, versions: vec![0; BLOCKS as usize] },
            random: guest + 1,
            doorbell,
            interrupt,
            interrupt_bell,
        })
    }

    /// Do as the machine says, until it says nothing more.
    pub(crate) fn run(mut self, steps: &Receiver<Step>, report: &Report) -> Result<Model, AnyError> {
        for step in steps {
            match step {
                Step::Load => self.load()?,
                Step::Eject => self.expect(ring::EJECT, ring::STATUS_OK)?,
                Step::FindNothing => self.expect(ring::FLUSH, ring::STATUS_IOERR)?,
            }
            report.tell(Ok(()));
        }
        Ok(self.model)
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// A slot's own page, and its data: half a block, and the other half elsewhere.
    fn page(&self, slot: u64) -> u64 {
        self.base + 0x1_0000 + slot * 0x1_0000
    }

    fn data(&self, slot: u64) -> [ring::Range; 2] {
        let first = (self.random % 7 + 1) * 512;
        [(self.page(slot) + 0x1000, first as usize), (self.page(slot) + 0x8000 + first, (BLOCK - first) as usize)]
    }

    fn offer(&mut self, slot: u64, kind: u32, block: u64, data: &[ring::Range]) -> Result<(), AnyError> {
        let header = self.page(slot);
        let sector = (self.model.guest * BLOCKS + block) * (BLOCK / 512);
        self.memory.write_obj(kind, GuestAddress(header))?;
        self.memory.write_obj(sector, GuestAddress(header + 8))?;
        self.memory.write_obj(0xffu8, GuestAddress(header + 0x20))?;
        let (mut reads, mut writes) = (vec![(header, 16)], vec![(header + 0x20, 1)]);
        if kind == ring::OUT {
            reads.extend(data)
        } else {
            writes.splice(0..0, data.iter().copied()).for_each(drop)
        }
        self.driver.offer((slot * CHAIN) as u16, &reads, &writes)
    }

    /// Start something in an idle slot. Each slot has blocks of its own, so that what a block holds is certain.
    fn start(&mut self, slot: u64) -> Result<(), AnyError> {
        let block = self.random(BLOCKS / SLOTS) * SLOTS + slot;
        let data = self.data(slot);
        self.slots[slot as usize] = match self.random(100) {
            0..48 => {
                self.model.versions[block as usize] += 1;
                let bytes = self.model.block(block);
                let (first, second) = bytes.split_at(data[0].1);
                self.memory.write_slice(first, GuestAddress(data[0].0))?;
                self.memory.write_slice(second, GuestAddress(data[1].0))?;
                self.offer(slot, ring::OUT, block, &data)?;
                Doing::Writing
            }
            48..98 => {
                self.offer(slot, ring::IN, block, &data)?;
                // Where the data will be follows from the chain: remember what it was for.
                self.memory.write_obj(data[0].1 as u64, GuestAddress(self.page(slot) + 0x28))?;
                Doing::Reading(block)
            }
            _ => {
                self.offer(slot, ring::FLUSH, 0, &[])?;
                Doing::Other
            }
        };
        Ok(())
    }

    fn check(&self, slot: u64, block: u64) -> Result<(), AnyError> {
        let first: u64 = self.memory.read_obj(GuestAddress(self.page(slot) + 0x28))?;
        let mut bytes = vec![0; BLOCK as usize];
        let (head, tail) = bytes.split_at_mut(first as usize);
        self.memory.read_slice(head, GuestAddress(self.page(slot) + 0x1000))?;
        self.memory.read_slice(tail, GuestAddress(self.page(slot) + 0x8000 + first))?;
        if bytes != self.model.block(block) {
            return Err(format!("guest {}: block {block} read wrong", self.model.guest).into());
        }
        Ok(())
    }

    /// Wait for the device, and take back what it is done with: slot and status.
    fn reap(&mut self) -> Result<Vec<(u64, u8)>, AnyError> {
        let mut finished = Vec::new();
        while finished.is_empty() {
            while let Some(head) = self.driver.reap()? {
                let slot = u64::from(head) / CHAIN;
                finished.push((slot, self.memory.read_obj(GuestAddress(self.page(slot) + 0x20))?));
            }
            if finished.is_empty() {
                self.interrupt.wait()?;
                self.interrupt_bell.clear()?;
            }
        }
        Ok(finished)
    }

    fn load(&mut self) -> Result<(), AnyError> {
        let (mut started, mut finished) = (0, 0);
        while finished < REQUESTS {
            for slot in 0..SLOTS {
                if self.slots[slot as usize] == Doing::Nothing && started < REQUESTS {
                    self.start(slot)?;
                    started += 1;
                }
            }
            self.doorbell.ring();
            for (slot, status) in self.reap()? {
                if status != ring::STATUS_OK {
                    return Err(format!("guest {}: status {status}", self.model.guest).into());
                }
                if let Doing::Reading(block) = self.slots[slot as usize] {
                    self.check(slot, block)?;
                }
                self.slots[slot as usize] = Doing::Nothing;
                finished += 1;
            }
        }
        Ok(())
    }

    /// One request, and what must come of it.
    fn expect(&mut self, kind: u32, expected: u8) -> Result<(), AnyError> {
        self.offer(0, kind, 0, &[])?;
        self.doorbell.ring();
        match self.reap()?.as_slice() {
            [(0, status)] if *status == expected => Ok(()),
            other => Err(format!("guest {}: request {kind:#x} gave {other:?}", self.model.guest).into()),
        }
    }
}
