//! The qcow2 driver's engine.
