//! The body of the copy job: copies a source that is being written, until both are equal and nobody writes any more.
//!
//! The source is read below the filter that tracks its writes. What becomes of the graph then is decided by the GS half, which
//! answers two questions on the way. Both are asked with no request of the body's own in its hands that the answer would have to wait for.

use crate::control::{Cancelled, JobControl};
use crate::copy::{Copier, CopyOptions};
use crate::error::{CopyError, RunError};
use block_backend_io::Upcalls;
use block_io::{DirtyBitmap, Flight, Root};
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

/// How often a body that has nothing to copy looks for something.
const IDLE: Duration = Duration::from_millis(10);

/// How to mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorOptions {
    /// How to copy chunks. `target_is_zero` is about the target before the job.
    pub copy: CopyOptions,
    /// After so many rounds through the bitmap the job counts as caught up, however much is dirty: the rest is copied while writers wait.
    /// Without it a source that is written faster than it is copied is never caught up with.
    pub rounds_max: Option<u32>,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        Self { copy: CopyOptions::default(), rounds_max: Some(32) }
    }
}

/// What the body asks its GS half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MirrorQuestion {
    /// Source and target are nearly equal. To be answered [`MirrorAnswer::Complete`] when the job is to end; it goes on copying until then.
    Ready,
    /// Little is left to copy. To be answered [`MirrorAnswer::Drained`] once nobody writes to the source any more.
    Switch,
}

/// What the GS half answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MirrorAnswer {
    /// Bring the job to its end.
    Complete,
    /// The filter above the source is drained, and stays so until the body has ended.
    Drained,
}

/// What the body works with.
#[derive(Debug)]
pub struct MirrorParts {
    /// Reads the source, below the filter.
    pub source: Root,
    /// Writes the target.
    pub target: Root,
    /// What the filter marks. All of it is dirty at first, or what is to be copied.
    pub bitmap: Arc<DirtyBitmap>,
    /// Asks the GS half.
    pub owner: Upcalls<MirrorQuestion, MirrorAnswer>,
}

/// Chunks that are being copied: dirty again if that is given up.
struct Busy(Arc<DirtyBitmap>, Option<Range<u64>>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(chunks) = self.1.take() {
            self.0.set_chunks(chunks);
        }
    }
}

struct Mirror {
    copier: Arc<Copier>,
    bitmap: Arc<DirtyBitmap>,
    options: MirrorOptions,
    flight: Flight<'static, (Range<u64>, Result<(), CopyError>)>,
    /// What `flight` copies.
    busy: Vec<Range<u64>>,
    /// Chunks that were copied once, so that the target's is no longer what it was before the job.
    touched: Vec<u64>,
    cursor: u64,
    rounds: u32,
    /// The filter is drained: what is left is finished at once, without pauses and speed limits.
    is_last: bool,
}

/// Copy the source to the target until the GS half has drained the source's writers and both are equal; flush the target. To be
/// awaited on an I/O thread; both roots are best at home there.
///
/// # Errors
/// [`RunError`]; the bitmap then still tells what was not copied.
pub async fn mirror(parts: MirrorParts, options: MirrorOptions, control: &mut JobControl) -> Result<(), RunError> {
    let MirrorParts { source, target, bitmap, owner } = parts;
    let copier = Arc::new(Copier::new(source, target, &options.copy)?);
    copier.check_piece(bitmap.granularity())?;
    control.pause_point().await?;
    let length = control.until_cancelled(copier.length()).await??;
    if length != bitmap.length() {
        return Err(RunError::Sizes { source_len: length, target_len: bitmap.length() });
    }
    let mut this = Mirror::new(copier, bitmap, options);
    control.extend(this.bytes(&(0..this.bitmap.chunks())));
    this.catch_up(control).await?;
    // Requests of the two roots may be in flight while this is asked; they are not above the filter, and are awaited meanwhile.
    let mut answer = pin!(owner.ask(MirrorQuestion::Ready));
    loop {
        match this.step(control, Some(answer.as_mut())).await? {
            None => {}
            Some(Some(MirrorAnswer::Complete)) => break,
            Some(_) => return Err(Cancelled.into()),
        }
    }
    this.rounds = 0;
    this.catch_up(control).await?;
    this.settle(control).await?;
    match control.until_cancelled(owner.ask(MirrorQuestion::Switch)).await? {
        Some(MirrorAnswer::Drained) => {}
        _ => return Err(Cancelled.into()),
    }
    this.is_last = true;
    while !this.is_equal() {
        this.step(control, NOTHING).await?;
    }
    control.until_cancelled(this.copier.flush()).await??;
    Ok(())
}

/// No further future to wait for.
const NOTHING: Option<Pin<&mut std::future::Pending<()>>> = None;

impl Mirror {
    fn new(copier: Arc<Copier>, bitmap: Arc<DirtyBitmap>, options: MirrorOptions) -> Self {
        let touched = vec![0; bitmap.chunks().div_ceil(64) as usize];
        let (flight, busy) = (Flight::new(), Vec::new());
        Self { copier, bitmap, options, flight, busy, touched, cursor: 0, rounds: 0, is_last: false }
    }

    fn bytes(&self, chunks: &Range<u64>) -> u64 {
        let bytes = self.bitmap.bytes(chunks);
        bytes.end - bytes.start
    }

