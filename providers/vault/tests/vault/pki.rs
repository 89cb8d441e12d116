//! Certificates, and the keys that never leave the node.

use std::time::Duration;

use coffer_provider::{ErrorKind, Life, Secret, Sharing};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::bao::Bao;
use crate::leases::with_rabbitmq;
use crate::{bad, class, files, good, provider, read, read_one, source, text};

async fn with_pki() -> Bao {
    let bao = Bao::start().await;
    bao.enable_pki().await;
    bao
}

/// Panics unless the key is the certificate's: rustls compares their public halves.
fn assert_a_pair(chain: &str, key: &str) {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    assert!(!chain.is_empty());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let pair = rustls::sign::CertifiedKey::from_der(chain, key, &provider).unwrap();
    pair.keys_match().unwrap();
}

fn expires(secret: &Secret) -> Duration {
    match secret.life {
        Life::Expires(life) => life,
        _ => panic!("it is a certificate"),
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_5_a_certificate_is_issued_with_put_and_arguments() {
    let bao = with_pki().await;
    let provider = provider(&[&bao.url()]);
    let objects = "
- objectName: certs
  secretPath: pki/issue/web
  method: PUT
  secretArgs: {common_name: test.example.com, ttl: 24h}
";
    let source = source(&provider, &class(objects));
    let secret = good(read_one(&*source, &bao.app()).await);
    let answer: serde_json::Value = serde_json::from_str(&text(&secret)).unwrap();
    let chain = answer["data"]["certificate"].as_str().unwrap();
    assert_a_pair(chain, answer["data"]["private_key"].as_str().unwrap());
    assert!(
        answer["data"]["issuing_ca"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    assert_eq!(secret.version.as_str(), answer["data"]["serial_number"]);
    assert_eq!(secret.sharing, Sharing::Pod);
    let life = expires(&secret);
    assert!(
        life > Duration::from_secs(86_000) && life <= Duration::from_secs(86_460),
        "{life:?}"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_7_dynamic_kv_and_pki_in_one_class_and_arguments_tell_requests_apart() {
    let (bao, _users) = with_rabbitmq("30s", "90s").await;
    bao.enable_pki().await;
    bao.put("secret/data/db", json!({"data": {"user": "u1"}}))
        .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let objects = "
- {objectName: kv, secretPath: secret/data/db, secretKey: user}
- {objectName: user, secretPath: rabbitmq/creds/app, secretKey: username}
- {objectName: a.crt, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: a.example.com}, secretKey: certificate}
- {objectName: a.key, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: a.example.com}, secretKey: private_key}
- {objectName: b.crt, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: b.example.com}, secretKey: certificate}
";
    let source = source(&provider, &class(objects));
    let answers = read(&*source, &bao.app()).await;
    let secrets: Vec<_> = answers.into_iter().map(good).collect();
    assert!(matches!(secrets[0].life, Life::Static));
    assert!(matches!(secrets[1].life, Life::Leased { .. }));
    assert!(matches!(secrets[2].life, Life::Expires(_)));
    let texts: Vec<_> = secrets.iter().map(text).collect();
    assert_eq!(texts[0], "u1");
    assert_a_pair(&texts[2], &texts[3]);
    assert_ne!(texts[2], texts[4]);
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    let (logins, creds, issued) = (count("/login"), count("/creds/"), count("/issue/"));
    assert_eq!(
        (logins, creds, issued),
        (1, 1, 2),
        "one certificate for each name"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_certificate_is_three_files_or_one_bundle() {
    let bao = with_pki().await;
    let provider = provider(&[&bao.url()]);
    let objects = "
- {objectName: tls, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: a.example.com}, format: tls}
- {objectName: all.pem, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: a.example.com}, format: bundle}
- {objectName: der, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: a.example.com, format: der}, format: tls}
- {objectName: both, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: a.example.com, format: pem_bundle}, format: tls}
";
    let source = source(&provider, &class(objects));
    let answers = read(&*source, &bao.app()).await;
    let [tls, bundle, der, both] = answers.try_into().ok().unwrap();
    let (tls, bundle) = (good(tls), good(bundle));
    let names: Vec<_> = tls.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["tls/tls.crt", "tls/tls.key", "tls/ca.crt"]);
    let parts = files(&tls);
    assert_a_pair(&parts["tls/tls.crt"], &parts["tls/tls.key"]);
    assert!(parts["tls/ca.crt"].starts_with("-----BEGIN CERTIFICATE-----"));
    let bundle = text(&bundle);
    assert_eq!(
        bundle,
        format!("{}{}", parts["tls/tls.key"], parts["tls/tls.crt"]),
        "of one generation"
    );
    let error = bad(der);
    assert!(error.to_string().contains("is not PEM"), "{error}");
    let error = bad(both);
    assert!(
        error.to_string().contains("is a bundle"),
        "no key in a file for certificates: {error}"
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_key_made_on_the_node_never_crosses_the_network() {
    let bao = with_pki().await;
    for kind in ["ec", "rsa", "ed25519"] {
        let role = json!({"allowed_domains": "example.com", "allow_subdomains": true, "allow_ip_sans": true,
            "allowed_uri_sans": "spiffe://example.com/*", "key_type": kind, "max_ttl": "72h"});
        bao.put(&format!("pki/roles/{kind}"), role).await;
    }
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    for (kind, bits) in [("ec", 256), ("ec", 384), ("ed25519", 0), ("rsa", 2048)] {
        let object = format!(
            "- {{objectName: '', secretPath: pki/sign/{kind}, method: PUT, format: tls, keyType: {kind}, keyBits: {bits},
               secretArgs: {{common_name: a.example.com, alt_names: 'b.example.com,c.example.com', ip_sans: 10.0.0.1,
               uri_sans: 'spiffe://example.com/app', ttl: 1h}}}}"
        );
        let source = source(&provider, &class(&object));
        let secret = good(read_one(&*source, &bao.app()).await);
        let parts = files(&secret);
        assert_a_pair(&parts["tls.crt"], &parts["tls.key"]);
        assert!(expires(&secret) <= Duration::from_secs(3660));
        let seen = counted.seen();
        let body = String::from_utf8_lossy(&seen.last().unwrap().body).into_owned();
        assert!(
            body.contains("BEGIN CERTIFICATE REQUEST") && !body.contains("PRIVATE KEY"),
            "{kind}"
        );
        let leaf = CertificateDer::from_pem_slice(parts["tls.crt"].as_bytes()).unwrap();
        for name in ["b.example.com", "c.example.com", "spiffe://example.com/app"] {
            let there = leaf
                .windows(name.len())
                .any(|bytes| bytes == name.as_bytes());
            assert!(there, "{kind}: {name} is not in the certificate");
        }
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_key_made_on_the_node_can_be_a_file_of_any_name() {
    let bao = with_pki().await;
    let provider = provider(&[&bao.url()]);
    let objects = "
- {objectName: web.crt, secretPath: pki/sign/web, method: PUT, secretArgs: {common_name: a.example.com}, secretKey: certificate}
- {objectName: web.key, secretPath: pki/sign/web, method: PUT, secretArgs: {common_name: a.example.com}, secretKey: private_key}
- {objectName: all, secretPath: pki/sign/web, method: PUT, secretArgs: {common_name: a.example.com}, format: files}
";
    let source = source(&provider, &class(objects));
    let answers = read(&*source, &bao.app()).await;
    let [certificate, key, all] = answers.try_into().ok().unwrap();
    let (certificate, key) = (text(&good(certificate)), text(&good(key)));
    assert_a_pair(&certificate, &key);
    let all = files(&good(all));
    assert_eq!(all["all/private_key"], key);
    assert_eq!(all["all/certificate"], certificate);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn a_certificate_that_cannot_be_had_says_why() {
    let bao = with_pki().await;
    let provider = provider(&[&bao.url()]);
    for (path, method, name, kind, says) in [
        (
            "pki/issue/web",
            "PUT",
            "a.example.org",
            ErrorKind::InvalidParameters,
            "not allowed",
        ),
        (
            "pki/issue/none",
            "PUT",
            "a.example.com",
            ErrorKind::InvalidParameters,
            "unknown role",
        ),
        (
            "pki/other/web",
            "PUT",
            "a.example.com",
            ErrorKind::PermissionDenied,
            "does not allow it to role app",
        ),
    ] {
        let object = format!(
            "- {{objectName: a, secretPath: {path}, method: {method}, secretArgs: {{common_name: {name}}}}}"
        );
        let source = source(&provider, &class(&object));
        let error = bad(read_one(&*source, &bao.app()).await);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
