//! What a class can say beyond upstream's fields: optional, encoding, immutable, several sources; and
//! that modes, groups, paths and bytes are those of a Secret volume.

use std::fs;
use std::os::unix::fs::MetadataExt;

use coffer::fake_kubelet::PodVolume;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::harness::{Node, eventually, mounts, pod, volume};

/// A node whose class `shop` is this one.
async fn node(spec: &str) -> Node {
    let node = Node::start().await;
    node.class("shop", spec).await;
    node
}

fn exists(node: &Node, volume: &PodVolume, path: &str) -> bool {
    fs::symlink_metadata(node.kubelet.target(volume).join(path)).is_ok()
}

/// The names that a pod sees in the root of its volume.
fn names(node: &Node, volume: &PodVolume) -> Vec<String> {
    let entries = fs::read_dir(node.kubelet.target(volume)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("..")).collect();
    names.sort();
    names
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_optional_item_appears_when_it_is_there_and_goes_when_it_is_not() {
    let node = node(
        "provider: file\nparameters: {objects: '[password, extra, db.json]'}\nitems:\n\
         - {object: password, path: password}\n\
         - {object: extra, path: some/extra, optional: true}\n\
         - {object: db.json, key: pin, path: pin, optional: true}",
    )
    .await;
    node.folders.secret("db.json", r#"{"user": "shop"}"#);
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(names(&node, &volume), ["password"]);
    node.kubelet.publish(&volume).await.unwrap();

    node.folders.secret("extra", "here");
    node.eventually_reads(&volume, "some/extra", b"here").await;
    node.folders
        .secret("db.json", r#"{"user": "shop", "pin": "007"}"#);
    node.eventually_reads(&volume, "pin", b"007").await;
    assert_eq!(names(&node, &volume), ["password", "pin", "some"]);

    fs::remove_file(node.folders.at("secrets/shop/extra")).unwrap();
    eventually("it is gone", || !exists(&node, &volume, "some")).await;
    node.folders.secret("db.json", r#"{"user": "shop"}"#);
    eventually("it is gone", || !exists(&node, &volume, "pin")).await;
    assert_eq!(node.read(&volume, "password"), b"correct-horse");

    // What has to be there fails the volume, and stays where it was.
    fs::remove_file(node.folders.at("secrets/shop/password")).unwrap();
    eventually("it is told", || node.logged(&["volume not rotated"]) > 0).await;
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
    let other = crate::harness::volume("b");
    let status = node.kubelet.publish(&other).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert_eq!(mounts().len(), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_optional_volume_is_empty_where_its_store_has_nothing() {
    let mut node = node("provider: file\noptional: true\nparameters: {objects: '[a, b]'}").await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    assert!(names(&node, &volume).is_empty());
    node.folders.secret("b", "two");
    node.eventually_reads(&volume, "b", b"two").await;

    // An object that is not there is nothing to write, and not to be looked for before its time.
    node.end(Signal::SIGKILL);
    node.run().await;
    let generation = || fs::read_link(node.kubelet.target(&volume).join("..data")).unwrap();
    let before = generation();
    node.kubelet.publish(&volume).await.unwrap();
    eventually("it is looked at", || node.logged(&["volume unchanged"]) > 0).await;
    assert_eq!(generation(), before);
    node.folders.secret("a", "one");
    node.eventually_reads(&volume, "a", b"one").await;
    for name in ["a", "b"] {
        fs::remove_file(node.folders.at("secrets/shop").join(name)).unwrap();
    }
    eventually("it is empty", || names(&node, &volume).is_empty()).await;

    // Items of an optional volume are all optional; without the word, nothing at all is an error.
    let items = "provider: file\nparameters: {objects: '[a]'}\nitems: [{object: a, path: x}]";
    node.class("items", &format!("{items}\noptional: true"))
        .await;
    node.class("strict", items).await;
    let of = |class| PodVolume::of_class(pod(class), class);
    node.kubelet.publish(&of("items")).await.unwrap();
    assert!(names(&node, &of("items")).is_empty());
    let status = node.kubelet.publish(&of("strict")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn encoded_values_come_out_byte_for_byte_and_bad_ones_are_not_quoted() {
    let node = node(
        "provider: file\nparameters: {objects: '[b, h, t, j.json]'}\nitems:\n\
         - {object: b, path: b, encoding: base64}\n\
         - {object: h, path: h, encoding: hex}\n\
         - {object: t, path: t, encoding: utf-8}\n\
         - {object: j.json, key: k, path: k, encoding: base64}\n\
         - {object: b, path: raw}",
    )
    .await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let hex: String = every_byte.iter().map(|b| format!("{b:02X}")).collect();
    let good = [
        ("b", "AP8Qgn/+\n".to_owned()),
        ("h", hex),
        ("t", "pässword".to_owned()),
        ("j.json", r#"{"k": "AAE="}"#.to_owned()),
    ];
    for (name, text) in &good {
        node.folders.secret(name, text);
    }
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    for (path, content) in [
        ("b", &[0x00, 0xff, 0x10, 0x82, 0x7f, 0xfe][..]),
        ("h", &every_byte),
        ("t", "pässword".as_bytes()),
        ("k", &[0, 1]),
        ("raw", b"AP8Qgn/+\n"),
    ] {
        assert_eq!(node.read(&volume, path), content, "{path}");
    }
    let bad: [(&str, &[u8], &str); 4] = [
        (
            "b",
            b"CANARY!!",
            "InvalidAnswer: spec.items[0]: the value for the path b is not base64",
        ),
        (
            "h",
            b"CANARY",
            "InvalidAnswer: spec.items[1]: the value for the path h is not hex",
        ),
        (
            "t",
            b"CANARY\xff",
            "InvalidAnswer: spec.items[2]: the value for the path t is not utf-8",
        ),
        (
            "j.json",
            br#"{"k": "CANARY!!"}"#,
            "InvalidAnswer: spec.items[3]: the value for the path k is not base64",
        ),
    ];
    for (index, (name, text, message)) in bad.into_iter().enumerate() {
        node.folders.secret(name, text);
        let new = crate::harness::volume(&format!("n{index}"));
        let mut said = String::new();
        // The cache follows the file: what it has now is what the next pod gets.
        while said != message {
            match node.kubelet.publish(&new).await {
                Ok(()) => node.kubelet.unpublish(&new).await.unwrap(),
                Err(status) => said = status.message().to_owned(),
            }
            assert!(node.logged(&["volume not published"]) < 1000, "{said}");
        }
        let (_, content) = good.iter().find(|(of, _)| *of == name).unwrap();
        node.folders.secret(name, content);
        while node.kubelet.publish(&new).await.is_err() {
            assert!(node.logged(&["volume not published"]) < 1000, "{said}");
        }
    }
    assert_eq!(
        node.read(&volume, "b"),
        [0x00, 0xff, 0x10, 0x82, 0x7f, 0xfe]
    );
    assert_eq!(node.logged(&["CANARY"]), 0);
}

async fn asked(node: &Node) -> String {
    let scrape = node.http("/metrics").await;
    let lines = scrape
        .lines()
        .filter(|line| line.starts_with("coffer_store_requests_total"));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_immutable_volume_never_changes_and_asks_no_store_again() {
    let mut node = node("provider: file\nimmutable: true").await;
    node.class("mutable", "provider: file").await;
    let pinned = volume("a");
    node.kubelet.publish(&pinned).await.unwrap();
    let link = node.kubelet.target(&pinned).join("..data");
    let generation = || fs::read_link(&link).unwrap();
    let before = generation();
    let first = asked(&node).await;
    assert!(!first.is_empty());

    // Nobody asks on its behalf, whatever happens to the file.
    node.folders.secret("password", "two");
    for _ in 0..3 {
        node.kubelet.publish(&pinned).await.unwrap();
    }
    // One that follows has seen the change: so would this one have.
    let following = PodVolume::of_class(pod("b"), "mutable");
    node.kubelet.publish(&following).await.unwrap();
    node.folders.secret("password", "three");
    node.eventually_reads(&following, "password", b"three")
        .await;
    node.kubelet.unpublish(&following).await.unwrap();
    assert_eq!(node.read(&pinned, "password"), b"correct-horse");

    // A driver that starts anew knows it from the volume.
    node.end(Signal::SIGKILL);
    node.run().await;
    for _ in 0..3 {
        node.kubelet.publish(&pinned).await.unwrap();
    }
    node.folders.secret("password", "four");
    eventually("it is looked at", || {
        node.logged(&["volume unchanged", &pinned.volume_id()]) > 0
    })
    .await;
    assert_eq!(asked(&node).await, "", "this process has asked nobody");
    assert_eq!(node.read(&pinned, "password"), b"correct-horse");

    // A change of the class is refused, once with a warning that names it.
    node.class("shop", "provider: file\ndefaultMode: 0400")
        .await;
    let warning = [
        "WARN",
        "volume not rotated",
        "VolumeImmutable",
        "shop/shop has changed",
    ];
    eventually("it is told", || node.logged(&warning) == 1).await;
    for _ in 0..3 {
        node.kubelet.publish(&pinned).await.unwrap();
    }
    assert_eq!(generation(), before);
    assert_eq!(asked(&node).await, "");
    assert_eq!(node.logged(&warning), 1);
    // A pod that is made anew gets what there is now.
    node.kubelet.unpublish(&pinned).await.unwrap();
    node.kubelet.publish(&pinned).await.unwrap();
    assert_eq!(node.read(&pinned, "password"), b"four");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_class_can_become_immutable_and_its_volumes_with_it() {
    let mut node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    node.folders.secret("password", "two");
    node.eventually_reads(&volume, "password", b"two").await;
    node.class("shop", "provider: file\nimmutable: true").await;
    // Once it is pinned, the next change of the class is refused.
    eventually("it is pinned", || {
        node.logged(&["volume stays as it is", &volume.volume_id()]) == 1
    })
    .await;
    node.class("shop", "provider: file\nimmutable: true\ndefaultMode: 0400")
        .await;
    eventually("it is told", || node.logged(&["VolumeImmutable"]) > 0).await;
    node.class("shop", "provider: file\nimmutable: true").await;
    node.end(Signal::SIGKILL);
    node.run().await;
    node.folders.secret("password", "three");
    let before = node.logged(&["volume unchanged"]);
    node.kubelet.publish(&volume).await.unwrap();
    eventually("it is looked at", || {
        node.logged(&["volume unchanged"]) > before
    })
    .await;
    assert_eq!(asked(&node).await, "", "that it is pinned was written down");
    assert_eq!(node.read(&volume, "password"), b"two");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p3_several_sources_lie_beside_each_other_or_are_told_apart() {
    let node = node(
        "sources:\n\
         - {name: a, provider: file, parameters: {objects: '[password]'}}\n\
         - {name: b, provider: file, parameters: {objects: '[user, {path: other, name: password}]'}}\n\
         items:\n\
         - {source: a, object: password, path: a/password}\n\
         - {source: b, object: password, path: b/password}\n\
         - {object: user, path: user}",
    )
    .await;
    node.folders.secret("user", "shop");
    node.folders.secret("other", "battery-staple");
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    for (path, content) in [
        ("a/password", "correct-horse"),
        ("b/password", "battery-staple"),
        ("user", "shop"),
    ] {
        assert_eq!(node.read(&volume, path), content.as_bytes(), "{path}");
    }
    node.folders.secret("other", "changed");
    node.eventually_reads(&volume, "b/password", b"changed")
        .await;
    node.kubelet.unpublish(&volume).await.unwrap();

    let two = "sources:\n\
         - {name: a, provider: file, parameters: {objects: '[password]'}}\n\
         - {name: b, provider: file, parameters: {objects: '[{path: other, name: password}]'}}";
    node.class("twice", two).await;
    let vague = format!("{two}\nitems: [{{object: password, path: x}}]");
    node.class("vague", &vague).await;
    for (class, message) in [
        (
            "twice",
            "InvalidClass: two files have the path password: map them with spec.items",
        ),
        (
            "vague",
            "InvalidClass: spec.items[0]: more than one source has \"password\": name the source",
        ),
    ] {
        let volume = PodVolume::of_class(pod(class), class);
        let status = node.kubelet.publish(&volume).await.unwrap_err();
        assert_eq!(status.message(), message);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(!node.kubelet.target(&volume).exists());
    }
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_fs_group_adds_what_the_kubelet_adds_and_nothing_else() {
    // As written, and with an fsGroup: g+r and u+r on files, g+x, g+r and setgid on folders.
    let modes = [
        (0o000, 0o440),
        (0o111, 0o551),
        (0o200, 0o640),
        (0o400, 0o440),
        (0o440, 0o440),
        (0o600, 0o640),
        (0o644, 0o644),
        (0o700, 0o740),
        (0o777, 0o777),
    ];
    let items = modes.map(|(mode, _)| {
        // YAML octal, and decimal as JSON has it.
        format!("- {{object: password, path: f/o{mode:o}, mode: 0{mode:o}}}\n- {{object: password, path: f/d{mode:o}, mode: {mode}}}")
    });
    let node = node(&format!("provider: file\nitems:\n{}", items.join("\n"))).await;
    for group in [None, Some(4242)] {
        let mut volume = volume(&format!("g{}", group.unwrap_or(0)));
        volume.fs_group = group;
        node.kubelet.publish(&volume).await.unwrap();
        let target = node.kubelet.target(&volume);
        for (mode, with_group) in modes {
            let expected = if group.is_some() { with_group } else { mode };
            for name in [format!("f/o{mode:o}"), format!("f/d{mode:o}")] {
                let found = fs::metadata(target.join(&name)).unwrap();
                let seen = (found.mode() & 0o7777, found.uid(), found.gid());
                assert_eq!(seen, (expected, 0, group.unwrap_or(0)), "{name} {group:?}");
            }
        }
        for folder in ["", "..data/", "f"] {
            let found = fs::metadata(target.join(folder)).unwrap();
            let expected = if group.is_some() { 0o2755 } else { 0o755 };
            assert_eq!(found.mode() & 0o7777, expected, "{folder:?} {group:?}");
        }
        for link in ["..data", "f"] {
            let found = fs::symlink_metadata(target.join(link)).unwrap();
            assert!(found.is_symlink());
            assert_eq!(found.gid(), group.unwrap_or(0), "{link} {group:?}");
        }
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn paths_names_and_bytes_are_those_of_a_secret_volume() {
    let node = Node::start().await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let contents: [(&str, &[u8]); 6] = [
        (".dotfile", b"d"),
        ("UPPER_and-dash.1", b"k"),
        ("a/b/c/d/e", b"deep"),
        (".hidden/.inner", b"h"),
        ("bytes", &every_byte),
        ("empty", b""),
    ];
    for (name, content) in contents {
        node.folders.secret(name, content);
    }
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    for (name, content) in contents {
        assert_eq!(node.read(&volume, name), content, "{name}");
    }
    let target = node.kubelet.target(&volume);
    // Only the first name of a path is a link, and all of them lead through the present generation.
    for (link, to) in [("a", "..data/a"), (".dotfile", "..data/.dotfile")] {
        assert_eq!(fs::read_link(target.join(link)).unwrap().to_str(), Some(to));
    }
    assert!(
        !fs::symlink_metadata(target.join("a/b"))
            .unwrap()
            .is_symlink()
    );
}
