//! `coffer doctor`: looks at the driver and at the node that it is on, and says what to do.

use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use coffer_proto::csi::identity_client::IdentityClient;
use coffer_proto::csi::{GetPluginInfoRequest, ProbeRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::{Config, NodeArgs};
use crate::volume::Volumes;
use crate::{fake_kubelet, privileges};

/// How long each answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The flags of `coffer doctor`: those of the driver that it looks at.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// As `coffer node` has them; in its container, the variables that it has are the same
    #[command(flatten)]
    pub node: NodeArgs,
}

/// What was found, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// As it should be.
    Good(String),
    /// Works, and could be better.
    Weak(String, &'static str),
    /// Pods do not get their volumes, or nobody can tell.
    Bad(String, &'static str),
}
use Finding::{Bad, Good, Weak};

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Good(what) => write!(formatter, "ok    {what}"),
            Weak(what, cure) => write!(formatter, "weak  {what}\n      {cure}"),
            Bad(what, cure) => write!(formatter, "BAD   {what}\n      {cure}"),
        }
    }
}

/// Prints one line for each thing that was looked at. Nothing is changed.
///
/// # Errors
/// When something is bad, after all was looked at; or for flags that cannot be.
pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let config = Config::try_from(args.node)?;
    let runtime = super::runtime()?;
    let findings = runtime.block_on(look(&config));
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    match findings.iter().filter(|f| matches!(f, Bad(..))).count() {
        0 => Ok(()),
        bad => bail!("{bad} of {} things are bad", findings.len()),
    }
}

async fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel()];
    findings.extend(volumes(config));
    findings.push(socket(config).await);
    findings.extend(registration(config));
    findings.extend(driver(config).await);
    findings.extend(memory(
        config.bounds.node_budget,
        Path::new("/sys/fs/cgroup"),
    ));
    for address in &config.vault.vault_address {
        findings.push(store(address).await);
    }
    if let Some(address) = &config.vault.vault_addr {
        findings.push(store(address).await);
    }
    findings
}

fn kernel() -> Finding {
    match privileges::check_kernel() {
        Ok(()) => Good("the kernel is new enough".to_owned()),
        Err(error) => Bad(error.to_string(), "run the driver on a newer kernel"),
    }
}

/// Can this process make volumes, and which are there?
fn volumes(config: &Config) -> Vec<Finding> {
    let volumes = match Volumes::probe(config.rules.clone(), config.limits) {
        Ok(volumes) => volumes,
        Err(error) => {
            let cure = "run the doctor as root, in the driver's container or on the node";
            return vec![Weak(error.to_string(), cure)];
        }
    };
    let swap = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swaps = swap.lines().count() > 1;
    let mut findings = vec![match (volumes.noswap(), swaps) {
        (true, _) => Good("volumes are never written to swap".to_owned()),
        (false, false) => Good("this kernel has no noswap, and the node no swap".to_owned()),
        (false, true) => Weak(
            "this kernel has no noswap for tmpfs, and the node has swap".to_owned(),
            "secrets can be written to swap: encrypt it, switch it off, or use Linux 6.4",
        ),
    }];
    let (mut count, mut bytes) = (0_u64, 0_u64);
    for target in volumes.adoptable() {
        count += 1;
        bytes += volumes.usage(&target).map_or(0, |usage| usage.taken());
    }
    let budget = config.bounds.node_budget;
    let what = format!("{count} volumes hold {bytes} bytes; the budget of the node is {budget}");
    findings.push(match bytes.saturating_mul(10) < budget.saturating_mul(8) {
        true => Good(what),
        false => Weak(
            what,
            "raise --node-budget (nodeBudget in the chart) before pods have to wait",
        ),
    });
    findings
}

/// Does somebody serve at the socket, and is it this driver?
async fn socket(config: &Config) -> Finding {
    let path = config.socket.display();
    let cure = "is the driver running on this node? look at its pod and its log";
    let asked = async {
        let channel = fake_kubelet::connect(&config.socket).await?;
        let mut identity = IdentityClient::new(channel);
        let info = identity.get_plugin_info(GetPluginInfoRequest {}).await?;
        let probe = identity.probe(ProbeRequest {}).await?.into_inner();
        Ok::<_, tonic::Status>((info.into_inner(), probe.ready != Some(false)))
    };
    match timeout(PATIENCE, asked).await {
        Err(_) => Bad(format!("{path} does not answer within {PATIENCE:?}"), cure),
        Ok(Err(status)) => Bad(
            format!("{path} does not answer: {}", status.message()),
            cure,
        ),
        Ok(Ok((info, _))) if info.name != config.driver_name => Bad(
            format!("{path} is the socket of {}", info.name),
            "two drivers have one socket, or --driver-name is another one",
        ),
        Ok(Ok((_, false))) => Weak(
            format!("{path} answers, and is not ready yet"),
            "it has not read the classes: can it reach the API server?",
        ),
        Ok(Ok((info, true))) => Good(format!(
            "{path} answers as {} {}",
            info.name, info.vendor_version
        )),
    }
}

