//! A session: the image that is open, the requests that are under way, and what each command does with them.

use crate::catalogue::{COMMANDS, Entry, Needs, find};
use crate::command::{Command, Open, Reopen, Source, Write};
use crate::image::{File, Image, parse_options, text};
use crate::number::{IMAGE_BYTES_MAX, amount};
use crate::output::Output;
use crate::parse::{parse, split};
use crate::requests::{Device, Failed, Outcome};
use block_backend::{Backend, BackendError, BackendOptions};
use block_backend_io::BackendSettings;
use block_common::options::{Dialect, DriverKind};
use block_common::{
    CacheFlags, DebugEvent, IoError, IoResult, Options, OptionsError, Perm, PermPair, Preallocation, QapiEnum,
};
use block_drivers::{
    BlkdebugControl, LuksHeader, LuksImage, Qcow2Control, Stop, qcow2_specific, refuse_length, resize_failure,
};
use block_gs::{GlobalState, LeftOut, NodeRef};
use block_io::Root;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::PoisonError;
use std::task::{Poll, Waker};
use std::time::Duration;

/// What a session has no command for on a node that somebody else has opened.
const HOSTS_OWN: [&str; 6] = ["abort", "close", "open", "quit", "reopen", "sigraise"];

/// What becomes of the session after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next command, please.
    Go,
    /// That was the last one.
    Quit,
}

/// Everything that commands work on.
pub struct Session {
    gs: GlobalState,
    out: Output,
    misalign: bool,
    /// The image is somebody else's: it is neither opened nor closed by commands, and the process is not ours to end.
    is_guest: bool,
    /// The backend is a device's, and requests are made as its guest makes them. It is left as it is.
    is_device: bool,
    file: Option<File>,
    under_way: Rc<UnderWay>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} requests under way)", self.under_way.count.get())
    }
}

