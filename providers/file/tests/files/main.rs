//! The file provider on a real folder: what comes back, what is refused, what is told.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod changes;
mod confined;
mod harness;
mod limits;
mod reading;
