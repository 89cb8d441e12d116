//! What becomes of an answer: files, and how long they are good. Pure but for the clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coffer_provider::{
    ErrorKind, Format, Lease, Life, ProviderError, Secret, SecretFile, Sharing, Version,
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::answer::{self, Object as Json};
use crate::error::unreadable;
use crate::lease::{LeaseHandle, Unclaimed};
use crate::object::{Key, Object, Request, Selection};
use crate::path::check_name;
use crate::ssh;
use crate::tls::hex;
use crate::token::StoreToken;
use crate::version::{VersionKey, kv_version};

/// One answer of the store, with what is known about where it came from.
pub(crate) struct Answer {
    pub(crate) body: Zeroizing<Vec<u8>>,
    pub(crate) request: Request,
    /// The answer of a KV v2 mount.
    pub(crate) versioned: bool,
    /// The key that was made for the certificate in it.
    pub(crate) private_key: Option<Zeroizing<String>>,
    /// What it was given to: a lease in it ends with that.
    pub(crate) token: Arc<StoreToken>,
    /// The lease that came with it, for as long as nobody has it.
    pub(crate) unclaimed: Option<Unclaimed>,
}

pub(crate) fn lease_id(envelope: &Json<'_>) -> Option<Zeroizing<String>> {
    envelope.text("lease_id").filter(|id| !id.is_empty())
}

/// Where the key of a certificate is, be it the store's or the node's.
const PRIVATE_KEY: &str = "private_key";

/// Takes an object out of the answer to its request.
pub(crate) fn secret(
    object: &Object,
    answer: &Answer,
    key: &VersionKey,
) -> Result<Secret, ProviderError> {
    let envelope = Json::parse(&answer.body).ok_or_else(|| {
        unreadable(
            &answer.request.path,
            "the store's answer is not a JSON object",
        )
    })?;
    let data = envelope
        .object("data")
        .ok_or_else(|| unreadable(&answer.request.path, "the store's answer has no data"))?;
    let reader = Reader {
        object,
        answer,
        envelope: &envelope,
        data: &data,
        // The values themselves: one level deeper in KV v2.
        values: match answer.versioned {
            true => data.object("data").ok_or_else(|| {
                unreadable(&answer.request.path, "the store's answer has no values")
            })?,
            false => data.clone(),
        },
    };
    let files = reader.files()?;
    let (life, sharing) = reader.life();
    let version = match reader.version() {
        Some(version) if !key.configured => version,
        _ => key.of(object, &files),
    };
    Ok(Secret {
        files,
        version: Version::new(version)?,
        life,
        sharing,
    })
}

struct Reader<'a> {
    object: &'a Object,
    answer: &'a Answer,
    envelope: &'a Json<'a>,
    data: &'a Json<'a>,
    values: Json<'a>,
}

