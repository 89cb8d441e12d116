//! The `parameters` of a class: whom to ask as whom, and for what. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use coffer_provider::{IdentifiedBy, Parameters, ProviderError, clean_text};

use crate::address::Origin;
use crate::object::{Entry, Object};
use crate::path::check_path;
use crate::settings::Rules;
use crate::tls::{Ca, Tls};

/// What one class asks for, checked.
pub(crate) struct Class {
    pub(crate) origin: Origin,
    pub(crate) tls: Tls,
    pub(crate) role: String,
    /// `auth/<this>/login`
    pub(crate) auth_mount: String,
    /// Empty for the root namespace, as the next one.
    pub(crate) auth_namespace: String,
    pub(crate) namespace: String,
    pub(crate) audience: String,
    /// Each request logs in by itself (OpenBao).
    pub(crate) inline_auth: bool,
    pub(crate) objects: Vec<Object>,
}

impl Class {
    pub(crate) fn parse(parameters: &Parameters, rules: &Rules) -> Result<Self, ProviderError> {
        let fields = Fields {
            parameters,
            prefixes: rules.settings.flavour.prefixes(),
        };
        let role = fields.role()?;
        let origin = fields.origin(rules)?;
        let namespace = fields.namespace("Namespace", fields.get("Namespace"), rules)?;
        let auth_namespace = match fields.given("AuthNamespace") {
            // Not vault-csi-provider's: an empty one is the root namespace.
            found @ Some(_) => fields.namespace("AuthNamespace", found, rules)?,
            None => namespace.clone(),
        };
        Ok(Self {
            tls: fields.tls(rules, &origin)?,
            auth_mount: fields.auth_mount(rules)?,
            audience: fields.audience(rules)?,
            inline_auth: fields.flag("InlineAuth")?.is_some_and(|(_, inline)| inline),
            objects: objects(parameters, rules)?,
            origin,
            role,
            auth_namespace,
            namespace,
        })
    }

    /// All that makes another login of a login, but for the pod's ServiceAccount.
    pub(crate) fn identified_by(&self) -> IdentifiedBy {
        IdentifiedBy::Token {
            audience: self.audience.clone(),
            store: format!(
                "{}{}{} namespace={} auth={}",
                self.origin,
                self.tls.fingerprint(),
                if self.inline_auth { " inline" } else { "" },
                self.auth_namespace,
                self.auth_mount,
            ),
            role: self.role.clone(),
        }
    }
}

struct Fields<'a> {
    parameters: &'a Parameters,
    prefixes: &'static [&'static str],
}

impl<'a> Fields<'a> {
    /// The parameter that ends in `suffix`, and its whole name. An empty one is as one that is not there.
    fn get(&self, suffix: &str) -> Option<(String, &'a str)> {
        self.all(suffix).find(|(_, value)| !value.is_empty())
    }

    /// The same, where it makes a difference that it is there.
    fn given(&self, suffix: &str) -> Option<(String, &'a str)> {
        self.all(suffix).next()
    }

    fn all(&self, suffix: &str) -> impl Iterator<Item = (String, &'a str)> {
        self.prefixes.iter().filter_map(move |prefix| {
            let name = format!("{prefix}{suffix}");
            let value = self.parameters.get(&name)?;
            Some((name, value.as_str()))
        })
    }

