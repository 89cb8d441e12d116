//! What is bounded: the limits of the driver, each with its range.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::{ConfigError, NodeArgs, Sharing, error};
use crate::cache::Settings;
use crate::catalog::{Intervals, PARAMETER_BYTES};
use crate::pacer::Rate;
use crate::publish::STORE_DEADLINE;
use crate::schedule::Backoff;

/// What the node as a whole and single requests may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes of all volumes, each with room for its next generation.
    pub node_budget: u64,
    /// Most bytes in the parameters of one source.
    pub parameter_bytes: usize,
    /// Most bytes in one CSI request.
    pub request_bytes: usize,
    /// How long a publish waits for its stores.
    pub publish_timeout: Duration,
    /// How often stores are asked.
    pub intervals: Intervals,
    /// Whether a pod's attributes win over its class.
    pub pod_attributes_win: bool,
    /// Of one volume and reason, nothing more is told for so long.
    pub event_interval: Duration,
    /// How long one request to a store may take.
    pub store: Patience,
}

/// How long one request to a store may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until there is a connection.
    pub connect: Duration,
    /// Until the answer is there, all of it.
    pub attempt: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            attempt: Duration::from_secs(10),
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            node_budget: 64 << 20,
            parameter_bytes: PARAMETER_BYTES,
            request_bytes: 4 << 20,
            publish_timeout: STORE_DEADLINE,
            intervals: Intervals::default(),
            pod_attributes_win: false,
            event_interval: Duration::from_secs(600),
            store: Patience::default(),
        }
    }
}

pub(super) fn cache(args: &NodeArgs) -> Result<Settings, ConfigError> {
    for (flag, given) in [
        ("store-rate", u64::from(args.store_rate)),
        ("store-requests", args.store_requests as u64),
        ("store-queue", args.store_queue as u64),
    ] {
        within(flag, given, (1, 1 << 20), "must be between 1 and 1048576")?;
    }
    within(
        "cache-bytes",
        args.cache_bytes,
        (0, 1 << 40),
        "must be 1024Gi or less",
    )?;
    // Nodes that start together do not ask together.
    let mut hasher = DefaultHasher::new();
    args.node_id.hash(&mut hasher);
    Ok(Settings {
        bytes: args.cache_bytes as usize,
        slots: args.store_requests,
        queue: args.store_queue,
        backoff: backoff(args)?,
        rate: Rate {
            per_second: f64::from(args.store_rate),
            burst: f64::from(args.store_rate) * 2.0,
        },
        seed: hasher.finish(),
        pods_apart: args.sharing == Sharing::Pod,
    })
}

pub(super) fn bounds(args: &NodeArgs) -> Result<Bounds, ConfigError> {
    Ok(Bounds {
        node_budget: within(
            "node-budget",
            args.node_budget,
            (1 << 20, 1 << 40),
            "must be between 1Mi and 1024Gi",
        )?,
        parameter_bytes: within(
            "max-parameter-bytes",
            args.max_parameter_bytes,
            (1 << 10, 1 << 20),
            "must be between 1Ki and 1Mi",
        )? as usize,
        // A request without parameters has tokens, and each of those some KiB.
        request_bytes: within(
            "max-request-bytes",
            args.max_request_bytes,
            (64 << 10, 64 << 20),
            "must be between 64Ki and 64Mi",
        )? as usize,
        publish_timeout: time_within(
            "publish-timeout",
            args.publish_timeout,
            (SECOND, STORE_DEADLINE),
            "must be between 1s and 60s: one question to a store is given up after 60s",
        )?,
        intervals: intervals(args)?,
        pod_attributes_win: args.pod_attributes_win,
        event_interval: time_within(
            "event-interval",
            args.event_interval,
            (SECOND, DAY),
            "must be between 1s and 24h",
        )?,
        store: patience(args)?,
    })
}

const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn intervals(args: &NodeArgs) -> Result<Intervals, ConfigError> {
    let least = time_within(
        "min-rotation-interval",
        args.min_rotation_interval,
        (SECOND, DAY),
        "must be between 1s and 24h",
    )?;
    let default = time_within(
        "rotation-interval",
        args.rotation_interval,
        (SECOND, DAY),
        "must be between 1s and 24h",
    )?;
    Ok(Intervals {
        least,
        // Installations of secrets-store-csi-driver have shorter ones, and are to start.
        default: default.max(least),
    })
}

fn patience(args: &NodeArgs) -> Result<Patience, ConfigError> {
    let attempt = time_within(
        "store-timeout",
        args.store_timeout,
        (SECOND, STORE_DEADLINE),
        "must be between 1s and 60s",
    )?;
    Ok(Patience {
        attempt,
        connect: time_within(
            "store-connect-timeout",
            args.store_connect_timeout,
            (Duration::from_millis(100), attempt),
            "must be between 100ms and --store-timeout",
        )?,
    })
}

fn backoff(args: &NodeArgs) -> Result<Backoff, ConfigError> {
    let longest = time_within(
        "store-max-backoff",
        args.store_max_backoff,
        (SECOND, Duration::from_secs(600)),
        "must be between 1s and 10m",
    )?;
    Ok(Backoff {
        longest,
        first: time_within(
            "store-backoff",
            args.store_backoff,
            (Duration::from_millis(100), longest),
            "must be between 100ms and --store-max-backoff",
        )?,
    })
}

fn time_within(
    flag: &'static str,
    given: Duration,
    (least, most): (Duration, Duration),
    problem: &'static str,
) -> Result<Duration, ConfigError> {
    match (least..=most).contains(&given) {
        true => Ok(given),
        false => Err(error(flag, format!("{given:?}"), problem)),
    }
}

pub(super) fn within(
    flag: &'static str,
    given: u64,
    (least, most): (u64, u64),
    problem: &'static str,
) -> Result<u64, ConfigError> {
    match (least..=most).contains(&given) {
        true => Ok(given),
        false => Err(error(flag, given.to_string(), problem)),
    }
}
