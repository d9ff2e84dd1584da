//! The load on a daemon's devices: conversations that make a guest's requests, one after the other each, and know what every block must be.
//!
//! Blocks are filled with one byte each, for that is what the commands of cairn-io can write and check.

use crate::qmp::{Client, Daemon};
use anyhow::{Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a block has, in bytes.
pub(crate) const BLOCK: usize = 4096;
/// The longest request.
const BLOCKS_MAX: usize = 16;

/// A part of a device that one conversation writes, and nobody else.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) device: &'static str,
    /// Where it begins, in bytes.
    pub(crate) start: usize,
    /// What each block is filled with.
    pub(crate) blocks: Vec<u8>,
}

/// How many requests a device was asked for, and how many bytes they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) flushes: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.writes += other.writes;
        self.write_bytes += other.write_bytes;
        self.flushes += other.flushes;
    }
}

/// What the requests were, by device.
pub(crate) type Made = BTreeMap<&'static str, Counts>;

/// One conversation: a guest's queue that is one request deep.
pub(crate) struct Hand {
    client: Client,
    pub(crate) made: Made,
    slowest: Duration,
}

/// What was done by all of them.
pub(crate) struct Totals {
    pub(crate) parts: Vec<Part>,
    pub(crate) made: Made,
    pub(crate) slowest: Duration,
}

/// The running threads.
pub(crate) struct Hands {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(Vec<Part>, Hand)>>>,
}

impl Hand {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, made: Made::new(), slowest: Duration::ZERO }
    }

    /// The conversation, for what is no request.
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn request(&mut self, device: &'static str, command: &str) -> Result<&mut Counts> {
        let begin = Instant::now();
        let said = self.client.guest(device, command)?;
        ensure!(said.is_empty(), "{device}: {command}: {said}");
        self.slowest = self.slowest.max(begin.elapsed());
        Ok(self.made.entry(device).or_default())
    }

    /// Fill a range with `byte`.
    pub(crate) fn write(&mut self, device: &'static str, at: usize, len: usize, byte: u8) -> Result<()> {
        self.write_as(device, &format!("write -q -P {byte} {at} {len}"), len)
    }

    fn write_as(&mut self, device: &'static str, command: &str, len: usize) -> Result<()> {
        let counts = self.request(device, command)?;
        counts.writes += 1;
        counts.write_bytes += len as u64;
        Ok(())
    }

    /// Read a range, and see whether it is filled with `byte`, if that is known.
    pub(crate) fn read(&mut self, device: &'static str, at: usize, len: usize, byte: Option<u8>) -> Result<()> {
        let check = byte.map(|byte| format!("-P {byte} ")).unwrap_or_default();
        let counts = self.request(device, &format!("read -q {check}{at} {len}"))?;
        counts.reads += 1;
        counts.read_bytes += len as u64;
        Ok(())
    }

    /// Read, write and flush at random, until it is time to stop; `others` bytes at the start of the device are only read.
    fn scribble(&mut self, part: &mut Part, others: usize, random: &mut StdRng, stop: &AtomicBool) -> Result<()> {
        let device = part.device;
        while !stop.load(Ordering::Relaxed) {
            let first = random.random_range(0..part.blocks.len());
            let most = random.random_range(1..=BLOCKS_MAX).min(part.blocks.len() - first);
            let at = part.start + first * BLOCK;
            match random.random_range(0..40) {
                0 => self.request(device, "flush")?.flushes += 1,
                1..8 if others > 0 => {
                    let at = random.random_range(0..others / BLOCK - BLOCKS_MAX) * BLOCK;
                    self.read(device, at, most * BLOCK, None)?;
                }
                1..16 => {
                    let byte = part.blocks[first];
                    let alike = part.blocks[first..][..most].iter().take_while(|&&other| other == byte).count();
                    self.read(device, at, alike * BLOCK, Some(byte))?;
                }
                16..20 => {
                    self.write_as(device, &format!("write -q -z {at} {}", most * BLOCK), most * BLOCK)?;
                    part.blocks[first..][..most].fill(0);
                }
                _ => {
                    let byte = random.random();
                    self.write(device, at, most * BLOCK, byte)?;
                    part.blocks[first..][..most].fill(byte);
                }
            }
        }
        Ok(())
    }

    /// Write a number to the first block, then to the second, then the next number, until it is time to stop.
    fn count(&mut self, parts: &mut [Part; 2], stop: &AtomicBool) -> Result<()> {
        let mut number = 0u8;
        while !stop.load(Ordering::Relaxed) {
            number = number.wrapping_add(1);
            for part in parts.iter_mut() {
                self.write(part.device, part.start, BLOCK, number)?;
                part.blocks[0] = number;
            }
        }
        Ok(())
    }
}

/// The socket of conversation `number`.
pub(crate) fn socket(number: usize) -> String {
    format!("guest-{number}.sock")
}

impl Hands {
    /// Start a thread for each of `parts`, and one that writes numbers to both blocks of `pair`. `others` is how many bytes at the start of the first part's
    /// device nobody writes.
    pub(crate) fn start(daemon: &Daemon, parts: Vec<Part>, pair: [Part; 2], others: usize, seed: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let read_too = parts.first().map(|part| part.device);
        let last = parts.len();
        for (number, mut part) in parts.into_iter().enumerate() {
            let (stop, mut hand) = (stop.clone(), Hand::new(daemon.connect(&socket(number))?));
            let others = if read_too == Some(part.device) { others } else { 0 };
            threads.push(std::thread::spawn(move || {
                let mut random = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
                hand.scribble(&mut part, others, &mut random, &stop)?;
                Ok((vec![part], hand))
            }));
        }
        let (mut pair, flag, mut hand) = (pair, stop.clone(), Hand::new(daemon.connect(&socket(last))?));
        threads.push(std::thread::spawn(move || {
            hand.count(&mut pair, &flag)?;
            Ok((pair.to_vec(), hand))
        }));
        Ok(Self { stop, threads })
    }

    /// Let the threads finish, and collect what they know.
    ///
    /// # Errors
    /// A request failed, or something was read that had not been written.
    pub(crate) fn stop(self) -> Result<Totals> {
        self.stop.store(true, Ordering::Relaxed);
        let mut totals = Totals { parts: Vec::new(), made: Made::new(), slowest: Duration::ZERO };
        for thread in self.threads {
            let (parts, hand) = thread.join().map_err(|_| anyhow!("a thread of the load panicked"))??;
            totals.parts.extend(parts);
            totals.add(&hand);
        }
        Ok(totals)
    }
}

impl Totals {
    /// Count what a hand did.
    pub(crate) fn add(&mut self, hand: &Hand) {
        for (device, counts) in &hand.made {
            *self.made.entry(device).or_default() += *counts;
        }
        self.slowest = self.slowest.max(hand.slowest);
    }

    /// Put what was written to `device` into `contents`, what it held before.
    pub(crate) fn apply(&self, device: &str, contents: &mut [u8]) {
        for part in self.parts.iter().filter(|part| part.device == device) {
            for (block, &byte) in contents[part.start..].chunks_mut(BLOCK).zip(&part.blocks) {
                block.fill(byte);
            }
        }
    }
}
