//! Stores that are slow, wrong, too much, or somebody else: at the stand-in, since OpenBao is none of it.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coffer_provider::{
    Caller, ErrorKind, Life, Parameters, ProviderError, ServiceAccountToken, Sharing, testing,
};
use coffer_provider_vault::{ClientCertificate, Limits, Settings, VaultProvider};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use crate::stand_in::{Say, StandIn};
use crate::{bad, class, good, provider, read_one, settings, source, text, with};

const OBJECT: &str = "- {objectName: a, secretPath: kv/app, secretKey: user}";
const CANARY: &str = "canary-value";

pub(crate) fn caller() -> Caller {
    let mut caller = testing::caller("test");
    let expires = std::time::SystemTime::now() + Duration::from_secs(600);
    caller.token = Some(ServiceAccountToken::new("jwt-canary".to_owned(), expires));
    caller
}

/// A provider that may ask this store.
fn to(store: &StandIn) -> VaultProvider {
    provider(&[&store.url()])
}

fn with_limits(store: &StandIn, limits: Limits) -> VaultProvider {
    let settings = Settings {
        limits,
        ..settings(&[&store.url()])
    };
    VaultProvider::new(settings).unwrap()
}

/// What a read comes to that must fail. No part of an answer is in it.
async fn fails(provider: &VaultProvider, class: &Parameters) -> ProviderError {
    let error = bad(read_one(&*source(provider, class), &caller()).await);
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    error
}

fn data() -> Say {
    Say::Json(200, json!({"data": {"user": "u1"}}))
}

#[tokio::test]
async fn rule_s3_a_store_that_never_ends_is_cut_off() {
    for (what, say, kind) in [
        (
            "silence",
            (|| Say::Silence) as fn() -> Say,
            ErrorKind::DeadlineExceeded,
        ),
        (
            "a byte now and then",
            || Say::Trickle,
            ErrorKind::DeadlineExceeded,
        ),
        (
            "a head without an end",
            || Say::EndlessHead,
            ErrorKind::DeadlineExceeded,
        ),
        (
            "a body without an end",
            || Say::Endless,
            ErrorKind::TooLarge,
        ),
    ] {
        let store = StandIn::after_login(move |_| say()).await;
        let limits = Limits {
            // The endless body has time to reach its limit on a busy machine.
            attempt: Duration::from_secs(if kind == ErrorKind::TooLarge { 60 } else { 1 }),
            ..Limits::default()
        };
        let error = fails(&with_limits(&store, limits), &class(OBJECT)).await;
        assert_eq!(error.kind(), kind, "{what}: {error}");
    }
}

#[tokio::test]
async fn rule_s3_a_slow_store_holds_up_no_other() {
    let slow = StandIn::after_login(|_| Say::Silence).await;
    let good_one = StandIn::after_login(|_| data()).await;
    let provider = provider(&[&slow.url(), &good_one.url()]);
    let hanging = source(&provider, &class(OBJECT));
    let hanging = tokio::spawn(async move { read_one(&*hanging, &caller()).await.is_ok() });
    let class = with(&[("vaultAddress", &good_one.url())], OBJECT);
    assert_eq!(
        text(&good(
            read_one(&*source(&provider, &class), &caller()).await
        )),
        "u1"
    );
    assert!(!hanging.is_finished());
    hanging.abort();
}

