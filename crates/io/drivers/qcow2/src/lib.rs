//! The qcow2 driver's engine.

pub mod check;
