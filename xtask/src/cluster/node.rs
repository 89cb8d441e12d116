//! The node: containerd and the kubelet, in namespaces that are all of the machine they can change.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::cgroup;
use super::daemon::Daemon;
use super::enclosure::Enclosure;
use super::parts::Parts;
use super::remains::Remains;
use super::state::{Address, State};

/// Folders in which the programs write under names that cannot be configured, such as
/// `/var/lib/kubelet/device-plugins` and `/run/containerd/s`: inside, a layer of our own lies over them.
const WRITTEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// What the kubelet sets on its machine. Inside, a file lies over each, and the machine keeps its own.
const SYSCTLS: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// The running node.
pub(crate) struct Node {
    enclosure: Enclosure,
    containerd: Daemon,
    kubelet: Option<Daemon>,
}

impl Node {
    /// Starts containerd, and leaves the kubelet for [`Self::start_kubelet`].
    pub(crate) fn start(parts: &Parts, state: &State, remains: &Remains) -> Result<Self> {
        let mut list = remains.list()?;
        list.control_group(state.name())?;
        cgroup::create(state.name())?;
        write_containerd_config(state)?;
        write_pod_network(parts, state)?;

        let enclosure = Enclosure::open("node-namespaces", &mounts(state)?, state)?;
        list.process(enclosure.first())?;
        drop(list);
        let containerd = Daemon::start(
            &enclosure,
            state,
            "containerd",
            &parts.containerd(),
            |command| {
                command
                    .arg("--config")
                    .arg(state.file("containerd.toml"))
                    .env("PATH", parts.path());
            },
        )?;
        Ok(Self {
            enclosure,
            containerd,
            kubelet: None,
        })
    }

    pub(crate) fn start_kubelet(
        &mut self,
        parts: &Parts,
        state: &State,
        address: Address,
    ) -> Result<()> {
        write_kubelet_config(state, address)?;
        let program = parts.kubernetes("kubelet");
        let kubelet = Daemon::start(&self.enclosure, state, "kubelet", &program, |command| {
            command.arg("--config").arg(state.file("kubelet.yaml"));
            command
                .arg("--kubeconfig")
                .arg(state.file("kubelet.kubeconfig"));
            command.arg("--root-dir").arg(state.kubelet_root());
            command.arg("--cert-dir").arg(state.file("pki"));
            // Of a name that is an address, the kubelet takes the address too, and this way only it accepts
            // one of the loopback.
            command.arg(format!("--hostname-override={}", address.ip()));
            command.arg("--v=2").env("PATH", parts.path());
        })?;
        self.kubelet = Some(kubelet);
        Ok(())
    }

    pub(crate) fn has_kubelet(&self) -> bool {
        self.kubelet.is_some()
    }

    /// Stops the kubelet; containers run on. Without one running, nothing happens.
    pub(crate) fn stop_kubelet(&mut self) -> Result<()> {
        self.kubelet
            .take()
            .map_or(Ok(()), |kubelet| kubelet.stop(&self.enclosure))
    }

    /// Ends the node as a power cut does: no process is asked, no volume unmounted, and what a machine holds in
    /// memory is gone. The disk stays: images, the kubelet's folders, and those of the pods' volumes.
    pub(crate) fn cut_power(self, state: &State) -> Result<()> {
        self.enclosure.close()?;
        self.containerd.bury()?;
        if let Some(kubelet) = self.kubelet {
            kubelet.bury()?;
        }
        cgroup::remove(state.name())?;
        for gone in ["layers/run", "containerd-state"] {
            fs::remove_dir_all(state.file(gone))?;
        }
        Ok(())
    }

    /// Fails if a program that should run is over.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.containerd.check()?;
        self.kubelet.as_mut().map_or(Ok(()), Daemon::check)
    }

    pub(crate) fn enclosure(&mut self) -> &mut Enclosure {
        &mut self.enclosure
    }

    /// Collects the programs after their processes were ended.
    pub(crate) fn bury(self) -> Result<()> {
        self.enclosure.close()?;
        self.containerd.bury()?;
        self.kubelet.map_or(Ok(()), Daemon::bury)
    }
}

