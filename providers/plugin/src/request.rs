//! What a plugin gets to see of a volume.

use std::collections::BTreeMap;
use std::time::SystemTime;

use coffer_proto::provider::{MountRequest, ObjectVersion};
use coffer_provider::{Caller, Parameters, ServiceAccountToken};
use serde::Serialize;

/// What the kubelet tells of a pod. Nobody else may write such keys, least of all a class.
const RESERVED: &str = "csi.storage.k8s.io/";

/// 0644, in the decimal digits that every plugin can read.
const PERMISSION: &str = "420";

/// What stays of a class's parameters, and of what the pod adds to them.
pub(crate) fn own(parameters: &Parameters) -> Parameters {
    let mut own = parameters.clone();
    own.retain(|key, _| !key.starts_with(RESERVED));
    own
}

/// The request of one volume.
pub(crate) fn mount(
    parameters: &Parameters,
    caller: &Caller,
    target_path: &str,
    current: Vec<ObjectVersion>,
) -> MountRequest {
    MountRequest {
        attributes: attributes(parameters, caller),
        secrets: secrets(caller),
        target_path: target_path.to_owned(),
        permission: PERMISSION.to_owned(),
        current_object_version: current,
    }
}

fn attributes(parameters: &Parameters, caller: &Caller) -> String {
    let mut attributes: BTreeMap<String, &str> = parameters
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str()))
        .collect();
    let pod = &caller.pod;
    // Also where they came with the secrets of the kubelet's request: plugins look only here.
    let tokens = tokens(&caller.forwarded.tokens);
    for (key, value) in [
        ("ephemeral", Some("true")),
        ("pod.name", Some(pod.name.as_str())),
        ("pod.namespace", Some(&pod.namespace)),
        ("pod.uid", Some(&pod.uid)),
        ("serviceAccount.name", Some(&pod.service_account.name)),
        ("serviceAccount.tokens", tokens.as_deref()),
    ] {
        if let Some(value) = value {
            attributes.insert(format!("{RESERVED}{key}"), value);
        }
    }
    serde_json::to_string(&attributes).expect("strings can be JSON")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OneToken<'a> {
    token: &'a str,
    expiration_timestamp: String,
}

/// As the kubelet writes them; nothing at all where there is none, since some plugins then help themselves.
fn tokens(tokens: &BTreeMap<String, ServiceAccountToken>) -> Option<String> {
    let one = tokens.iter().map(|(audience, token)| {
        let one = OneToken {
            token: token.expose(),
            expiration_timestamp: rfc3339(token.expires()),
        };
        (audience, one)
    });
    let all: BTreeMap<_, _> = one.collect();
    (!all.is_empty()).then(|| serde_json::to_string(&all).expect("strings can be JSON"))
}

/// In whole seconds.
fn rfc3339(time: SystemTime) -> String {
    let since_1970 = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::MAX)
        .to_string()
}

/// Of nodePublishSecretRef. `null` for none: some plugins cannot read an empty text.
fn secrets(caller: &Caller) -> String {
    let secrets: BTreeMap<_, _> = caller
        .secrets
        .iter()
        .map(|(key, value)| (key, String::from_utf8_lossy(value.expose())))
        .collect();
    match secrets.is_empty() {
        true => "null".to_owned(),
        false => serde_json::to_string(&secrets).expect("strings can be JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::SecretBytes;
    use coffer_provider::testing::caller;
    use prost::Message;
    use std::time::Duration;

    /// As it goes over the wire for the caller below: each field with its number and its length.
    const GOLDEN: &[&[u8]] = &[
        b"\x0a\xeb\x03",
        br#"{"audience":"vault","csi.storage.k8s.io/ephemeral":"true","csi.storage.k8s.io/pod.name":"web-0","csi.storage.k8s.io/pod.namespace":"shop","csi.storage.k8s.io/pod.uid":"5a1a9c3e-0c4b-4c39-9d5c-2f8f1b1d7a10","csi.storage.k8s.io/serviceAccount.name":"web","csi.storage.k8s.io/serviceAccount.tokens":"{\"vault\":{\"token\":\"a.b.c\",\"expirationTimestamp\":\"2026-11-21T11:00:00Z\"}}","objects":"- objectName: db\n  secretPath: secret/data/db\n","roleName":"web","secretProviderClass":"web-spc"}"#,
        b"\x12\x04",
        b"null",
        b"\x1a\x4d",
        b"/var/lib/kubelet/pods/5a1a9c3e/volumes/kubernetes.io~csi/secrets-volume/mount",
        b"\x22\x03",
        b"420",
        b"\x2a\x08\x0a\x02db\x12\x02v7",
    ];

    fn parameters() -> Parameters {
        [
            ("roleName", "web"),
            ("audience", "vault"),
            (
                "objects",
                "- objectName: db\n  secretPath: secret/data/db\n",
            ),
            ("secretProviderClass", "web-spc"),
            ("csi.storage.k8s.io/pod.name", "forged"),
            ("csi.storage.k8s.io/serviceAccount.tokens", "forged"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    #[test]
    fn the_request_is_on_the_wire_what_the_protocol_says() {
        let mut caller = caller("shop");
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_258_800);
        let token = ServiceAccountToken::new("a.b.c".into(), expires);
        caller.forwarded.tokens.insert("vault".into(), token);
        let current = vec![ObjectVersion {
            id: "db".into(),
            version: "v7".into(),
        }];
        let target =
            "/var/lib/kubelet/pods/5a1a9c3e/volumes/kubernetes.io~csi/secrets-volume/mount";
        let request = mount(&own(&parameters()), &caller, target, current);
        let wire = String::from_utf8_lossy(&request.encode_to_vec()).into_owned();
        let golden = GOLDEN.concat();
        assert_eq!(wire, String::from_utf8_lossy(&golden));
        assert!(request.encode_to_vec() == golden, "byte for byte");
    }

    #[test]
    fn a_pod_without_tokens_has_no_attribute_for_them_and_secrets_are_json() {
        let mut caller = caller("shop");
        let value = SecretBytes::new(b"a\"b".to_vec());
        caller.secrets.insert("clientsecret".into(), value);
        let request = mount(&own(&parameters()), &caller, "", vec![]);
        assert!(!request.attributes.contains("tokens"), "nor a forged one");
        assert!(!request.attributes.contains("forged"));
        assert_eq!(request.secrets, r#"{"clientsecret":"a\"b"}"#);
    }
}
