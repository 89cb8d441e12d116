//! What was typed (`NodeArgs`) and what holds (`Config`). The only place that reads the environment.

#[cfg(feature = "aws")]
mod aws;
mod limits;
mod plugins;
mod provider;
mod upstream;
mod vault;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tracing::Level;

#[cfg(feature = "aws")]
pub use aws::AwsArgs;
pub use limits::{Bounds, Patience};
pub use plugins::PluginArgs;
pub use provider::ProviderArgs;
pub use upstream::UpstreamArgs;
pub use vault::VaultArgs;

use crate::cache::Settings;
use crate::payload::Limits;
use crate::tokens::TokenSource;
use crate::volume::TargetRules;
use limits::{bounds, cache, within};

/// The flags of `coffer node`.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Socket for the kubelet, as unix:///path/name.sock
    #[arg(long, env = "CSI_ENDPOINT", default_value = "unix:///csi/csi.sock")]
    pub endpoint: String,

    /// Name of the Kubernetes node
    #[arg(long, alias = "nodeid", env = "COFFER_NODE_ID")]
    pub node_id: String,

    /// Name that the driver is registered by
    #[arg(
        long,
        alias = "drivername",
        env = "COFFER_DRIVER_NAME",
        default_value = "secrets-store.csi.k8s.io"
    )]
    pub driver_name: String,

    /// Root folder of the kubelet
    #[arg(long, env = "COFFER_KUBELET_ROOT", default_value = "/var/lib/kubelet")]
    pub kubelet_root: PathBuf,

    /// Folder with SecretProviderClasses in YAML files, instead of an API server
    #[arg(long, env = "COFFER_CLASSES", conflicts_with = "kubeconfig")]
    pub classes: Option<PathBuf>,

    /// How to reach the API server, when the driver does not run in a pod
    #[arg(long, env = "COFFER_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,

    /// Removes the taint secrets-store.csi.k8s.io/agent-not-ready from the node once the kubelet knows the driver
    #[arg(long, env = "COFFER_REMOVE_STARTUP_TAINT", conflicts_with = "classes")]
    pub remove_startup_taint: bool,

    /// Folder of the file provider, with a folder for each Namespace
    #[arg(long, env = "COFFER_FILE_ROOT")]
    pub file_root: Option<PathBuf>,

    /// Address for /metrics, /healthz and /readyz; empty for none
    #[arg(long, env = "COFFER_METRICS_ADDR", default_value = ":8095")]
    pub metrics_addr: String,

    /// Where the kubelet puts the tokens of pods: into the secrets of a request (Kubernetes 1.35 and
    /// later, with serviceAccountTokenInSecrets) or into its volume context
    #[arg(long, env = "COFFER_TOKEN_SOURCE", value_enum, default_value_t = TokenSource::Secrets)]
    pub token_source: TokenSource,

    /// Where secrets of Vault and OpenBao come from
    #[command(flatten)]
    pub vault: VaultArgs,

    /// Where secrets of AWS come from
    #[cfg(feature = "aws")]
    #[command(flatten)]
    pub aws: AwsArgs,

    /// Provider plugins of the node
    #[command(flatten)]
    pub plugins: PluginArgs,

    /// Which Kubernetes Secrets are made
    #[command(flatten)]
    pub sync: SyncArgs,

    /// Most bytes of secret values that are kept in memory, 1024Gi at most
    #[arg(long, env = "COFFER_CACHE_BYTES", default_value = "32Mi", value_parser = quantity)]
    pub cache_bytes: u64,

    /// Most bytes of all volumes of the node, each with room for the generation that replaces the present
    /// one; 1Mi to 1024Gi. They count as memory of the driver's container, whose limit has to have room for
    /// them
    #[arg(long, env = "COFFER_NODE_BUDGET", default_value = "64Mi", value_parser = quantity)]
    pub node_budget: u64,

    /// Most bytes of all files of one volume, 16Mi at most
    #[arg(long, env = "COFFER_MAX_VOLUME_BYTES", default_value = "4Mi", value_parser = quantity)]
    pub max_volume_bytes: u64,

    /// Most files in one volume, 1024 at most
    #[arg(long, env = "COFFER_MAX_VOLUME_FILES", default_value_t = 256)]
    pub max_volume_files: usize,

    /// Most bytes in the parameters of one source of a SecretProviderClass, 1Ki to 1Mi
    #[arg(long, env = "COFFER_MAX_PARAMETER_BYTES", default_value = "64Ki", value_parser = quantity)]
    pub max_parameter_bytes: u64,

    /// Most bytes in one request of the kubelet, 64Ki to 64Mi
    #[arg(long, env = "COFFER_MAX_REQUEST_BYTES", default_value = "4Mi", value_parser = quantity)]
    pub max_request_bytes: u64,

    /// Lets what a pod writes into volumeAttributes win over the parameters of its class, as in
    /// secrets-store-csi-driver: whoever makes pods then decides what their classes ask for
    #[arg(long, env = "COFFER_POD_ATTRIBUTES_WIN")]
    pub pod_attributes_win: bool,

    /// How long a first mount may take, 1s to 60s; less where the kubelet waits less
    #[arg(long, env = "COFFER_PUBLISH_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub publish_timeout: Duration,

    /// How often a store is asked for the classes that do not say, 24h at most and --min-rotation-interval at
    /// least: a shorter one counts as that
    #[arg(
        long,
        alias = "rotation-poll-interval",
        env = "COFFER_ROTATION_INTERVAL",
        default_value = "2m",
        value_parser = duration
    )]
    pub rotation_interval: Duration,

    /// How often an Event is told of one volume for one reason at most, 1s to 24h
    #[arg(long, env = "COFFER_EVENT_INTERVAL", default_value = "10m", value_parser = duration)]
    pub event_interval: Duration,

    /// The shortest interval that a class may ask for, 1s to 24h
    #[arg(long, env = "COFFER_MIN_ROTATION_INTERVAL", default_value = "10s", value_parser = duration)]
    pub min_rotation_interval: Duration,

    /// How long it may take until there is a connection to a store, 100ms to --store-timeout
    #[arg(long, env = "COFFER_STORE_CONNECT_TIMEOUT", default_value = "3s", value_parser = duration)]
    pub store_connect_timeout: Duration,

    /// How long one request to a store may take, 1s to 60s
    #[arg(long, env = "COFFER_STORE_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub store_timeout: Duration,

    /// How long a store is left alone after its first failure, 100ms to --store-max-backoff; twice as long
    /// after each further one
    #[arg(long, env = "COFFER_STORE_BACKOFF", default_value = "500ms", value_parser = duration)]
    pub store_backoff: Duration,

    /// How long a store is left alone after many failures, 1s to 10m
    #[arg(long, env = "COFFER_STORE_MAX_BACKOFF", default_value = "60s", value_parser = duration)]
    pub store_max_backoff: Duration,

    /// Who shares logins and answers of stores at most: the pods of a ServiceAccount, or nobody, as with
    /// `sharing: Pod` in every class
    #[arg(long, env = "COFFER_SHARING", value_enum, default_value_t = Sharing::ServiceAccount)]
    pub sharing: Sharing,

    /// Requests to one store in a second, in the long run; twice as many at once
    #[arg(long, env = "COFFER_STORE_RATE", default_value_t = 50)]
    pub store_rate: u32,

    /// Requests to one store at one time; refreshes take half of them at most
    #[arg(long, env = "COFFER_STORE_REQUESTS", default_value_t = 16)]
    pub store_requests: usize,

    /// First mounts that wait for one store; further ones are sent away
    #[arg(long, env = "COFFER_STORE_QUEUE", default_value_t = 1000)]
    pub store_queue: usize,

    /// How log lines look
    #[arg(long, env = "COFFER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// As --log-format=json, by upstream's name
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub log_format_json: Option<bool>,

    /// Flags of secrets-store-csi-driver that do nothing here
    #[command(flatten)]
    pub upstream: UpstreamArgs,

    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, env = "COFFER_LOG_LEVEL", default_value_t = Level::INFO)]
    pub log_level: Level,

    /// Folder below which any target path is taken, writable or not: for conformance tests only
    #[arg(long, env = "COFFER_CONFORMANCE_ROOT", hide = true)]
    pub conformance_root: Option<PathBuf>,
}

