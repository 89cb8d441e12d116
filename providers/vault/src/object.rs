//! One entry of `parameters.objects`: a request to the store, and what becomes of its answer. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::{ObjectRef, ProviderError};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::gojson;
use crate::path::{check_name, is_the_providers_own, path_and_query};

/// What is asked of the store: objects for which this is the same share one answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Below `/v1/`, without slashes at its ends; checked, not yet percent-encoded.
    pub(crate) path: String,
    /// Encoded, with its pairs sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) query: Option<String>,
    /// The body of a write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<BTreeMap<String, Value>>,
    /// The key to make for `…/sign/…` where the class brings no certificate request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<KeyKind>,
}

impl Request {
    /// One text for all objects that are taken out of its answer. The namespace of the read is not in the
    /// identity, so it is in here.
    pub(crate) fn canonical(&self, namespace: &str) -> String {
        serde_json::to_string(&(namespace, self)).expect("maps with text as keys are JSON")
    }
}

/// How a store may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(crate) enum Method {
    Get,
    Put,
    Post,
}

impl Method {
    pub(crate) fn writes(self) -> bool {
        self != Self::Get
    }
}

/// A private key to be made on the node, in the words of PKI roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum KeyKind {
    Ec256,
    Ec384,
    Ed25519,
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

/// What of the answer goes into files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Selection {
    /// The whole answer in one file.
    Response,
    /// Its data in one file, without what the store says about it.
    Data,
    /// Each key of its data in a file of its own.
    Files,
    /// The value of one key, or what a JSON pointer leads to.
    Value(Key),
    /// `tls.crt`, `tls.key` and `ca.crt` of a certificate.
    Tls,
    /// Key, certificate and chain of a certificate in one file.
    Bundle,
}

/// Where a value is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Key {
    Name(String),
    Pointer(String),
}

/// How the store's text stands for the bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Encoding {
    Utf8,
    Base64,
    Hex,
}

impl Encoding {
    /// `None` where the text is not in the encoding.
    pub(crate) fn decode(self, text: Zeroizing<Vec<u8>>) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::Utf8 => Some(text),
            Self::Base64 => {
                let mut text = text;
                text.retain(|byte| !matches!(byte, b'\r' | b'\n'));
                STANDARD.decode(&*text).ok().map(Zeroizing::new)
            }
            Self::Hex => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
                for pair in text.chunks(2) {
                    let &[high, low] = pair else { return None };
                    bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                }
                Some(bytes)
            }
        }
    }
}

/// One object of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) request: Request,
    pub(crate) selection: Selection,
    pub(crate) encoding: Encoding,
    pub(crate) mode: Option<u32>,
    /// The entry as its author spelled it, as vault-csi-provider writes it before it hashes.
    pub(crate) spelled: String,
}

impl Object {
    /// As the driver keeps it. `by_spelling`: two spellings of one request are two objects, since their
    /// versions are made of the spelling.
    pub(crate) fn reference(&self, namespace: &str, by_spelling: bool) -> ObjectRef {
        let spelled = by_spelling.then_some(self.spelled.as_str());
        ObjectRef {
            name: self.name.clone(),
            request: self.canonical(namespace, spelled),
        }
    }

    /// All that decides what becomes of an answer. The namespace of the read is not in the identity, so it
    /// is in here, and files are called by the name.
    pub(crate) fn canonical(&self, namespace: &str, spelled: Option<&str>) -> String {
        #[derive(Serialize)]
        struct Canonical<'a> {
            name: &'a str,
            namespace: &'a str,
            request: &'a Request,
            selection: &'a Selection,
            encoding: Encoding,
            mode: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            spelled: Option<&'a str>,
        }
        let canonical = Canonical {
            name: &self.name,
            namespace,
            request: &self.request,
            selection: &self.selection,
            encoding: self.encoding,
            mode: self.mode,
            spelled,
        };
        serde_json::to_string(&canonical).expect("maps with text as keys are JSON")
    }
}

