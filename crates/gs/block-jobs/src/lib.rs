//! The job core.