impl Reader<'_> {
    fn files(&self) -> Result<Vec<SecretFile>, ProviderError> {
        match &self.object.selection {
            Selection::Value(Key::Name(name)) if name == PRIVATE_KEY => {
                let key = into_bytes(self.private_key()?);
                Ok(vec![self.file(self.object.name.clone(), self.decode(key)?)])
            }
            Selection::Value(key) => {
                let value = self.value(key)?;
                let bytes = answer::bytes(value).ok_or_else(|| self.wrong("is not sound JSON"))?;
                Ok(vec![
                    self.file(self.object.name.clone(), self.decode(bytes)?),
                ])
            }
            Selection::Response => Ok(vec![self.file(self.object.name.clone(), self.response()?)]),
            Selection::Data => {
                let mut out = Zeroizing::new(String::with_capacity(self.answer.body.len() * 2));
                let pushed = answer::push_object(&mut out, &self.values);
                pushed.ok_or_else(|| self.wrong("is not sound JSON"))?;
                Ok(vec![self.file(self.object.name.clone(), into_bytes(out))])
            }
            Selection::Files => self.every_value(),
            Selection::Tls => self.certificate(),
            Selection::Bundle => {
                let mut bundle = Zeroizing::new(Vec::with_capacity(self.answer.body.len() + 4096));
                push_pem(&mut bundle, self.is_pem(&self.private_key()?)?);
                self.push_chain(&mut bundle)?;
                Ok(vec![self.file(self.object.name.clone(), bundle)])
            }
        }
    }

    fn value(&self, key: &Key) -> Result<&RawValue, ProviderError> {
        let (found, key) = match key {
            Key::Name(name) => (self.values.get(name), name),
            Key::Pointer(pointer) => (answer::pointed_at(&self.values, pointer), pointer),
        };
        found.ok_or_else(|| self.missing(key))
    }

    fn every_value(&self) -> Result<Vec<SecretFile>, ProviderError> {
        if self.values.is_empty() {
            let problem = format!("{}: it has no keys", self.answer.request.path);
            return Err(ProviderError::new(ErrorKind::NotFound, problem));
        }
        let mut files = Vec::new();
        for name in self.values.names() {
            // Null is a key without a value, not a file without content.
            let Some(value) = self.values.get(name) else {
                continue;
            };
            let path = self.path_of(name);
            if name.is_empty() || check_name(&path).is_err() {
                return Err(self.wrong("has a key that cannot be the name of a file"));
            }
            let bytes = answer::bytes(value).ok_or_else(|| self.wrong("is not sound JSON"))?;
            files.push(self.file(path, self.decode(bytes)?));
        }
        if let Some(made) = &self.answer.private_key {
            files.push(self.file(self.path_of(PRIVATE_KEY), into_bytes(made.clone())));
        }
        Ok(files)
    }

    fn certificate(&self) -> Result<Vec<SecretFile>, ProviderError> {
        let mut chain = Zeroizing::new(Vec::with_capacity(self.answer.body.len()));
        self.push_chain(&mut chain)?;
        let mut key = Zeroizing::new(Vec::with_capacity(4096));
        push_pem(&mut key, self.is_pem(&self.private_key()?)?);
        let mut ca = Zeroizing::new(Vec::with_capacity(self.answer.body.len()));
        push_pem(&mut ca, &self.pem("issuing_ca")?);
        Ok([("tls.crt", chain), ("tls.key", key), ("ca.crt", ca)]
            .map(|(name, bytes)| self.file(self.path_of(name), bytes))
            .into())
    }

    /// The certificate, and after it the ones that lead to the root, as servers send them.
    fn push_chain(&self, out: &mut Zeroizing<Vec<u8>>) -> Result<(), ProviderError> {
        push_pem(out, &self.pem("certificate")?);
        for above in self.data.texts("ca_chain") {
            push_pem(out, &above);
        }
        Ok(())
    }

    fn private_key(&self) -> Result<Zeroizing<String>, ProviderError> {
        match &self.answer.private_key {
            Some(made) => Ok(made.clone()),
            None => self
                .data
                .text(PRIVATE_KEY)
                .ok_or_else(|| self.missing(PRIVATE_KEY)),
        }
    }

    fn pem(&self, name: &str) -> Result<Zeroizing<String>, ProviderError> {
        let text = self.data.text(name).ok_or_else(|| self.missing(name))?;
        if text.contains("PRIVATE KEY") {
            // It would end up in a file that others may read.
            return Err(self.wrong("is a bundle: leave `format` out of secretArgs"));
        }
        self.is_pem(&text)?;
        Ok(text)
    }

    fn is_pem<'a>(&self, text: &'a str) -> Result<&'a str, ProviderError> {
        match text.trim_start().starts_with("-----BEGIN ") {
            true => Ok(text),
            false => Err(self.wrong("is not PEM: leave `format` out of secretArgs")),
        }
    }

    /// The answer in the order of Go's client, without the number of the request: that is another one
    /// each time, and every pod would see a change that is none.
    fn response(&self) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let mut out = Zeroizing::new(String::with_capacity(self.answer.body.len() * 2 + 4096));
        let mut separator = '{';
        for (name, otherwise) in [
            ("request_id", Some("\"\"")),
            ("lease_id", Some("\"\"")),
            ("lease_duration", Some("0")),
            ("renewable", Some("false")),
            ("data", Some("null")),
            ("warnings", Some("null")),
            ("auth", None),
            ("wrap_info", None),
            ("mount_type", None),
        ] {
            let value = match name {
                "request_id" => None,
                name => self.envelope.get(name),
            };
            if value.is_none() && otherwise.is_none() {
                continue;
            }
            out.push(separator);
            separator = ',';
            out.push('"');
            out.push_str(name);
            out.push_str("\":");
            match value {
                Some(value) => {
                    answer::push(&mut out, value).ok_or_else(|| self.wrong("is not sound JSON"))?;
                }
                None => out.push_str(otherwise.unwrap_or_default()),
            }
        }
        out.push('}');
        Ok(into_bytes(out))
    }

    /// The store's own version, where it changes whenever the files do.
    fn version(&self) -> Option<String> {
        let whole = self.object.selection == Selection::Response;
        let metadata = self
            .data
            .object("metadata")
            .filter(|_| self.answer.versioned);
        if let Some(metadata) = metadata {
            // Around the values stands what may be edited without a new version.
            let created = metadata.text("created_time").filter(|_| !whole)?;
            return Some(kv_version(metadata.number("version")?, &created));
        }
        if let Some(lease) = lease_id(self.envelope) {
            // Who knows a lease can end it, so it is not shown; it is long and random.
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, lease.as_bytes());
            return Some(hex(&digest.as_ref()[..16]));
        }
        if self.is_certificate() {
            return self
                .data
                .text("serial_number")
                .map(|serial| serial.to_string());
        }
        // The `ttl` beside it counts down: that is no other secret.
        self.rotates()?;
        let rotated = self.data.text("last_vault_rotation")?;
        Some(format!("rotated {}", *rotated))
    }

    /// How long until the store changes the password of a static role.
    fn rotates(&self) -> Option<Duration> {
        let mut names = ["rotation_period", "rotation_schedule"].iter();
        names.find(|name| self.data.get(name).is_some())?;
        self.data.seconds("ttl")
    }

    /// How long it is good, and for whom: what was made for one pod is not another's.
    fn life(&self) -> (Life, Sharing) {
        let lease = self.envelope.seconds("lease_duration").unwrap_or_default();
        if let Some(id) = lease_id(self.envelope) {
            let handle = LeaseHandle {
                token: self.answer.token.serial,
                asked: lease,
                id,
            };
            let duration = match self.answer.token.remaining() {
                // The token takes its leases with it, also those that have no end of their own.
                Some(token) if lease.is_zero() => token,
                Some(token) => token.min(lease),
                None => lease,
            };
            let leased = Life::Leased {
                lease: Lease::new(handle.to_text()),
                duration,
                renewable: self.envelope.is_true("renewable"),
            };
            return (leased, Sharing::Pod);
        }
        if self.is_certificate() {
            let end = self.data.seconds("expiration").unwrap_or_default();
            return (Life::Expires(until(end)), Sharing::Pod);
        }
        if let Some(left) = self.rotates() {
            return (Life::Rotates(left), Sharing::ServiceAccount);
        }
        if !self.answer.request.method.writes() {
            return (Life::Static, Sharing::ServiceAccount);
        }
        let signed_key = self.data.text("signed_key");
        let ends = signed_key
            .and_then(|key| ssh::ends(&key))
            .map(Duration::from_secs);
        let left = self
            .data
            .seconds("secret_id_ttl")
            .filter(|ttl| !ttl.is_zero());
        let life = match ends.map(until).or(left) {
            Some(left) => Life::Expires(left),
            // What a write makes is made once: the next one would make another, or find nothing left.
            None => Life::Once,
        };
        (life, Sharing::Pod)
    }

    /// A KV secret may have a key called certificate, too, but it is not asked for with PUT.
    fn is_certificate(&self) -> bool {
        self.answer.request.method.writes()
            && self.data.get("certificate").is_some()
            && self.data.number("expiration").is_some()
    }

    fn decode(&self, bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        let encoding = self.object.encoding;
        let decoded = encoding.decode(bytes);
        decoded.ok_or_else(|| self.wrong("is not in the encoding that the class names"))
    }

    fn file(&self, name: String, bytes: Zeroizing<Vec<u8>>) -> SecretFile {
        // Only what may have members: `items[].key` reads the rest of it.
        let format = match bytes.first() {
            Some(b'{') => Format::Json,
            _ => Format::Opaque,
        };
        SecretFile {
            name,
            bytes: bytes.into(),
            format,
            mode: self.object.mode,
        }
    }

    fn path_of(&self, name: &str) -> String {
        match self.object.name.as_str() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        }
    }

    fn missing(&self, key: &str) -> ProviderError {
        let problem = format!("{}: it has no key {key}", self.answer.request.path);
        ProviderError::new(ErrorKind::NotFound, problem)
    }

    fn wrong(&self, what: &str) -> ProviderError {
        let name = &self.object.name;
        unreadable(
            &self.answer.request.path,
            &format!("what is there for {name} {what}"),
        )
    }
}

/// How long it is until a time that is counted from 1970.
fn until(end: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    end.saturating_sub(now.unwrap_or_default())
}

fn into_bytes(mut text: Zeroizing<String>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(std::mem::take(&mut *text).into_bytes())
}

/// Adds a block with exactly one line break at its end.
fn push_pem(out: &mut Zeroizing<Vec<u8>>, pem: &str) {
    out.extend_from_slice(pem.trim().as_bytes());
    out.push(b'\n');
}
