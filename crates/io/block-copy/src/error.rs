//! Why a body stopped before its work was done.

use crate::control::Cancelled;
use block_common::IoError;
use std::fmt;

/// What a body was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyAct {
    /// Asking the source what a range is.
    Status,
    /// Reading the source.
    Read,
    /// Writing the target.
    Write,
    /// Making the target read as zeroes.
    Zero,
    /// Flushing the target.
    Flush,
    /// Asking for a length.
    Length,
}

impl fmt::Display for CopyAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "getting the block status of the source",
            Self::Read => "reading the source",
            Self::Write => "writing the target",
            Self::Zero => "writing zeroes to the target",
            Self::Flush => "flushing the target",
            Self::Length => "getting the length",
        })
    }
}

/// A request of a copy failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{act} at offset {offset} failed: {error}")]
pub struct CopyError {
    /// What was being done.
    pub act: CopyAct,
    /// Where, in bytes.
    pub offset: u64,
    /// What the node answered.
    pub error: IoError,
}

impl CopyError {
    pub(crate) fn at(act: CopyAct, offset: u64) -> impl FnOnce(IoError) -> Self {
        move |error| Self { act, offset, error }
    }
}

/// Why a body ended without having done its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It was told to.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A request failed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The target is longer or shorter than the source.
    #[error("Source and target image have different sizes")]
    Sizes {
        /// The source's length in bytes.
        source_len: u64,
        /// The target's length in bytes.
        target_len: u64,
    },
    /// An option makes no sense for these nodes.
    #[error("{0}")]
    Options(String),
    /// For bodies of other crates: their own words.
    #[error("{0}")]
    Other(String),
}
