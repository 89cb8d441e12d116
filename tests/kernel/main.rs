//! `Volumes` on the kernel's own tmpfs: what the node is left with, whatever happens. One file for
//! each story.
//!
//! Every test has mounts of its own, so it leaves none behind and disturbs no other. It runs as root,
//! or as "root" of a user namespace. In a user namespace the kernel keeps no `trusted.` attributes:
//! there a volume has no record and only the process that mounted it knows it, and there is one user
//! and one group. Tests for which that matters say what holds in each case, and check that.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what is wrong by failing, and what it has counted"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test that starts itself again is told so in a variable"
)]

mod contents;
mod crash;
mod errors;
mod harness;
mod inherited;
mod leftovers;
mod lifecycle;
mod many;
mod points;
mod readers;
mod size;
mod target;
mod tracer;
mod two_processes;