impl NodeArgs {
    /// How log lines look, whichever flag says so.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        match self.log_format_json {
            Some(true) => LogFormat::Json,
            Some(false) | None => self.log_format,
        }
    }
}

/// Who shares what a store gave, in the words of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sharing {
    /// The pods of a ServiceAccount.
    #[value(name = "ServiceAccount")]
    ServiceAccount,
    /// Nobody: each pod has its own.
    #[value(name = "Pod")]
    Pod,
}

/// The flags of Secrets that are made from volumes.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncArgs {
    /// Makes the Kubernetes Secrets that classes want in secretObjects; needs the right to do so
    #[arg(long, env = "COFFER_SYNC_SECRETS", conflicts_with = "classes")]
    pub sync_secrets: bool,

    /// Lets classes make Secrets with which nodes join the cluster
    #[arg(long, env = "COFFER_SYNC_BOOTSTRAP_TOKENS", requires = "sync_secrets")]
    pub sync_bootstrap_tokens: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings that hold together. No secrets: it is logged whole at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket, absolute, ending in `.sock`.
    pub socket: PathBuf,
    /// Not empty.
    pub node_id: String,
    /// Domain notation, at most 63 characters.
    pub driver_name: String,
    /// Which target paths are taken.
    pub rules: TargetRules,
    /// Where tokens come from.
    pub token_source: TokenSource,
    /// What one volume may hold.
    pub limits: Limits,
    /// What else is bounded.
    pub bounds: Bounds,
    /// What the cache may hold and ask.
    pub cache: Settings,
    /// Where the classes are, if not in the cluster.
    pub classes: Option<PathBuf>,
    /// How to reach the API server, if not as a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Whether the startup taint is removed.
    pub remove_startup_taint: bool,
    /// Where the secrets of the file provider are.
    pub file_root: Option<PathBuf>,
    /// What classes of Vault and OpenBao may do.
    pub vault: VaultArgs,
    /// Where secrets of AWS come from.
    #[cfg(feature = "aws")]
    pub aws: AwsArgs,
    /// Which plugins there are, and what they may do.
    pub plugins: PluginArgs,
    /// Which Secrets are made.
    pub sync: SyncArgs,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
}