#[tokio::test]
async fn rule_s9_an_answer_has_a_size_and_a_depth() {
    let limit = 10_000;
    let body = |length: usize| {
        let frame = r#"{"data":{"user":""}}"#.len();
        format!(r#"{{"data":{{"user":"{}"}}}}"#, "x".repeat(length - frame))
    };
    let limits = Limits {
        body: limit,
        ..Limits::default()
    };
    for length in [limit - 1, limit] {
        let store = StandIn::after_login(move |_| Say::status(200, "", &body(length))).await;
        let provider = with_limits(&store, limits);
        good(read_one(&*source(&provider, &class(OBJECT)), &caller()).await);
    }
    let store = StandIn::after_login(move |_| Say::status(200, "", &body(limit + 1))).await;
    let error = fails(&with_limits(&store, limits), &class(OBJECT)).await;
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(
        error.to_string().contains("more than 10000 bytes"),
        "{error}"
    );

    let deep = format!(
        r#"{{"data":{{"user":{}"{CANARY}"{}}}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let store = StandIn::after_login(move |_| Say::status(200, "", &deep)).await;
    let error = fails(&to(&store), &class(OBJECT)).await;
    assert_eq!(error.kind(), ErrorKind::InvalidAnswer);

    // Nothing is unpacked: nobody asked for it packed.
    let packed = "Content-Encoding: gzip\r\n";
    let store = StandIn::after_login(move |_| Say::status(200, packed, "\u{1f}gzip")).await;
    assert_eq!(
        fails(&to(&store), &class(OBJECT)).await.kind(),
        ErrorKind::InvalidAnswer
    );
}

#[tokio::test]
async fn rule_s10_an_answer_that_is_none_is_an_error_without_its_content() {
    for (what, status, body) in [
        ("HTML", 200, format!("<html>{CANARY}</html>")),
        ("an empty body", 200, String::new()),
        ("no content", 204, String::new()),
        ("no data", 200, format!(r#"{{"other":"{CANARY}"}}"#)),
        (
            "null for data",
            200,
            format!(r#"{{"data":null,"wrap_info":{{"token":"{CANARY}"}}}}"#),
        ),
        ("text for data", 200, format!(r#"{{"data":"{CANARY}"}}"#)),
        ("a list", 200, format!(r#"["{CANARY}"]"#)),
        (
            "a key twice",
            200,
            format!(r#"{{"data":{{"user":"{CANARY}","user":"b"}}}}"#),
        ),
        (
            "broken off",
            200,
            format!(r#"{{"data":{{"user":"{CANARY}""#),
        ),
        (
            "two values",
            200,
            format!(r#"{{"data":{{"user":"{CANARY}"}}}} {{}}"#),
        ),
        (
            "not UTF-8 as it seems",
            200,
            format!(r#"{{"data":{{"user":"{CANARY}\ud800"}}}}"#),
        ),
    ] {
        let store = StandIn::after_login(move |_| Say::status(status, "", &body)).await;
        let provider = to(&store);
        let error = fails(&provider, &class(OBJECT)).await;
        assert_eq!(error.kind(), ErrorKind::InvalidAnswer, "{what}: {error}");
    }
    let store =
        StandIn::after_login(move |_| Say::status(200, "", r#"{"data":{"user":null}}"#)).await;
    assert_eq!(
        fails(&to(&store), &class(OBJECT)).await.kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn rule_s10_a_login_that_brings_no_token_is_an_error() {
    for (what, status, body) in [
        ("no content", 204, String::new()),
        ("no auth", 200, r#"{"auth":null}"#.to_owned()),
        (
            "second factor",
            200,
            format!(r#"{{"auth":{{"client_token":"","mfa_requirement":{{"a":"{CANARY}"}}}}}}"#),
        ),
        ("HTML", 200, format!("<html>{CANARY}")),
        (
            "a line break in the token",
            200,
            format!(r#"{{"auth":{{"client_token":"{CANARY}\r\nX: y","lease_duration":1}}}}"#),
        ),
    ] {
        let store = StandIn::start(move |_| Say::status(status, "", &body)).await;
        let error = fails(&to(&store), &class(OBJECT)).await;
        assert_eq!(error.kind(), ErrorKind::InvalidAnswer, "{what}: {error}");
        assert_eq!(store.asked(), ["POST /v1/auth/jwt/login"], "{what}");
    }
}

#[tokio::test]
async fn rule_s6_redirects_stay_with_the_store() {
    let other = StandIn::start(|_| data()).await;
    let elsewhere = format!("Location: {}/v1/kv/app\r\n", other.url());
    let store = StandIn::after_login(move |_| Say::status(307, &elsewhere, "")).await;
    let error = fails(&to(&store), &class(OBJECT)).await;
    let says = format!(
        "redirects to {}, and the administrator has not allowed it",
        other.url()
    );
    assert!(error.to_string().contains(&says), "{error}");
    assert!(other.seen().is_empty(), "nothing goes there");

    // The login is what carries the pod's token.
    let elsewhere = format!("Location: {}/v1/auth/jwt/login\r\n", other.url());
    let store = StandIn::start(move |_| Say::status(307, &elsewhere, "")).await;
    fails(&to(&store), &class(OBJECT)).await;
    assert!(other.seen().is_empty(), "nothing goes there");
    for wrong in [
        "Location: \r\n",
        "Location: http://[::\r\n",
        "Location: file:///etc/passwd\r\n",
    ] {
        let store = StandIn::after_login(move |_| Say::status(307, wrong, "")).await;
        let error = fails(&to(&store), &class(OBJECT)).await;
        assert!(error.to_string().contains("redirects"), "{wrong}: {error}");
    }

    // The leader of a cluster is another address that the administrator has named.
    let leader = format!("Location: {}/v1/kv/app\r\n", other.url());
    let standby = StandIn::after_login(move |_| Say::status(307, &leader, "")).await;
    let provider = provider(&[&standby.url(), &other.url()]);
    assert_eq!(
        text(&good(
            read_one(&*source(&provider, &class(OBJECT)), &caller()).await
        )),
        "u1"
    );
    assert_eq!(other.last_token(), "s.canary");

    // One hop, and not a circle.
    let circle = StandIn::after_login(|_| Say::status(307, "Location: /v1/kv/app\r\n", "")).await;
    let error = fails(&to(&circle), &class(OBJECT)).await;
    assert!(error.to_string().contains("redirects too often"), "{error}");
    assert_eq!(circle.asked().len(), 3, "a login, the read and one hop");

    // A write that became a read would be another request.
    let moved = StandIn::start(|_| Say::status(302, "Location: /v1/other\r\n", "")).await;
    let error = fails(&to(&moved), &class(OBJECT)).await;
    assert!(error.to_string().contains("redirects a write"), "{error}");
}

#[tokio::test]
async fn rule_s10_numbers_that_no_clock_can_hold_do_no_harm() {
    let most = u64::MAX;
    let login = json!({"auth": {"client_token": "s.t", "lease_duration": most, "renewable": true}});
    let lease =
        json!({"data": {"user": "u"}, "lease_id": "l", "lease_duration": most, "renewable": true});
    let store = StandIn::start(move |seen| match seen.is_login() {
        true => Say::Json(200, login.clone()),
        false => Say::Json(200, lease.clone()),
    })
    .await;
    let source = source(&to(&store), &class(OBJECT));
    let Life::Leased {
        lease, duration, ..
    } = good(read_one(&*source, &caller()).await).life
    else {
        panic!("it is leased")
    };
    assert!(duration > Duration::from_secs(1 << 31));
    assert!(source.renew(&caller(), &lease).await.is_ok());
    for data in [
        json!({"ttl": most, "rotation_period": 1, "user": "u"}),
        json!({"ttl": -1, "rotation_period": 1, "user": "u"}),
        json!({"ttl": 1e300, "rotation_period": 1, "user": "u"}),
        json!({"certificate": "c", "expiration": most, "serial_number": 7, "user": "u"}),
    ] {
        let store = StandIn::after_login(move |_| Say::Json(200, json!({"data": data}))).await;
        let put = "- {objectName: a, secretPath: pki/issue/a, method: PUT, secretKey: user}";
        good(read_one(&*self::source(&to(&store), &class(put)), &caller()).await);
    }
}

#[tokio::test]
async fn rule_s8_a_path_arrives_as_it_was_written() {
    let store = StandIn::after_login(|_| data()).await;
    let object = "- {objectName: a, secretPath: 'kv/a b/%2e%2e/ü%2F?version=1', secretKey: user}";
    let source = source(&to(&store), &class(object));
    good(read_one(&*source, &caller()).await);
    let path = "/v1/kv/a%20b/%252e%252e/%C3%BC%252F?version=1";
    assert_eq!(store.seen().last().unwrap().path, path);
}

#[tokio::test]
async fn rule_s4_a_store_that_is_busy_says_for_how_long() {
    let quota = r#"{"errors":["request path \"kv/app\": rate limit quota exceeded"]}"#;
    for (what, status, head, body, after) in [
        (
            "a quota with a time",
            429,
            "Retry-After: 7\r\n",
            quota,
            Some(7),
        ),
        ("a quota without", 429, "", quota, None),
        (
            "a very long time",
            503,
            "Retry-After: 86400\r\n",
            r#"{"errors":["busy"]}"#,
            Some(300),
        ),
        ("sealed", 503, "", r#"{"errors":["Vault is sealed"]}"#, None),
        ("a proxy's page", 502, "", "<html>canary</html>", None),
    ] {
        let store = StandIn::after_login(move |_| Say::status(status, head, body)).await;
        let error = fails(&to(&store), &class(OBJECT)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
        assert_eq!(
            error.retry_after(),
            after.map(Duration::from_secs),
            "{what}"
        );
        assert_eq!(store.asked().len(), 2, "{what}: it is not asked again");
    }
    let sealed =
        StandIn::start(|_| Say::status(503, "", r#"{"errors":["Vault is sealed"]}"#)).await;
    let error = fails(&to(&sealed), &class(OBJECT)).await;
    assert_eq!(error.to_string(), "auth/jwt/login: the store is sealed");
}

#[tokio::test]
async fn a_standby_that_is_behind_is_asked_again_with_the_index_of_the_login() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for (status, head) in [(429, "Retry-After: 1\r\n"), (412, "")] {
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = reads.clone();
        let store = StandIn::start(move |seen| match seen.is_login() {
            true => {
                let body = r#"{"auth":{"client_token":"s.t","lease_duration":60}}"#;
                Say::status(200, "X-Vault-Index: opaque=\r\n", body)
            }
            false if counter.fetch_add(1, Ordering::Relaxed) == 0 => {
                Say::status(status, head, r#"{"errors":[]}"#)
            }
            false => data(),
        })
        .await;
        let provider = to(&store);
        assert_eq!(
            text(&good(
                read_one(&*source(&provider, &class(OBJECT)), &caller()).await
            )),
            "u1"
        );
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        let last = store.seen().last().unwrap().headers.clone();
        assert_eq!(last["x-vault-index"], "opaque=");
        assert_eq!(last["x-vault-inconsistent"], "forward-active-node");
        assert_eq!(last["x-vault-request"], "true");
    }
    let behind = StandIn::after_login(|_| {
        Say::status(
            412,
            "",
            r#"{"errors":["required index state not present"]}"#,
        )
    })
    .await;
    let error = fails(&to(&behind), &class(OBJECT)).await;
    assert_eq!(error.to_string(), "kv/app: the store's standby is behind");
    assert_eq!(behind.asked().len(), 4, "a login and three reads");
}

#[tokio::test]
async fn rule_s11_no_more_requests_at_once_than_one_store_gets() {
    let objects: String = (0..40)
        .map(|n| format!("- {{objectName: f{n}, secretPath: kv/{n}, secretKey: user}}\n"))
        .collect();
    let store = StandIn::after_login(|_| Say::Silence).await;
    let limits = Limits {
        parallel: 3,
        attempt: Duration::from_secs(60),
        ..Limits::default()
    };
    let provider = with_limits(&store, limits);
    let source = source(&provider, &class(&objects));
    let reading =
        tokio::spawn(async move { source.fetch(&caller(), source.objects()).await.len() });
    let a_login_and_three_reads = 4;
    while store.seen().len() < a_login_and_three_reads {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The other 37 have had their chance.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(store.seen().len(), a_login_and_three_reads);
    reading.abort();
}

#[tokio::test]
async fn rule_s7_a_name_that_leads_to_the_node_is_refused_before_it_is_connected_to() {
    let store = StandIn::start(|_| data()).await;
    let port = store.address.port();
    let open = VaultProvider::new(Settings {
        auth_mount: "jwt".to_owned(),
        ..Settings::default()
    });
    let open = open.unwrap();
    let class = with(
        &[("vaultAddress", &format!("https://localhost:{port}"))],
        OBJECT,
    );
    let error = fails(&open, &class).await;
    assert_eq!(error.kind(), ErrorKind::InvalidParameters);
    let says = format!("https://localhost:{port} leads to a loopback address");
    assert!(error.to_string().starts_with(&says), "{error}");
    assert!(store.seen().is_empty());

    // The administrator may have a store there.
    let named = VaultProvider::new(settings(&[&format!("http://localhost:{port}")])).unwrap();
    let error = bad(read_one(&*source(&named, &self::class(OBJECT)), &caller()).await);
    assert_eq!(
        error.kind(),
        ErrorKind::InvalidAnswer,
        "it was asked, and gave no token: {error}"
    );
}

#[tokio::test]
async fn rule_s1_a_store_that_is_not_there_is_unavailable_in_time() {
    // Nobody listens there any more.
    let port = TcpListener::bind("127.0.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gone = format!("http://{port}");
    let provider = provider(&[&gone, "https://no-such-host.invalid"]);
    let error = fails(&provider, &class(OBJECT)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.to_string(), format!("{gone} refuses connections"));
    let nameless = with(&[("vaultAddress", "https://no-such-host.invalid")], OBJECT);
    let error = fails(&provider, &nameless).await;
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::DeadlineExceeded
        ),
        "{error}"
    );
}

#[tokio::test]
async fn fifty_readers_of_a_store_that_refuses_are_one_login() {
    let store = StandIn::start(|_| Say::status(500, "", "{}")).await;
    let provider = to(&store);
    let source = source(&provider, &class(OBJECT));
    let begun = Instant::now();
    let all = futures_util::future::join_all(
        (0..50).map(|_| async { read_one(&*source, &caller()).await.is_ok() }),
    );
    assert!(all.await.iter().all(|good| !good));
    assert_eq!(store.asked().len(), 1, "{:?}", begun.elapsed());
}

/// A certificate for `names`, and the CA that signed it.
fn certificate(names: &[&str], change: fn(&mut CertificateParams)) -> (String, TlsAcceptor) {
    certificate_of(names, change, WebPkiClientVerifier::no_client_auth())
}

/// The same for a store that looks at its clients.
fn certificate_of(
    names: &[&str],
    change: fn(&mut CertificateParams),
    clients: Arc<dyn ClientCertVerifier>,
) -> (String, TlsAcceptor) {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
    (ca.pem(), TlsAcceptor::from(Arc::new(config.unwrap())))
}

async fn with_tls(acceptor: TlsAcceptor) -> StandIn {
    let say = |seen: &crate::stand_in::Seen| {
        if seen.is_login() {
            Say::token()
        } else {
            data()
        }
    };
    StandIn::start_with(Some(acceptor), say).await
}

#[tokio::test]
async fn rule_s5_nothing_is_sent_to_a_store_that_does_not_prove_itself() {
    let nothing: fn(&mut CertificateParams) = |_| {};
    let (ca, acceptor) = certificate(&["127.0.0.1"], nothing);
    let (another_ca, _) = certificate(&["127.0.0.1"], nothing);
    let store = with_tls(acceptor.clone()).await;
    let provider = provider(&[&store.url()]);
    let right = with(&[("vaultCACert", &ca)], OBJECT);
    assert_eq!(
        text(&good(
            read_one(&*source(&provider, &right), &caller()).await
        )),
        "u1"
    );
    store.asked();

    let (expired_ca, expired) = certificate(&["127.0.0.1"], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let (misnamed_ca, misnamed) = certificate(&["vault.example"], nothing);
    for (what, acceptor, ca) in [
        ("the machine's roots alone", acceptor.clone(), None),
        ("another CA", acceptor, Some(another_ca)),
        ("expired", expired, Some(expired_ca)),
        ("another name", misnamed.clone(), Some(misnamed_ca.clone())),
    ] {
        let store = with_tls(acceptor).await;
        let provider = self::provider(&[&store.url()]);
        let class = match &ca {
            Some(ca) => with(&[("vaultCACert", ca)], OBJECT),
            None => class(OBJECT),
        };
        let error = fails(&provider, &class).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{what}: {error}");
        let says = "has a certificate that is not trusted";
        assert!(
            error.to_string().contains(says),
            "{what}: {error} {:?}",
            error.detail()
        );
        assert!(store.seen().is_empty(), "{what}");
    }

    // The name that the class expects, at an address that has none.
    let store = with_tls(misnamed.clone()).await;
    let provider = self::provider(&[&store.url()]);
    let named = with(
        &[
            ("vaultCACert", &misnamed_ca),
            ("vaultTLSServerName", "vault.example"),
        ],
        OBJECT,
    );
    assert_eq!(
        text(&good(
            read_one(&*source(&provider, &named), &caller()).await
        )),
        "u1"
    );

    // Only where the administrator allows it.
    let store = with_tls(misnamed).await;
    let skips = with(&[("vaultSkipTLSVerify", "true")], OBJECT);
    let allowing = VaultProvider::new(Settings {
        allow_insecure_tls: true,
        ..settings(&[&store.url()])
    });
    assert_eq!(
        text(&good(
            read_one(&*source(&allowing.unwrap(), &skips), &caller()).await
        )),
        "u1"
    );
}

#[tokio::test]
async fn rule_p12_the_drivers_certificate_is_shown_where_the_store_asks() {
    let folder = tempfile::tempdir().unwrap();
    let (ca_file, client) = (
        folder.path().join("ca"),
        rcgen::generate_simple_self_signed(["driver".to_owned()]).unwrap(),
    );
    let files = ClientCertificate {
        certificate: folder.path().join("certificate"),
        key: folder.path().join("key"),
    };
    let mut clients = RootCertStore::empty();
    clients.add(client.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(clients.into(), provider);
    let (ca, acceptor) = certificate_of(&["127.0.0.1"], |_| {}, clients.build().unwrap());
    let store = with_tls(acceptor).await;
    std::fs::write(&ca_file, ca).unwrap();
    std::fs::write(&files.certificate, client.cert.pem()).unwrap();
    std::fs::write(&files.key, client.signing_key.serialize_pem()).unwrap();
    let with_files = |client_certificate| {
        VaultProvider::new(Settings {
            ca_file: Some(ca_file.clone()),
            client_certificate,
            ..settings(&[&store.url()])
        })
    };
    // The CA for everybody comes from the file, too.
    let shows = with_files(Some(files.clone())).unwrap();
    assert_eq!(
        text(&good(
            read_one(&*source(&shows, &class(OBJECT)), &caller()).await
        )),
        "u1"
    );
    let none = with_files(None).unwrap();
    assert_eq!(
        fails(&none, &class(OBJECT)).await.kind(),
        ErrorKind::Unavailable
    );
    let swapped = ClientCertificate {
        certificate: files.key,
        key: files.certificate,
    };
    assert!(with_files(Some(swapped)).is_err());
}

#[tokio::test]
async fn rule_s5_trust_is_part_of_the_identity() {
    let (ca, acceptor) = certificate(&["127.0.0.1"], |_| {});
    let (another_ca, _) = certificate(&["127.0.0.1"], |_| {});
    let store = with_tls(acceptor).await;
    let provider = provider(&[&store.url()]);
    let trusting = source(&provider, &with(&[("vaultCACert", &ca)], OBJECT));
    let other = source(&provider, &with(&[("vaultCACert", &another_ca)], OBJECT));
    assert!(trusting.identified_by() != other.identified_by());
    good(read_one(&*trusting, &caller()).await);
    // A login over one of them is not used by the other.
    assert_eq!(
        bad(read_one(&*other, &caller()).await).kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn the_password_of_a_static_role_is_good_until_it_is_changed() {
    let role = json!({"data": {"username": "u", "password": "p", "ttl": 90, "rotation_period": 3600,
        "last_vault_rotation": "2026-01-01T00:00:00Z"}});
    let store = StandIn::after_login(move |_| Say::Json(200, role.clone())).await;
    let object = "- {objectName: a, secretPath: database/static-creds/app, secretKey: password}";
    let source = source(&to(&store), &class(object));
    let secret = good(read_one(&*source, &caller()).await);
    assert!(matches!(secret.life, Life::Rotates(left) if left == Duration::from_secs(90)));
    assert_eq!(secret.sharing, Sharing::ServiceAccount);
}

/// What is logged, as a writer of a subscriber.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_logged_whatever_is_logged_besides() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let logging = tracing::subscriber::set_default(subscriber);
    for say in [
        (|| {
            Say::Json(
                200,
                json!({"data": {"user": CANARY}, "lease_id": "canary", "renewable": true, "lease_duration": 60}),
            )
        }) as fn() -> Say,
        || Say::status(200, "", &format!(r#"{{"data":{{"user":{CANARY}"}}}}"#)),
        || Say::status(500, "", &format!(r#"{{"data":"{CANARY}"}}"#)),
        || Say::status(403, "", r#"{"errors":["permission denied"]}"#),
    ] {
        let store = StandIn::after_login(move |_| say()).await;
        let source = source(&to(&store), &class(OBJECT));
        let secret = read_one(&*source, &caller()).await;
        if let Ok(secret) = secret
            && let Life::Leased { lease, .. } = secret.life
        {
            drop(source.renew(&caller(), &lease).await);
            source.release(&caller(), &[lease], Duration::ZERO).await;
        }
        source.log_out(&caller()).await;
    }
    drop(logging);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("rustify"), "its spans are there");
    assert!(!log.contains("canary"), "{log}");
}
