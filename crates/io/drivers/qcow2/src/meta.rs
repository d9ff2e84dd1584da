//! Reading and writing metadata: tables as bytes, at places that an image names.

use block_common::{AlignedBuf, HostOffset, IoBuf, IoResult, RequestFlags};
use block_io::{Edge, Req};

/// Memory for a request to `edge`.
pub(crate) fn buffer(req: &Req, edge: &Edge, len: usize) -> IoResult<AlignedBuf> {
    let limits = edge.limits(req)?;
    let alignment = limits.memory_alignment.max(limits.request_alignment).max(1);
    AlignedBuf::try_zeroed(len, alignment as usize).ok_or(block_common::IoError::host(12))
}

/// Fill `buf` from `offset`; what lies past the end is zeroes.
pub(crate) async fn read_padded(req: &Req, edge: &Edge, offset: u64, buf: &IoBuf) -> IoResult<()> {
    let there = edge.length(req)?.saturating_sub(offset).min(buf.len() as u64) as usize;
    buf.fill(there, buf.len() - there, 0);
    if there == 0 { Ok(()) } else { edge.read(req, HostOffset(offset), &buf.slice(0, there)).await }
}

/// `len` bytes at `offset`; what lies past the end is zeroes.
pub(crate) async fn read(req: &Req, edge: &Edge, offset: u64, len: usize) -> IoResult<Vec<u8>> {
    let buf = buffer(req, edge, len)?.into_io();
    read_padded(req, edge, offset, &buf).await?;
    let mut bytes = vec![0; len];
    buf.copy_to_slice(0, &mut bytes);
    Ok(bytes)
}

/// The same as big-endian numbers.
pub(crate) async fn read_table(req: &Req, edge: &Edge, offset: u64, entries: usize) -> IoResult<Vec<u64>> {
    let bytes = read(req, edge, offset, entries * 8).await?;
    Ok(bytes.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default())).collect())
}

/// Store `bytes` at `offset`.
pub(crate) async fn write(req: &Req, edge: &Edge, offset: u64, bytes: &[u8]) -> IoResult<()> {
    let mut buf = buffer(req, edge, bytes.len())?;
    buf.copy_from_slice(bytes);
    edge.write(req, HostOffset(offset), &buf.into_io(), RequestFlags::empty()).await
}

/// Numbers as they stand in a table.
pub(crate) fn table_bytes(entries: impl IntoIterator<Item = u64>) -> Vec<u8> {
    entries.into_iter().flat_map(u64::to_be_bytes).collect()
}
