//! Coffer: a CSI driver that mounts secrets from external stores into pods.
//!
//! ```text
//! kubelet ──gRPC──> csi/ ──> the core ──> volume/ ──> kernel (tmpfs, files)
//! API server ─────> kube/ ─────┤
//! another driver ─> serve/ ────┤
//!                              └──> providers/api <── providers/* ──> stores
//! ```
//!
//! Folders are edges: each talks to one outside party and turns its language into ours. Flat files are
//! the core; it decides, and knows neither gRPC nor the kernel nor any store. Start at
//! [`publish::Publisher::publish`].

pub mod cache;
pub mod catalog;
pub mod class;
pub mod class_folder;
pub mod classes;
pub mod clock;
pub mod commands;
pub mod config;
pub mod csi;
pub mod driver;
pub mod encoding;
pub mod error;
pub mod events;
pub mod fake_kubelet;
mod flight;
pub mod health;
mod http;
pub mod identity;
pub mod kube;
pub mod pacer;
pub mod payload;
pub mod pod_status;
pub mod privileges;
pub mod publish;
pub mod registry;
pub mod report;
pub mod report_metrics;
mod rotation;
pub mod schedule;
pub mod serve;
pub mod spec;
pub mod statuses;
pub mod sync;
pub mod telemetry;
pub mod tokens;
pub mod volume;
pub mod volume_path;
