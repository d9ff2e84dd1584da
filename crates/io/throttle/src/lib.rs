//! Throttling as the field does it: limits on requests and bytes a second, with bursts, shared by the members of a group.
//!
//! A [`ThrottleGroup`] has [`ThrottleLimits`]; whoever sends requests is a [`ThrottleMember`] of one, and asks before each request. How options are written,
//! what names groups have and which node uses which is not known here, nor what a request is. The design is in `docs/throttle.md`.
//!
//! # Reading order
//! [`Limits`](ThrottleLimits) and buckets are arithmetic; [`Clock`] says what time it is, and can be a test's; the group decides whose turn it is; a member waits.

#![forbid(unsafe_code)]

mod bucket;
mod limits;

mod clock;

mod group;
mod member;

pub use clock::{Clock, ManualClock};
pub use group::{Direction, ThrottleGroup};
pub use limits::{Limit, LimitKind, LimitSettings, LimitsError, ThrottleLimits, VALUE_MAX};
pub use member::ThrottleMember;
