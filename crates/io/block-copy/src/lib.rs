//! The copy engine and the run bodies of jobs.