/// A time, as Go and Kubernetes write it; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs).ok();
    let written = || Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok();
    seconds
        .or_else(written)
        .ok_or_else(|| "must be a time like 90s, 1m30s or 500ms".to_owned())
}

/// Bytes, as a number or with one of the units that Kubernetes has for memory.
fn quantity(text: &str) -> Result<u64, String> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let unit = units.iter().find_map(|(unit, shift)| {
        let digits = text.strip_suffix(unit)?;
        Some((digits, *shift))
    });
    let (digits, shift) = unit.unwrap_or((text, 0));
    let number = Some(digits).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
    number
        .and_then(|digits| digits.parse::<u64>().ok()?.checked_mul(1 << shift))
        .ok_or_else(|| "must be a number of bytes, or one with Ki, Mi or Gi".to_owned())
}

/// The same, of at least so much.
fn duration_of(text: &str, least: Duration) -> Result<Duration, String> {
    duration(text).and_then(|given| match given >= least {
        true => Ok(given),
        false => Err(format!("must be {}s or more", least.as_secs())),
    })
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag} {value:?}: {problem}")]
pub struct ConfigError {
    flag: &'static str,
    value: String,
    problem: &'static str,
}

impl TryFrom<NodeArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: NodeArgs) -> Result<Self, ConfigError> {
        Ok(Self {
            cache: cache(&args)?,
            bounds: bounds(&args)?,
            socket: socket(&args.endpoint)?,
            node_id: node_id(args.node_id)?,
            driver_name: driver_name(args.driver_name)?,
            rules: TargetRules {
                pods: absolute("kubelet-root", &args.kubelet_root)?.join("pods"),
                conformance_root: match &args.conformance_root {
                    Some(root) => Some(absolute("conformance-root", root)?),
                    None => None,
                },
            },
            token_source: args.token_source,
            limits: Limits {
                bytes: within(
                    "max-volume-bytes",
                    args.max_volume_bytes,
                    (1, 16 << 20),
                    "must be between 1 and 16Mi",
                )? as usize,
                files: within(
                    "max-volume-files",
                    args.max_volume_files as u64,
                    (1, 1024),
                    "must be between 1 and 1024",
                )? as usize,
            },
            classes: args.classes,
            kubeconfig: args.kubeconfig,
            remove_startup_taint: args.remove_startup_taint,
            file_root: args.file_root,
            vault: args.vault,
            #[cfg(feature = "aws")]
            aws: args.aws,
            plugins: args.plugins,
            sync: args.sync,
            metrics: metrics(&args.metrics_addr)?,
        })
    }
}

