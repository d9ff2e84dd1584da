//! The file driver's engine: host files through io_uring or threads.
