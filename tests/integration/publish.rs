//! What a pod sees of its volume, and what the kubelet hears.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use coffer_proto::csi::NodeGetVolumeStatsRequest;
use coffer_proto::csi::volume_usage::Unit;
use tonic::Code;

use crate::harness::{Node, device, mounts, volume};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_pod_sees_every_file_of_its_class_and_nothing_when_it_is_gone() {
    let node = Node::start().await;
    node.folders.secret("tls/tls.key", "key");
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
    assert_eq!(node.read(&volume, "tls/tls.key"), b"key");
    let target = node.kubelet.target(&volume);
    assert_eq!(mounts(), std::slice::from_ref(&target));
    let mode = fs::metadata(target.join("password"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o644, "as a Secret volume");
    let root = fs::metadata(&target).unwrap();
    assert_eq!(
        (root.mode() & 0o7777, root.uid(), root.gid()),
        (0o755, 0, 0)
    );

    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(mounts().is_empty());
    assert!(!target.exists());
    node.kubelet.unpublish(&volume).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn items_pick_keys_and_give_paths_and_modes() {
    let node = Node::start().await;
    node.folders.secret(
        "db.json",
        r#"{"user":"shop","password":"battery-staple","port":5432}"#,
    );
    node.folders.secret("db.yaml", "pin: 007\n");
    node.folders.class(
        "shop",
        "provider: file\n\
         parameters: {objects: \"[db.json, db.yaml, {path: password, name: pw}]\"}\n\
         defaultMode: 0440\n\
         items:\n\
         - {object: db.json, key: password, path: db/password, mode: 0400}\n\
         - {object: db.json, key: port, path: db/port}\n\
         - {object: db.yaml, key: pin, path: pin}\n\
         - {object: pw, path: .hidden}",
    );
    let volume = volume("a");
    crate::harness::eventually("the class is read", || node.logged(&["class read"]) > 1).await;
    node.kubelet.publish(&volume).await.unwrap();
    for (path, content, mode) in [
        ("db/password", "battery-staple", 0o400),
        ("db/port", "5432", 0o440),
        ("pin", "007", 0o440),
        (".hidden", "correct-horse", 0o440),
    ] {
        assert_eq!(node.read(&volume, path), content.as_bytes(), "{path}");
        let file = node.kubelet.target(&volume).join(path);
        let found = fs::metadata(file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{path}");
    }
    let mut names: Vec<_> = fs::read_dir(node.kubelet.target(&volume))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".."))
        .collect();
    names.sort();
    assert_eq!(names, [".hidden", "db", "pin"], "only what is listed");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p7_an_empty_value_and_every_byte_arrive_as_they_are() {
    let node = Node::start().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    node.folders.secret("empty", "");
    node.folders.secret("every-byte", &every_byte);
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "empty"), b"");
    assert_eq!(node.read(&volume, "every-byte"), every_byte);

    fs::create_dir_all(node.folders.at("secrets/bare")).unwrap();
    let mut bare = crate::harness::volume("b");
    bare.pod.namespace = "bare".into();
    let class = fs::read_to_string(node.folders.at("classes/shop.yaml")).unwrap();
    let class = class.replace("namespace: shop", "namespace: bare");
    crate::harness::replace(&node.folders.at("classes/bare.yaml"), class.as_bytes());
    crate::harness::eventually("the class is read", || {
        node.logged(&["class read", "bare/shop"]) > 0
    })
    .await;
    let status = node.kubelet.publish(&bare).await.unwrap_err();
    assert_eq!(
        status.code(),
        Code::NotFound,
        "a reply without any file: {status}"
    );
    assert!(!node.kubelet.target(&bare).exists());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t6_a_hundred_publishes_at_once_make_one_mount() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.prepare(&volume).unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let (kubelet, volume) = (node.kubelet.clone(), volume.clone());
        calls.spawn(async move { kubelet.publish(&volume).await });
    }
    for done in calls.join_all().await {
        done.unwrap();
    }
    assert_eq!(mounts().len(), 1);
    let device = device(&node.kubelet.target(&volume));
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(
        crate::harness::device(&node.kubelet.target(&volume)),
        device
    );
    assert_eq!(mounts().len(), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_fs_group_can_read_every_file() {
    let node = Node::start().await;
    node.folders.class(
        "shop",
        "provider: file\ndefaultMode: 0400\nitems: [{object: password, path: a/b}]",
    );
    crate::harness::eventually("the class is read", || node.logged(&["class read"]) > 1).await;
    let mut volume = volume("a");
    volume.fs_group = Some(4242);
    node.kubelet.publish(&volume).await.unwrap();
    let target = node.kubelet.target(&volume);
    for (path, mode) in [("", 0o2755), ("..data/a", 0o2755), ("a/b", 0o440)] {
        let found = fs::metadata(target.join(path)).unwrap();
        let seen = (found.mode() & 0o7777, found.uid(), found.gid());
        assert_eq!(seen, (mode, 0, 4242), "{path:?}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_volume_published_differently_is_told_apart() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();

    let mut differs = volume.clone();
    differs.attributes.insert("more".into(), "of it".into());
    let status = node.kubelet.publish(&differs).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");

    let mut elsewhere = node.kubelet.publish_request(&volume);
    elsewhere.target_path = elsewhere
        .target_path
        .replace("/secrets/mount", "/other/mount");
    let status = node
        .kubelet
        .node()
        .await
        .unwrap()
        .node_publish_volume(elsewhere)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(mounts().len(), 1);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn stats_count_the_bytes_and_inodes_of_a_volume() {
    let node = Node::start().await;
    node.folders.secret("big", vec![7; 1 << 20]);
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let mut client = node.kubelet.node().await.unwrap();
    let request = NodeGetVolumeStatsRequest {
        volume_id: volume.volume_id(),
        volume_path: node.kubelet.target(&volume).to_string_lossy().into_owned(),
        staging_target_path: String::new(),
    };
    let usage = client
        .node_get_volume_stats(request.clone())
        .await
        .unwrap()
        .into_inner()
        .usage;
    let bytes = usage
        .iter()
        .find(|usage| usage.unit() == Unit::Bytes)
        .unwrap();
    assert!((1 << 20..2 << 20).contains(&bytes.used), "{bytes:?}");
    assert_eq!(bytes.available + bytes.used, bytes.total);
    let inodes = usage
        .iter()
        .find(|usage| usage.unit() == Unit::Inodes)
        .unwrap();
    assert!((3..20).contains(&inodes.used), "{inodes:?}");

    node.kubelet.unpublish(&volume).await.unwrap();
    for path in [request.volume_path.as_str(), "/", "relative", "/etc"] {
        let request = NodeGetVolumeStatsRequest {
            volume_path: path.into(),
            ..request.clone()
        };
        let status = client.node_get_volume_stats(request).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{path}");
    }
}
