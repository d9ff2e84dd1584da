//! The global-state side: graph, open, close, permissions, drain.
