//! Test storage and toy drivers for the block layer.