/// Does the kubelet know the driver? Only to be seen on the node itself, not in the driver's container.
fn registration(config: &Config) -> Option<Finding> {
    let root = config.rules.pods.parent()?;
    let folder = root.join("plugins_registry");
    let name = format!("{}-reg.sock", config.driver_name);
    match (folder.is_dir(), folder.join(&name).exists()) {
        (false, _) => None,
        (true, true) => Some(Good(format!("{name} is registered with the kubelet"))),
        (true, false) => Some(Bad(
            format!("there is no {name} in {}", folder.display()),
            "the kubelet does not know the driver: look at the container node-driver-registrar",
        )),
    }
}

/// What the driver says of itself where it serves its metrics.
async fn driver(config: &Config) -> Vec<Finding> {
    let Some(mut address) = config.metrics else {
        return Vec::new();
    };
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let scrape = match timeout(PATIENCE, get(address, "/metrics")).await {
        Ok(Ok(scrape)) => scrape,
        _ => {
            let cure = "look at --metrics-addr, and at the driver's log";
            return vec![Weak(format!("no metrics are served at {address}"), cure)];
        }
    };
    let gauge = |name: &str| -> Option<f64> {
        let mut lines = scrape.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    let failing = gauge("coffer_cache_failing").unwrap_or_default();
    let oldest = gauge("coffer_oldest_look_seconds").unwrap_or_default();
    let panics = gauge("coffer_panics_total").unwrap_or_default();
    let mut findings = vec![match failing > 0.0 {
        false => Good("every secret in use could be read when it was last looked at".to_owned()),
        true => Weak(
            format!("{failing} secrets could not be read when they were last looked at"),
            "their pods keep what they have; their Events and the driver's log say why",
        ),
    }];
    if oldest > 7200.0 {
        findings.push(Weak(
            format!("a secret was not looked at for {oldest} s"),
            "it may have changed since: has its class such a long interval?",
        ));
    }
    if panics > 0.0 {
        findings.push(Weak(
            format!("the driver has failed inside {panics} times"),
            "please report what its log says",
        ));
    }
    findings
}

async fn get(address: std::net::SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: doctor\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(16 << 20).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Files in a tmpfs are charged to whoever wrote them: at the limit of the container the kernel kills it.
fn memory(budget: u64, cgroup: &Path) -> Option<Finding> {
    let files = ["memory.max", "memory/memory.limit_in_bytes"];
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).ok();
    let limit: u64 = files.into_iter().find_map(read)?.trim().parse().ok()?;
    let what = format!("the memory limit is {limit} bytes, the budget of the node {budget}");
    Some(match limit > budget.saturating_mul(2) {
        true => Good(what),
        false => Bad(
            what,
            "the kernel kills the driver before the budget is used up: the limit has to be more than twice as much",
        ),
    })
}

/// Can the store be reached at all? Nothing is sent.
async fn store(address: &str) -> Finding {
    let (scheme, rest) = address.split_once("://").unwrap_or(("https", address));
    let host = rest.split('/').next().unwrap_or_default();
    let with_port = match (host.rsplit_once(':'), scheme) {
        (Some((_, port)), _) if port.parse::<u16>().is_ok() => host.to_owned(),
        (_, "http") => format!("{host}:80"),
        _ => format!("{host}:443"),
    };
    let cure = "look at DNS, at firewalls and at NetworkPolicies of the driver";
    match timeout(PATIENCE, TcpStream::connect(&with_port)).await {
        Ok(Ok(_)) => Good(format!("{address} can be reached")),
        Ok(Err(error)) => Bad(format!("{address} cannot be reached: {error}"), cure),
        Err(_) => Bad(
            format!("{address} cannot be reached within {PATIENCE:?}"),
            cure,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_limit_below_what_the_volumes_may_take_is_bad() {
        let cgroup = tempfile::tempdir().expect("a folder");
        assert_eq!(memory(1, cgroup.path()), None, "there is none to be seen");
        for (file, limit, bad) in [
            ("memory.max", "max\n", None),
            ("memory.max", "200\n", Some(true)),
            ("memory.max", "201\n", Some(false)),
        ] {
            std::fs::write(cgroup.path().join(file), limit).expect("written");
            let found = memory(100, cgroup.path()).map(|found| matches!(found, Bad(..)));
            assert_eq!(found, bad, "{limit}");
        }
    }

    #[tokio::test]
    async fn a_store_is_tried_at_its_port() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let open = format!("http://127.0.0.1:{port}/v1");
        assert_eq!(store(&open).await, Good(format!("{open} can be reached")));
        drop(listener);
        assert!(matches!(store(&open).await, Bad(..)));
    }
}
