//! What a class may say, and the sentences for what it may not.

use std::fs;

use coffer_provider::{ErrorKind, IdentifiedBy, Parameters, Provider as _};
use coffer_provider_vault::{ClientCertificate, Flavour, Settings, VaultProvider};

use crate::with;

const OBJECT: &str = "- {objectName: a, secretPath: secret/data/db, secretKey: user}";
const STORE: &str = "https://vault.example:8200";

fn of(settings: Settings) -> VaultProvider {
    VaultProvider::new(settings).unwrap()
}

fn usual() -> Settings {
    Settings {
        address: Some(STORE.to_owned()),
        ..Settings::default()
    }
}

fn refusal(provider: &VaultProvider, class: &Parameters) -> String {
    let error = provider
        .source(class)
        .err()
        .unwrap_or_else(|| panic!("{class:?} is taken"));
    assert_eq!(error.kind(), ErrorKind::InvalidParameters, "{error}");
    error.to_string()
}

fn identity(provider: &VaultProvider, class: &Parameters) -> IdentifiedBy {
    match provider.source(class) {
        Ok(source) => source.identified_by().clone(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn vault_parameters_that_cannot_be_name_themselves() {
    let provider = of(usual());
    for (parameters, says) in [
        (
            &[("roleName", "")][..],
            "parameters.roleName: must be the name of a role",
        ),
        (&[("roleName", "a\nb")], "parameters.roleName: "),
        (
            &[("vaultAddress", "vault:8200")],
            "parameters.vaultAddress: ",
        ),
        (
            &[("vaultAddress", "unix:///run/agent.sock")],
            "parameters.vaultAddress: is a socket",
        ),
        (
            &[("vaultAuthMountPath", ""), ("vaultKubernetesMountPath", "")],
            "parameters.vaultAuthMountPath: cannot stand beside vaultKubernetesMountPath",
        ),
        (
            &[("vaultAuthMountPath", "a/../b")],
            "parameters.vaultAuthMountPath: must not have",
        ),
        (
            &[("vaultAuthMountPath", "a?b")],
            "parameters.vaultAuthMountPath: must not contain",
        ),
        (
            &[("vaultNamespace", "a//b")],
            "parameters.vaultNamespace: must not have",
        ),
        (
            &[("vaultNamespace", "a\r\nX-Vault-Token: b")],
            "parameters.vaultNamespace: ",
        ),
        (
            &[("vaultSkipTLSVerify", "yes")],
            "parameters.vaultSkipTLSVerify: must be true or false",
        ),
        (
            &[("vaultTLSServerName", "a b")],
            "parameters.vaultTLSServerName: must be the name",
        ),
        (
            &[("vaultCACert", "none")],
            "parameters.vaultCACert: must be PEM",
        ),
        (&[("audience", "a\nb")], "parameters.audience: "),
    ] {
        let error = refusal(&provider, &with(parameters, OBJECT));
        assert!(error.starts_with(says), "{error} is not {says}");
    }
    let mut nameless = with(&[], OBJECT);
    nameless.remove("roleName");
    assert_eq!(
        refusal(&provider, &nameless),
        "parameters.roleName: is missing"
    );
    let unset = of(Settings::default());
    let error = refusal(&unset, &with(&[], OBJECT));
    assert!(
        error.contains("vaultAddress: is missing") && error.contains("--vault-addr)"),
        "{error}"
    );
}

#[test]
fn vault_objects_that_cannot_be_name_themselves() {
    let provider = of(usual());
    let many = "- {objectName: a, secretPath: b}\n".repeat(257);
    for (objects, says) in [
        ("", "parameters.objects"),
        (
            "[]",
            "parameters.objects: must be a list with 1 to 256 entries",
        ),
        (
            &many,
            "parameters.objects: must be a list with 1 to 256 entries",
        ),
        ("array: [a]", "parameters.objects: "),
        ("- [a", "parameters.objects: "),
        (
            "- {objectName: a, secretPath: b}\n- {objectName: a, secretPath: c}",
            "parameters.objects[1].objectName: \"a\" is also the name of objects[0]",
        ),
        (
            "- {objectName: a/b, secretPath: b}\n- {objectName: a, secretPath: c}",
            "parameters.objects[0].objectName: lies below the name of objects[1]",
        ),
        (
            "- {secretPath: b}",
            "parameters.objects[0].objectName: is missing",
        ),
        (
            "- {objectName: ../a, secretPath: b}",
            "parameters.objects[0].objectName: ",
        ),
        (
            "- {objectName: /a, secretPath: b}",
            "parameters.objects[0].objectName: ",
        ),
        (
            "- {objectName: a}",
            "parameters.objects[0].secretPath: must not be empty",
        ),
        (
            "- {objectName: a, secretPath: 'b#c'}",
            "parameters.objects[0].secretPath: ",
        ),
        (
            "- {objectName: a, secretPath: 'b?c=%zz'}",
            "parameters.objects[0].secretPath: ",
        ),
        (
            "- {objectName: a, secretPath: b, method: DELETE}",
            "parameters.objects[0].method: must be GET, PUT or POST",
        ),
        (
            "- {objectName: a, secretPath: b, method: get}",
            "parameters.objects[0].method: ",
        ),
        (
            "- {objectName: a, secretPath: auth/token/revoke-self, method: POST}",
            "parameters.objects[0].secretPath: must not end tokens or leases",
        ),
        (
            "- {objectName: a, secretPath: b, encoding: rot13}",
            "parameters.objects[0].encoding: must be utf-8, base64 or hex",
        ),
        (
            "- {objectName: a, secretPath: b, filePermission: 01777}",
            "parameters.objects[0].filePermission: must be at most 0777",
        ),
        (
            "- {objectName: a, secretPath: b, filePermission: -1}",
            "parameters.objects[0].filePermission: ",
        ),
        (
            "- {objectName: a, secretPath: b, filePermission: rw}",
            "parameters.objects: ",
        ),
        (
            "- {objectName: a, secretPath: b, secretKeyPointer: c}",
            "parameters.objects[0].secretKeyPointer: must start",
        ),
        (
            "- {objectName: a, secretPath: b, secretKey: c, secretKeyPointer: /c}",
            "parameters.objects[0].secretKeyPointer: cannot",
        ),
        (
            "- {objectName: a, secretPath: b, format: xml}",
            "parameters.objects[0].format: must be response",
        ),
        (
            "- {objectName: a, secretPath: b, secretKey: c, format: data}",
            "parameters.objects[0].format: is for",
        ),
        (
            "- {objectName: a, secretPath: p/sign/r, method: PUT, secretArgs: {common_name: a}}",
            "parameters.objects[0].format: must be files, tls or bundle",
        ),
        (
            "- {objectName: a, secretPath: b, keyType: ec}",
            "parameters.objects[0].keyType: is for",
        ),
        (
            "- {objectName: a, secretPath: p/sign/r, method: PUT, secretArgs: {common_name: a}, keyType: dsa}",
            "parameters.objects[0].keyType: must be",
        ),
    ] {
        let error = refusal(&provider, &with(&[], objects));
        assert!(error.starts_with(says), "{error} is not {says}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn vault_file_permissions_are_octal_with_and_without_an_o() {
    let provider = of(usual());
    let request = |mode: &str| {
        let object = format!("- {{objectName: a, secretPath: b, filePermission: {mode}}}");
        let source = provider.source(&with(&[], &object)).ok().unwrap();
        source.objects()[0].request.clone()
    };
    assert_eq!(request("0600"), request("0o600"));
    assert_eq!(request("0600"), request("384"));
    assert_ne!(request("0600"), request("0644"));
}

#[test]
fn vault_unknown_parameters_and_fields_are_ignored() {
    let provider = of(usual());
    let class = with(
        &[
            ("vaultCAPem", "x"),
            ("kubernetesServiceAccountPath", "/x"),
            ("usePodIdentity", "true"),
        ],
        "- {objectName: a, secretPath: b, objectPath: c, objectVersion: d}",
    );
    assert!(provider.source(&class).is_ok());
}

#[test]
fn vault_a_class_wins_over_the_administrators_defaults() {
    let provider = of(Settings {
        namespace: Some("above".to_owned()),
        audience: Some("ours".to_owned()),
        ..usual()
    });
    let IdentifiedBy::Token {
        audience,
        store,
        role,
    } = identity(&provider, &with(&[], OBJECT))
    else {
        panic!("by a token")
    };
    assert_eq!((audience.as_str(), role.as_str()), ("ours", "app"));
    assert_eq!(store, format!("{STORE} namespace=above auth=kubernetes"));
    let own = with(
        &[
            ("vaultAddress", "https://other.example/"),
            ("vaultNamespace", "team"),
            ("vaultAuthNamespace", "logins"),
            ("vaultAuthMountPath", "jwt"),
            ("audience", "theirs"),
            ("vaultTLSServerName", "vault.internal"),
        ],
        OBJECT,
    );
    let IdentifiedBy::Token {
        audience, store, ..
    } = identity(&provider, &own)
    else {
        panic!("by a token")
    };
    assert_eq!(audience, "theirs");
    assert_eq!(
        store,
        "https://other.example server-name=vault.internal namespace=logins auth=jwt"
    );
}

#[test]
fn openbao_is_known_by_its_own_audience_and_names() {
    let provider = of(Settings {
        flavour: Flavour::OpenBao,
        ..usual()
    });
    let IdentifiedBy::Token { audience, .. } = identity(&provider, &with(&[], OBJECT)) else {
        panic!("by a token")
    };
    assert_eq!(audience, "openbao");
    let all = [
        ("baoNamespace", "bao"),
        ("openbaoNamespace", "openbao"),
        ("vaultNamespace", "vault"),
    ];
    for first in 0..3 {
        let IdentifiedBy::Token { store, .. } = identity(&provider, &with(&all[first..], OBJECT))
        else {
            panic!("by a token")
        };
        assert!(
            store.contains(&format!("namespace={} ", all[first].1)),
            "{store}"
        );
    }
    let vault = of(usual());
    let IdentifiedBy::Token { store, .. } = identity(&vault, &with(&all, OBJECT)) else {
        panic!("by a token")
    };
    assert!(store.contains("namespace=vault "), "{store}");
}

#[test]
fn a_request_has_one_text_and_another_request_another() {
    let provider = of(usual());
    let request = |parameters: &[(&str, &str)], object: &str| {
        let source = provider.source(&with(parameters, object)).ok().unwrap();
        source.objects()[0].request.clone()
    };
    let plain = request(&[], "- {objectName: a, secretPath: kv/a, secretKey: k}");
    assert_eq!(
        plain,
        request(
            &[],
            "- {secretKey: k, secretPath: /v1/kv/a/, objectName: a, method: GET}"
        )
    );
    let blank = "
- objectName: a
  secretPath: kv/a
  secretKey: k
  secretKeyPointer:
  method:
  secretArgs:
  filePermission:
  encoding:
  format: ~
  keyType: null
  keyBits:
";
    assert_eq!(plain, request(&[], blank), "what is blank is not there");
    let put = "- {objectName: a, secretPath: kv/a, secretKey: k, method: PUT, secretArgs: {b: {d: 1, c: 2}, a: x}}";
    assert_eq!(
        request(&[], put),
        request(&[], &put.replace("{d: 1, c: 2}", "{c: 2, d: 1}"))
    );
    for (parameters, object) in [
        (
            &[("vaultNamespace", "n")][..],
            "- {objectName: a, secretPath: kv/a, secretKey: k}",
        ),
        (&[], "- {objectName: a, secretPath: kv/b, secretKey: k}"),
        // The file is called by it.
        (&[], "- {objectName: b, secretPath: kv/a, secretKey: k}"),
        (
            &[],
            "- {objectName: a, secretPath: 'kv/a?version=1', secretKey: k}",
        ),
        (&[], "- {objectName: a, secretPath: kv/a, secretKey: l}"),
        (
            &[],
            "- {objectName: a, secretPath: kv/a, secretKeyPointer: /k}",
        ),
        (&[], "- {objectName: a, secretPath: kv/a}"),
        (
            &[],
            "- {objectName: a, secretPath: kv/a, secretKey: k, encoding: hex}",
        ),
        (
            &[],
            "- {objectName: a, secretPath: kv/a, secretKey: k, filePermission: 0600}",
        ),
        (&[], put),
        (
            &[],
            "- {objectName: a, secretPath: kv/a, secretKey: k, method: POST}",
        ),
    ] {
        assert_ne!(
            request(parameters, object),
            plain,
            "{parameters:?} {object}"
        );
    }
}

#[test]
fn vault_an_empty_parameter_is_not_set() {
    let provider = of(Settings {
        namespace: Some("team".to_owned()),
        auth_mount: "cluster".to_owned(),
        ..usual()
    });
    let usual = identity(&provider, &with(&[], OBJECT));
    for name in [
        "vaultAddress",
        "vaultNamespace",
        "vaultAuthMountPath",
        "vaultKubernetesMountPath",
        "vaultCACert",
        "vaultCACertPath",
        "vaultCADirectory",
        "vaultTLSServerName",
        "vaultTLSClientCertPath",
        "vaultTLSClientKeyPath",
        "audience",
    ] {
        assert_eq!(
            identity(&provider, &with(&[(name, "")], OBJECT)),
            usual,
            "{name}"
        );
    }
    let flag = with(&[("vaultSkipTLSVerify", "")], OBJECT);
    assert!(refusal(&provider, &flag).ends_with("must be true or false"));
}

#[test]
fn rule_s5_plain_http_and_unverified_tls_are_the_administrators_to_allow() {
    let provider = of(usual());
    let error = refusal(
        &provider,
        &with(&[("vaultAddress", "http://vault.example")], OBJECT),
    );
    assert!(
        error.contains("must start with https://") && error.contains("--vault-address"),
        "{error}"
    );
    let error = refusal(&provider, &with(&[("vaultSkipTLSVerify", "true")], OBJECT));
    assert!(error.contains("--allow-insecure-tls"), "{error}");
    let plain = of(Settings {
        allowed_addresses: vec!["http://vault.example".to_owned()],
        ..Settings::default()
    });
    assert!(
        plain
            .source(&with(&[("vaultAddress", "http://vault.example/")], OBJECT))
            .is_ok()
    );
}

#[test]
fn rule_s7_addresses_are_those_that_the_administrator_allows() {
    let open = of(Settings {
        node_addresses: vec!["203.0.113.7".parse().unwrap()],
        ..usual()
    });
    for address in [
        "https://127.0.0.1:8200",
        "https://0x7f000001",
        "https://2130706433",
        "https://[::1]",
        "https://[::ffff:127.0.0.1]",
        "https://169.254.169.254",
        "https://[fe80::1]",
        "https://0.0.0.0",
        "https://203.0.113.7:10250",
    ] {
        let error = refusal(&open, &with(&[("vaultAddress", address)], OBJECT));
        assert!(
            error.starts_with("parameters.vaultAddress: is a"),
            "{address}: {error}"
        );
    }
    assert!(
        open.source(&with(&[("vaultAddress", "https://203.0.113.8")], OBJECT))
            .is_ok()
    );
    let closed = of(Settings {
        allowed_addresses: vec![
            "https://a.example".to_owned(),
            "https://127.0.0.1:8200".to_owned(),
        ],
        ..usual()
    });
    for (address, allowed) in [
        (STORE, true),
        ("https://a.example", true),
        ("https://A.example:443/", true),
        ("https://127.0.0.1:8200", true),
        ("https://127.0.0.1:8201", false),
        ("https://a.example:8200", false),
        ("http://a.example", false),
        ("https://b.a.example", false),
    ] {
        let class = with(&[("vaultAddress", address)], OBJECT);
        assert_eq!(closed.source(&class).is_ok(), allowed, "{address}");
    }
}

#[test]
fn namespaces_and_mounts_are_those_that_the_administrator_allows() {
    let provider = of(Settings {
        allowed_namespaces: vec!["team-a".to_owned()],
        allowed_mounts: vec!["secret".to_owned(), "/pki/".to_owned()],
        ..usual()
    });
    let object = |path: &str| format!("- {{objectName: a, secretPath: {path}}}");
    for (namespace, path, allowed) in [
        ("team-a", "secret/data/a", true),
        ("team-a/below", "pki/issue/web", true),
        ("team-ab", "secret/data/a", false),
        ("", "secret/data/a", false),
        ("team-a", "secrets/data/a", false),
        ("team-a", "below/secret/data/a", false),
    ] {
        let class = with(&[("vaultNamespace", namespace)], &object(path));
        assert_eq!(
            provider.source(&class).is_ok(),
            allowed,
            "{namespace} {path}"
        );
    }
    let logins = with(
        &[
            ("vaultNamespace", "team-a"),
            ("vaultAuthNamespace", "other"),
        ],
        &object("secret/a"),
    );
    assert!(refusal(&provider, &logins).starts_with("parameters.vaultAuthNamespace: "));
}

#[test]
fn rule_p12_files_of_the_node_are_not_opened_for_a_class() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
    fs::write(&file, ca.cert.pem()).unwrap();
    let path = file.to_str().unwrap();
    let provider = of(usual());
    for (name, value) in [
        ("vaultCACertPath", path),
        ("vaultCACertPath", "/no/such/file"),
        ("vaultCADirectory", "/etc/ssl/certs"),
        ("vaultTLSClientCertPath", path),
        ("vaultTLSClientKeyPath", path),
    ] {
        let error = refusal(&provider, &with(&[(name, value)], OBJECT));
        assert!(
            error.starts_with(&format!("parameters.{name}: ")),
            "{error}"
        );
        assert!(error.contains("vaultCACert"), "{error} names the cure");
        assert!(
            !error.contains(value),
            "{error} is the same whether or not there is such a file"
        );
    }
    let same = ClientCertificate {
        certificate: folder.path().join("client.pem"),
        key: folder.path().join("client.key"),
    };
    fs::write(&same.certificate, ca.cert.pem()).unwrap();
    fs::write(&same.key, ca.signing_key.serialize_pem()).unwrap();
    let client = of(Settings {
        client_certificate: Some(same.clone()),
        ..usual()
    });
    let named = |path: &std::path::Path| {
        with(
            &[("vaultTLSClientCertPath", path.to_str().unwrap())],
            OBJECT,
        )
    };
    assert!(client.source(&named(&same.certificate)).is_ok());
    assert!(client.source(&named(&same.key)).is_err());
    let listing = of(Settings {
        ca_files: vec![file.clone()],
        ..usual()
    });
    fs::remove_file(&file).unwrap();
    assert!(
        listing
            .source(&with(&[("vaultCACertPath", path)], OBJECT))
            .is_ok(),
        "it was read at start"
    );
    assert!(
        VaultProvider::new(Settings {
            ca_files: vec![file],
            ..usual()
        })
        .is_err()
    );
}
