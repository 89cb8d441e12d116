//! Provider plugins: other processes of the node, each behind a socket of its own, that speak
//! `v1alpha1.CSIDriverProvider`.
//!
//! The way of a read: `folders.rs` finds the socket and looks at whom it belongs to, `request.rs` says what the
//! plugin gets to see, `source.rs` calls it, `answer.rs` judges what comes back, `mask.rs` takes the pod's
//! secrets out of what the plugin says. A plugin is trusted with the one request that it is given, and with
//! nothing more.

mod answer;
mod folders;
mod mask;
mod request;
mod source;

pub use crate::answer::format_of;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coffer_provider::{
    Audiences, ErrorKind, NamedProvider, ObjectRef, Parameters, Provider, ProviderError, Providers,
    SecretFile, Source,
};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::folders::Folders;
use crate::source::{PluginSource, call_version};

/// Most bytes of one answer, if nothing else is said.
pub const ANSWER_BYTES: usize = 4 << 20;

/// Most files of one answer, if nothing else is said.
const FILES: usize = 256;

/// The longest name of a plugin.
const MAX_NAME: usize = 30;

/// What the administrator says of plugins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folders of their sockets; the first one that has a socket wins.
    pub folders: Vec<PathBuf>,
    /// The users, beside root, that may own a socket and its folder.
    pub uids: Vec<u32>,
    /// By the name of a plugin: the audiences of the tokens that it gets, instead of those that are known.
    pub audiences: BTreeMap<String, Vec<String>>,
    /// The plugins that are asked even where the driver has a provider of their name.
    pub preferred: Vec<String>,
    /// The plugins that may write files by themselves.
    pub legacy_writers: Vec<String>,
    /// Most bytes of one answer.
    pub answer_bytes: usize,
    /// Most files of one answer.
    pub files: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            folders: Vec::new(),
            uids: Vec::new(),
            audiences: BTreeMap::new(),
            preferred: Vec::new(),
            legacy_writers: Vec::new(),
            answer_bytes: ANSWER_BYTES,
            files: FILES,
        }
    }
}

/// Where a plugin that writes files by itself writes them: never into the volume, which is made of them once
/// they are all there.
#[async_trait]
pub trait Staging: Send + Sync {
    /// An empty place beside the target path, which plugins see. It goes with what comes back.
    ///
    /// # Errors
    /// When there can be none.
    async fn stage(&self, target_path: &str) -> Result<Box<dyn Stage>, ProviderError>;
}

/// Such a place.
#[async_trait]
pub trait Stage: Send + Sync {
    /// Its path, as plugins know it.
    fn path(&self) -> &str;

    /// Takes what was written there.
    ///
    /// # Errors
    /// For anything but regular files within the limits of a volume.
    async fn take(self: Box<Self>) -> Result<Vec<SecretFile>, ProviderError>;
}

/// The plugins of a node.
pub struct Plugins {
    settings: Settings,
    folders: Arc<Folders>,
    staging: Arc<dyn Staging>,
    known: Mutex<BTreeMap<&'static str, Arc<Plugin>>>,
}

/// One plugin, whether it is there at the moment or not.
pub(crate) struct Plugin {
    pub(crate) name: &'static str,
    pub(crate) folders: Arc<Folders>,
    pub(crate) answer_bytes: usize,
    pub(crate) files: usize,
    /// Where it may write by itself.
    pub(crate) legacy: Option<LegacyWriter>,
    /// The socket that was last asked which protocol it speaks.
    pub(crate) spoken_with: Mutex<Option<folders::SocketId>>,
    audiences: Option<Audiences>,
    /// When a class last named it.
    named: Mutex<Instant>,
}

impl Plugin {
    fn named(&self) -> MutexGuard<'_, Instant> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a plugin that writes by itself has for that.
pub(crate) struct LegacyWriter {
    pub(crate) staging: Arc<dyn Staging>,
    /// Each of its places takes memory of the node.
    pub(crate) places: Semaphore,
}

/// How long a plugin counts as waited for after a class has named it: the kubelet tries again for a pod every two
/// minutes at least.
const WAITED_FOR: Duration = Duration::from_secs(300);

/// How many places one plugin writes into at one time.
const PLACES: usize = 4;

impl Plugins {
    /// Plugins with these settings; their sockets may come later.
    #[must_use]
    pub fn new(settings: Settings, staging: Arc<dyn Staging>) -> Self {
        Self {
            folders: Arc::new(Folders::new(settings.folders.clone(), &settings.uids)),
            settings,
            staging,
            known: Mutex::default(),
        }
    }