fn error(flag: &'static str, value: impl Into<String>, problem: &'static str) -> ConfigError {
    ConfigError {
        flag,
        value: value.into(),
        problem,
    }
}

/// CSI wants `unix://` and a name that ends in `.sock`; a bare path is taken too.
fn socket(endpoint: &str) -> Result<PathBuf, ConfigError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    match path.starts_with('/') && path.ends_with(".sock") {
        true => Ok(PathBuf::from(path)),
        false => Err(error(
            "endpoint",
            endpoint,
            "must look like unix:///csi/csi.sock",
        )),
    }
}

fn node_id(id: String) -> Result<String, ConfigError> {
    match id.len() {
        // CSI allows 256 bytes; a node's name is a DNS name.
        1..=253 => Ok(id),
        _ => Err(error(
            "node-id",
            id,
            "must be the name of the Kubernetes node",
        )),
    }
}

fn driver_name(name: String) -> Result<String, ConfigError> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_alphabetic();
    match name.len() <= 63
        && name.chars().all(inside)
        && name.starts_with(ends)
        && name.ends_with(ends)
    {
        true => Ok(name),
        false => {
            let problem =
                "must be at most 63 letters, digits, dots and dashes, with a letter at both ends";
            Err(error("driver-name", name, problem))
        }
    }
}

fn absolute(flag: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let text = path.to_str().unwrap_or_default();
    match text.starts_with('/') && !text.contains("//") && !text.ends_with('/') {
        true => Ok(path.to_owned()),
        false => {
            let problem = "must be an absolute path without a slash at its end";
            Err(error(flag, path.to_string_lossy(), problem))
        }
    }
}

