//! The AWS provider against servers that stand in for AWS: moto for values and counts, ministack for
//! trust and rights, and a stub of our own for everything that goes wrong.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod conformance;
mod counts;
mod failover;
mod harness;
mod http;
mod login;
mod logs;
mod read;
mod servers;
mod stub;
mod tls;