    /// Asks every plugin in use whether it is there, and gives what each said. It is in use while there is a source
    /// of it, or pods wait for one: with the last of them it may go for good.
    pub async fn check(&self) -> Vec<(&'static str, Result<(), ProviderError>)> {
        // Whoever has it beside the map is a source of it, or is about to make one.
        let in_use = |plugin: &&Arc<Plugin>| {
            Arc::strong_count(plugin) > 1 || plugin.named().elapsed() < WAITED_FOR
        };
        let in_use: Vec<_> = self.known().values().filter(in_use).cloned().collect();
        join_all(in_use.iter().map(|plugin| async {
            let called = call_version(plugin).await;
            (plugin.name, called)
        }))
        .await
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<&'static str, Arc<Plugin>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meet(&self, name: &str) -> Arc<Plugin> {
        let audiences = self.settings.audiences.get(name).cloned();
        let audiences = audiences.map(Audiences::Listed);
        let is_legacy = self.settings.legacy_writers.iter().any(|one| one == name);
        // One for each socket that the node has ever had, and only root makes those.
        let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
        info!(provider = name, legacy_writes = is_legacy, "plugin found");
        if audiences.is_none() && known_audiences(name, &Parameters::new()).is_none() {
            warn!(
                provider = name,
                "it is not known which tokens this plugin needs: it gets those of all audiences; list its own with --plugin-audience {name}=AUDIENCE"
            );
        }
        Arc::new(Plugin {
            name,
            folders: self.folders.clone(),
            answer_bytes: self.settings.answer_bytes,
            files: self.settings.files,
            legacy: is_legacy.then(|| LegacyWriter {
                staging: self.staging.clone(),
                places: Semaphore::new(PLACES),
            }),
            spoken_with: Mutex::default(),
            audiences,
            named: Mutex::new(Instant::now()),
        })
    }
}

impl Providers for Plugins {
    fn find(&self, name: &str) -> Result<Option<NamedProvider>, ProviderError> {
        if !is_name(name) {
            return Err(ProviderError::new(
                ErrorKind::InvalidParameters,
                format!("must be 1 to {MAX_NAME} letters, digits, dashes and underscores"),
            ));
        }
        let mut known = self.known();
        let plugin = match known.get(name) {
            Some(plugin) => {
                *plugin.named() = Instant::now();
                plugin.clone()
            }
            None if !self.folders.have(name) => return Ok(None),
            None => {
                let plugin = self.meet(name);
                known.insert(plugin.name, plugin.clone());
                plugin
            }
        };
        Ok(Some((plugin.name, Arc::new(Met(plugin)))))
    }

    fn names(&self) -> Vec<String> {
        self.folders.names()
    }

    fn is_preferred(&self, name: &str) -> bool {
        self.settings.preferred.iter().any(|one| one == name)
    }
}

/// A plugin that a class has named.
struct Met(Arc<Plugin>);

impl Provider for Met {
    /// The parameters are the plugin's to check.
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let plugin = self.0.clone();
        let audiences = plugin.audiences.clone();
        let audiences = audiences
            .or_else(|| known_audiences(plugin.name, parameters))
            .unwrap_or(Audiences::All);
        let parameters = request::own(parameters);
        let object = ObjectRef {
            name: String::new(),
            request: serde_json::to_string(&parameters).expect("strings can be JSON"),
        };
        Ok(Arc::new(PluginSource::new(
            plugin, audiences, parameters, object,
        )))
    }
}

fn is_name(name: &str) -> bool {
    let part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(part)
}

