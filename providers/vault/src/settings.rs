//! What the administrator decides: where classes may send tokens, what they get when they say nothing,
//! and how much one answer may cost.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coffer_provider::SecretBytes;
use zeroize::Zeroizing;

use crate::address::Origin;
use crate::path::check_path;
use crate::tls;

/// Whose parameters and defaults are meant. The two servers are asked in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// `provider: vault`
    #[default]
    Vault,
    /// `provider: openbao`: each `vault…` parameter is also read as `bao…` and `openbao…`.
    OpenBao,
}

impl Flavour {
    /// The audience of tokens where neither the class nor the administrator names one.
    pub(crate) fn audience(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::OpenBao => "openbao",
        }
    }

    /// What may stand before the name of a parameter, the first that is there wins.
    pub(crate) fn prefixes(self) -> &'static [&'static str] {
        match self {
            Self::Vault => &["vault"],
            Self::OpenBao => &["bao", "openbao", "vault"],
        }
    }
}

/// The administrator's settings: no secrets, but files of them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose parameters are read.
    pub flavour: Flavour,
    /// The store of classes that name none (`https://vault.example:8200`). It is allowed by that.
    pub address: Option<String>,
    /// The namespace of classes that name none.
    pub namespace: Option<String>,
    /// The auth mount of classes that name none.
    pub auth_mount: String,
    /// The audience of classes that name none; the flavour's own when this is `None`.
    pub audience: Option<String>,
    /// Where the tokens of pods may go. Empty: to every https address but loopback, link-local ones
    /// and the node itself. Otherwise to these alone, wherever they lead and with http where they say so.
    pub allowed_addresses: Vec<String>,
    /// Namespaces that may be used, with all below them. Empty: every one.
    pub allowed_namespaces: Vec<String>,
    /// Mounts that may be read from, such as `secret` or `team-a/pki`. Empty: every one.
    pub allowed_mounts: Vec<String>,
    /// Whether a class may switch the verification of certificates off.
    pub allow_insecure_tls: bool,
    /// The CA of classes that name none; the machine's roots without it. All these files are PEM, and
    /// read once, at start.
    pub ca_file: Option<PathBuf>,
    /// What classes may name as their CA.
    pub ca_files: Vec<PathBuf>,
    /// Who the driver is to stores that ask it. Shown to the addresses that are named here and to no
    /// other: a class must not take it elsewhere.
    pub client_certificate: Option<ClientCertificate>,
    /// Addresses of this node that its interfaces do not show: the host's, seen from a pod.
    pub node_addresses: Vec<IpAddr>,
    /// A file with the key that vault-csi-provider keeps in the Secret `vault-csi-provider-hmac-key`, read
    /// once, at start: `objectVersion`s are made as there. Without it they are the store's own words where
    /// it has some, and otherwise hold for the life of the process.
    pub version_key_file: Option<PathBuf>,
    /// A file with a key of the cluster: where a store has no versions, the hash that stands for one is made with
    /// it, so that it is the same on every node and after a restart. Without it, the key is the process's own.
    pub cluster_key_file: Option<PathBuf>,
    /// Whether stores are asked to tell of changes (Vault Enterprise's events).
    pub events: bool,
    /// How much one answer may cost.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            flavour: Flavour::default(),
            address: None,
            namespace: None,
            auth_mount: "kubernetes".to_owned(),
            audience: None,
            allowed_addresses: Vec::new(),
            allowed_namespaces: Vec::new(),
            allowed_mounts: Vec::new(),
            allow_insecure_tls: false,
            ca_file: None,
            ca_files: Vec::new(),
            client_certificate: None,
            node_addresses: Vec::new(),
            version_key_file: None,
            cluster_key_file: None,
            events: false,
            limits: Limits::default(),
        }
    }
}

/// The files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and after it what leads to its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What one request may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an answer's body.
    pub body: usize,
    /// Redirects that are followed, within the store or to another address of the allow-list.
    pub redirects: usize,
    /// How long it may take until a TCP connection is there.
    pub connect: Duration,
    /// How long one attempt may take, from looking the name up to the last byte of the answer.
    pub attempt: Duration,
    /// Requests to one address at the same time.
    pub parallel: usize,
    /// Objects of one class.
    pub objects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 << 20,
            redirects: 1,
            connect: Duration::from_secs(3),
            attempt: Duration::from_secs(10),
            parallel: 16,
            objects: 256,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

/// The settings as they hold: addresses parsed, files read.
pub(crate) struct Rules {
    pub(crate) settings: Settings,
    pub(crate) address: Option<Origin>,
    pub(crate) allowed: Vec<Origin>,
    pub(crate) ca: Option<tls::Ca>,
    pub(crate) client: Option<Arc<tls::Client>>,
    /// What the files that classes may name hold; the CA of those that name none is one of them.
    pub(crate) ca_files: BTreeMap<PathBuf, tls::Ca>,
    pub(crate) version_key: Option<SecretBytes>,
    /// What hashes of contents are made with otherwise.
    pub(crate) cluster_key: Option<SecretBytes>,
}

impl Rules {
    pub(crate) fn new(settings: Settings) -> Result<Self, SettingsError> {
        let origin = |text: &String| {
            Origin::parse(text).map_err(|problem| SettingsError(format!("{text:?} {problem}")))
        };
        let address = settings.address.as_ref().map(origin).transpose()?;
        let allowed: Vec<_> = settings
            .allowed_addresses
            .iter()
            .map(origin)
            .collect::<Result<_, _>>()?;
        check_path(&settings.auth_mount).map_err(|problem| {
            SettingsError(format!(
                "the auth mount {:?} {problem}",
                settings.auth_mount
            ))
        })?;
        let ca = |path: &PathBuf| tls::Ca::from_pem(&read(path)?).map_err(|e| wrong(path, e));
        let ca_files = settings.ca_files.iter().chain(&settings.ca_file);
        let ca_files = ca_files.map(|path| Ok((path.clone(), ca(path)?)));
        let client = match &settings.client_certificate {
            None => None,
            Some(ClientCertificate { certificate, key }) => {
                let client = tls::Client::from_pem(&read(certificate)?, &read(key)?);
                Some(Arc::new(client.map_err(|e| wrong(certificate, e))?))
            }
        };
        let key = |path: &PathBuf| match read(path)? {
            key if key.is_empty() => Err(wrong(path, "must hold a key, and is empty")),
            key => Ok(SecretBytes::from(key)),
        };
        Ok(Self {
            version_key: settings.version_key_file.as_ref().map(key).transpose()?,
            cluster_key: settings.cluster_key_file.as_ref().map(key).transpose()?,
            ca: settings.ca_file.as_ref().map(ca).transpose()?,
            ca_files: ca_files.collect::<Result<_, _>>()?,
            client,
            settings,
            address,
            allowed,
        })
    }

    /// Whether the administrator named this address.
    pub(crate) fn names(&self, origin: &Origin) -> bool {
        self.allowed.contains(origin) || self.address.as_ref() == Some(origin)
    }
}

/// A file of the administrator's; there may be a key in it.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SettingsError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(error) => Err(wrong(path, &error.to_string())),
    }
}

fn wrong(path: &Path, problem: &str) -> SettingsError {
    SettingsError(format!("{}: {problem}", path.display()))
}
