//! A split virtqueue in guest memory: descriptors, the ring of what the guest offers, the ring of what the device has
//! used.
//!
//! Both ends are here, the guest's and the device's. The device believes nothing that it reads: chains are bounded, and
//! their addresses are checked where guest memory is turned into buffers.

use crate::AnyError;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = GuestMemoryMmap<()>;

/// Descriptors, and places in each ring.
pub(crate) const QUEUE_SIZE: u16 = 128;
/// Bytes of guest memory that one queue and its buffers have.
pub(crate) const QUEUE_BYTES: u64 = 8 << 20;

const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// What a request asks for, as virtio-blk numbers it; opening the tray is our own.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const EJECT: u32 = 0x100;

pub(crate) const STATUS_OK: u8 = 0;
pub(crate) const STATUS_IOERR: u8 = 1;
pub(crate) const STATUS_UNSUPPORTED: u8 = 2;

/// One queue's place in guest memory.
struct Ring {
    memory: Memory,
    base: u64,
}

impl Ring {
    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.base + offset)
    }

    fn load(&self, offset: u64) -> Result<u16, AnyError> {
        Ok(self.memory.load(self.at(offset), Ordering::Acquire)?)
    }

    fn store(&self, offset: u64, value: u16) -> Result<(), AnyError> {
        Ok(self.memory.store(value, self.at(offset), Ordering::Release)?)
    }
}

/// A range of guest memory.
pub(crate) type Range = (u64, usize);

/// The guest's end.
pub(crate) struct DriverEnd {
    ring: Ring,
    offered: u16,
    used: u16,
}

impl DriverEnd {
    pub(crate) fn new(memory: Memory, base: u64) -> Self {
        Self { ring: Ring { memory, base }, offered: 0, used: 0 }
    }

    /// Offer the chain whose first descriptor is `head`: what the device reads, then what it writes.
    pub(crate) fn offer(&mut self, head: u16, reads: &[Range], writes: &[Range]) -> Result<(), AnyError> {
        let ranges = reads.iter().map(|range| (range, 0)).chain(writes.iter().map(|range| (range, DEVICE_WRITES)));
        let last = reads.len() + writes.len() - 1;
        for (place, ((address, len), flags)) in ranges.enumerate() {
            let number = head + place as u16;
            let (flags, next) = if place < last { (flags | NEXT, number + 1) } else { (flags, 0) };
            let at = self.ring.at(u64::from(number) * 16);
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&(*len as u32).to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            self.ring.memory.write_slice(&bytes, at)?;
        }
        self.ring.store(AVAILABLE + 4 + u64::from(self.offered % QUEUE_SIZE) * 2, head)?;
        self.offered = self.offered.wrapping_add(1);
        self.ring.store(AVAILABLE + 2, self.offered)
    }

    /// The head of a chain that the device is done with.
    pub(crate) fn reap(&mut self) -> Result<Option<u16>, AnyError> {
        if self.ring.load(USED + 2)? == self.used {
            return Ok(None);
        }
        let at = self.ring.at(USED + 4 + u64::from(self.used % QUEUE_SIZE) * 8);
        let head: u32 = self.ring.memory.read_obj(at)?;
        self.used = self.used.wrapping_add(1);
        Ok(Some(head as u16))
    }
}

/// A chain as the device found it.
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    pub(crate) data: Vec<Range>,
    /// Where the status byte goes.
    pub(crate) status: u64,
}

/// The device's end.
pub(crate) struct DeviceEnd {
    ring: Ring,
    taken: u16,
    used: u16,
}

impl DeviceEnd {
    pub(crate) fn new(memory: Memory, base: u64) -> Self {
        Self { ring: Ring { memory, base }, taken: 0, used: 0 }
    }

    /// The next chain that the guest offers.
    pub(crate) fn take(&mut self) -> Result<Option<Chain>, AnyError> {
        if self.ring.load(AVAILABLE + 2)? == self.taken {
            return Ok(None);
        }
        let head = self.ring.load(AVAILABLE + 4 + u64::from(self.taken % QUEUE_SIZE) * 2)?;
        self.taken = self.taken.wrapping_add(1);
        let mut ranges = self.walk(head)?;
        let (Some((status, _)), false) = (ranges.pop(), ranges.is_empty()) else {
            return Err("a chain without a header or without a status".into());
        };
        let mut header = [0; 16];
        self.ring.memory.read_slice(&mut header, GuestAddress(ranges.remove(0).0))?;
        let (kind, sector) = (u32::from_le_bytes(header[..4].try_into()?), u64::from_le_bytes(header[8..].try_into()?));
        Ok(Some(Chain { head, kind, sector, data: ranges, status }))
    }

    fn walk(&self, head: u16) -> Result<Vec<Range>, AnyError> {
        let mut ranges = Vec::new();
        let mut number = head;
        while ranges.len() < usize::from(QUEUE_SIZE) && number < QUEUE_SIZE {
            let mut bytes = [0; 16];
            self.ring.memory.read_slice(&mut bytes, self.ring.at(u64::from(number) * 16))?;
            let address = u64::from_le_bytes(bytes[..8].try_into()?);
            let len = u32::from_le_bytes(bytes[8..12].try_into()?);
            ranges.push((address, len as usize));
            if u16::from_le_bytes(bytes[12..14].try_into()?) & NEXT == 0 {
                return Ok(ranges);
            }
            number = u16::from_le_bytes(bytes[14..].try_into()?);
        }
        Err("a chain that does not end".into())
    }

    /// Give a chain back with its status.
    pub(crate) fn complete(&mut self, head: u16, status_at: u64, status: u8) -> Result<(), AnyError> {
        self.ring.memory.write_obj(status, GuestAddress(status_at))?;
        let at = self.ring.at(USED + 4 + u64::from(self.used % QUEUE_SIZE) * 8);
        self.ring.memory.write_obj(u32::from(head), at)?;
        self.used = self.used.wrapping_add(1);
        self.ring.store(USED + 2, self.used)
    }
}