    /// A parameter that is yes or no, in the spellings of Go.
    fn flag(&self, suffix: &str) -> Result<Option<(String, bool)>, ProviderError> {
        let Some((name, text)) = self.given(suffix) else {
            return Ok(None);
        };
        match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Some((name, true))),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Some((name, false))),
            _ => Err(wrong(&name, "must be true or false")),
        }
    }

    fn role(&self) -> Result<String, ProviderError> {
        // Only the fork for OpenBao has a name with a prefix.
        let prefixed = (self.prefixes.len() > 1).then(|| self.get("RoleName"));
        let (name, role) = match prefixed.flatten() {
            Some(found) => found,
            None => {
                let role = self.parameters.get("roleName");
                let role = role.ok_or_else(|| wrong("roleName", "is missing"))?;
                ("roleName".to_owned(), role.as_str())
            }
        };
        if role.is_empty() || role.len() > 512 || clean_text(role, usize::MAX) != role {
            let problem = "must be the name of a role: at most 512 bytes, no control characters";
            return Err(wrong(&name, problem));
        }
        Ok(role.to_owned())
    }

    fn origin(&self, rules: &Rules) -> Result<Origin, ProviderError> {
        let Some((name, text)) = self.get("Address") else {
            return rules.address.clone().ok_or_else(|| {
                let problem = "is missing, and the administrator has set no default (--vault-addr)";
                wrong(&format!("{}Address", self.prefixes[0]), problem)
            });
        };
        let origin = Origin::parse(text).map_err(|problem| wrong(&name, problem))?;
        if rules.names(&origin) {
            return Ok(origin);
        }
        let problem = if !rules.allowed.is_empty() {
            "is not one of the addresses that the administrator allows (--vault-address)".to_owned()
        } else if !origin.is_https() {
            "must start with https://, unless the administrator allows the address (--vault-address)"
                .to_owned()
        } else if let Some(what) = origin
            .ip()
            .and_then(|ip| crate::address::refused(ip, &rules.settings.node_addresses))
        {
            format!("is {what}, and the administrator has not allowed it (--vault-address)")
        } else {
            return Ok(origin);
        };
        Err(wrong(&name, &problem))
    }

    fn namespace(
        &self,
        suffix: &str,
        found: Option<(String, &str)>,
        rules: &Rules,
    ) -> Result<String, ProviderError> {
        let (name, text) = found.unwrap_or_else(|| {
            let default = rules.settings.namespace.as_deref();
            (
                format!("{}{suffix}", self.prefixes[0]),
                default.unwrap_or_default(),
            )
        });
        let namespace = text.trim_matches('/');
        if !namespace.is_empty() {
            check_path(namespace).map_err(|problem| wrong(&name, problem))?;
            // It travels in a header.
            if !namespace.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong(&name, "must be printable ASCII without spaces"));
            }
        }
        let allowed = &rules.settings.allowed_namespaces;
        if !allowed.is_empty() && !allowed.iter().any(|above| lies_in(namespace, above)) {
            let problem = "is not one of the namespaces that the administrator allows (--vault-allowed-namespace)";
            return Err(wrong(&name, problem));
        }
        Ok(namespace.to_owned())
    }

    fn auth_mount(&self, rules: &Rules) -> Result<String, ProviderError> {
        let names = ["AuthMountPath", "KubernetesMountPath"];
        if let [Some((name, _)), Some((older, _))] = names.map(|suffix| self.given(suffix)) {
            return Err(wrong(&name, &format!("cannot stand beside {older}")));
        }
        let Some((name, mount)) = names.iter().find_map(|suffix| self.get(suffix)) else {
            return Ok(rules.settings.auth_mount.clone());
        };
        let mount = mount.trim_matches('/');
        check_path(mount).map_err(|problem| wrong(&name, problem))?;
        Ok(mount.to_owned())
    }

    fn audience(&self, rules: &Rules) -> Result<String, ProviderError> {
        let audience = match self.parameters.get("audience").map(String::as_str) {
            None | Some("") => match &rules.settings.audience {
                Some(audience) => audience,
                None => rules.settings.flavour.audience(),
            },
            Some(audience) => audience,
        };
        if clean_text(audience, 512) != audience {
            let problem = "must be at most 512 bytes without control characters";
            return Err(wrong("audience", problem));
        }
        Ok(audience.to_owned())
    }

    fn tls(&self, rules: &Rules, origin: &Origin) -> Result<Tls, ProviderError> {
        // To open a file of the node on behalf of a class tells whether it is there, and a client
        // certificate lends the driver's name to the class. What the administrator uses anyway may
        // be named, as classes for vault-csi-provider do.
        let client = rules.settings.client_certificate.as_ref();
        for (suffix, known) in [
            ("CADirectory", None),
            (
                "TLSClientCertPath",
                client.map(|client| &client.certificate),
            ),
            ("TLSClientKeyPath", client.map(|client| &client.key)),
        ] {
            if let Some((name, path)) = self.get(suffix)
                && known.is_none_or(|known| known != Path::new(path))
            {
                let problem = format!(
                    "names files of the node that are not the administrator's (--vault-tls-client-cert); a CA can be given as text in {}CACert",
                    self.prefixes[0]
                );
                return Err(wrong(&name, &problem));
            }
        }
        let ca = match (self.get("CACert"), self.get("CACertPath")) {
            (Some((name, _)), Some((path, _))) => {
                return Err(wrong(&name, &format!("cannot stand beside {path}")));
            }
            (Some((name, pem)), None) => {
                Some(Ca::from_pem(pem.as_bytes()).map_err(|problem| wrong(&name, problem))?)
            }
            (None, Some((name, path))) => {
                let ca = rules.ca_files.get(Path::new(path)).ok_or_else(|| {
                    let problem = format!(
                        "is not one of the files that the administrator lets classes use (--vault-ca-file); give the CA as text in {}CACert",
                        self.prefixes[0]
                    );
                    wrong(&name, &problem)
                })?;
                Some(ca.clone())
            }
            (None, None) => rules.ca.clone(),
        };
        let server_name = match self.get("TLSServerName") {
            None => None,
            Some((name, text)) => {
                rustls::pki_types::ServerName::try_from(text)
                    .map_err(|_| wrong(&name, "must be the name in a certificate"))?;
                Some(text.to_owned())
            }
        };
        let insecure = match self.flag("SkipTLSVerify")? {
            Some((name, true)) if !rules.settings.allow_insecure_tls => {
                let problem =
                    "cannot be true unless the administrator allows it (--allow-insecure-tls)";
                return Err(wrong(&name, problem));
            }
            flag => flag.is_some_and(|(_, insecure)| insecure),
        };
        Ok(Tls {
            ca,
            server_name,
            insecure,
            client: rules.client.clone().filter(|_| rules.names(origin)),
        })
    }
}

