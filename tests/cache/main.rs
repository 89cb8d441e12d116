//! The secret cache, by a paused clock: who gets which answer, how often a store is asked, and when.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that does not work"
)]
#![expect(
    clippy::print_stdout,
    reason = "a test says what a month costs, which it has counted"
)]

mod adoption;
mod answers;
mod aws;
mod failures;
mod identities;
mod lives;
mod load;
mod oracle;
mod pods;
mod sharing;
mod store;
