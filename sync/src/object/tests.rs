use super::*;
use serde_json::{Value, json};

fn spec(value: Value) -> SecretObjectSpec {
    serde_json::from_value(value).expect("a spec")
}

fn files(files: &[(&str, &str)]) -> Files {
    let files = files.iter();
    files
        .map(|(path, text)| {
            let bytes = SecretBytes::new(text.as_bytes().to_vec());
            ((*path).to_owned(), bytes)
        })
        .collect()
}

fn made(value: Value, given: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
    let object = SecretObject::new(&spec(value)).map_err(|error| error.to_string())?;
    let data = object.contents("shop", &files(given), SystemTime::now());
    let data = data.map_err(|error| error.to_string())?;
    let text = |bytes: SecretBytes| String::from_utf8_lossy(bytes.expose()).into_owned();
    Ok(data
        .into_iter()
        .map(|(key, bytes)| (key, text(bytes)))
        .collect())
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn opaque_and_custom_secrets_have_the_files_byte_for_byte() {
    let data = json!([
        {"objectName": "nested/bar", "key": "password"},
        {"objectName": " foo ", "key": " username "},
    ]);
    for (kind, read) in [
        ("Opaque", SecretType::Opaque),
        ("", SecretType::Opaque),
        (" Opaque\n", SecretType::Opaque),
        (
            "example.com/mine",
            SecretType::Custom("example.com/mine".into()),
        ),
        ("mine", SecretType::Custom("mine".into())),
    ] {
        let wanted = json!({"secretName": " s ", "type": kind, "data": data});
        let object = SecretObject::new(&spec(wanted.clone())).expect(kind);
        assert_eq!((object.name.as_str(), object.kind), ("s", read));
        let given = [("nested/bar", "p\n\u{0}"), ("foo", ""), ("more", "x")];
        let expected = pairs(&[("password", "p\n\u{0}"), ("username", "")]);
        assert_eq!(made(wanted, &given), Ok(expected), "{kind}");
    }
}

#[test]
fn all_files_of_a_volume_become_keys() {
    let wanted = json!({"secretName": "s", "allFiles": true});
    let expected = pairs(&[("a", "1"), ("b.c.d", "2")]);
    assert_eq!(
        made(wanted.clone(), &[("a", "1"), ("b/c/d", "2")]),
        Ok(expected)
    );
    assert_eq!(made(wanted.clone(), &[]), Ok(Vec::new()));
    for (given, message) in [
        (
            &[("a.b", "1"), ("a/b", "2")],
            "allFiles: gives a key that is there already",
        ),
        (&[("a", "1"), ("ä", "2")], "allFiles: \"ä\": must have"),
    ] {
        let error = made(wanted.clone(), given).expect_err(message);
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn what_is_wrong_in_a_class_is_named() {
    let good = json!({"secretName": "s", "data": [{"objectName": "a", "key": "a"}]});
    assert!(made(good.clone(), &[("a", "1")]).is_ok());
    let long = "x".repeat(254);
    for (field, value, message) in [
        ("/secretName", json!(""), "secretName: is missing"),
        ("/secretName", json!("../x"), "secretName: must be a name"),
        ("/secretName", json!("a/b"), "secretName: must be a name"),
        ("/secretName", json!("A"), "secretName: must be a name"),
        ("/secretName", json!("-a"), "secretName: must be a name"),
        ("/secretName", json!("a..b"), "secretName: must be a name"),
        ("/secretName", json!(long), "secretName: must be a name"),
        ("/data", json!([]), "data: is missing"),
        ("/data", json!(null), "data: is missing"),
        (
            "/data/0/objectName",
            json!(" "),
            "data[0].objectName: is missing",
        ),
        (
            "/data/0/objectName",
            json!("b"),
            "data[0].objectName: the volume has no file \"b\"",
        ),
        ("/data/0/key", json!(""), "data[0].key: is missing"),
        (
            "/data/0/key",
            json!("a b"),
            "data[0].key: must have letters",
        ),
        (
            "/data/0/key",
            json!("a/b"),
            "data[0].key: must have letters",
        ),
        (
            "/data/0/key",
            json!("..a"),
            "data[0].key: must have letters",
        ),
        ("/data/0/key", json!("."), "data[0].key: must have letters"),
        ("/data/0/key", json!(long), "data[0].key: must have letters"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(field).expect("a field") = value;
        let error = made(bad, &[("a", "1")]).expect_err(message);
        assert!(error.starts_with(message), "{error} instead of {message}");
    }
    let twice = json!({"secretName": "s", "data": [
        {"objectName": "a", "key": "k"}, {"objectName": "a", "key": "k"}]});
    let error = made(twice, &[("a", "1")]).expect_err("twice");
    assert_eq!(error, "data[1]: gives a key that is there already");
}

#[test]
fn rule_k2_types_that_are_not_ours_to_make_are_refused() {
    for (kind, message) in [
        (
            "kubernetes.io/service-account-token",
            "type: a token for the API server is not made",
        ),
        (
            "kubernetes.io/dockerconfig",
            "type: is not a type of Kubernetes",
        ),
        ("node.kubernetes.io/x", "type: is not a type of Kubernetes"),
        ("x.k8s.io/y", "type: is not a type of Kubernetes"),
    ] {
        let wanted = json!({"secretName": "s", "type": kind, "allFiles": true});
        let error = made(wanted, &[]).expect_err(kind);
        assert!(error.starts_with(message), "{error}");
    }
    let near = json!({"secretName": "s", "type": "notkubernetes.io/x", "allFiles": true});
    assert_eq!(made(near, &[]), Ok(Vec::new()));
}

#[test]
fn our_own_fields_are_strict() {
    for (wanted, message) in [
        (
            json!({"allFiles": true, "data": [{"objectName": "a", "key": "a"}]}),
            "allFiles: cannot stand beside data",
        ),
        (
            json!({"data": [{}, {"objectName": "a", "key": "a", "split": "JSON"}]}),
            "data[1].split: cannot stand beside key",
        ),
        (
            json!({"registry": "r.test", "type": "Opaque"}),
            "registry: is only for the type kubernetes.io/dockerconfigjson",
        ),
        (
            json!({"registry": "", "type": DOCKER_CONFIG_JSON}),
            "registry: must be",
        ),
    ] {
        let error = spec(wanted).check_ours().expect_err(message).to_string();
        assert!(error.starts_with(message), "{error}");
    }
    for wrong in [
        json!({"immutable": "true"}),
        json!({"allFiles": 1}),
        json!({"data": [{"split": "json"}]}),
        json!({"imutable": true}),
        json!({"data": [{"splt": "JSON"}]}),
    ] {
        assert!(
            serde_json::from_value::<SecretObjectSpec>(wrong.clone()).is_err(),
            "{wrong}"
        );
    }
    assert!(spec(json!({})).check_ours().is_ok(), "what upstream takes");
}

#[test]
fn rule_k6_a_secret_may_have_a_mebibyte_and_no_more() {
    let wanted = json!({"secretName": "s", "allFiles": true});
    let half = "x".repeat(MAX_BYTES / 2);
    assert!(made(wanted.clone(), &[("a", &half), ("b", &half)]).is_ok());
    let error = made(wanted.clone(), &[("a", &half), ("b", &half), ("c", "x")]);
    let expected = "data: its values would have 1048577 bytes, 1048576 are allowed";
    assert_eq!(error, Err(expected.to_owned()));
    let many: Vec<_> = (0..=MAX_KEYS).map(|key| key.to_string()).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
    assert!(made(wanted.clone(), &many[1..]).is_ok());
    let error = made(wanted, &many).expect_err("too many");
    assert_eq!(error, "allFiles: the Secret would have more than 1024 keys");
}
