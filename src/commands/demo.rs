//! `coffer demo`: the whole life of a volume on this machine, without a cluster.
//!
//! The real driver runs in this process, in a mount namespace of its own; the kubelet is played. Every
//! step is checked, and the first one that does not hold ends the demo with an error.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use coffer_provider::{Pod, ServiceAccount};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Level;

use crate::config::{Config, LogFormat};
use crate::fake_kubelet::{FakeKubelet, PodVolume};
use crate::payload::Limits;
use crate::tokens::TokenSource;
use crate::volume::TargetRules;
use crate::{class_folder, driver, privileges, telemetry};

/// What `examples/` holds, so that the demo runs from the binary alone.
const CLASS: &str = include_str!("../../examples/shop/class.yaml");
const SECRETS: [(&str, &str); 4] = [
    (
        "db.json",
        include_str!("../../examples/shop/secrets/shop/db.json"),
    ),
    (
        "api-token",
        include_str!("../../examples/shop/secrets/shop/api-token"),
    ),
    (
        "tls/tls.crt",
        include_str!("../../examples/shop/secrets/shop/tls/tls.crt"),
    ),
    (
        "tls/tls.key",
        include_str!("../../examples/shop/secrets/shop/tls/tls.key"),
    ),
];

/// The flags of `coffer demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Shows the driver's log, too
    #[arg(long)]
    pub log: bool,
}

/// How long a step may take before the demo says that it does not hold.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the demo.
///
/// # Errors
/// The first step that does not hold.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    enter_namespace()?;
    let folder = tempfile::Builder::new()
        .prefix("coffer-demo-")
        .tempdir()
        .context("cannot make a folder for the demo")?;
    privileges::shed(privileges::PluginSockets::OfRoot)?;
    let level = if args.log { Level::DEBUG } else { Level::ERROR };
    telemetry::start_logging(LogFormat::Text, level);
    let runtime = super::runtime()?;
    runtime.block_on(Demo::new(folder.path())?.play())
}

/// A mount namespace of our own: what the demo mounts, nobody else sees. An ordinary user needs a user
/// namespace for that, in which they are root.
fn enter_namespace() -> anyhow::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).context(
            "cannot make a user namespace: run the demo as root, or allow user namespaces \
             (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)",
        )?;
        for (file, map) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {uid} 1")),
            ("gid_map", format!("0 {gid} 1")),
        ] {
            let path = Path::new("/proc/self").join(file);
            fs::write(&path, map).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .context("cannot make the mount namespace private")
}

struct Demo {
    secrets: PathBuf,
    classes: PathBuf,
    config: Config,
    kubelet: FakeKubelet,
    volume: PodVolume,
    target: PathBuf,
}