/// An entry as its author wrote it. Fields that are not known are ignored, as vault-csi-provider does.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Entry {
    #[serde(deserialize_with = "or_blank")]
    object_name: String,
    #[serde(deserialize_with = "or_blank")]
    secret_path: String,
    #[serde(deserialize_with = "or_blank")]
    method: String,
    secret_args: Option<BTreeMap<String, Value>>,
    #[serde(deserialize_with = "or_blank")]
    secret_key: String,
    #[serde(deserialize_with = "or_blank")]
    secret_key_pointer: String,
    file_permission: Option<i64>,
    #[serde(deserialize_with = "or_blank")]
    encoding: String,
    #[serde(deserialize_with = "or_blank")]
    format: String,
    #[serde(deserialize_with = "or_blank")]
    key_type: String,
    key_bits: Option<u32>,
}

/// A field with nothing behind it is null, which Go's YAML takes for one that is not there.
fn or_blank<'de, D: Deserializer<'de>>(field: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or_default())
}

impl Entry {
    /// Checks the entry; `field` is its place in the parameters.
    pub(crate) fn check(self, field: &str) -> Result<Object, ProviderError> {
        let wrong = |name: &str, problem: &str| {
            ProviderError::parameter(format!("{field}.{name}"), problem)
        };
        check_name(&self.object_name).map_err(|problem| wrong("objectName", problem))?;
        let method = match self.method.as_str() {
            "" | "GET" => Method::Get,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            _ => return Err(wrong("method", "must be GET, PUT or POST")),
        };
        let (path, query) =
            path_and_query(&self.secret_path).map_err(|problem| wrong("secretPath", problem))?;
        if method.writes() && is_the_providers_own(&path) {
            let problem = "must not end tokens or leases: the driver does that";
            return Err(wrong("secretPath", problem));
        }
        let mode = match self.file_permission {
            None | Some(0) => None,
            Some(mode) => match u32::try_from(mode) {
                Ok(mode) if mode <= 0o777 => Some(mode),
                _ => return Err(wrong("filePermission", "must be at most 0777")),
            },
        };
        let encoding = match self.encoding.to_ascii_lowercase().as_str() {
            "" | "utf-8" => Encoding::Utf8,
            "base64" => Encoding::Base64,
            "hex" => Encoding::Hex,
            _ => return Err(wrong("encoding", "must be utf-8, base64 or hex")),
        };
        let selection = self.selection(&wrong)?;
        if self.object_name.is_empty() && !matches!(selection, Selection::Files | Selection::Tls) {
            return Err(wrong("objectName", "is missing, and the file needs a name"));
        }
        let key = self.key(method, &path, &wrong)?;
        if key.is_some() && matches!(selection, Selection::Response | Selection::Data) {
            let problem =
                "must be files, tls or bundle: the key is made here, and not in the answer";
            return Err(wrong("format", problem));
        }
        let spelled = self.spelled();
        Ok(Object {
            name: self.object_name,
            request: Request {
                method,
                path,
                query,
                // The body of a GET is not read.
                args: self.secret_args.filter(|_| method.writes()),
                key,
            },
            selection,
            encoding,
            mode,
            spelled,
        })
    }

    fn selection(
        &self,
        wrong: &dyn Fn(&str, &str) -> ProviderError,
    ) -> Result<Selection, ProviderError> {
        let key = match (self.secret_key.as_str(), self.secret_key_pointer.as_str()) {
            ("", "") => None,
            (name, "") => Some(Key::Name(name.to_owned())),
            ("", pointer) if pointer.starts_with('/') => Some(Key::Pointer(pointer.to_owned())),
            ("", _) => return Err(wrong("secretKeyPointer", "must start with a slash")),
            _ => return Err(wrong("secretKeyPointer", "cannot stand beside secretKey")),
        };
        match (key, self.format.as_str()) {
            (Some(key), "") => Ok(Selection::Value(key)),
            (Some(_), _) => Err(wrong("format", "is for entries without secretKey")),
            (None, "" | "response") => Ok(Selection::Response),
            (None, "data") => Ok(Selection::Data),
            (None, "files") => Ok(Selection::Files),
            (None, "tls") => Ok(Selection::Tls),
            (None, "bundle") => Ok(Selection::Bundle),
            (None, _) => {
                let problem = "must be response, data, files, tls or bundle";
                Err(wrong("format", problem))
            }
        }
    }

