//! Moving clusters from the source to the target.
//!
//! Zeroes are moved as zeroes, in whole clusters. A copy that somebody stopped waiting for goes on: what it writes was there at the point in time, so it
//! does no harm when it comes late.

use crate::Shared;
use crate::state::Copying;
use block_common::{AlignedBuf, Errno, HostOffset, IoError, IoResult, RequestFlags};
use block_io::{Req, run_beside};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Data goes through memory in pieces of at most so many bytes.
const PIECE_MAX: u64 = 1 << 20;

/// Copy those of `clusters` that have to be, and wait for those that others copy.
pub(crate) async fn copy(shared: &Shared, req: &Req, clusters: &Range<u64>) -> IoResult<()> {
    while let Some(copying) = shared.state.next_copy(clusters).await {
        copy_run(shared, req, copying).await?;
    }
    Ok(())
}

/// As [`copy`], for who may stop waiting: what has begun goes on by itself then, and is waited for by others.
pub(crate) async fn copy_beside(shared: &Arc<Shared>, req: &Req, clusters: &Range<u64>) -> IoResult<()> {
    if shared.state.next_copy(clusters).await.is_none() {
        return Ok(());
    }
    let (tell, told) = oneshot::channel();
    let (own, wanted) = (shared.clone(), clusters.clone());
    let work = |req| async move {
        // Whoever asked may be gone.
        let _ = tell.send(copy(&own, &req, &wanted).await);
    };
    if !run_beside(req, work) {
        return copy(shared, req, clusters).await;
    }
    told.await.unwrap_or(Err(IoError::CANCELLED))
}

async fn copy_run(shared: &Shared, req: &Req, copying: Copying<'_>) -> IoResult<()> {
    let bytes = shared.state.bytes(copying.clusters());
    let mut at = bytes.start;
    while at < bytes.end {
        let (is_zero, len) = next(shared, req, at..bytes.end).await;
        if is_zero {
            shared.target.zero(req, HostOffset(at), len, RequestFlags::empty()).await?;
        } else {
            copy_data(shared, req, at..at + len).await?;
        }
        at += len;
    }
    copying.done();
    Ok(())
}

/// Whether the source is known to have zeroes at the start of `bytes`, and how many clusters of them, in bytes. What is not known is data.
async fn next(shared: &Shared, req: &Req, bytes: Range<u64>) -> (bool, u64) {
    let (rest, cluster) = (bytes.end - bytes.start, shared.state.cluster_size());
    let Ok(told) = shared.file.chain_status(req, HostOffset(bytes.start), rest).await else {
        return (false, cluster.min(rest));
    };
    let (is_zero, len) = (told.extent.is_zero(), told.extent.len.min(rest));
    let whole = if len == rest { rest } else { len - len % cluster };
    match (is_zero, whole) {
        (true, 1..) => (true, whole),
        (true, 0) => (false, cluster.min(rest)),
        (false, _) => (false, len.next_multiple_of(cluster).min(rest)),
    }
}

async fn copy_data(shared: &Shared, req: &Req, bytes: Range<u64>) -> IoResult<()> {
    let alignment = match (shared.file.limits(req), shared.target.limits(req)) {
        (Ok(file), Ok(target)) => file.memory_alignment.max(target.memory_alignment),
        _ => 4096,
    };
    let len = (bytes.end - bytes.start).min(PIECE_MAX);
    let memory = AlignedBuf::try_zeroed(len as usize, alignment as usize);
    let buf = memory.ok_or(IoError::host(Errno::ENOMEM.raw()))?.into_io();
    let mut at = bytes.start;
    while at < bytes.end {
        let part = buf.slice(0, (bytes.end - at).min(len) as usize);
        shared.file.read(req, HostOffset(at), &part).await?;
        shared.target.write(req, HostOffset(at), &part, RequestFlags::empty()).await?;
        at += part.len() as u64;
    }
    Ok(())
}
