//! What was typed (`NodeArgs`) and what holds (`Config`). The only place that reads the environment.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tracing::Level;

use crate::cache::Settings;
use crate::pacer::Rate;
use crate::payload::Limits;
use crate::tokens::TokenSource;
use crate::volume::TargetRules;

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

    /// Most bytes of secret values that are kept in memory
    #[arg(long, env = "COFFER_CACHE_BYTES", default_value_t = 32 << 20)]
    pub cache_bytes: usize,

    /// Requests to one store in a second, in the long run; twice as many at once
    #[arg(long, env = "COFFER_STORE_RATE", default_value_t = 50)]
    pub store_rate: u32,

    /// How log lines look
    #[arg(long, env = "COFFER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, env = "COFFER_LOG_LEVEL", default_value_t = Level::INFO)]
    pub log_level: Level,

    /// Folder below which any target path is taken, writable or not: for conformance tests only
    #[arg(long, env = "COFFER_CONFORMANCE_ROOT", hide = true)]
    pub conformance_root: Option<PathBuf>,
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
    /// What the cache may hold and ask.
    pub cache: Settings,
    /// Where the classes are, if not in the cluster.
    pub classes: Option<PathBuf>,
    /// How to reach the API server, if not as a pod.
    pub kubeconfig: Option<PathBuf>,
    /// Where the secrets of the file provider are.
    pub file_root: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
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
            limits: Limits::default(),
            classes: args.classes,
            kubeconfig: args.kubeconfig,
            file_root: args.file_root,
            metrics: metrics(&args.metrics_addr)?,
        })
    }
}

fn cache(args: &NodeArgs) -> Result<Settings, ConfigError> {
    if args.store_rate == 0 {
        return Err(error("store-rate", "0", "must be 1 or more"));
    }
    // Nodes that start together do not ask together.
    let mut hasher = DefaultHasher::new();
    args.node_id.hash(&mut hasher);
    Ok(Settings {
        bytes: args.cache_bytes,
        rate: Rate {
            per_second: f64::from(args.store_rate),
            burst: f64::from(args.store_rate) * 2.0,
        },
        seed: hasher.finish(),
    })
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
    }

    #[test]
    fn upstreams_flags_are_taken() {
        let flags = [
            "--nodeid=n2",
            "--drivername=a.b",
            "--metrics-addr=127.0.0.1:1",
        ];
        let config = config(&flags[1..]).expect("good");
        assert_eq!(config.driver_name, "a.b");
        assert_eq!(config.metrics.expect("on").to_string(), "127.0.0.1:1");
        let typed = Typed::try_parse_from(["node", flags[0], "--classes=/c"]).expect("parses");
        assert_eq!(typed.node.node_id, "n2");
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