impl Demo {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let (root, socket) = (folder.join("kubelet"), folder.join("plugin/csi.sock"));
        let (secrets, classes) = (folder.join("secrets"), folder.join("classes"));
        for (name, content) in SECRETS {
            write(&secrets.join("shop").join(name), content)?;
        }
        write(&classes.join("shop.yaml"), CLASS)?;
        fs::create_dir_all(root.join("pods"))?;
        let volume = PodVolume::of_class(
            Pod {
                name: "shop".into(),
                namespace: "shop".into(),
                uid: "0f2c1d52-7b1e-4a53-9a0e-6d1f0c5f7e11".into(),
                service_account: ServiceAccount {
                    name: "default".into(),
                    uid: None,
                },
            },
            "shop",
        );
        let kubelet = FakeKubelet::new(&root, &socket);
        Ok(Self {
            target: kubelet.target(&volume),
            config: Config {
                socket,
                node_id: "demo".into(),
                driver_name: "secrets-store.csi.k8s.io".into(),
                rules: TargetRules {
                    pods: root.join("pods"),
                    conformance_root: None,
                },
                token_source: TokenSource::Secrets,
                limits: Limits::default(),
                bounds: Default::default(),
                cache: Default::default(),
                classes: Some(classes.clone()),
                kubeconfig: None,
                remove_startup_taint: false,
                file_root: Some(secrets.clone()),
                vault: Default::default(),
                #[cfg(feature = "aws")]
                aws: Default::default(),
                plugins: Default::default(),
                sync: Default::default(),
                metrics: None,
            },
            secrets,
            classes,
            kubelet,
            volume,
        })
    }

    async fn play(self) -> anyhow::Result<()> {
        let catalog = driver::catalog(
            Some(&self.secrets),
            &self.config.vault,
            &self.config.limits,
            self.config.bounds.store,
        )?;
        let classes = class_folder::follow(&self.classes)?;
        let stop = CancellationToken::new();
        let driver = driver::run_with(self.config.clone(), catalog, classes, stop.clone());
        let mut driver = tokio::spawn(driver);
        say("The driver is started, with the example class and its secrets from files.")?;
        tokio::select! {
            ended = &mut driver => {
                ended??;
                bail!("the driver stopped by itself");
            }
            lived = self.life_of_a_volume() => lived?,
        }
        stop.cancel();
        driver.await??;
        say("\nThe driver is stopped. All of it held.")
    }

    async fn life_of_a_volume(&self) -> anyhow::Result<()> {
        self.driver_answers().await?;

        say("\nA pod starts: the kubelet publishes its volume.")?;
        self.publish().await?;
        self.show(&fs::read_link(self.target.join("..data"))?)?;
        self.holds("db/password", "correct-horse", 0o400)?;
        self.holds("db/username", "shop", 0o444)?;
        self.holds("tls/tls.key", SECRETS[3].1, 0o400)?;
        let mount = device(&self.target)?;
        ensure!(
            mount != device(&self.kubelet_folder()?)?,
            "the volume is not a mount of its own"
        );

        say("\nThe secret changes in its store: db.json has a new password.")?;
        let before = fs::read_link(self.target.join("..data"))?;
        let changed = SECRETS[0].1.replace("correct-horse", "battery-staple");
        replace(&self.secrets.join("shop/db.json"), &changed)?;
        let after = self.rotated(&before).await?;
        self.show(&after)?;
        self.holds("db/password", "battery-staple", 0o400)?;
        ensure!(
            device(&self.target)? == mount,
            "the rotation mounted the volume anew"
        );

        say(
            "\nThe kubelet repeats its publish, as it does about once a minute: nothing is touched.",
        )?;
        self.publish().await?;
        ensure!(
            device(&self.target)? == mount,
            "the republish mounted the volume anew"
        );
        ensure!(
            fs::read_link(self.target.join("..data"))? == after,
            "the republish wrote the volume"
        );

        say("\nA class that cannot be is refused, with the field that is wrong:")?;
        self.refused(
            "items: [{object: db.json, path: ../escape}]",
            "spec.items[0].path",
        )
        .await?;

        say("\nThe pod ends: the kubelet unpublishes its volume.")?;
        self.kubelet
            .unpublish(&self.volume)
            .await
            .context("unpublish failed")?;
        ensure!(!self.target.exists(), "the target path is still there");
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let target = self.target.to_string_lossy();
        ensure!(!mounts.contains(&*target), "the volume is still mounted");
        say("  nothing is left of it")
    }

    async fn driver_answers(&self) -> anyhow::Result<()> {
        let patience = Instant::now() + PATIENCE;
        while self.kubelet.node().await.is_err() {
            ensure!(
                Instant::now() < patience,
                "the driver does not answer on its socket"
            );
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn publish(&self) -> anyhow::Result<()> {
        self.kubelet
            .publish(&self.volume)
            .await
            .context("publish failed")
    }

    async fn rotated(&self, before: &Path) -> anyhow::Result<PathBuf> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let now = fs::read_link(self.target.join("..data"))?;
            if now != before {
                return Ok(now);
            }
            ensure!(
                Instant::now() < patience,
                "the change did not reach the volume"
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Publishes a volume of a broken class, which has to fail and leave the good one alone.
    async fn refused(&self, broken: &str, field: &str) -> anyhow::Result<()> {
        let class = format!(
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
             metadata: {{name: broken, namespace: shop}}\nspec:\n  provider: file\n  {broken}\n"
        );
        write(&self.classes.join("broken.yaml"), &class)?;
        let mut volume = PodVolume::of_class(self.volume.pod.clone(), "broken");
        volume.name = "broken".into();
        let patience = Instant::now() + PATIENCE;
        loop {
            let Err(status) = self.kubelet.publish(&volume).await else {
                bail!("a class with a mistake was published");
            };
            if status.message().contains(field) {
                say(&format!("  {}", status.message()))?;
                break;
            }
            ensure!(
                Instant::now() < patience,
                "the error does not name {field}: {}",
                status.message()
            );
            sleep(Duration::from_millis(10)).await;
        }
        ensure!(
            !self.kubelet.target(&volume).exists(),
            "the refused volume left something behind"
        );
        self.holds("db/password", "battery-staple", 0o400)
    }

    fn kubelet_folder(&self) -> anyhow::Result<PathBuf> {
        Ok(self
            .target
            .parent()
            .context("a target has a parent")?
            .to_owned())
    }

    fn holds(&self, path: &str, content: &str, mode: u32) -> anyhow::Result<()> {
        let file = self.target.join(path);
        let found = fs::read_to_string(&file).with_context(|| format!("{path} cannot be read"))?;
        ensure!(
            found == content,
            "{path} does not have the content that the store has"
        );
        let found = fs::metadata(&file)?.permissions().mode() & 0o7777;
        ensure!(
            found == mode,
            "{path} has mode {found:04o} and not {mode:04o}"
        );
        Ok(())
    }

    /// The files of the present generation, with modes and masked values.
    fn show(&self, generation: &Path) -> anyhow::Result<()> {
        say(&format!("  {}", self.target.display()))?;
        say(&format!("  ..data -> {}", generation.display()))?;
        let mut folders = vec![self.target.join(generation)];
        let mut lines = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let found = fs::metadata(&path)?;
                let name = path
                    .strip_prefix(self.target.join(generation))?
                    .display()
                    .to_string();
                let mode = found.permissions().mode() & 0o7777;
                lines.push(format!(
                    "  {name:<14} {mode:04o}  {:>3} bytes  ********",
                    found.len()
                ));
            }
        }
        lines.sort();
        lines.iter().try_for_each(|line| say(line))
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// As an editor that is careful does it: no reader sees half a file.
fn replace(path: &Path, content: &str) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    write(&beside, content)?;
    Ok(fs::rename(beside, path)?)
}

fn device(path: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)?.dev())
}