/// Which tokens the plugins that everybody knows ask for (D4).
fn known_audiences(name: &str, parameters: &Parameters) -> Option<Audiences> {
    let listed: Vec<String> = match name {
        "azure" => vec![
            "api://AzureADTokenExchange".into(),
            "api://AKSIdentityBinding".into(),
        ],
        // The workload identity pool of a project, or of a fleet.
        "gcp" => vec!["*.svc.id.goog".into(), "*.workload.id.goog".into()],
        "aws" => vec!["sts.amazonaws.com".into(), "pods.eks.amazonaws.com".into()],
        "vault" | "openbao" => {
            let own = parameters.get("audience").filter(|own| !own.is_empty());
            vec![own.cloned().unwrap_or_else(|| name.to_owned())]
        }
        _ => return None,
    };
    Some(Audiences::Listed(listed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    struct Nowhere;

    #[async_trait]
    impl Staging for Nowhere {
        async fn stage(&self, _: &str) -> Result<Box<dyn Stage>, ProviderError> {
            unreachable!("nothing is read")
        }
    }

    /// A folder for the socket of the plugin `mock`, and the plugins of that folder.
    fn of_this_user() -> (tempfile::TempDir, Plugins) {
        let folder = tempfile::tempdir().expect("a folder");
        let owner = std::fs::metadata(folder.path()).expect("it is there").uid();
        let settings = Settings {
            folders: vec![folder.path().to_owned()],
            uids: vec![owner],
            ..Settings::default()
        };
        (folder, Plugins::new(settings, Arc::new(Nowhere)))
    }

    fn source(plugins: &Plugins) -> Arc<dyn Source> {
        let found = plugins.find("mock").expect("a good name");
        let (_, provider) = found.expect("there is a socket");
        provider.source(&Parameters::new()).expect("any parameters")
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_is_asked_while_it_has_a_source_or_pods_wait_for_it() {
        let (folder, plugins) = of_this_user();
        std::fs::write(folder.path().join("mock.sock"), "").expect("written");
        let asked = async || plugins.check().await.len();
        assert_eq!(asked().await, 0);
        let volume = source(&plugins);
        tokio::time::advance(WAITED_FOR * 10).await;
        assert_eq!(asked().await, 1, "a volume uses it");
        drop(volume);
        assert_eq!(asked().await, 0, "it may go");
        drop(source(&plugins));
        tokio::time::advance(Duration::from_secs(122)).await;
        assert_eq!(asked().await, 1, "a pod waits for it");
        tokio::time::advance(WAITED_FOR).await;
        assert_eq!(asked().await, 0, "no more");
    }

    #[tokio::test(start_paused = true)]
    async fn rule_g3_a_plugin_that_takes_a_connection_and_is_silent_holds_up_no_health_check() {
        for accepts in [true, false] {
            let (folder, plugins) = of_this_user();
            let socket = folder.path().join("mock.sock");
            let listener = tokio::net::UnixListener::bind(socket).expect("bound");
            if accepts {
                tokio::spawn(async move {
                    let mut silent = Vec::new();
                    while let Ok(peer) = listener.accept().await {
                        silent.push(peer);
                    }
                });
            }
            let _volume = source(&plugins);
            let start = Instant::now();
            let [(_, checked)] = plugins.check().await.try_into().expect("one");
            let error = checked.expect_err("it says nothing");
            assert!(start.elapsed() <= Duration::from_secs(8), "{error}");
        }
    }

    #[test]
    fn rule_g2_a_name_that_no_plugin_can_have_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = Settings {
            folders: vec![folder.path().join("missing"), folder.path().to_owned()],
            ..Settings::default()
        };
        let plugins = Plugins::new(settings, Arc::new(Nowhere));
        for bad in ["", "a.b", "../a", "a/b", "a b", "ü", "a\n", &"a".repeat(31)] {
            let refused = plugins.find(bad).err().expect(bad);
            assert_eq!(refused.kind(), ErrorKind::InvalidParameters, "{bad:?}");
        }
        for good in ["gcp", "A-b_9", &"a".repeat(30)] {
            assert!(plugins.find(good).expect(good).is_none(), "{good}");
            std::fs::write(folder.path().join(format!("{good}.sock")), "").expect("written");
            assert!(plugins.find(good).expect(good).is_some(), "{good}");
        }
        assert_eq!(plugins.names().len(), 3);
        std::fs::remove_file(folder.path().join("gcp.sock")).expect("removed");
        let away = plugins.find("gcp").expect("good").is_some();
        assert!(away, "one that is away for a moment is still a provider");
    }

    #[test]
    fn rule_d4_a_known_plugin_gets_the_tokens_of_its_own_cloud() {
        let of = |name: &str, audience: &str| {
            let parameters = Parameters::from([("audience".into(), audience.into())]);
            known_audiences(name, &parameters)
        };
        for (name, audience, admitted) in [
            ("azure", "", "api://AzureADTokenExchange"),
            ("gcp", "", "shop.svc.id.goog"),
            ("aws", "", "pods.eks.amazonaws.com"),
            ("vault", "", "vault"),
            ("vault", "bank", "bank"),
            ("openbao", "", "openbao"),
            ("aws", "vault", "sts.amazonaws.com"),
        ] {
            let audiences = of(name, audience).expect(name);
            assert!(audiences.admit(admitted), "{name}");
            assert!(!audiences.admit("another"), "{name}");
            assert!(!audiences.admit(""), "{name}");
        }
        assert!(!of("vault", "bank").expect("known").admit("vault"));
        assert!(!of("aws", "vault").expect("known").admit("vault"));
        assert_eq!(of("akeyless", ""), None);
    }
}
