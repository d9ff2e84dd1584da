//! One-way events: what the block layer tells whoever listens. Nobody waits for an answer.

use block_common::IoError;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Closing a node failed: acknowledged data may be lost.
    CloseFailed {
        /// The node's name.
        node: String,
        /// What its flush or close answered.
        error: IoError,
    },
    /// A node's engine found its image damaged and refuses further writes.
    ImageCorrupted {
        /// The node's name.
        node: String,
        /// Whether the image can still be read.
        fatal: bool,
        /// What was found.
        message: String,
    },
    /// A write went past a node's threshold.
    WriteThreshold {
        /// The node's name.
        node: String,
        /// By how many bytes.
        exceeded: u64,
        /// The threshold in bytes.
        threshold: u64,
    },
    /// A device's tray moved, by its guest's doing or ours.
    TrayMoved {
        /// The backend's name.
        backend: String,
        /// Whether it is open now.
        open: bool,
    },
    /// A node has another length than before.
    Resized {
        /// The node's name.
        node: String,
        /// Its length in bytes.
        length: u64,
    },
}
