//! One Secret that a class wants, checked; and its data, made from files.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use coffer_provider::SecretBytes;

use crate::spec::{SecretObjectDataSpec, SecretObjectSpec, Split};
use crate::{Data, Files, MAX_BYTES, ObjectError, basic_auth, bootstrap, docker, split, ssh, tls};

pub(crate) const DOCKER_CONFIG_JSON: &str = "kubernetes.io/dockerconfigjson";
const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";

/// Most keys of one Secret: far above what a pod can use, and far below what hurts.
const MAX_KEYS: usize = 1024;

/// A Secret that a class wants, as far as the class alone can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretObject {
    /// Its name in the Namespace of the pod (K1): a DNS subdomain.
    pub name: String,
    /// Its type.
    pub kind: SecretType,
    /// Labels of the class's own.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the class's own.
    pub annotations: BTreeMap<String, String>,
    /// Whether the API server is to refuse changes of it.
    pub immutable: bool,
    registry: Option<String>,
    content: Content,
}

/// The type of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretType {
    /// Any keys.
    Opaque,
    /// A certificate with its chain and its key.
    Tls,
    /// A private key for SSH.
    SshAuth,
    /// A name and a password.
    BasicAuth,
    /// Credentials for registries, in the file's newer format.
    DockerConfigJson,
    /// Credentials for registries, in the file's older format.
    DockerConfig,
    /// What a node joins a cluster with.
    BootstrapToken,
    /// Any keys, under somebody's own name.
    Custom(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    AllFiles,
    Keys(Vec<(String, Take)>),
}

/// What a file gives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Take {
    Key(String),
    Members(Split),
}

impl SecretType {
    /// The type as Kubernetes writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Opaque => "Opaque",
            Self::Tls => "kubernetes.io/tls",
            Self::SshAuth => "kubernetes.io/ssh-auth",
            Self::BasicAuth => "kubernetes.io/basic-auth",
            Self::DockerConfigJson => DOCKER_CONFIG_JSON,
            Self::DockerConfig => "kubernetes.io/dockercfg",
            Self::BootstrapToken => "bootstrap.kubernetes.io/token",
            Self::Custom(name) => name,
        }
    }

    fn read(text: &str) -> Result<Self, String> {
        let known = [
            Self::Opaque,
            Self::Tls,
            Self::SshAuth,
            Self::BasicAuth,
            Self::DockerConfigJson,
            Self::DockerConfig,
            Self::BootstrapToken,
        ];
        if text.is_empty() {
            return Ok(Self::Opaque);
        }
        if let Some(known) = known.into_iter().find(|known| known.as_str() == text) {
            return Ok(known);
        }
        if text == SERVICE_ACCOUNT_TOKEN {
            let problem = "a token for the API server is not made from a store: give the pod a serviceAccountToken volume, or let the cluster fill a Secret of this type";
            return Err(problem.to_owned());
        }
        // Kubernetes gives these meanings: a typing error, or one that this driver knows nothing of.
        let domain = text.split_once('/').map_or("", |(domain, _)| domain);
        let reserved = ["kubernetes.io", "k8s.io"].iter().any(|theirs| {
            domain == *theirs
                || domain
                    .strip_suffix(theirs)
                    .is_some_and(|d| d.ends_with('.'))
        });
        match reserved {
            true => Err("is not a type of Kubernetes that can be made from files".to_owned()),
            false => Ok(Self::Custom(text.to_owned())),
        }
    }
}

impl fmt::Display for SecretType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl SecretObject {
    /// Checks what a class wants, all of it. Spaces around names do not matter.
    ///
    /// # Errors
    /// The first field that is wrong, with its path below the Secret.
    pub fn new(spec: &SecretObjectSpec) -> Result<Self, ObjectError> {
        spec.check_ours()?;
        let name = trimmed(spec.secret_name.as_ref());
        check_name(name).map_err(|problem| ObjectError::new("secretName", problem))?;
        let kind = SecretType::read(trimmed(spec.kind.as_ref()));
        let kind = kind.map_err(|problem| ObjectError::new("type", problem))?;
        Ok(Self {
            name: name.to_owned(),
            kind,
            labels: spec.labels.clone().unwrap_or_default(),
            annotations: spec.annotations.clone().unwrap_or_default(),
            immutable: spec.immutable,
            registry: spec.registry.clone(),
            content: content(spec)?,
        })
    }

    /// What is wrong where a class wants two Secrets of this name.
    #[must_use]
    pub fn is_there_twice(&self) -> ObjectError {
        ObjectError::new("secretName", "is the name of another one of the class")
    }

