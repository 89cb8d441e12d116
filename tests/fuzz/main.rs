//! Generated input: hostile text at every place where text comes in, sequences of operations against a
//! model, and failures in every order. One file for each story.
//!
//! Cases are the same on every run, so that a failure is one that can be looked at; a failing case is
//! made smaller before it is shown. `COFFER_TEST_CASES=50 cargo test --test fuzz` tries fifty times as
//! many, and others each time. Seeds lie in `corpus/`, one folder for each kind of input: what once broke
//! something is to be added there.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what is wrong by failing, and what it has counted"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "how many cases there are is told in a variable"
)]

mod aws;
mod classes;
mod failures;
mod mutation;
mod node;
mod panics;
mod paths;
mod requests;
mod secrets;
mod targets;
mod writer;
