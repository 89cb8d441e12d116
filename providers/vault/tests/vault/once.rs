//! What there is once: unwrapped values, secret ids, signatures.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::{ErrorKind, Life, Secret, Sharing};
use serde_json::{Value, json};

use crate::bao::Bao;
use crate::stand_in::{Say, Seen, StandIn, ask};
use crate::{bad, class, files, good, provider, read, read_one, source, text};

/// OpenBao with a role that may also use these paths.
async fn with_paths(paths: &[&str]) -> Bao {
    let bao = Bao::start().await;
    let rule = |path: &&str| format!("path \"{path}\" {{ capabilities = [\"update\"] }}\n");
    let policy: String = paths.iter().map(rule).collect();
    bao.put("sys/policies/acl/app", json!({ "policy": policy }))
        .await;
    bao
}

fn expires(secret: &Secret) -> Duration {
    match secret.life {
        Life::Expires(life) => life,
        _ => panic!("it has an end"),
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_wrapped_value_is_unwrapped_once_and_kept() {
    let bao = Bao::start().await;
    let wrap = Seen {
        method: "POST".to_owned(),
        path: "/v1/sys/wrapping/wrap".to_owned(),
        headers: BTreeMap::from([
            ("x-vault-token".to_owned(), "root".to_owned()),
            ("x-vault-wrap-ttl".to_owned(), "300".to_owned()),
        ]),
        body: json!({"user": "u1", "password": "p1"})
            .to_string()
            .into_bytes(),
    };
    let answer = String::from_utf8(ask(bao.address, &wrap).await.unwrap()).unwrap();
    let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let token = answer["wrap_info"]["token"].as_str().unwrap();
    let object = format!(
        "- {{objectName: user, secretPath: sys/wrapping/unwrap, method: POST, secretArgs: {{token: {token}}}, secretKey: user}}
- {{objectName: password, secretPath: sys/wrapping/unwrap, method: POST, secretArgs: {{token: {token}}}, secretKey: password}}"
    );
    let provider = provider(&[&bao.url()]);
    let source = source(&provider, &class(&object));
    let [user, password] = source.objects() else {
        panic!("two objects")
    };
    assert_eq!(source.answer_of(user), source.answer_of(password));
    assert_ne!(user.request, password.request);
    let answers = read(&*source, &bao.app()).await;
    let secrets: Vec<_> = answers.into_iter().map(good).collect();
    assert_eq!(
        (text(&secrets[0]), text(&secrets[1])),
        ("u1".into(), "p1".into())
    );
    for secret in &secrets {
        assert!(matches!(secret.life, Life::Once));
        assert_eq!(secret.sharing, Sharing::Pod);
    }
    for again in read(&*source, &bao.app()).await {
        let error = bad(again);
        assert_eq!(error.kind(), ErrorKind::InvalidParameters, "{error}");
        assert!(!error.to_string().contains(token), "{error}");
    }
}

#[tokio::test]
async fn a_read_of_kv_v2_that_was_wrapped_comes_out_as_any_other() {
    let store = StandIn::after_login(|_| {
        Say::Json(
            200,
            json!({"data": {"data": {"user": "u1"}, "metadata": {"version": 3,
                "created_time": "2026-01-01T00:00:00Z"}}}),
        )
    })
    .await;
    let provider = provider(&[&store.url()]);
    let user = async |path: &str| {
        let object =
            format!("- {{objectName: user, secretPath: {path}, method: POST, secretKey: user}}");
        read_one(
            &*source(&provider, &class(&object)),
            &crate::hostile::caller(),
        )
        .await
    };
    let secret = good(user("sys/wrapping/unwrap").await);
    assert_eq!(text(&secret), "u1");
    assert!(matches!(secret.life, Life::Once));
    assert_eq!(bad(user("engine/unwrap").await).kind(), ErrorKind::NotFound);
    assert!(
        !store
            .asked()
            .iter()
            .any(|asked| asked.contains("/ui/mounts/"))
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_secret_id_is_made_anew_before_it_ends_and_not_otherwise() {
    let bao = with_paths(&["auth/approle/role/+/secret-id"]).await;
    bao.put("sys/auth/approle", json!({"type": "approle"}))
        .await;
    bao.put("auth/approle/role/short", json!({"secret_id_ttl": "10m"}))
        .await;
    bao.put("auth/approle/role/long", json!({})).await;
    let provider = provider(&[&bao.url()]);
    let id = async |role: &str| {
        let object = format!(
            "- {{objectName: id, secretPath: auth/approle/role/{role}/secret-id, method: PUT, secretKey: secret_id}}"
        );
        good(read_one(&*source(&provider, &class(&object)), &bao.app()).await)
    };
    assert_eq!(expires(&id("short").await).as_secs(), 600);
    let (one, another) = (id("long").await, id("long").await);
    assert!(matches!(one.life, Life::Once));
    assert_ne!(
        text(&one),
        text(&another),
        "who asks again is given another"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_signed_ssh_key_is_good_until_its_own_end() {
    let bao = with_paths(&["ssh/sign/*"]).await;
    bao.put("sys/mounts/ssh", json!({"type": "ssh"})).await;
    bao.put("ssh/config/ca", json!({"generate_signing_key": true}))
        .await;
    bao.put(
        "ssh/roles/user",
        json!({"key_type": "ca", "allow_user_certificates": true, "allowed_users": "ubuntu",
            "default_user": "ubuntu", "ttl": "30m", "algorithm_signer": "rsa-sha2-256"}),
    )
    .await;
    let part = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let key = STANDARD.encode([part(b"ssh-ed25519"), part(&[7; 32])].concat());
    let provider = provider(&[&bao.url()]);
    let object = format!(
        "- {{objectName: key, secretPath: ssh/sign/user, method: PUT, secretArgs: {{public_key: ssh-ed25519 {key}}}, secretKey: signed_key}}"
    );
    let source = source(&provider, &class(&object));
    let secret = good(read_one(&*source, &bao.app()).await);
    assert!(text(&secret).starts_with("ssh-ed25519-cert-v01@openssh.com "));
    let life = expires(&secret).as_secs();
    assert!((29 * 60..=30 * 60).contains(&life), "{life}");
}

#[tokio::test]
async fn the_version_of_a_static_role_is_its_rotation() {
    let store = StandIn::after_login(|seen| {
        let rotated = match seen.path.ends_with("old") {
            true => "2026-01-01T00:00:00Z",
            false => "2026-01-01T01:00:00.5Z",
        };
        Say::Json(
            200,
            json!({"data": {"username": "u", "password": rotated, "ttl": rotated.len(),
                "rotation_period": 3600, "last_vault_rotation": rotated}}),
        )
    })
    .await;
    let provider = provider(&[&store.url()]);
    let role = async |name: &str| {
        let object =
            format!("- {{objectName: a, secretPath: database/static-creds/{name}, format: files}}");
        let source = source(&provider, &class(&object));
        good(read_one(&*source, &crate::hostile::caller()).await)
    };
    let (old, new) = (role("old").await, role("new").await);
    assert_eq!(old.version.as_str(), "rotated 2026-01-01T00:00:00Z");
    assert_ne!(old.version, new.version);
    assert_eq!(files(&old)["a/username"], "u");
}
