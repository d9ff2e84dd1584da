//! A guest's requests, with all that a backend has to say about them: tray and medium, limits, write cache, statistics, and what is done about
//! errors.
//!
//! A device that does some of that itself, or wants the fast way of a [`Queue`](block_io::Queue), takes [`BackendIo::entry`] and the parts:
//! [`BackendIo::stats`], [`BackendIo::error_action`], [`BackendIo::write_cache`].

use crate::backend::{BackendIo, ErrorAction};
use crate::stats::AcctKind;
use block_common::{IoBuf, IoError, IoErrorKind, IoResult, RequestFlags};
use block_io::{Done, Request, RequestKind};
use block_throttle::Direction;

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
    /// It runs to its end on the backend's home thread even if the returned future is dropped.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] without a medium, [`IoError::OUT_OF_BOUNDS`] past its end, [`IoError::CLOSED`] when the backend is closed, or what the medium answered. The
    /// buffer comes back with any of them.
    pub async fn request(&self, request: Request) -> Done {
        let io = self.clone();
        let run = self.root().home().run(async move { io.carry_out(request).await });
        run.await.unwrap_or(Done { result: Err(IoError::CANCELLED), buf: None })
    }

    async fn carry_out(&self, request: Request) -> Done {
        let again = Again::of(&request);
        let kind = AcctKind::from(again.kind);
        let mut buf = request.into_buf();
        if let Err(error) = self.admissible(&again) {
            self.stats().invalid(kind);
            return Done { result: Err(error), buf };
        }
        let accounting = self.stats().start(kind, again.len);
        loop {
            // Before it is made: who has failed hears of every resumption from then on.
            let mut turns = self.turns();
            let done = self.once(&again, buf.take()).await;
            buf = done.buf;
            let error = match done.result {
                Ok(()) => {
                    if matches!(again.kind, RequestKind::Write | RequestKind::Zero) {
                        self.stats().wrote_to(again.offset + again.len);
                    }
                    accounting.done();
                    return Done { result: Ok(()), buf };
                }
                Err(error) => error,
            };
            let action = match is_failure(error) {
                true => self.error_action(again.is_write(), error),
                false => ErrorAction::Report,
            };
            match action {
                ErrorAction::Report => return Done { result: Err(error), buf },
                ErrorAction::Ignore => return Done { result: Ok(()), buf },
                ErrorAction::Stop => {
                    let _waiting = self.waits();
                    if !turns.again().await {
                        return Done { result: Err(IoError::CLOSED), buf };
                    }
                }
            }
        }
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

    /// One attempt.
    async fn once(&self, again: &Again, buf: Option<IoBuf>) -> Done {
        if let (Some(direction), Some(member)) = (again.direction(), self.limits()) {
            member.admit(direction, again.len).await;
        }
        // The tray may have been opened meanwhile.
        let root = match self.entry() {
            Ok(root) => root,
            Err(error) => return Done { result: Err(error), buf },
        };
        let through = !self.write_cache() && matches!(again.kind, RequestKind::Write | RequestKind::Zero);
        let flags = if through { again.flags | RequestFlags::FUA } else { again.flags };
        match (Again { flags, ..*again }).request(buf) {
            Some(request) => root.request(request).await,
            None => Done { result: Err(IoError::BUG), buf: None },
        }
    }
}