/// Requests that nobody waits for right now.
#[derive(Default)]
struct UnderWay {
    count: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

/// One of them.
struct Counted(Rc<UnderWay>);

impl Counted {
    fn new(all: &Rc<UnderWay>) -> Self {
        all.count.set(all.count.get() + 1);
        Self(all.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

impl UnderWay {
    async fn none(&self) {
        poll_fn(|cx| {
            if self.count.get() == 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Session {
    /// A session without an image. Buffers `misalign`: they begin where no driver likes it.
    pub fn new(gs: GlobalState, out: Output, misalign: bool) -> Self {
        Self { gs, out, misalign, is_guest: false, is_device: false, file: None, under_way: Rc::default() }
    }

    /// A session on `node`, which somebody else has opened. It takes the permissions that commands need, as they need them.
    ///
    /// # Errors
    /// The node's users are in the way.
    pub async fn on_node(gs: &GlobalState, out: Output, node: &NodeRef) -> Result<Self, BackendError> {
        let options = BackendOptions {
            name: String::new(),
            perm: PermPair::new(Perm::empty(), Perm::all()),
            home: gs.node_home(node),
            settings: BackendSettings::default(),
        };
        let backend = Backend::new(gs, options)?;
        backend.insert(node).await?;
        let file = File { backend, cache: CacheFlags::default(), copies: false };
        Ok(Self { is_guest: true, file: Some(file), ..Self::new(gs.clone(), out, false) })
    }

    /// A session on the backend of a device, whose requests are those that its guest would make: they find no medium while the tray is open, wait for the device's
    /// limits, are counted, and its policy decides about those that fail. It takes no permission that the device does not have.
    pub fn on_device(gs: &GlobalState, out: Output, backend: Backend) -> Self {
        let file = File { backend, cache: CacheFlags::default(), copies: false };
        Self { is_guest: true, is_device: true, file: Some(file), ..Self::new(gs.clone(), out, false) }
    }

    /// Wait for what is under way.
    pub async fn finish(&self) {
        self.under_way.none().await;
    }

    /// Open the image that later commands are for.
    ///
    /// # Errors
    /// It cannot be opened; the user knows why.
    pub async fn open(&mut self, image: Image) -> Outcome {
        match image.open(&self.gs, &self.out).await {
            Ok(file) => {
                self.file = Some(file);
                Ok(())
            }
            Err(message) => self.fail(message),
        }
    }

    /// Wait for what is under way, and close the image, if one is open.
    ///
    /// # Errors
    /// It cannot be closed well; the user knows why.
    pub async fn close(&mut self) -> Outcome {
        self.under_way.none().await;
        let Some(file) = self.file.take().filter(|_| !self.is_device) else { return Ok(()) };
        let closed = match file.backend.close().await {
            Ok(()) => self.gs.settle().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        closed.or_else(|message| self.fail(message))
    }

    /// Carry out the command in `line`.
    ///
    /// # Errors
    /// It failed; the user knows why.
    pub async fn run(&mut self, line: &[u8]) -> Result<Next, Failed> {
        let words = split(line);
        let Some(called) = words.first() else { return Ok(Next::Go) };
        let Some(entry) = find(called).filter(|entry| !self.is_guest || !HOSTS_OWN.contains(&entry.word)) else {
            self.out.complain([b"command \"", *called, b"\" not found"].concat());
            return Err(Failed);
        };
        if entry.needs != Needs::Nothing && self.file.is_none() {
            self.out.complain("no file open, try 'help open'");
            return Err(Failed);
        }
        if let Err(mut message) = entry.check_count(called, words.len() - 1) {
            message.pop();
            self.out.complain(message);
            return Err(Failed);
        }
        self.acquire(entry)?;
        match parse(entry, &words) {
            Ok(Command::Quit) => Ok(Next::Quit),
            Ok(command) => self.carry_out(command).await.map(|()| Next::Go),
            Err(refusal) => {
                refusal.iter().for_each(|line| self.out.tell(line));
                Err(Failed)
            }
        }
    }

    fn fail<T>(&self, message: impl AsRef<[u8]>) -> Result<T, Failed> {
        self.out.fail(message);
        Err(Failed)
    }

    /// Get the permissions that a command needs.
    fn acquire(&self, entry: &Entry) -> Outcome {
        let needed = match entry.needs {
            Needs::Nothing | Needs::Reading => return Ok(()),
            Needs::Writing => Perm::WRITE,
            Needs::Resizing => Perm::WRITE | Perm::RESIZE,
        };
        let Some(file) = &self.file else { return Ok(()) };
        if file.backend.node().is_some_and(|node| node.io().is_read_only()) {
            return self.fail("Block node is read-only");
        }
        let PermPair { perm, shared } = file.backend.perm();
        if perm.contains(needed) {
            return Ok(());
        }
        if self.is_device {
            return self.fail("The device does not have the permission for that");
        }
        let wanted = PermPair::new(perm | needed, shared);
        file.backend.set_perm(wanted).or_else(|error| self.fail(error.to_string()))
    }

    /// The open image. Commands that need one are not carried out without.
    fn device(&self) -> Result<Device, Failed> {
        let file = self.file.as_ref().ok_or(Failed)?;
        let (out, misalign, is_guests) = (self.out.clone(), self.misalign, self.is_device);
        Ok(Device { io: file.backend.io(), out, misalign, is_guests })
    }

    fn root(&self) -> Result<Root, Failed> {
        Ok(self.device()?.io.root().clone())
    }

    async fn carry_out(&mut self, command: Command) -> Outcome {
        match command {
            Command::Write(Write { source: Source::File(_), .. })
            | Command::Writev(Write { source: Source::File(_), .. })
            | Command::AioWrite(Write { source: Source::File(_), .. })
                if self.is_guest =>
            {
                // Reading one may wait for longer than the loop that serves all others can.
                self.fail("source files are not supported on a node of somebody else's")
            }
            Command::Abort => std::process::abort(),
            Command::AioFlush => {
                self.under_way.none().await;
                Ok(())
            }
            Command::AioRead(read) => {
                let work = self.device()?.read(read, "readv")?;
                self.start(work).await
            }
            Command::AioWrite(write) => {
                let work = self.device()?.write(write, "aio_write")?;
                self.start(work).await
            }
            Command::InvalidAio { is_write } => {
                let kind = if is_write { "write" } else { "read" };
                self.out.print(format!("injecting invalid {kind} request\n"));
                Ok(())
            }
            Command::Alloc { offset, len } => self.alloc(offset, len).await,
            Command::Close => self.close().await,
            Command::Discard { offset, len, report } => self.device()?.discard(offset, len, report).await,
            Command::Flush => self.device()?.flush().await,
            Command::Help(name) => self.help(name.as_deref()),
            Command::Info => self.info().await,
            Command::Length => {
                let len = self.root()?.length().or_else(|error| self.say(format!("getlength: {error}")))?;
                self.out.print(format!("{}\n", amount(len as f64)));
                Ok(())
            }
            Command::Map => self.map().await,
            Command::Open(open) => self.open_command(open).await,
            Command::Quit => Ok(()),
            Command::Read(read) => self.device()?.read(read, "read")?.await,
            Command::Readv(read) => self.device()?.read(read, "readv")?.await,
            Command::Reopen(reopen) => self.reopen(&reopen).await,
            Command::Break { event, tag } => self.set_breakpoint(&event, &tag),
            Command::RemoveBreak(tag) => {
                let what = format!("Could not remove breakpoint {}", String::from_utf8_lossy(&tag));
                self.breakpoint(&what, |control| control.remove_breakpoint(&tag))
            }
            Command::Resume(tag) => self.breakpoint("Could not resume request", |control| control.resume(&tag)),
            Command::WaitBreak(tag) => match self.blkdebug() {
                Some(control) => {
                    control.stopped(&tag).await;
                    Ok(())
                }
                None => {
                    let what = format!("Could not wait for breakpoint {}", String::from_utf8_lossy(&tag));
                    self.say(format!("{what}: {}", IoError::UNSUPPORTED))
                }
            },
            Command::Sigraise(signal) => {
                self.out.flush();
                // The first time, the runtime may catch it, look for a stack that overflowed, and let go of it.
                for _ in 0..2 {
                    // As with raise(3), a signal that does not exist is raised in vain.
                    let _ = signal_hook::low_level::raise(signal);
                }
                Ok(())
            }
            Command::Sleep(millis) => {
                self.sleep(millis).await;
                Ok(())
            }
            Command::Truncate { len, preallocation } => self.truncate(len, preallocation).await,
            Command::Write(write) => self.device()?.write(write, "write")?.await,
            Command::Writev(write) => self.device()?.write(write, "writev")?.await,
            Command::Zone { what, range } => self.zone(what, range),
        }
    }

    /// Print a line to standard output about a command that failed.
    fn say<T>(&self, message: String) -> Result<T, Failed> {
        self.out.print(message + "\n");
        Err(Failed)
    }

    /// Let `work` go on by itself. It has begun when this returns; how it ends is no matter of the command that started
    /// it.
    async fn start(&self, work: impl Future<Output = Outcome> + 'static) -> Outcome {
        let counted = Counted::new(&self.under_way);
        drop(self.gs.main().spawn(async move {
            // It has told what went wrong.
            let _ = work.await;
            drop(counted);
        }));
        block_io::yield_now().await;
        Ok(())
    }

    async fn sleep(&self, millis: i64) {
        /// Longer than anybody waits, and short enough for every clock.
        const NANOS_MAX: u64 = 1 << 62;
        // What does not fit into 64 bits of nanoseconds ends anywhere, as in the field.
        let nanos = u64::try_from(millis.wrapping_mul(1_000_000)).unwrap_or(0);
        self.gs.main().sleep(Duration::from_nanos(nanos.min(NANOS_MAX))).await;
    }

    fn help(&self, name: Option<&[u8]>) -> Outcome {
        let Some(name) = name else {
            let known = COMMANDS.iter().filter(|entry| !self.is_guest || !HOSTS_OWN.contains(&entry.word));
            known.for_each(|entry| self.out.print(entry.usage()));
            self.out.print("\nUse 'help commandname' for extended help.\n");
            return Ok(());
        };
        let Some(entry) = find(name) else {
            self.out.print([b"command ", name, b" not found\n"].concat());
            return Err(Failed);
        };
        self.out.print(entry.line(name));
        self.out.print(entry.help);
        Ok(())
    }

    /// Whether a range is decided by the image itself, and for how many bytes that holds.
    async fn allocated(&self, root: &Root, offset: u64, len: u64) -> IoResult<(bool, u64)> {
        let extent = root.block_status(offset, len).await?;
        // Where there can be no backing file, what reads as zeroes does so by the image's own decision.
        Ok((extent.is_allocated() || !self.is_qcow2() && extent.is_zero(), extent.len))
    }

    fn is_qcow2(&self) -> bool {
        let top = self.nodes().map(|(top, _)| self.gs.skip_filters(&top));
        top.is_some_and(|top| top.io().driver() == Some("qcow2"))
    }

    async fn alloc(&self, offset: u64, len: u64) -> Outcome {
        let root = self.root()?;
        let length = root.length().or_else(|error| self.say(format!("getlength: {error}")))?;
        let len = len.min(length.saturating_sub(offset));
        let (mut done, mut sum) = (0, 0);
        while done < len {
            let (allocated, more) = self
                .allocated(&root, offset + done, len - done)
                .await
                .or_else(|error| self.say(format!("is_allocated failed: {error}")))?;
            sum += if allocated { more } else { 0 };
            done += more;
        }
        self.out.print(format!("{sum}/{len} bytes allocated at offset {}\n", amount(offset as f64)));
        Ok(())
    }

    async fn map(&self) -> Outcome {
        let root = self.root()?;
        let failed = |error: IoError| self.fail(format!("Failed to query image length: {error}"));
        let length = root.length().or_else(failed)?;
        let mut at = 0;
        // The last row, which the next extent may belong to: whether allocated, where it begins.
        let mut row: Option<(bool, u64)> = None;
        while at < length {
            let (allocated, len) = self
                .allocated(&root, at, length - at)
                .await
                .or_else(|error| self.fail(format!("Failed to get allocation status: {error}")))?;
            if row.is_some_and(|(before, _)| before != allocated) {
                self.print_row(row, at);
                row = None;
            }
            row = row.or(Some((allocated, at)));
            at += len;
        }
        self.print_row(row, at);
        Ok(())
    }

    fn print_row(&self, row: Option<(bool, u64)>, end: u64) {
        let Some((allocated, begin)) = row else { return };
        let len = end - begin;
        let (amount_of, at) = (amount(len as f64), amount(begin as f64));
        let what = if allocated { "    allocated" } else { "not allocated" };
        self.out.print(format!("{amount_of} ({len:#x}) bytes {what} at offset {at} ({begin:#x})\n"));
    }

    /// The image's node, and the one at the end of its chain of files.
    fn nodes(&self) -> Option<(NodeRef, NodeRef)> {
        let top = self.file.as_ref()?.backend.node()?;
        let copies = self.file.as_ref().is_some_and(|file| file.copies);
        let top = if copies { self.gs.primary_child(&top).ok()?? } else { top };
        let mut leaf = top.clone();
        while let Ok(Some(below)) = self.gs.child(&leaf, "file") {
            leaf = below;
        }
        Some((top, leaf))
    }

    /// The size of the clusters of the qcow2 image that filters down from `top` pass on, and where it keeps a machine's state.
    async fn clusters_below(&self, top: &NodeRef) -> Option<(u64, u64)> {
        let mut node = self.gs.skip_filters(top);
        while node.io().driver() == Some("raw") {
            node = self.gs.skip_filters(&self.gs.primary_child(&node).ok()??);
        }
        let control = self.gs.with_control(&node, |control: &mut Qcow2Control| control.clone()).ok()?;
        let ask = |req| async move { Ok(control.info(&req).await) };
        let info = self.gs.run_drained(&node, "", ask).await.ok()?.ok()?;
        Some((info.header.geometry.cluster_size(), info.vm_state_offset()))
    }

    async fn info(&self) -> Outcome {
        let Some((top, leaf)) = self.nodes() else { return Err(Failed) };
        let driver = |node: &NodeRef| node.io().driver().unwrap_or("none");
        let name = driver(&top);
        self.out.print(format!("format name: {name}\n"));
        if self.gs.driver(name).is_ok_and(|driver| driver.kind() == DriverKind::Protocol) {
            self.out.print(format!("format name: {name}\n"));
        }
        if let Ok(control) = self.gs.with_control(&top, |control: &mut Qcow2Control| control.clone()) {
            let ask = |req| async move { Ok(control.info(&req).await) };
            let info = match self.gs.run_drained(&top, "", ask).await {
                Ok(info) => info.or_else(|error| self.fail(error.to_string()))?,
                Err(error) => return self.fail(error.report()),
            };
            let (cluster, state) = (info.header.geometry.cluster_size(), info.vm_state_offset());
            let (cluster, state) = (amount(cluster as f64), amount(state as f64));
            let luks = match LuksHeader::within(&self.gs, &top).await {
                Ok(luks) => luks,
                Err(error) => return self.fail(error.report()),
            };
            let specific = qcow2_specific(&info, luks.as_ref()).to_text(1);
            self.out.print(format!(
                "cluster size: {cluster}\nvm state offset: {state}\nFormat specific information:\n{specific}"
            ));
            return Ok(());
        }
        // A filter has the clusters of what it filters; the rest is no business of its own.
        if let Some((cluster, state)) = self.clusters_below(&top).await {
            let (cluster, state) = (amount(cluster as f64), amount(state as f64));
            self.out.print(format!("cluster size: {cluster}\nvm state offset: {state}\n"));
            return Ok(());
        }
        // A null node has nothing to tell, nor has a quorum. The other drivers have neither clusters nor room for a machine's state.
        if driver(&leaf).starts_with("null-") || name == "quorum" {
            return Err(Failed);
        }
        let none = amount(0.0);
        self.out.print(format!("cluster size: {none}\nvm state offset: {none}\n"));
        if let Ok(specific) = self.gs.with_control(&top, |image: &mut LuksImage| image.specific()) {
            self.out.print(format!("Format specific information:\n{}", specific.to_text(1)));
        }
        Ok(())
    }

    async fn truncate(&self, len: u64, preallocation: Preallocation) -> Outcome {
        if len > IMAGE_BYTES_MAX {
            return self.fail(format!("offset({len}) exceeds maximum({IMAGE_BYTES_MAX})"));
        }
        let root = self.root()?;
        let old = root.length().unwrap_or(0);
        if let Some(refused) = refuse_length(len).filter(|_| self.is_qcow2()) {
            return self.fail(refused);
        }
        let Err(error) = root.truncate(len, preallocation).await else { return Ok(()) };
        if self.is_qcow2() {
            return self.fail(resize_failure(error, old, len, preallocation));
        }
        let drivers = self.nodes().map(|(top, leaf)| (top.io().driver(), leaf.io().driver()));
        let (top, driver) = drivers.unwrap_or_default();
        // What shows the past of a file cannot have another length, whatever the file can.
        let (is_file, is_device) =
            (driver == Some("file") && top != Some("snapshot-access"), driver == Some("host_device"));
        let shrinks = root.length().is_ok_and(|before| len < before);
        let message = match preallocation {
            _ if is_device => "Cannot grow device files".into(),
            _ if !is_file && error == IoError::UNSUPPORTED => "Image format driver does not support resize".into(),
            Preallocation::Off => format!("Could not resize file: {error}"),
            _ if shrinks => "Cannot use preallocation for shrinking files".into(),
            Preallocation::Metadata => format!("Unsupported preallocation mode: {preallocation}"),
            Preallocation::Falloc => format!("Could not preallocate new data: {error}"),
            Preallocation::Full => format!("Could not write zeros for preallocation: {error}"),
        };
        self.fail(message)
    }

    async fn open_command(&mut self, open: Open) -> Outcome {
        if self.file.is_some() {
            return self.fail("file open already, try 'help close'");
        }
        let name = open.path.as_deref().map(text).transpose().or_else(|message| self.fail(message))?;
        let image = Image { name, options: Options::new(Dialect::Legacy), format: None, how: open };
        match parse_options(&image.how.options, &self.out) {
            Ok(options) => self.open(Image { options, ..image }).await,
            Err(message) => self.fail(image.failure(&message)),
        }
    }

    /// Give the image other options. Who writes no more gives up the permission before, who is going to write takes it afterwards.
    async fn reopen(&mut self, reopen: &Reopen) -> Outcome {
        let options = parse_options(&reopen.options, &self.out).or_else(|message| self.fail(message))?;
        if reopen.read_only.is_some() && options.lookup("read-only").is_some() {
            return self.fail("Cannot set both -r/-w and 'read-only'");
        }
        let caches = ["cache.direct", "cache.no-flush"];
        if reopen.cache.is_some() && caches.iter().any(|key| options.lookup(key).is_some()) {
            return self.fail("Cannot set both -c and the cache options");
        }
        let changes = with_modes(options, reopen).or_else(|error| self.fail(error.to_string()))?;
        let Some(file) = &mut self.file else { return Err(Failed) };
        let Some(node) = file.backend.node() else { return Err(Failed) };
        let before = file.backend.perm();
        let changed = match reopen.read_only {
            Some(true) => file.backend.set_perm(PermPair { perm: before.perm & !Perm::WRITE, ..before }),
            _ => Ok(()),
        };
        let changed = match changed {
            Ok(()) => self.gs.reopen(&node, changes, LeftOut::Stays).await.map_err(|error| error.report()),
            Err(error) => Err(error.report()),
        };
        let changed = match (changed, reopen.read_only) {
            (Ok(()), Some(false)) => {
                let writing = PermPair { perm: before.perm | Perm::WRITE, ..before };
                file.backend.set_perm(writing).map_err(|error| error.report())
            }
            (Err(error), Some(true)) => {
                // What it had a moment ago, nobody else has taken meanwhile; if so, the image stays one for reading.
                drop(file.backend.set_perm(before));
                Err(error)
            }
            (changed, _) => changed,
        };
        if let Err(message) = changed {
            return self.fail(message);
        }
        if let Some(cache) = reopen.cache {
            file.cache = cache;
            file.backend.io().set_write_cache(!cache.writethrough);
        }
        Ok(())
    }

    /// The first node from the top down that stops requests.
    fn blkdebug(&self) -> Option<BlkdebugControl> {
        let mut node = self.file.as_ref()?.backend.node()?;
        loop {
            if let Ok(control) = self.gs.with_control(&node, |control: &mut BlkdebugControl| control.clone()) {
                return Some(control);
            }
            node = self.gs.primary_child(&node).ok().flatten()?;
        }
    }

    fn set_breakpoint(&self, event: &[u8], tag: &[u8]) -> Outcome {
        let what = "Could not set breakpoint";
        let event = std::str::from_utf8(event).ok().and_then(DebugEvent::from_name);
        let (told, is_guest) = (self.out.told(), self.is_guest);
        let report = move |stop: Stop<'_>| {
            let (doing, tag) = match stop {
                Stop::Suspended(tag) => ("Suspended", tag),
                Stop::Resuming(tag) => ("Resuming", tag),
            };
            let line = [b"blkdebug: ", doing.as_bytes(), b" request '", tag, b"'\n"].concat();
            told.lock().unwrap_or_else(PoisonError::into_inner).extend(line);
        };
        self.breakpoint(what, |control| {
            let Some(event) = event else { return false };
            // A guest is gone before anything stops there.
            if !is_guest {
                control.report_to(report);
            }
            control.set_breakpoint(event, tag);
            true
        })
    }

    fn breakpoint(&self, what: &str, act: impl FnOnce(&BlkdebugControl) -> bool) -> Outcome {
        match self.blkdebug() {
            Some(control) if act(&control) => Ok(()),
            Some(_) => self.say(format!("{what}: {}", IoError::host(2))),
            None => self.say(format!("{what}: {}", IoError::UNSUPPORTED)),
        }
    }

    /// No image of this build has zones.
    fn zone(&self, what: &str, range: Option<(u64, u64)>) -> Outcome {
        let length = self.root()?.length().unwrap_or(0);
        let outside = range.is_some_and(|(offset, len)| offset.checked_add(len).is_none_or(|end| end > length));
        let error = if outside { IoError::OUT_OF_BOUNDS } else { IoError::UNSUPPORTED };
        self.say(format!("zone {what} failed: {error}"))
    }
}

/// The options that a reopen changes, those of `-r`, `-w` and `-c` among them.
fn with_modes(options: Options, reopen: &Reopen) -> Result<Options, OptionsError> {
    let mut options = options;
    if let Some(read_only) = reopen.read_only {
        options.insert("read-only", read_only)?;
    }
    if let Some(cache) = reopen.cache {
        options.insert("cache.direct", cache.direct)?;
        options.insert("cache.no-flush", cache.no_flush)?;
    }
    Ok(options)
}
