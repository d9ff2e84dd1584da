//! A guest's requests, with all that a backend has to say about them: tray and medium, limits, write cache, statistics, and what is done about
//! errors.
//!
//! A device that does some of that itself, or wants the fast way of a [`Queue`](block_io::Queue), takes [`BackendIo::entry`] and the parts:
//! [`BackendIo::stats`], [`BackendIo::error_action`], [`BackendIo::write_cache`].

use crate::backend::{BackendIo, ErrorAction, Turns, Waiting};
use crate::stats::{Accounting, AcctKind};
use block_common::{IoBuf, IoError, IoErrorKind, IoResult, RequestFlags};
use block_io::{DeviceBlocks, DiskGeometry, Done, Entered, Errand, Homed, Request, RequestKind};
use block_throttle::Direction;
use tokio::sync::oneshot;

/// A request that may be made more than once.
struct Again {
    kind: RequestKind,
    offset: u64,
    len: u64,
    flags: RequestFlags,
}

impl Again {
    fn of(request: &Request) -> Self {
        Self { kind: request.kind(), offset: request.offset(), len: request.len(), flags: request.flags() }
    }

    /// The request, with its buffer. Nothing where a buffer is wanted and not there.
    fn request(&self, buf: Option<IoBuf>) -> Option<Request> {
        Some(match self.kind {
            RequestKind::Read => Request::read(self.offset, buf?),
            RequestKind::Write => Request::write(self.offset, buf?, self.flags),
            RequestKind::Zero => Request::zero(self.offset, self.len, self.flags),
            RequestKind::Discard => Request::discard(self.offset, self.len),
            RequestKind::Flush => Request::flush(),
        })
    }

    fn is_write(&self) -> bool {
        self.kind != RequestKind::Read
    }

    /// What limits look at; flushes pass.
    fn direction(&self) -> Option<Direction> {
        match self.kind {
            RequestKind::Read => Some(Direction::Read),
            RequestKind::Write | RequestKind::Zero | RequestKind::Discard => Some(Direction::Write),
            RequestKind::Flush => None,
        }
    }
}

/// Whether a device's policy has a say about `error`: the others are answers, which no second attempt would change.
fn is_failure(error: IoError) -> bool {
    !matches!(error.kind(), IoErrorKind::Gone | IoErrorKind::Cancelled | IoErrorKind::Caller)
}

impl BackendIo {
    /// Carry out a request of the guest's. It finds no medium while the tray is open; waits for the backend's limits; is written through when there is no write
    /// cache; is counted; and when it fails, the policy decides: the guest hears of it, or does not, or the request waits until
    /// [`resume`](crate::BackendControl::resume) and is made again. While it waits, for that or for limits, no drain waits for it (rule drain-5).
    ///
    /// It runs to its end on the backend's home thread even if the returned future is dropped. When the home has become another thread while it waits, it goes on there.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] without a medium, [`IoError::OUT_OF_BOUNDS`] past its end, [`IoError::CLOSED`] when the backend is closed, or what the medium answered. The
    /// buffer comes back with any of them. [`IoError::CANCELLED`], without it, when the home thread ended.
    pub async fn request(&self, request: Request) -> Done {
        let (answer, receive) = oneshot::channel();
        let errand = Guests {
            io: self.clone(),
            again: Again::of(&request),
            buf: request.into_buf(),
            answer,
            accounting: None,
            is_admitted: false,
            stopped: None,
        };
        self.root().send_home(errand);
        receive.await.unwrap_or(Done { result: Err(IoError::CANCELLED), buf: None })
    }

    /// Store `buf` at byte `offset` of a machine's state, which the medium keeps beside its disk until a snapshot takes it. Without a write cache it is on stable storage when this returns.
    /// It is the machine's, not the guest's: it has no limits, no policy, and is not counted.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`]; otherwise as [`Root::save_vmstate`](block_io::Root::save_vmstate).
    #[doc(alias = "blk_save_vmstate")]
    pub async fn save_vmstate(&self, offset: u64, buf: IoBuf) -> IoResult<()> {
        let root = self.entry()?;
        // That there is none comes before what could not be done with it.
        root.length()?;
        root.save_vmstate(offset, buf).await?;
        if self.write_cache() { Ok(()) } else { root.flush().await }
    }

    /// Fill `buf` from byte `offset` of the machine's state, and give it back. What was not stored reads as zeroes.
    ///
    /// # Errors
    /// As [`BackendIo::save_vmstate`].
    #[doc(alias = "blk_load_vmstate")]
    pub async fn load_vmstate(&self, offset: u64, buf: IoBuf) -> IoResult<IoBuf> {
        self.entry()?.load_vmstate(offset, buf).await
    }

    /// In what pieces the device of the host's works that the medium is: what a guest's disk should tell of itself, unless somebody says otherwise.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where it is none; [`IoError::NO_MEDIUM`]; what the host answered.
    #[doc(alias = "blk_probe_blocksizes")]
    pub async fn probe_block_sizes(&self) -> IoResult<DeviceBlocks> {
        self.entry()?.probe_block_sizes().await
    }