/// `:8095` means every address, as in Go programs.
fn metrics(address: &str) -> Result<Option<SocketAddr>, ConfigError> {
    let wrong = || {
        error(
            "metrics-addr",
            address,
            "must look like :8095 or 127.0.0.1:8095",
        )
    };
    match address.strip_prefix(':') {
        _ if address.is_empty() || address == "0" => Ok(None),
        Some(port) => {
            let port = port.parse().map_err(|_| wrong())?;
            Ok(Some(SocketAddr::new(
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                port,
            )))
        }
        None => address.parse().map(Some).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        node: NodeArgs,
    }

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let good = ["node", "--node-id=n1", "--classes=/classes"];
        let typed = Typed::try_parse_from(good.iter().chain(flags)).expect("flags that parse");
        Config::try_from(typed.node)
    }

    #[test]
    fn defaults_are_those_of_the_chart() {
        let config = config(&[]).expect("good");
        assert_eq!(config.socket, Path::new("/csi/csi.sock"));
        assert_eq!(config.driver_name, "secrets-store.csi.k8s.io");
        assert_eq!(config.rules.pods, Path::new("/var/lib/kubelet/pods"));
        assert_eq!(config.metrics.expect("on").port(), 8095);
        let (limits, expected) = (config.limits, Limits::default());
        assert_eq!(
            (limits.bytes, limits.files),
            (expected.bytes, expected.files)
        );
        assert_eq!(config.bounds, Bounds::default());
        let (cache, expected) = (config.cache, Settings::default());
        assert_eq!(
            (
                cache.bytes,
                cache.rate,
                cache.slots,
                cache.queue,
                cache.backoff
            ),
            (
                expected.bytes,
                expected.rate,
                expected.slots,
                expected.queue,
                expected.backoff
            )
        );
    }

    #[test]
    fn every_limit_has_a_range() {
        for (flag, least, most, at) in [
            (
                "max-volume-bytes",
                1,
                16 << 20,
                (|config| config.limits.bytes as u64) as fn(&Config) -> u64,
            ),
            ("max-volume-files", 1, 1024, |config| {
                config.limits.files as u64
            }),
            ("node-budget", 1 << 20, 1 << 40, |config| {
                config.bounds.node_budget
            }),
            ("max-parameter-bytes", 1 << 10, 1 << 20, |config| {
                config.bounds.parameter_bytes as u64
            }),
            ("max-request-bytes", 64 << 10, 64 << 20, |config| {
                config.bounds.request_bytes as u64
            }),
            ("store-rate", 1, 1 << 20, |config| {
                config.cache.rate.per_second as u64
            }),
            ("store-requests", 1, 1 << 20, |config| {
                config.cache.slots as u64
            }),
            ("store-queue", 1, 1 << 20, |config| {
                config.cache.queue as u64
            }),
            ("cache-bytes", 1, 1 << 40, |config| {
                config.cache.bytes as u64
            }),
        ] {
            for good in [least, least + 1, most - 1, most] {
                let config = config(&[&format!("--{flag}={good}")]).expect(flag);
                assert_eq!(at(&config), good, "{flag}");
            }
            for bad in [least - 1, most + 1] {
                if (flag, bad) == ("cache-bytes", 0) {
                    // No value is kept at all.
                    continue;
                }
                let error = config(&[&format!("--{flag}={bad}")]).expect_err(flag);
                let start = format!("--{flag} \"{bad}\": must be ");
                assert!(error.to_string().starts_with(&start), "{error}");
            }
        }
    }

    #[test]
    fn every_time_has_a_range() {
        for (flag, least, most, at) in [
            (
                "publish-timeout",
                1_000,
                60_000,
                (|config| config.bounds.publish_timeout) as fn(&Config) -> Duration,
            ),
            ("min-rotation-interval", 1_000, 86_400_000, |config| {
                config.bounds.intervals.least
            }),
            ("event-interval", 1_000, 86_400_000, |config| {
                config.bounds.event_interval
            }),
            ("store-timeout", 3_000, 60_000, |config| {
                config.bounds.store.attempt
            }),
            ("store-connect-timeout", 100, 10_000, |config| {
                config.bounds.store.connect
            }),
            ("store-backoff", 100, 60_000, |config| {
                config.cache.backoff.first
            }),
            ("store-max-backoff", 1_000, 600_000, |config| {
                config.cache.backoff.longest
            }),
        ] {
            for good in [least, least + 1, most - 1, most] {
                let config = config(&[&format!("--{flag}={good}ms")]).expect(flag);
                assert_eq!(at(&config), Duration::from_millis(good), "{flag}");
            }
            for bad in [least - 1, most + 1] {
                let error = config(&[&format!("--{flag}={bad}ms")]).expect_err(flag);
                assert!(error.to_string().contains("must be between"), "{error}");
            }
        }
    }

    #[test]
    fn an_interval_of_upstream_that_is_shorter_than_ours_counts_as_the_shortest() {
        for flag in ["rotation-interval", "rotation-poll-interval"] {
            for (given, counts) in [
                ("1s", 10_000),
                ("10s", 10_000),
                ("10001ms", 10_001),
                ("24h", 86_400_000),
            ] {
                let config = config(&[&format!("--{flag}={given}")]).expect(given);
                let counts = Duration::from_millis(counts);
                assert_eq!(config.bounds.intervals.default, counts, "{flag} {given}");
            }
            for bad in ["0s", "999ms", "86400001ms"] {
                let error = config(&[&format!("--{flag}={bad}")]).expect_err(bad);
                assert!(error.to_string().contains("must be between"), "{error}");
            }
        }
    }

    #[test]
    fn times_are_written_as_in_go_and_kubernetes() {
        for (text, millis) in [
            ("2m", 120_000),
            ("1m30s", 90_000),
            ("90", 90_000),
            ("500ms", 500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "soon", "-1s", "1.5.0s", "9999999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_have_the_units_of_kubernetes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64Ki", 64 << 10),
            ("64Mi", 64 << 20),
            ("2Gi", 2 << 30),
        ] {
            assert_eq!(quantity(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "Mi",
            "-1",
            "+1",
            "1.5Gi",
            "64M",
            "64 Mi",
            "99999999999Gi",
        ] {
            assert!(quantity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn upstreams_flags_are_taken() {
        let flags = [
            "--nodeid=n2",
            "--drivername=a.b",
            "--metrics-addr=127.0.0.1:1",
            "--log-format-json",
            "--rotation-poll-interval=120s",
            "--enable-secret-rotation=true",
            "-v=5",
        ];
        let config = config(&flags[1..]).expect("good");
        assert_eq!(config.driver_name, "a.b");
        assert_eq!(config.metrics.expect("on").to_string(), "127.0.0.1:1");
        let typed = Typed::try_parse_from(["node", flags[0], flags[3], "--classes=/c"]);
        let typed = typed.expect("parses");
        assert_eq!(typed.node.node_id, "n2");
        assert_eq!(typed.node.log_format(), LogFormat::Json);
    }

    #[test]
    fn a_setting_that_cannot_be_is_named_with_its_value() {
        for (flag, message) in [
            (
                "--endpoint=tcp://1.2.3.4:5",
                "--endpoint \"tcp://1.2.3.4:5\": must look like unix:",
            ),
            (
                "--endpoint=unix://csi.sock",
                "--endpoint \"unix://csi.sock\": must",
            ),
            (
                "--endpoint=unix:///csi/socket",
                "--endpoint \"unix:///csi/socket\": must",
            ),
            (
                "--driver-name=1x",
                "--driver-name \"1x\": must be at most 63",
            ),
            ("--driver-name=a b", "--driver-name \"a b\": must"),
            (
                "--kubelet-root=lib",
                "--kubelet-root \"lib\": must be an absolute path",
            ),
            (
                "--kubelet-root=/lib/",
                "--kubelet-root \"/lib/\": must be an absolute path",
            ),
            ("--metrics-addr=x", "--metrics-addr \"x\": must look like"),
            (
                "--metrics-addr=:99999",
                "--metrics-addr \":99999\": must look like",
            ),
            ("--conformance-root=x", "--conformance-root \"x\": must be"),
        ] {
            let error = config(&[flag]).expect_err(flag).to_string();
            assert!(error.starts_with(message), "{error}");
        }
        assert_eq!(config(&["--metrics-addr="]).expect("good").metrics, None);
    }
}
