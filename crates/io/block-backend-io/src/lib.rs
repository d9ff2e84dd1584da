//! The half of a block backend that device threads hold.
