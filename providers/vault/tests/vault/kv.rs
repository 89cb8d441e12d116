//! KV of both versions: what becomes files, what counts as a change, and how often the store is asked.

use coffer_provider::{ErrorKind, Format, Life, Sharing};
use coffer_provider_vault::{Settings, VaultProvider};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::bao::Bao;
use crate::stand_in::{Say, StandIn};
use crate::{bad, class, files, good, provider, read, read_one, settings, source, text, with};

const TWO: &str = "
- {objectName: user, secretPath: secret/data/db, secretKey: user, filePermission: 0624}
- {objectName: pass, secretPath: /v1/secret/data/db, secretKey: pass}
";

async fn with_db() -> Bao {
    let bao = Bao::start().await;
    bao.put(
        "secret/data/db",
        json!({"data": {"user": "u1", "pass": "p1"}}),
    )
    .await;
    bao
}

#[tokio::test]
async fn two_spellings_of_one_request_have_one_version_or_are_two_objects() {
    let store = StandIn::after_login(|_| Say::Json(200, json!({"data": {"a": "v"}}))).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [7; 32]).unwrap();
    for (version_key_file, is_one) in [(None, true), (Some(file.path().to_owned()), false)] {
        let provider = VaultProvider::new(Settings {
            version_key_file,
            ..settings(&[&store.url()])
        });
        let provider = provider.unwrap();
        let read = async |path: &str| {
            let object = format!("- {{objectName: a, secretPath: {path}, secretKey: a}}");
            let source = source(&provider, &class(&object));
            let secret = good(read_one(&*source, &crate::hostile::caller()).await);
            (source.objects()[0].request.clone(), secret.version)
        };
        let (one, another) = (read("kv1/a").await, read("/v1/kv1/a").await);
        assert_eq!(one.1 == another.1, is_one);
        assert_eq!(
            one.0 == another.0,
            is_one,
            "what shares a version is shared"
        );
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_1_two_keys_are_two_files_with_their_modes() {
    let bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    let answers = read(&*source(&provider, &class(TWO)), &bao.app()).await;
    let secrets: Vec<_> = answers.into_iter().map(good).collect();
    assert_eq!(
        (text(&secrets[0]), text(&secrets[1])),
        ("u1".into(), "p1".into())
    );
    assert_eq!(secrets[0].files[0].mode, Some(0o624));
    assert_eq!(secrets[1].files[0].mode, None, "the class's default");
    assert!(matches!(secrets[0].life, Life::Static));
    assert_eq!(secrets[0].sharing, Sharing::ServiceAccount);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_2_encoded_values_are_decoded_whatever_the_path_looks_like() {
    let bao = Bao::start().await;
    bao.put(
        "secret/data/b",
        json!({"data": {"base64": "AQIK", "hex": "61620a"}}),
    )
    .await;
    let provider = provider(&[&bao.url()]);
    let objects = "
- {objectName: a/b, secretPath: v1/secret/data/b, secretKey: base64, encoding: BASE64}
- {objectName: c, secretPath: secret/data/b/, secretKey: hex, encoding: hex}
- {objectName: d, secretPath: 'secret/data/b?version=1', secretKey: base64, encoding: hex}
";
    let answers = read(&*source(&provider, &class(objects)), &bao.app()).await;
    let bytes = |index: usize| {
        let secret = answers[index].as_ref();
        let secret = secret.unwrap_or_else(|error| panic!("{error}"));
        secret.files[0].bytes.expose().to_vec()
    };
    assert_eq!((bytes(0), bytes(1)), (vec![1, 2, 10], b"ab\n".to_vec()));
    let error = answers[2].as_ref().err().expect("base64 is not hex");
    assert_eq!(error.kind(), ErrorKind::InvalidAnswer);
    assert!(!error.to_string().contains("AQIK"), "{error}");
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_4_two_classes_of_one_pod_share_a_login() {
    let bao = with_db().await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let caller = bao.app();
    let sources = [
        TWO,
        "- {objectName: a, secretPath: secret/data/db, secretKey: user}",
    ]
    .map(|objects| source(&provider, &class(objects)));
    for source in &sources {
        read(&**source, &caller)
            .await
            .into_iter()
            .for_each(|answer| drop(good(answer)));
    }
    assert_eq!(
        counted.seen().iter().filter(|seen| seen.is_login()).count(),
        1
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn first_mount_is_one_login_one_look_up_and_each_distinct_read_once() {
    let bao = with_db().await;
    bao.put("secret/data/api", json!({"data": {"key": "k"}}))
        .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let objects = format!("{TWO}- {{objectName: k, secretPath: secret/data/api, secretKey: key}}");
    // Fifty pods of one identity, at once.
    let pods = join_all((0..50).map(|_| async {
        let source = source(&provider, &class(&objects));
        read(&*source, &bao.app())
            .await
            .into_iter()
            .for_each(|answer| drop(good(answer)));
    }));
    pods.await;
    let mut asked = counted.asked();
    assert_eq!(
        asked
            .iter()
            .filter(|asked| asked.ends_with("/login"))
            .count(),
        1
    );
    assert_eq!(
        asked
            .iter()
            .filter(|asked| asked.contains("/ui/mounts/"))
            .count(),
        1
    );

    // What the driver's cache asks for once is asked for once.
    read(&*source(&provider, &class(&objects)), &bao.app()).await;
    asked = counted.asked();
    asked.sort();
    assert_eq!(asked, ["GET /v1/secret/data/api", "GET /v1/secret/data/db"]);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn thousand_unchanged_rotations_leave_one_token() {
    let bao = with_db().await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(TWO));
    let caller = bao.app();
    let first = good(read(&*source, &caller).await.remove(0)).version;
    for _ in 0..1000 {
        let versions = source.versions(&caller, source.objects()).await;
        assert_eq!(versions, [Some(first.clone()), Some(first.clone())]);
    }
    let asked = counted.asked();
    let count = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!(
        (
            count("/login"),
            count("GET /v1/secret/data/"),
            count("/metadata/")
        ),
        (1, 1, 1000)
    );
    assert_eq!(bao.tokens().await, 1);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn versions_are_the_stores_own_and_cheap() {
    let bao = with_db().await;
    let provider = provider(&[&bao.url()]);
    let caller = bao.app();
    let latest = source(
        &provider,
        &class("- {objectName: a, secretPath: secret/data/db, secretKey: user}"),
    );
    let first = good(read_one(&*latest, &caller).await);
    assert!(
        first.version.as_str().starts_with("1@"),
        "{}",
        first.version.as_str()
    );
    bao.put("secret/data/db", json!({"data": {"user": "u2"}}))
        .await;
    let cheap = latest
        .versions(&caller, latest.objects())
        .await
        .remove(0)
        .unwrap();
    assert!(cheap.as_str().starts_with("2@"), "{}", cheap.as_str());
    assert_eq!(good(read_one(&*latest, &caller).await).version, cheap);

    let old = "- {objectName: a, secretPath: 'secret/data/db?version=1', secretKey: user}";
    let old = source(&provider, &class(old));
    let secret = good(read_one(&*old, &caller).await);
    assert_eq!(
        (text(&secret), &secret.version),
        ("u1".into(), &first.version)
    );
    assert_eq!(
        old.versions(&caller, old.objects()).await,
        [Some(first.version.clone())]
    );

    // Deleted with its history and written anew, a secret starts with version 1 again.
    bao.admin("DELETE", "secret/metadata/db", Value::Null).await;
    bao.put("secret/data/db", json!({"data": {"user": "u3"}}))
        .await;
    let again = good(read_one(&*latest, &caller).await);
    assert!(again.version.as_str().starts_with("1@"));
    assert_ne!(again.version, first.version);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn without_a_right_to_the_metadata_it_is_asked_for_once() {
    let bao = with_db().await;
    let policy = r#"path "secret/data/*" { capabilities = ["read"] }"#;
    bao.put("sys/policies/acl/app", json!({"policy": policy}))
        .await;
    let counted = bao.counted().await;
    let provider = provider(&[&counted.url()]);
    let source = source(&provider, &class(TWO));
    read(&*source, &bao.app()).await;
    for _ in 0..3 {
        assert_eq!(
            source.versions(&bao.app(), source.objects()).await,
            [None, None]
        );
    }
    let asked = counted.asked();
    assert_eq!(
        asked
            .iter()
            .filter(|asked| asked.contains("/metadata/"))
            .count(),
        1
    );
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_11_versions_with_a_key_outlive_the_process() {
    let bao = with_db().await;
    let folder = tempfile::tempdir().unwrap();
    let version = async |key: &[u8]| {
        let file = folder.path().join("key");
        std::fs::write(&file, key).unwrap();
        let provider = VaultProvider::new(Settings {
            version_key_file: Some(file),
            ..settings(&[&bao.url()])
        });
        let source = source(&provider.unwrap(), &class(TWO));
        let secrets = read(&*source, &bao.app()).await;
        assert_eq!(
            source.versions(&bao.app(), source.objects()).await,
            [None, None]
        );
        secrets
            .into_iter()
            .map(|secret| good(secret).version)
            .collect::<Vec<_>>()
    };
    let first = version(b"key").await;
    assert_eq!(first, version(b"key").await);
    assert_ne!(first, version(b"another").await);
    assert_ne!(first[0], first[1]);
    // HMAC-SHA256 of the entry as Go writes it and the file's content, in base64.
    let entry = r#"{"ObjectName":"user","SecretPath":"secret/data/db","SecretKey":"user","Method":"","SecretArgs":null,"FilePermission":404,"Encoding":""}u1"#;
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"key");
    let expected = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE,
        aws_lc_rs::hmac::sign(&key, entry.as_bytes()),
    );
    assert_eq!(first[0].as_str(), expected);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn rule_o3_the_key_of_the_cluster_makes_versions_where_a_store_has_none() {
    let bao = with_db().await;
    bao.put("kv1/db", json!({"user": "u1"})).await;
    let folder = tempfile::tempdir().unwrap();
    let objects = "
- {objectName: a, secretPath: kv1/db, secretKey: user}
- {objectName: b, secretPath: secret/data/db, secretKey: user}
";
    let versions = async |key: Option<&[u8]>| {
        let file = key.map(|key| {
            let file = folder.path().join("key");
            std::fs::write(&file, key).unwrap();
            file
        });
        let provider = VaultProvider::new(Settings {
            cluster_key_file: file,
            ..settings(&[&bao.url()])
        });
        let source = source(&provider.unwrap(), &class(objects));
        let answers = read(&*source, &bao.app()).await.into_iter();
        let versions = answers.map(|secret| good(secret).version.as_str().to_owned());
        let [hash, own] = versions.collect::<Vec<_>>().try_into().unwrap();
        (hash, own)
    };
    let (hash, own) = versions(Some(b"key")).await;
    assert!(
        own.starts_with("1@"),
        "a version of the store's stays: {own}"
    );
    assert_eq!(versions(Some(b"key")).await, (hash.clone(), own.clone()));
    for other in [Some(&b"another"[..]), None] {
        let (other, same) = versions(other).await;
        assert!(other != hash && same == own);
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_kv_1_with_a_key_called_data_is_not_taken_for_kv_2() {
    let bao = Bao::start().await;
    let looks_like_it =
        json!({"data": {"user": "inner"}, "metadata": {"version": 1}, "user": "outer"});
    bao.put("kv1/object", looks_like_it).await;
    bao.put("kv1/string", json!({"data": "text", "user": "outer"}))
        .await;
    let provider = provider(&[&bao.url()]);
    let objects = "
- {objectName: a, secretPath: kv1/object, secretKey: user}
- {objectName: b, secretPath: kv1/object, secretKey: data}
- {objectName: c, secretPath: kv1/string, secretKey: data}
- {objectName: d, secretPath: kv1/object, secretKeyPointer: /data/user}
";
    let answers = read(&*source(&provider, &class(objects)), &bao.app()).await;
    let secrets: Vec<_> = answers.into_iter().map(good).collect();
    // The 768 hours that KV v1 tells are a hint, not an end.
    assert!(
        secrets
            .iter()
            .all(|secret| matches!(secret.life, Life::Static))
    );
    let texts: Vec<_> = secrets.iter().map(text).collect();
    assert_eq!(texts, ["outer", r#"{"user":"inner"}"#, "text", "inner"]);
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn all_keys_nested_keys_and_whole_answers() {
    let bao = Bao::start().await;
    let data = json!({"user": "u", "port": 5432, "tls": {"on": true, "hosts": ["a", "<b>"]}});
    bao.put("secret/data/db", json!({"data": data})).await;
    let provider = provider(&[&bao.url()]);
    let objects = "
- {objectName: db, secretPath: secret/data/db, format: files}
- {objectName: host, secretPath: secret/data/db, secretKeyPointer: /tls/hosts/1}
- {objectName: data.json, secretPath: secret/data/db, format: data}
- {objectName: all.json, secretPath: secret/data/db}
- {objectName: none, secretPath: secret/data/db, secretKey: password}
";
    let source = source(&provider, &class(objects));
    let caller = bao.app();
    let answers = read(&*source, &caller).await;
    let [db, host, data, all, none] = answers.try_into().ok().unwrap();
    let db = files(&good(db));
    let expected = [
        ("db/port", "5432"),
        ("db/tls", r#"{"hosts":["a","\u003cb\u003e"],"on":true}"#),
        ("db/user", "u"),
    ];
    assert_eq!(
        db,
        expected
            .map(|(name, text)| (name.into(), text.into()))
            .into()
    );
    assert_eq!(text(&good(host)), "<b>");
    let data = good(data);
    assert_eq!(data.files[0].format, Format::Json);
    assert!(
        text(&data).starts_with(r#"{"port":5432,"tls":{"#),
        "{}",
        text(&data)
    );
    let whole = good(all);
    let start = r#"{"request_id":"","lease_id":"","lease_duration":0,"renewable":false,"data":{"data":{"port":5432,"#;
    assert!(text(&whole).starts_with(start), "{}", text(&whole));
    let error = bad(none);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "secret/data/db: it has no key password");

    // The whole answer is the same each time, until what stands around the values is edited.
    let again = read(&*source, &caller).await.remove(3);
    assert_eq!(good(again).version, whole.version);
    let metadata = json!({"custom_metadata": {"owner": "x"}});
    bao.put("secret/metadata/db", metadata).await;
    let mut edited = read(&*source, &caller).await;
    assert_eq!(good(edited.remove(2)).version, data.version);
    let edited = good(edited.remove(2));
    assert_ne!(edited.version, whole.version);
    assert_ne!(text(&edited), text(&whole));
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn what_is_not_there_says_why() {
    let bao = with_db().await;
    for name in ["deleted", "destroyed"] {
        bao.put(&format!("secret/data/{name}"), json!({"data": {"a": "b"}}))
            .await;
    }
    bao.admin("DELETE", "secret/data/deleted", Value::Null)
        .await;
    bao.put("secret/destroy/destroyed", json!({"versions": [1]}))
        .await;
    let policy = json!({"policy": r#"path "*" { capabilities = ["read"] }"#});
    bao.put("sys/policies/acl/app", policy).await;
    let provider = provider(&[&bao.url()]);
    for (path, kind, says) in [
        (
            "secret/data/none",
            ErrorKind::NotFound,
            "the store does not have it",
        ),
        (
            "secret/data/db?version=9",
            ErrorKind::NotFound,
            "the store does not have it",
        ),
        (
            "secret/data/deleted",
            ErrorKind::NotFound,
            "version 1 was deleted",
        ),
        (
            "secret/data/destroyed",
            ErrorKind::NotFound,
            "version 1 was destroyed",
        ),
        (
            "secret/db",
            ErrorKind::NotFound,
            "this mount is KV v2, whose paths go on with data/",
        ),
        (
            "nowhere/db",
            ErrorKind::NotFound,
            "the store does not have it",
        ),
    ] {
        let objects = format!("- {{objectName: a, secretPath: '{path}', secretKey: a}}");
        let source = source(&provider, &class(&objects));
        let error = bad(read_one(&*source, &bao.app()).await);
        let path = path.split('?').next().unwrap();
        assert_eq!(error.kind(), kind, "{path}: {error}");
        assert!(
            error.to_string().starts_with(&format!("{path}: {says}")),
            "{error}"
        );
        let again = bad(read_one(&*source, &bao.app()).await);
        assert_eq!(
            again.to_string(),
            error.to_string(),
            "it is the same each time"
        );
    }
}

#[tokio::test]
#[ignore = "needs OpenBao: cargo xtask test"]
async fn vault_9_namespaces_for_secrets_and_for_logins() {
    let bao = Bao::start().await;
    bao.put("sys/namespaces/team-a", json!({})).await;
    bao.put(
        "team-a/sys/mounts/secret",
        json!({"type": "kv", "options": {"version": "2"}}),
    )
    .await;
    bao.put("team-a/secret/data/db", json!({"data": {"user": "of-a"}}))
        .await;
    bao.put(
        "team-a/sys/policies/acl/app",
        json!({"policy": r#"path "secret/*" { capabilities = ["read"] }"#}),
    )
    .await;
    bao.enable_jwt("team-a/").await;
    bao.put("team-a/auth/jwt/role/app", bao.role(json!({})))
        .await;
    let above = r#"path "team-a/secret/*" { capabilities = ["read"] }"#;
    bao.put("sys/policies/acl/app", json!({"policy": above}))
        .await;
    let provider = provider(&[&bao.url()]);
    let object = "- {objectName: a, secretPath: secret/data/db, secretKey: user}";
    let below = "- {objectName: a, secretPath: team-a/secret/data/db, secretKey: user}";
    for (parameters, object) in [
        (&[("vaultNamespace", "team-a")][..], object),
        (
            &[("vaultNamespace", "/team-a/"), ("vaultAuthNamespace", "")],
            object,
        ),
        (&[], below),
    ] {
        let source = source(&provider, &with(parameters, object));
        assert_eq!(
            text(&good(read_one(&*source, &bao.app()).await)),
            "of-a",
            "{parameters:?}"
        );
    }
    let elsewhere = source(&provider, &with(&[("vaultNamespace", "team-b")], object));
    let error = bad(read_one(&*elsewhere, &bao.app()).await);
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.to_string().contains("namespace not found"), "{error}");
}