/// What is answered at a port that speaks plain HTTP.
pub(crate) fn ask(address: Address, port: u16, path: &str) -> Result<String> {
    let mut connection = TcpStream::connect((address.ip(), port))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(connection, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of headers")?;
    Ok(body.to_owned())
}

/// The shell commands that make the machine's file tree into the node's.
fn mounts(state: &State) -> Result<String> {
    // Shared among the node and its containers, for Bidirectional propagation; nothing of it leaves the node.
    let mut script = String::from("mount --make-rshared /\n");
    for folder in WRITTEN {
        let layer = state
            .file("layers")
            .join(folder.trim_start_matches('/').replace('/', "-"));
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        script += &format!(
            "mount -t overlay overlay -o lowerdir={folder},upperdir={},workdir={} {folder}\n",
            upper.display(),
            work.display()
        );
    }
    for sysctl in SYSCTLS {
        let real = Path::new("/proc/sys").join(sysctl);
        // A kernel may be built without one; then the kubelet does not find it either.
        let Ok(value) = fs::read(&real) else { continue };
        let stand_in = state.file("sysctls").join(sysctl);
        fs::create_dir_all(stand_in.parent().context("a sysctl has a group")?)?;
        fs::write(&stand_in, value)?;
        script += &format!("mount --bind {} {}\n", stand_in.display(), real.display());
    }
    Ok(script)
}

fn write_containerd_config(state: &State) -> Result<()> {
    let config = format!(
        r#"version = 2
root = "{root}/containerd"
state = "{root}/containerd-state"
# Only the runtime interface is needed, and these look at file systems and programs of the machine.
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
stream_server_address = "127.0.0.1"
disable_apparmor = true
# A root without CAP_SYS_RESOURCE may not lower a process's score below its own.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{root}/cni/net.d"
bin_dir = "{root}/cni/bin"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        root = state.root().display(),
        socket = state.containerd_socket().display(),
        pause = super::image::PAUSE,
    );
    fs::write(state.file("containerd.toml"), config)?;
    Ok(())
}

/// A pod without hostNetwork gets a loopback device and an address that leads nowhere: enough for pods that only
/// read files, and for the node to be Ready. A network between pods would change the machine's own.
fn write_pod_network(parts: &Parts, state: &State) -> Result<()> {
    const PLUGIN: &str = r#"#!/bin/sh
set -e
case "$CNI_COMMAND" in
ADD)
    nsenter --net="$CNI_NETNS" BUSYBOX ip link set lo up
    # Made of the container's id, so that no two pods are likely to have the same.
    id=$(printf %s "$CNI_CONTAINERID" | cksum | cut -d' ' -f1)
    address=10.244.$((id / 250 % 250 + 1)).$((id % 250 + 1))
    echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "'"$CNI_IFNAME"'", "sandbox": "'"$CNI_NETNS"'"}],'
    echo ' "ips": [{"version": "4", "interface": 0, "address": "'"$address"'/16"}]}'
    ;;
VERSION)
    echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}'
    ;;
esac
"#;
    // containerd always calls `loopback` too.
    for name in ["loopback", "none"] {
        let plugin = state.file("cni/bin").join(name);
        fs::write(
            &plugin,
            PLUGIN.replace("BUSYBOX", &parts.busybox().display().to_string()),
        )?;
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
    }
    let network = r#"{"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "none"}]}"#;
    fs::write(state.file("cni/net.d/none.conflist"), network)?;
    Ok(())
}

fn write_kubelet_config(state: &State, address: Address) -> Result<()> {
    if !Path::new("/dev/kmsg").exists() {
        bail!("there is no /dev/kmsg on this machine, and the kubelet does not start without");
    }
    let config = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
port: {port}
# Only this machine reaches the address.
readOnlyPort: {read_only_port}
healthzPort: 0
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
containerRuntimeEndpoint: unix://{socket}
cgroupDriver: cgroupfs
cgroupRoot: /{group}
# The node runs where version 1 is all there is, and where there is swap.
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
# Nobody answers there, but without one an event on each pod complains.
clusterDNS: ["{address}"]
volumePluginDir: {root}/volume-plugins
# A republish every 5 to 7.5 seconds instead of every 60 to 90.
syncFrequency: 5s
# Stories look for lines of the driver, and `kubectl logs` reads the last file alone.
containerLogMaxSize: 200Mi
# A nearly full disk of a developer is no reason to evict.
evictionHard: {{memory.available: 50Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}}
imageGCHighThresholdPercent: 100
"#,
        address = address.ip(),
        port = Address::KUBELET,
        read_only_port = Address::KUBELET_READ_ONLY,
        socket = state.containerd_socket().display(),
        group = state.name(),
        root = state.root().display(),
    );
    fs::write(state.file("kubelet.yaml"), config)?;
    Ok(())
}