    /// How the host counts the medium in heads, sectors and cylinders.
    ///
    /// # Errors
    /// As [`BackendIo::probe_block_sizes`].
    #[doc(alias = "blk_probe_geometry")]
    pub async fn probe_geometry(&self) -> IoResult<DiskGeometry> {
        self.entry()?.probe_geometry().await
    }

    /// Whether a request lies within the medium, if there is one.
    fn admissible(&self, again: &Again) -> IoResult<()> {
        let root = self.entry()?;
        let end = again.offset.checked_add(again.len).ok_or(IoError::OUT_OF_BOUNDS)?;
        if end > root.length()? && again.kind != RequestKind::Flush {
            return Err(IoError::OUT_OF_BOUNDS);
        }
        Ok(())
    }
}

/// A guest's request, on its way to its root and while it waits outside: for limits, for a drain to end, or because it has failed.
struct Guests {
    io: BackendIo,
    again: Again,
    buf: Option<IoBuf>,
    answer: oneshot::Sender<Done>,
    /// There once it has been looked at.
    accounting: Option<Accounting>,
    /// Whether limits let the next attempt go.
    is_admitted: bool,
    /// It has failed, and waits for one of these turns.
    stopped: Option<(Turns, Waiting)>,
}

impl Errand for Guests {
    async fn carry_out(mut here: Homed<Self>) {
        if let Err(error) = here.errand().begin() {
            return here.end().into_iter().for_each(|errand| errand.answer(Err(error)));
        }
        loop {
            if let Some((turns, _)) = &mut here.errand().stopped
                && !turns.again().await
            {
                return here.end().into_iter().for_each(|errand| errand.answer(Err(IoError::CLOSED)));
            }
            here.errand().stopped = None;
            here.errand().admission().await;
            let Some((mut errand, entered)) = here.enter().await else { return };
            let entered = match entered {
                Ok(entered) => entered,
                Err(error) => return errand.answer(Err(error)),
            };
            // Counted until it is answered, or waits: while it is, this thread stays the home.
            match errand.attempt(&entered).await {
                Some(result) => {
                    drop(entered);
                    return errand.answer(result);
                }
                None => here = entered.leave(errand),
            }
        }
    }
}

impl Guests {
    /// Look at it for the first time, and count it.
    fn begin(&mut self) -> IoResult<()> {
        if self.accounting.is_some() {
            return Ok(());
        }
        let kind = AcctKind::from(self.again.kind);
        self.io.admissible(&self.again).inspect_err(|_| self.io.stats().invalid(kind))?;
        self.accounting = Some(self.io.stats().start(kind, self.again.len));
        Ok(())
    }

    /// Wait for limits, once an attempt.
    async fn admission(&mut self) {
        if self.is_admitted {
            return;
        }
        if let (Some(direction), Some(member)) = (self.again.direction(), self.io.limits()) {
            member.admit(direction, self.again.len).await;
        }
        self.is_admitted = true;
    }

    /// Make the request. `None`: it has to wait.
    async fn attempt(&mut self, entered: &Entered) -> Option<IoResult<()>> {
        self.is_admitted = false;
        // Before it is made: who has failed hears of every resumption from then on.
        let turns = self.io.turns();
        let error = match self.once(entered).await {
            Ok(()) => {
                if matches!(self.again.kind, RequestKind::Write | RequestKind::Zero) {
                    self.io.stats().wrote_to(self.again.offset + self.again.len);
                }
                self.accounting.take().into_iter().for_each(Accounting::done);
                return Some(Ok(()));
            }
            Err(error) => error,
        };
        let action = match is_failure(error) {
            true => self.io.error_action(self.again.is_write(), error),
            false => ErrorAction::Report,
        };
        match action {
            ErrorAction::Report => Some(Err(error)),
            ErrorAction::Ignore => Some(Ok(())),
            ErrorAction::Stop => {
                self.stopped = Some((turns, self.io.waits()));
                None
            }
        }
    }

    async fn once(&mut self, entered: &Entered) -> IoResult<()> {
        // The tray may have been opened meanwhile.
        self.io.entry()?;
        let through = !self.io.write_cache() && matches!(self.again.kind, RequestKind::Write | RequestKind::Zero);
        let flags = if through { self.again.flags | RequestFlags::FUA } else { self.again.flags };
        let request = (Again { flags, ..self.again }).request(self.buf.take()).ok_or(IoError::BUG)?;
        let done = entered.request(request).await;
        self.buf = done.buf;
        done.result
    }

    fn answer(self, result: IoResult<()>) {
        // What has not succeeded by then has failed, and who has his answer finds it counted.
        drop((self.accounting, self.stopped));
        drop(self.answer.send(Done { result, buf: self.buf }));
    }
}