    /// The data of the Secret in `namespace`, with what these files hold at `now`.
    ///
    /// # Errors
    /// What is not as the type wants it, with the key or the file. No value is in it.
    pub fn contents(
        &self,
        namespace: &str,
        files: &Files,
        now: SystemTime,
    ) -> Result<Data, ObjectError> {
        let given = self.gather(files)?;
        let data = match &self.kind {
            SecretType::Opaque | SecretType::Custom(_) => given,
            SecretType::Tls => tls::contents(given, now)?,
            SecretType::SshAuth => ssh::contents(given)?,
            SecretType::BasicAuth => basic_auth::contents(given)?,
            SecretType::DockerConfigJson => docker::config_json(given, self.registry.as_deref())?,
            SecretType::DockerConfig => docker::config(given)?,
            SecretType::BootstrapToken => bootstrap::contents(namespace, &self.name, given)?,
        };
        let size: usize = data.values().map(SecretBytes::len).sum();
        if size > MAX_BYTES {
            let problem = format!("its values would have {size} bytes, {MAX_BYTES} are allowed");
            return Err(ObjectError::new("data", problem));
        }
        Ok(data)
    }

    fn gather(&self, files: &Files) -> Result<Data, ObjectError> {
        let mut data = Data::new();
        let mut put = |field: &str, key: String, bytes: SecretBytes| {
            if data.len() == MAX_KEYS {
                let problem = format!("the Secret would have more than {MAX_KEYS} keys");
                return Err(ObjectError::new(field, problem));
            }
            match data.insert(key, bytes) {
                None => Ok(()),
                Some(_) => Err(ObjectError::new(field, "gives a key that is there already")),
            }
        };
        match &self.content {
            Content::AllFiles => {
                for (path, bytes) in files {
                    let key = path.replace('/', ".");
                    check_key(&key).map_err(|problem| {
                        ObjectError::new(format!("allFiles: {path:?}"), problem)
                    })?;
                    put("allFiles", key, bytes.clone())?;
                }
            }
            Content::Keys(keys) => {
                for (index, (file, take)) in keys.iter().enumerate() {
                    let field = format!("data[{index}]");
                    let bytes = files.get(file).ok_or_else(|| {
                        let problem = format!("the volume has no file {file:?}");
                        ObjectError::new(format!("{field}.objectName"), problem)
                    })?;
                    match take {
                        Take::Key(key) => put(&field, key.clone(), bytes.clone())?,
                        Take::Members(split) => {
                            let members = split::members(*split, bytes, MAX_KEYS);
                            let members =
                                members.map_err(|problem| ObjectError::new(&*field, problem))?;
                            for (key, bytes) in members {
                                check_key(&key).map_err(|_| {
                                    ObjectError::new(&*field, "a member's name cannot be a key: keys have letters, digits, -, _ and . alone")
                                })?;
                                put(&field, key, bytes)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(data)
    }
}

fn content(spec: &SecretObjectSpec) -> Result<Content, ObjectError> {
    if spec.all_files {
        return Ok(Content::AllFiles);
    }
    let data = spec.data.as_deref().unwrap_or_default();
    if data.is_empty() {
        return Err(ObjectError::new("data", "is missing"));
    }
    let entries = data.iter().enumerate().map(|(index, entry)| {
        take(entry).map_err(|error| error.within(&format!("data[{index}].")))
    });
    Ok(Content::Keys(entries.collect::<Result<_, _>>()?))
}

fn take(entry: &SecretObjectDataSpec) -> Result<(String, Take), ObjectError> {
    let file = trimmed(entry.object_name.as_ref());
    if file.is_empty() {
        return Err(ObjectError::new("objectName", "is missing"));
    }
    let take = match entry.split {
        Some(split) => Take::Members(split),
        None => {
            let key = trimmed(entry.key.as_ref());
            check_key(key).map_err(|problem| ObjectError::new("key", problem))?;
            Take::Key(key.to_owned())
        }
    };
    Ok((file.to_owned(), take))
}

fn trimmed(text: Option<&String>) -> &str {
    text.map_or("", |text| text.trim())
}

/// A DNS subdomain (RFC 1123), as the API server has it.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is missing");
    }
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name.len() <= 253 && name.split('.').all(label) {
        true => Ok(()),
        false => Err("must be a name of small letters, digits, - and ., of 253 characters at most"),
    }
}

fn check_key(key: &str) -> Result<(), &'static str> {
    if key.is_empty() {
        return Err("is missing");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match key.len() <= 253 && key.bytes().all(allowed) && key != "." && !key.starts_with("..") {
        true => Ok(()),
        false => Err(
            "must have letters, digits, -, _ and . alone, 253 of them at most, and not begin with ..",
        ),
    }
}

#[cfg(test)]
mod tests;
