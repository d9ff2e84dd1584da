//! The command parser of cairn-io.