    fn is_equal(&self) -> bool {
        self.flight.is_empty() && self.bitmap.dirty_chunks() == 0
    }

    /// Whether writers could be held back for the time that the rest takes.
    fn is_little_left(&self) -> bool {
        let CopyOptions { depth, chunk, .. } = self.options.copy;
        let little = (depth as u64).saturating_mul(chunk) / self.bitmap.granularity();
        let busy: u64 = self.busy.iter().map(|chunks| chunks.end - chunks.start).sum();
        self.is_equal()
            || (self.rounds >= 1 && self.bitmap.dirty_chunks() + busy <= little)
            || self.options.rounds_max.is_some_and(|max| self.rounds >= max)
    }

    async fn catch_up(&mut self, control: &mut JobControl) -> Result<(), RunError> {
        while !self.is_little_left() {
            self.step(control, NOTHING).await?;
        }
        Ok(())
    }

    /// Start what can be started, and wait until something happens: `also`, whose output is returned, or anything else.
    async fn step<F: Future>(
        &mut self,
        control: &mut JobControl,
        also: Option<Pin<&mut F>>,
    ) -> Result<Option<F::Output>, RunError> {
        if control.is_cancelled() {
            return Err(Cancelled.into());
        }
        if control.is_interrupted() && !self.is_last {
            self.settle(control).await?;
            control.pause_point().await?;
        }
        let delay = self.start(control);
        let has_more = also.is_some();
        let also = async move {
            match also {
                Some(future) => future.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            output = also, if has_more => return Ok(Some(output)),
            done = self.flight.next(), if !self.flight.is_empty() => {
                if let Some((chunks, result)) = done {
                    self.finish(&chunks, control, result)?;
                }
            }
            () = control.changed() => {}
            () = tokio::time::sleep(delay), if !delay.is_zero() || self.flight.is_empty() => {}
        }
        Ok(None)
    }

    /// Let what is in flight come to its end, unless the job is cancelled.
    async fn settle(&mut self, control: &mut JobControl) -> Result<(), RunError> {
        while !self.flight.is_empty() {
            let Some((chunks, result)) = control.until_cancelled(self.flight.next()).await? else { break };
            self.finish(&chunks, control, result)?;
        }
        Ok(())
    }

    fn finish(
        &mut self,
        chunks: &Range<u64>,
        control: &JobControl,
        result: Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        self.busy.retain(|busy| busy != chunks);
        result?;
        control.advance(self.bytes(chunks));
        Ok(())
    }

    /// Start copying dirty chunks, as many as may be in flight. Tells how long to wait before there may be more; zero if what
    /// is in flight is all that there is to wait for.
    fn start(&mut self, control: &mut JobControl) -> Duration {
        while self.flight.len() < self.options.copy.depth {
            let delay = if self.is_last { Duration::ZERO } else { control.delay() };
            if !delay.is_zero() {
                return delay;
            }
            let Some(chunks) = self.take_dirty() else { return IDLE };
            self.start_chunks(chunks, control);
        }
        Duration::ZERO
    }

    fn start_chunks(&mut self, chunks: Range<u64>, control: &mut JobControl) {
        let bytes = self.bitmap.bytes(&chunks);
        let is_first = !self.is_touched(chunks.start);
        if is_first {
            chunks.clone().for_each(|chunk| self.touched[(chunk / 64) as usize] |= 1 << (chunk % 64));
        } else {
            control.extend(bytes.end - bytes.start);
        }
        control.charge(bytes.end - bytes.start);
        let (copier, busy) = (self.copier.clone(), Busy(self.bitmap.clone(), Some(chunks.clone())));
        let target_is_zero = is_first && self.options.copy.target_is_zero;
        self.busy.push(chunks.clone());
        self.flight.push(async move {
            let mut busy = busy;
            let result = copier.chunk(bytes, target_is_zero).await;
            if result.is_ok() {
                busy.1 = None;
            }
            (chunks, result)
        });
    }

    /// The next dirty chunks in a row, clean from now on. None of them is in flight: a chunk that is copied twice at a time could
    /// end up with the older of two contents.
    fn take_dirty(&mut self) -> Option<Range<u64>> {
        let is_free = |chunk: u64| !self.busy.iter().any(|busy| busy.contains(&chunk));
        let first = match self.bitmap.next_dirty(self.cursor, is_free) {
            Some(first) => first,
            None => {
                let first = self.bitmap.next_dirty(0, is_free)?;
                self.rounds = self.rounds.saturating_add(1);
                first
            }
        };
        let is_touched = self.is_touched(first);
        let max = (self.options.copy.chunk / self.bitmap.granularity()).max(1);
        let mut end = first;
        while end < self.bitmap.chunks()
            && end - first < max
            && is_free(end)
            && self.is_touched(end) == is_touched
            && self.bitmap.clear(end)
        {
            end += 1;
        }
        self.cursor = end;
        Some(first..end)
    }

    fn is_touched(&self, chunk: u64) -> bool {
        self.touched[(chunk / 64) as usize] & (1 << (chunk % 64)) != 0
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mirror({:?}, {:?}, round {})", self.copier, self.bitmap, self.rounds)
    }
}
