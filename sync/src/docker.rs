//! Credentials for registries: `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`.
//! The API server looks no further than whether it is a JSON object; the kubelet passes over what it
//! cannot use.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::SecretBytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{Data, ObjectError};

const CONFIG_JSON: &str = ".dockerconfigjson";
const CONFIG: &str = ".dockercfg";
const PARTS: [&str; 3] = ["registry", "username", "password"];

/// The file of a store as it is, or one made of a registry, a name and a password.
pub(crate) fn config_json(mut given: Data, registry: Option<&str>) -> Result<Data, ObjectError> {
    if let Some(file) = given.get(CONFIG_JSON) {
        if let Some(part) = PARTS.iter().find(|part| given.contains_key(**part)) {
            let problem = format!("cannot stand beside {CONFIG_JSON}, which has it already");
            return Err(ObjectError::new(*part, problem));
        }
        if registry.is_some() {
            let problem =
                format!("cannot stand beside the key {CONFIG_JSON}, which has it already");
            return Err(ObjectError::new("registry", problem));
        }
        check_config_json(file).map_err(|problem| ObjectError::new(CONFIG_JSON, problem))?;
        return Ok(given);
    }
    let mut part = |name: &str| given.remove(name);
    let [from_file, username, password] = PARTS.map(&mut part);
    if let Some(other) = given.keys().next() {
        let problem = format!(
            "kubernetes.io/dockerconfigjson has the key {CONFIG_JSON}, or is made of the keys registry, username and password"
        );
        return Err(ObjectError::new(other, problem));
    }
    let registry = match (registry, &from_file) {
        (Some(_), Some(_)) => {
            let problem = "is there twice: as a field and as a key";
            return Err(ObjectError::new("registry", problem));
        }
        (Some(registry), None) => registry,
        (None, from_file) => text("registry", from_file.as_ref())?,
    };
    check_registry(registry).map_err(|problem| ObjectError::new("registry", problem))?;
    let username = text("username", username.as_ref())?;
    if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
        let problem = "must be a name without a colon and without line breaks";
        return Err(ObjectError::new("username", problem));
    }
    let password = text("password", password.as_ref())?;
    let file = written(registry, username, password);
    Ok(Data::from([(CONFIG_JSON.to_owned(), file)]))
}

pub(crate) fn config(given: Data) -> Result<Data, ObjectError> {
    let Some(file) = given.get(CONFIG) else {
        let problem = "is missing: kubernetes.io/dockercfg has that key";
        return Err(ObjectError::new(CONFIG, problem));
    };
    check_config(file).map_err(|problem| ObjectError::new(CONFIG, problem))?;
    Ok(given)
}

/// A host, with a port and a path where there are any.
pub(crate) fn check_registry(registry: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:/[]".contains(c);
    match !registry.is_empty() && registry.len() <= 255 && registry.chars().all(allowed) {
        true => Ok(()),
        false => Err("must be a registry as in registry.example.com:5000"),
    }
}

fn text<'a>(key: &str, value: Option<&'a SecretBytes>) -> Result<&'a str, ObjectError> {
    let value = value.ok_or_else(|| {
        let problem = format!(
            "is missing: kubernetes.io/dockerconfigjson has the key {CONFIG_JSON}, or is made of registry, username and password"
        );
        ObjectError::new(key, problem)
    })?;
    std::str::from_utf8(value.expose()).map_err(|_| ObjectError::new(key, "is not text"))
}

#[derive(Serialize)]
struct Written<'a> {
    auths: BTreeMap<&'a str, WrittenAuth<'a>>,
}

#[derive(Serialize)]
struct WrittenAuth<'a> {
    username: &'a str,
    password: &'a str,
    auth: &'a str,
}