fn wrong(name: &str, problem: &str) -> ProviderError {
    ProviderError::parameter(format!("parameters.{name}"), problem)
}

/// Whether `path` is `above` or lies below it.
fn lies_in(path: &str, above: &str) -> bool {
    match path.strip_prefix(above.trim_matches('/')) {
        Some(rest) => {
            rest.is_empty() || rest.starts_with('/') || above.trim_matches('/').is_empty()
        }
        None => false,
    }
}

const OBJECTS: &str = "parameters.objects";

fn objects(parameters: &Parameters, rules: &Rules) -> Result<Vec<Object>, ProviderError> {
    let text = parameters.get("objects").map(String::as_str);
    let entries = match text {
        None => return Err(ProviderError::parameter(OBJECTS, "is missing")),
        Some(text) => entries(text)?,
    };
    let limit = rules.settings.limits.objects;
    if entries.is_empty() || entries.len() > limit {
        let problem = format!("must be a list with 1 to {limit} entries");
        return Err(ProviderError::parameter(OBJECTS, problem));
    }
    let mut objects = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let field = format!("{OBJECTS}[{index}]");
        let object = entry.check(&field)?;
        let allowed = &rules.settings.allowed_mounts;
        let path = &object.request.path;
        if !allowed.is_empty() && !allowed.iter().any(|mount| lies_in(path, mount)) {
            let problem = "is not in a mount that the administrator allows (--vault-allowed-mount)";
            return Err(ProviderError::parameter(field + ".secretPath", problem));
        }
        objects.push(object);
    }
    names_fit_beside_each_other(&objects)?;
    Ok(objects)
}

fn entries(text: &str) -> Result<Vec<Entry>, ProviderError> {
    let options = serde_saphyr::options! {
        // `filePermission: 0600`, as in every example there is.
        legacy_octal_numbers: true,
        // A page of aliases must not grow to a million entries.
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        // Below its first line the parser's error draws a piece of the text.
        let error = error
            .without_snippet()
            .render_with_formatter(&serde_saphyr::UserMessageFormatter);
        let first_line = error.lines().next().unwrap_or("is not YAML");
        ProviderError::parameter(OBJECTS, first_line)
    })
}

/// Two objects must not want the same place in a volume, nor one a file where another wants a folder.
fn names_fit_beside_each_other(objects: &[Object]) -> Result<(), ProviderError> {
    let mut places = BTreeMap::new();
    for (index, object) in objects.iter().enumerate() {
        if let Some(first) = places.insert(object.name.as_str(), index) {
            let problem = format!("{:?} is also the name of objects[{first}]", object.name);
            return Err(ProviderError::parameter(
                format!("{OBJECTS}[{index}].objectName"),
                problem,
            ));
        }
    }
    for (index, object) in objects.iter().enumerate() {
        for (slash, _) in object.name.match_indices('/') {
            if let Some(above) = places.get(&object.name[..slash]) {
                let problem = format!("lies below the name of objects[{above}]");
                return Err(ProviderError::parameter(
                    format!("{OBJECTS}[{index}].objectName"),
                    problem,
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ClientCertificate, Settings};

    #[test]
    fn rule_p12_the_drivers_certificate_is_for_named_addresses_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let pair = rcgen::generate_simple_self_signed(["driver".to_owned()]).expect("a pair");
        let files = ClientCertificate {
            certificate: folder.path().join("certificate"),
            key: folder.path().join("key"),
        };
        std::fs::write(&files.certificate, pair.cert.pem()).expect("a file");
        std::fs::write(&files.key, pair.signing_key.serialize_pem()).expect("a file");
        let rules = Rules::new(Settings {
            address: Some("https://vault.example".to_owned()),
            client_certificate: Some(files),
            ..Settings::default()
        });
        let rules = rules.expect("good settings");
        for (address, shown) in [
            ("https://vault.example", true),
            ("https://other.example", false),
        ] {
            let class = Parameters::from(
                [
                    ("roleName", "app"),
                    ("vaultAddress", address),
                    ("objects", "- {objectName: a, secretPath: b}"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
            let class = Class::parse(&class, &rules).expect("a good class");
            assert_eq!(class.tls.client.is_some(), shown, "{address}");
        }
    }
}
