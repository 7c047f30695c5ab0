//! What [`super::producer`], [`super::consumer`], [`super::ends`] and [`super::doorbell`] share memory and sleep
//! with. The loom models compile the same files with substitutes for these.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

pub(super) use crate::sys::segment::Segment;
pub(super) use crate::sys::{affinity, futex};
