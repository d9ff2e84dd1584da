//! Jobs that create and amend.