fn written(registry: &str, username: &str, password: &str) -> SecretBytes {
    let both = Zeroizing::new(format!("{username}:{password}"));
    let auth = Zeroizing::new(STANDARD.encode(both.as_bytes()));
    let credentials = WrittenAuth {
        username,
        password,
        auth: &auth,
    };
    let auths = BTreeMap::from([(registry, credentials)]);
    SecretBytes::new(serde_json::to_vec(&Written { auths }).expect("plain text"))
}

#[derive(Deserialize)]
struct Config {
    auths: Option<BTreeMap<String, Auth>>,
}

/// What of an entry is credentials; the rest is its own affair.
#[derive(Deserialize)]
struct Auth {
    auth: Option<SecretText>,
    username: Option<SecretText>,
    password: Option<SecretText>,
}

/// Text that is wiped when dropped.
struct SecretText(Zeroizing<String>);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(Zeroizing::new(text)))
    }
}

fn check_config_json(file: &SecretBytes) -> Result<(), &'static str> {
    serde_json::from_slice::<Map<String, Value>>(file.expose())
        .map_err(|_| "is not a JSON object")?;
    let config: Config = serde_json::from_slice(file.expose()).map_err(
        |_| "auths must be an object of registries, each with auth or username and password",
    )?;
    check_auths(config.auths.iter().flatten())
}

fn check_config(file: &SecretBytes) -> Result<(), &'static str> {
    let auths: BTreeMap<String, Auth> = serde_json::from_slice(file.expose()).map_err(
        |_| "is not a JSON object of registries, each with auth or username and password",
    )?;
    check_auths(auths.iter())
}

fn check_auths<'a>(
    mut auths: impl Iterator<Item = (&'a String, &'a Auth)>,
) -> Result<(), &'static str> {
    auths.try_for_each(|(_, auth)| check_auth(auth))
}

