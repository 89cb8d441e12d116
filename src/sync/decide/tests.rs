use std::time::{Duration, SystemTime};

use coffer_provider::SecretBytes;
use coffer_sync::SecretObjectSpec;
use serde_json::json;

use super::*;
use crate::kube::Owner;

/// What the class `shop` wants in the Secret `s`, of this version.
fn wanted(version: &str, data: &[(&str, &str)]) -> Wanted {
    wanted_as(
        json!({"secretName": "s", "allFiles": true, "labels": {"team": "a"}}),
        version,
        data,
    )
}

fn wanted_as(spec: serde_json::Value, version: &str, data: &[(&str, &str)]) -> Wanted {
    let spec: SecretObjectSpec = serde_json::from_value(spec).expect("a spec");
    let object = SecretObject::new(&spec).expect("good");
    let objects = BTreeMap::from([("object".to_owned(), version.to_owned())]);
    let stamp = Stamp::new(SystemTime::UNIX_EPOCH + Duration::from_secs(5), objects);
    Wanted::new("shop", "shop", &object, bytes(data), stamp)
}

fn bytes(data: &[(&str, &str)]) -> Data {
    let data = data.iter();
    data.map(|(key, text)| {
        let bytes = SecretBytes::new(text.as_bytes().to_vec());
        ((*key).to_owned(), bytes)
    })
    .collect()
}

/// The Secret as it is after it was written, with something of somebody else.
fn live(of: &Wanted) -> Live {
    let write = of.write(false);
    let mut labels = write.labels.clone();
    labels.insert("theirs".into(), "x".into());
    let mut annotations = write.annotations.clone();
    annotations.insert("theirs".into(), "x".into());
    Live {
        meta: LiveMeta {
            uid: "u".into(),
            resource_version: "1".into(),
            labels,
            annotations,
            owners: Vec::new(),
            deleting: false,
        },
        kind: write.kind.to_owned(),
        immutable: write.immutable,
        data: write.data.clone(),
    }
}

fn word(next: &Next) -> String {
    match next {
        Next::Create => "create".into(),
        Next::Keep => "keep".into(),
        Next::KeepNewer => "keep newer".into(),
        Next::Write(surplus) => format!("write {surplus:?}"),
        Next::Leave(hindrance) => format!("leave {hindrance:?}"),
    }
}

#[test]
fn what_is_there_decides() {
    let three = wanted("3", &[("a", "1"), ("b", "2")]);
    assert_eq!(word(&three.next(None)), "create");
    type Change = fn(&mut Live);
    let cases: [(&str, Change, &str); 15] = [
        ("as it was", |_| {}, "keep"),
        (
            "other data",
            |live| drop(live.data.insert("a".into(), SecretBytes::new(vec![]))),
            "write []",
        ),
        (
            "a key too many",
            |live| drop(live.data.insert("c".into(), SecretBytes::new(vec![]))),
            r#"write ["c"]"#,
        ),
        (
            "a key too few",
            |live| drop(live.data.remove("a")),
            "write []",
        ),
        (
            "without a label of the class",
            |live| drop(live.meta.labels.remove("team")),
            "write []",
        ),
        (
            "another value of it",
            |live| drop(live.meta.labels.insert("team".into(), "b".into())),
            "write []",
        ),
        (
            "not managed",
            |live| drop(live.meta.labels.remove(MANAGED)),
            "leave Foreign",
        ),
        (
            "not managed any more",
            |live| drop(live.meta.labels.insert(MANAGED.into(), "false".into())),
            "leave Foreign",
        ),
        (
            "of another class",
            |live| drop(live.meta.annotations.insert(CLASS.into(), "other".into())),
            r#"leave OtherClass("other")"#,
        ),
        (
            "of another type",
            |live| live.kind = "x/y".into(),
            r#"leave OtherType("x/y")"#,
        ),
        (
            "being deleted",
            |live| live.meta.deleting = true,
            "leave Deleting",
        ),
        (
            "immutable by somebody",
            |live| live.immutable = true,
            "keep",
        ),
        (
            "immutable and other data",
            |live| {
                live.immutable = true;
                live.data.remove("a");
            },
            "leave Immutable",
        ),
        (
            "made by upstream",
            |live| live.meta.annotations.clear(),
            "write []",
        ),
        (
            "with a version that nobody wrote",
            |live| drop(live.meta.annotations.insert(VERSION.into(), "x".into())),
            "write []",
        ),
    ];
    for (what, change, expected) in cases {
        let mut there = live(&three);
        change(&mut there);
        assert_eq!(word(&three.next(Some(&there))), expected, "{what}");
    }
}

