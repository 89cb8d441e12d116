//! What a store gives, taken for every type of Secret.

use std::collections::BTreeMap;
use std::time::SystemTime;

use coffer::class::{ClassName, SecretProviderClass};
use coffer_provider::SecretBytes;
use coffer_sync::{Data, Files, MAX_BYTES, SecretObject, SecretObjectSpec};
use serde_json::{Value, json};

use crate::mutation::{damaged, damaged_text, shows_all, try_cases};

const WORDS: &[&str] = &[
    "-----BEGIN CERTIFICATE-----\n",
    "-----END CERTIFICATE-----\n",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----BEGIN OPENSSH PRIVATE KEY-----\n",
    "-----",
    "Proc-Type: 4,ENCRYPTED\n",
    "\"",
    "\\u0000",
    "{\"auths\":",
    "{\"a\":{\"auth\":\"",
    "Og==",
    "null",
    "[[[[[[[[",
    "{\"",
    "}",
    "&a ",
    "*a",
    "\n  ",
    "..",
    "a/b",
    "\0",
    "system:bootstrappers:",
    "T",
    "=",
];

/// Each type, with the file under each of its keys.
fn objects() -> Vec<(SecretObject, bool)> {
    let keys = |keys: &[&str]| {
        let keys = keys.iter();
        let keys = keys.map(|key| json!({"objectName": "file", "key": key}));
        keys.collect::<Vec<Value>>()
    };
    let split = |how: &str| vec![json!({"objectName": "file", "split": how})];
    let parts = ["registry", "username", "password"];
    let token = [
        "token-id",
        "token-secret",
        "expiration",
        "auth-extra-groups",
    ];
    [
        ("Opaque", keys(&["any"]), true),
        ("example.com/mine", keys(&["any"]), true),
        ("Opaque", split("JSON"), false),
        ("Opaque", split("YAML"), false),
        (
            "kubernetes.io/tls",
            keys(&["tls.crt", "tls.key", "ca.crt"]),
            false,
        ),
        (
            "kubernetes.io/tls",
            keys(&["tls.crt", "tls.key", "password"]),
            false,
        ),
        ("kubernetes.io/tls", keys(&["tls.crt", "tls.key"]), false),
        ("kubernetes.io/ssh-auth", keys(&["ssh-privatekey"]), true),
        ("kubernetes.io/basic-auth", keys(&["username"]), true),
        (
            "kubernetes.io/dockerconfigjson",
            keys(&[".dockerconfigjson"]),
            true,
        ),
        ("kubernetes.io/dockerconfigjson", keys(&parts), false),
        ("kubernetes.io/dockercfg", keys(&[".dockercfg"]), true),
        ("bootstrap.kubernetes.io/token", keys(&token), true),
    ]
    .into_iter()
    .map(|(kind, data, as_it_is)| {
        let spec = json!({"secretName": "bootstrap-token-abcdef", "type": kind, "data": data});
        let spec: SecretObjectSpec = serde_json::from_value(spec).unwrap();
        (SecretObject::new(&spec).unwrap(), as_it_is)
    })
    .collect()
}

/// What the file's owner would recognise in a sentence: eight letters of it in a row that are no word of ours.
fn quotes(told: &str, content: &[u8]) -> bool {
    const OURS: [&str; 6] = [
        "bootstrappers",
        "certificate",
        "dockerconfigjson",
        "password",
        "registry",
        "username",
    ];
    let of_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let mut parts = content.windows(8).filter(|part| part.iter().all(of_base64));
    parts.any(|part| {
        let text = std::str::from_utf8(part).unwrap();
        told.contains(text) && !OURS.iter().any(|word| word.contains(text))
    })
}

#[test]
fn rule_r11_whatever_a_store_gives_makes_a_good_secret_or_a_plain_sentence() {
    let objects = objects();
    try_cases(1_000, &damaged("secrets", WORDS), |content| {
        let files: Files = BTreeMap::from([("file".to_owned(), SecretBytes::new(content.clone()))]);
        for (object, as_it_is) in &objects {
            let made = object.contents("kube-system", &files, SystemTime::now());
            match made {
                Err(error) => {
                    let told = error.to_string();
                    assert!(shows_all(&told), "{told:?}");
                    assert!(!quotes(&told, &content), "{told:?}");
                }
                Ok(data) => {
                    is_good(object, &data);
                    if *as_it_is {
                        let whole = |bytes: &SecretBytes| bytes.expose() == content;
                        assert!(data.values().all(whole), "{}", object.kind);
                    }
                }
            }
        }
    });
}

/// What is made can be made again of itself: it is of its type.
fn is_good(object: &SecretObject, data: &Data) {
    assert!(data.values().map(SecretBytes::len).sum::<usize>() <= MAX_BYTES);
    let keys = data
        .keys()
        .map(|key| json!({"objectName": key, "key": key}));
    let keys: Vec<_> = keys.collect();
    if keys.is_empty() {
        return;
    }
    let spec = json!({"secretName": object.name, "type": object.kind.as_str(), "data": keys});
    let spec: SecretObjectSpec = serde_json::from_value(spec).unwrap();
    let again = SecretObject::new(&spec).expect("keys that can be keys");
    let again = again.contents("kube-system", data, SystemTime::now());
    let again = again.map_err(|error| error.to_string()).expect("good");
    let same = |(one, other): ((&String, &SecretBytes), (&String, &SecretBytes))| {
        one.0 == other.0 && one.1.expose() == other.1.expose()
    };
    assert!(
        again.len() == data.len() && again.iter().zip(data).all(same),
        "{}",
        object.kind
    );
}

#[test]
fn rule_k1_no_text_of_a_class_names_a_secret_that_is_none() {
    try_cases(2_000, &damaged_text("secrets", WORDS), |text| {
        let spec = json!({"provider": "file", "secretObjects": [
            {"secretName": text, "type": text, "data": [{"objectName": text, "key": text}]},
            {"secretName": "s", "type": text, "data": [{"objectName": text, "key": "a"}]},
            {"secretName": text, "allFiles": true},
        ]});
        let name = ClassName {
            namespace: "shop".into(),
            name: "shop".into(),
        };
        for object in SecretProviderClass::new(name, spec).unwrap().secret_objects {
            match object {
                Err(error) => assert!(shows_all(&error.to_string()), "{error:?}"),
                Ok(object) => {
                    let allowed = |byte: u8| {
                        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
                    };
                    assert!(!object.name.is_empty() && object.name.bytes().all(allowed));
                    assert!(!object.kind.as_str().contains("service-account-token"));
                }
            }
        }
    });
}