fn check_auth(auth: &Auth) -> Result<(), &'static str> {
    let Some(encoded) = auth.auth.as_ref().filter(|auth| !auth.0.is_empty()) else {
        // An entry without credentials names a registry that some helper has them for.
        return match (&auth.username, &auth.password) {
            (Some(_), None) => Err("a registry has a username and no password"),
            (None, Some(_)) => Err("a registry has a password and no username"),
            _ => Ok(()),
        };
    };
    let decoded = STANDARD.decode(encoded.0.as_bytes()).map(Zeroizing::new);
    let decoded = decoded.map_err(|_| "the auth of a registry is not base64")?;
    let text = std::str::from_utf8(&decoded).map_err(|_| "the auth of a registry is not text")?;
    match text.split_once(':') {
        Some((username, _)) if !username.is_empty() => Ok(()),
        _ => Err("the auth of a registry must be a name, a colon and a password in base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> Data {
        let pairs = pairs.iter();
        pairs
            .map(|(key, text)| {
                let bytes = SecretBytes::new(text.as_bytes().to_vec());
                ((*key).to_owned(), bytes)
            })
            .collect()
    }

    #[test]
    fn registry_name_and_password_become_a_file() {
        let parts = [("username", "bob"), ("password", "p:\"ä\n")];
        let from_field = config_json(data(&parts), Some("r.test:5000/x")).expect("good");
        let mut all = parts.to_vec();
        all.push(("registry", "r.test:5000/x"));
        let from_key = config_json(data(&all), None).expect("good");
        let expected = format!(
            r#"{{"auths":{{"r.test:5000/x":{{"username":"bob","password":"p:\"ä\n","auth":"{}"}}}}}}"#,
            STANDARD.encode("bob:p:\"ä\n")
        );
        for made in [from_field, from_key] {
            assert_eq!(made.len(), 1);
            assert_eq!(made[CONFIG_JSON].expose(), expected.as_bytes());
            assert!(config_json(made, None).is_ok(), "what is made can be read");
        }
    }

    #[test]
    fn a_file_that_is_one_is_taken_as_it_is() {
        for good in [
            r#"{"auths":{"r.test":{"auth":"Ym9iOnB3"}}}"#,
            r#"{"auths":{"https://index.docker.io/v1/":{"username":"bob","password":"pw","email":"x"}}}"#,
            r#"{"auths":{"r.test":{}},"credsStore":"x","HttpHeaders":{"a":"b"}}"#,
            r#"{"auths":{"r.test":{"auth":"Ym9iOg=="}}}"#,
            r#"{"auths":{}}"#,
            "{}",
            " {\n}\n",
        ] {
            let made = config_json(data(&[(CONFIG_JSON, good), ("more", "x")]), None);
            let made = made.map_err(|error| error.to_string()).expect(good);
            assert_eq!(made[CONFIG_JSON].expose(), good.as_bytes());
        }
        let old = r#"{"r.test":{"auth":"Ym9iOnB3"},"s.test":{"username":"a","password":"b"}}"#;
        assert!(config(data(&[(CONFIG, old)])).is_ok());
    }

    #[test]
    fn a_file_that_no_kubelet_could_use_is_refused_without_a_word_of_it() {
        for bad in [
            "",
            "hunter2",
            "[]",
            "\"hunter2\"",
            r#"{"auths":[]}"#,
            r#"{"auths":{"r.test":"hunter2"}}"#,
            r#"{"auths":{"r.test":{"auth":5}}}"#,
            r#"{"auths":{"r.test":{"auth":"hunter2!"}}}"#,
            r#"{"auths":{"r.test":{"auth":"aHVudGVyMg=="}}}"#,
            r#"{"auths":{"r.test":{"auth":"Omh1bnRlcjI="}}}"#,
            r#"{"auths":{"r.test":{"username":"hunter2"}}}"#,
            r#"{"auths":{"r.test":{"password":"hunter2"}}}"#,
            r#"{"auths":{}} hunter2"#,
        ] {
            let error = config_json(data(&[(CONFIG_JSON, bad)]), None)
                .err()
                .expect(bad);
            assert_eq!(error.field(), CONFIG_JSON);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        for bad in ["", "[]", r#"{"auths":5}"#, r#"{"r.test":{"auth":"="}}"#] {
            let error = config(data(&[(CONFIG, bad)])).err().expect(bad);
            assert_eq!(error.field(), CONFIG);
        }
        assert!(config(data(&[(CONFIG_JSON, "{}")])).is_err());
    }

    #[test]
    fn parts_that_do_not_fit_together_are_named() {
        let good = [("username", "bob"), ("password", "pw")];
        let with = |more: &[(&'static str, &'static str)]| data(&[&good[..], more].concat());
        for (given, registry, field) in [
            (with(&[]), None, "registry"),
            (with(&[("registry", "r.test\n")]), None, "registry"),
            (with(&[("registry", "r.test")]), Some("r.test"), "registry"),
            (data(&good[..1]), Some("r.test"), "password"),
            (data(&good[1..]), Some("r.test"), "username"),
            (with(&[("email", "x")]), Some("r.test"), "email"),
            (with(&[(CONFIG_JSON, "{}")]), None, "username"),
            (data(&[(CONFIG_JSON, "{}")]), Some("r.test"), "registry"),
            (
                data(&[("username", "a:b"), ("password", "")]),
                Some("r.test"),
                "username",
            ),
            (
                data(&[("username", "a\n"), ("password", "")]),
                Some("r.test"),
                "username",
            ),
            (
                data(&[("username", ""), ("password", "")]),
                Some("r.test"),
                "username",
            ),
        ] {
            let error = config_json(given, registry).err().expect(field);
            assert_eq!(error.field(), field, "{error}");
        }
        let binary = Data::from([
            ("username".to_owned(), SecretBytes::new(b"bob".to_vec())),
            ("password".to_owned(), SecretBytes::new(vec![0xff])),
        ]);
        let error = config_json(binary, Some("r.test")).err().expect("not text");
        assert_eq!(error.to_string(), "password: is not text");
    }
}