#[test]
fn a_version_never_goes_back_and_equal_content_is_not_written_for_a_name() {
    let data = [("a", "1")];
    for (ours, there, equal, expected) in [
        ("3", "3", true, "keep"),
        ("4", "3", false, "write []"),
        ("4", "3", true, "write []"),
        ("3", "4", true, "keep newer"),
        ("3", "4", false, "keep newer"),
        // Nobody knows which of the two is newer, and both were read at the same time.
        ("x", "y", true, "keep newer"),
        ("x", "y", false, "keep newer"),
    ] {
        let mut found = live(&wanted(there, &data));
        if !equal {
            found.data.insert("a".into(), SecretBytes::new(vec![]));
        }
        let next = wanted(ours, &data).next(Some(&found));
        assert_eq!(word(&next), expected, "{ours} over {there}, equal: {equal}");
    }
}

#[test]
fn rule_k4_what_upstream_made_for_another_class_is_left_to_it() {
    let ours = wanted("3", &[("a", "1")]);
    let status = |name: &str| Owner {
        api_version: "secrets-store.csi.x-k8s.io/v1".into(),
        kind: "SecretProviderClassPodStatus".into(),
        name: name.into(),
        uid: name.into(),
    };
    let pod = Owner {
        kind: "ReplicaSet".into(),
        ..status("web-5d")
    };
    for (owners, expected) in [
        (vec![], "write []"),
        (vec![pod.clone()], "write []"),
        (vec![pod.clone(), status("web-shop-shop")], "write []"),
        (
            vec![status("web-shop-other"), status("web-shop-shop")],
            "write []",
        ),
        (
            vec![pod, status("web-shop-other")],
            r#"leave OtherClass("of the status web-shop-other")"#,
        ),
    ] {
        let mut there = live(&ours);
        there.meta.annotations.clear();
        there.meta.owners = owners;
        assert_eq!(word(&ours.next(Some(&there))), expected);
    }
}

#[test]
fn immutable_is_set_later_and_never_taken_back() {
    let spec = |immutable| json!({"secretName": "s", "allFiles": true, "immutable": immutable});
    let fixed = wanted_as(spec(true), "3", &[("a", "1")]);
    let free = wanted_as(spec(false), "3", &[("a", "1")]);
    assert_eq!(word(&fixed.next(Some(&live(&free)))), "write []");
    assert_eq!(word(&free.next(Some(&live(&fixed)))), "keep");
    assert!(free.write(true).immutable && fixed.write(false).immutable);
    let rotated = wanted_as(spec(true), "4", &[("a", "2")]);
    assert_eq!(word(&rotated.next(Some(&live(&fixed)))), "leave Immutable");
}

#[test]
fn the_hash_is_of_everything_but_the_time() {
    let hash = |spec, version, data: &[(&str, &str)]| wanted_as(spec, version, data).hash;
    let plain = || json!({"secretName": "s", "allFiles": true});
    let one = hash(plain(), "3", &[("a", "1")]);
    assert_eq!(one, hash(plain(), "3", &[("a", "1")]));
    let with = |field: &str, value: serde_json::Value| {
        let mut spec = plain();
        spec[field] = value;
        spec
    };
    for other in [
        hash(plain(), "4", &[("a", "1")]),
        hash(plain(), "3", &[("a", "2")]),
        hash(plain(), "3", &[("a", ""), ("b", "")]),
        hash(with("immutable", json!(true)), "3", &[("a", "1")]),
        hash(with("labels", json!({"a": "b"})), "3", &[("a", "1")]),
        hash(with("annotations", json!({"a": "b"})), "3", &[("a", "1")]),
        hash(with("type", json!("x/y")), "3", &[("a", "1")]),
    ] {
        assert_ne!(one, other);
    }
}