    fn key(
        &self,
        method: Method,
        path: &str,
        wrong: &dyn Fn(&str, &str) -> ProviderError,
    ) -> Result<Option<KeyKind>, ProviderError> {
        let args = self.secret_args.as_ref();
        let has = |name: &str| args.is_some_and(|args| args.contains_key(name));
        // `pki/sign/role`, not `transit/sign/key`: that one has an input and no name.
        let (brings_a_request, names_somebody) = (has("csr"), has("common_name"));
        let signs = path.split('/').rev().nth(1) == Some("sign");
        if !(method.writes() && signs && names_somebody) || brings_a_request {
            return match (self.key_type.as_str(), self.key_bits) {
                ("", None) => Ok(None),
                _ => Err(wrong(
                    "keyType",
                    "is for PUT to …/sign/… with a common_name and without a csr",
                )),
            };
        }
        match (self.key_type.as_str(), self.key_bits) {
            ("" | "ec", None | Some(0 | 256)) => Ok(Some(KeyKind::Ec256)),
            ("" | "ec", Some(384)) => Ok(Some(KeyKind::Ec384)),
            ("ed25519", None | Some(0)) => Ok(Some(KeyKind::Ed25519)),
            ("rsa", None | Some(0 | 2048)) => Ok(Some(KeyKind::Rsa2048)),
            ("rsa", Some(3072)) => Ok(Some(KeyKind::Rsa3072)),
            ("rsa", Some(4096)) => Ok(Some(KeyKind::Rsa4096)),
            _ => Err(wrong(
                "keyType",
                "must be ec (keyBits 256 or 384), ed25519 or rsa (2048, 3072 or 4096)",
            )),
        }
    }

    /// The entry as vault-csi-provider writes it before it hashes: its field names, in their order.
    fn spelled(&self) -> String {
        let text = |text: &str| gojson::string(text);
        let args = match &self.secret_args {
            None => "null".to_owned(),
            Some(args) => gojson::value(&Value::Object(args.clone().into_iter().collect())),
        };
        format!(
            r#"{{"ObjectName":{},"SecretPath":{},"SecretKey":{},"Method":{},"SecretArgs":{args},"FilePermission":{},"Encoding":{}}}"#,
            text(&self.object_name),
            text(&self.secret_path),
            text(&self.secret_key),
            text(&self.method),
            self.file_permission.unwrap_or_default(),
            text(&self.encoding),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vault_encodings_give_the_bytes() {
        let decode = |encoding: Encoding, text: &str| {
            let text = Zeroizing::new(text.as_bytes().to_vec());
            encoding.decode(text).map(|bytes| bytes.to_vec())
        };
        assert_eq!(decode(Encoding::Base64, "AP8K\r\n"), Some(vec![0, 255, 10]));
        assert_eq!(decode(Encoding::Hex, "00fF0a"), Some(vec![0, 255, 10]));
        assert_eq!(decode(Encoding::Utf8, "ü"), Some("ü".as_bytes().to_vec()));
        for (encoding, text) in [
            (Encoding::Base64, "AP8"),
            (Encoding::Base64, "AP-_"),
            (Encoding::Hex, "0"),
            (Encoding::Hex, "0g"),
        ] {
            assert_eq!(decode(encoding, text), None, "{text}");
        }
    }
}
