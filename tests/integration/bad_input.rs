//! Refused requests: one good request with one thing wrong, and the row says which. A refusal names
//! the field, mounts nothing, and leaves a volume that is there as it was.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use coffer::fake_kubelet::PodVolume;
use coffer_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use coffer_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};
use tonic::Code;

use crate::harness::{Node, device, eventually, mounts, volume};

type Change = fn(&mut NodePublishVolumeRequest);

fn mount(request: &mut NodePublishVolumeRequest) -> &mut MountVolume {
    match &mut request.volume_capability.as_mut().unwrap().access_type {
        Some(AccessType::Mount(mount)) => mount,
        _ => unreachable!("the kubelet asks for a mount"),
    }
}

fn target(request: &mut NodePublishVolumeRequest, from: &str, to: &str) {
    request.target_path = request.target_path.replace(from, to);
}

fn context(request: &mut NodePublishVolumeRequest) -> &mut HashMap<String, String> {
    &mut request.volume_context
}

/// What is wrong, the change, the code, and words of the message.
const WRONG: &[(&str, Change, Code, &str)] = &[
    (
        "no volume id",
        |r| r.volume_id.clear(),
        Code::InvalidArgument,
        "volume_id: is missing",
    ),
    (
        "no target",
        |r| r.target_path.clear(),
        Code::InvalidArgument,
        "target_path: is missing",
    ),
    (
        "no capability",
        |r| r.volume_capability = None,
        Code::InvalidArgument,
        "volume_capability: is missing",
    ),
    (
        "t1 another place",
        |r| r.target_path = "/etc/mount".into(),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t1 relative",
        |r| r.target_path.insert(0, '.'),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t1 dots",
        |r| target(r, "/volumes/", "/../x/volumes/"),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t1 two slashes",
        |r| target(r, "/volumes/", "//volumes/"),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t1 trailing slash",
        |r| r.target_path.push('/'),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t1 something after it",
        |r| r.target_path.push_str("/x"),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t1 NUL",
        |r| target(r, "/secrets/", "/sec\0rets/"),
        Code::InvalidArgument,
        "target_path: must be",
    ),
    (
        "t2 another pod's folder",
        |r| target(r, "uid-of-a", "uid-of-b"),
        Code::InvalidArgument,
        "target_path: belongs to another pod",
    ),
    (
        "t5 writable",
        |r| r.readonly = false,
        Code::InvalidArgument,
        "readonly: must be true",
    ),
    (
        "t5 a block device",
        |r| {
            r.volume_capability.as_mut().unwrap().access_type =
                Some(AccessType::Block(BlockVolume {}));
        },
        Code::InvalidArgument,
        "volume_capability.block",
    ),
    (
        "t5 no access type",
        |r| r.volume_capability.as_mut().unwrap().access_type = None,
        Code::InvalidArgument,
        "volume_capability.mount: is missing",
    ),
    (
        "t5 a filesystem",
        |r| mount(r).fs_type = "ext4".into(),
        Code::InvalidArgument,
        "fs_type",
    ),
    (
        "t5 mount flags",
        |r| mount(r).mount_flags.push("exec".into()),
        Code::InvalidArgument,
        "mount_flags",
    ),
    (
        "no access mode",
        |r| r.volume_capability.as_mut().unwrap().access_mode = None,
        Code::InvalidArgument,
        "access_mode",
    ),
    (
        "many nodes",
        |r| r.volume_capability.as_mut().unwrap().access_mode = Some(AccessMode { mode: 5 }),
        Code::InvalidArgument,
        "access_mode",
    ),
    (
        "an unknown access mode",
        |r| r.volume_capability.as_mut().unwrap().access_mode = Some(AccessMode { mode: 99 }),
        Code::InvalidArgument,
        "access_mode",
    ),
    (
        "a group that is a name",
        |r| mount(r).volume_mount_group = "staff".into(),
        Code::InvalidArgument,
        "volume_mount_group",
    ),
    (
        "a group below zero",
        |r| mount(r).volume_mount_group = "-1".into(),
        Code::InvalidArgument,
        "volume_mount_group",
    ),
    (
        "no group at all",
        |r| mount(r).volume_mount_group = "4294967295".into(),
        Code::InvalidArgument,
        "volume_mount_group",
    ),
    (
        "d2 no pod name",
        |r| drop(context(r).remove("csi.storage.k8s.io/pod.name")),
        Code::InvalidArgument,
        "pod.name: is missing: set podInfoOnMount",
    ),
    (
        "d2 no pod uid",
        |r| drop(context(r).remove("csi.storage.k8s.io/pod.uid")),
        Code::InvalidArgument,
        "pod.uid: is missing",
    ),
    (
        "d2 no namespace",
        |r| drop(context(r).remove("csi.storage.k8s.io/pod.namespace")),
        Code::InvalidArgument,
        "pod.namespace: is missing",
    ),
    (
        "d2 no account",
        |r| drop(context(r).remove("csi.storage.k8s.io/serviceAccount.name")),
        Code::InvalidArgument,
        "serviceAccount.name: is missing",
    ),
    (
        "d2 not ephemeral",
        |r| drop(context(r).insert("csi.storage.k8s.io/ephemeral".into(), "false".into())),
        Code::InvalidArgument,
        "ephemeral: must be true",
    ),
    (
        "no class",
        |r| drop(context(r).remove("secretProviderClass")),
        Code::InvalidArgument,
        "volumeAttributes.secretProviderClass",
    ),
    (
        "a class that is not there",
        |r| drop(context(r).insert("secretProviderClass".into(), "none".into())),
        Code::NotFound,
        "failed to get secretproviderclass shop/none: not found",
    ),
    (
        "a class of another Namespace",
        |r| drop(context(r).insert("secretProviderClass".into(), "other/shop".into())),
        Code::NotFound,
        "failed to get secretproviderclass shop/other/shop: not found",
    ),
];

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t1_a_target_outside_of_the_kubelets_layout_is_refused() {
    refused(|wrong| wrong.starts_with("t1 ")).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t2_a_target_of_another_pod_is_refused() {
    refused(|wrong| wrong.starts_with("t2 ")).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t5_a_volume_that_is_not_a_read_only_tmpfs_is_refused() {
    refused(|wrong| wrong.starts_with("t5 ")).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d2_a_request_without_the_kubelets_pod_info_is_refused() {
    refused(|wrong| wrong.starts_with("d2 ")).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_request_with_one_thing_wrong_is_refused() {
    refused(|wrong| !["t1 ", "t2 ", "t5 ", "d2 "].contains(&&wrong[..3])).await;
}

/// Sends every request of the table that is chosen, twice: each is refused and leaves nothing.
async fn refused(chosen: impl Fn(&str) -> bool) {
    let node = Node::start().await;
    let volume = volume("a");
    let rows: Vec<_> = WRONG.iter().filter(|(wrong, ..)| chosen(wrong)).collect();
    assert!(!rows.is_empty());
    for (wrong, change, code, message) in rows {
        node.kubelet.prepare(&volume).unwrap();
        let mut request = node.kubelet.publish_request(&volume);
        change(&mut request);
        for _ in 0..2 {
            let mut client = node.kubelet.node().await.unwrap();
            let sent = copy(&request);
            let status = client.node_publish_volume(sent).await.expect_err(wrong);
            assert_eq!(status.code(), *code, "{wrong}: {status}");
            assert!(
                status.message().contains(message),
                "{wrong}: {}",
                status.message()
            );
            assert!(status.details().is_empty(), "{wrong}");
        }
        assert!(mounts().is_empty(), "{wrong}: nothing may be mounted");
        assert!(
            !node.kubelet.target(&volume).exists(),
            "{wrong}: no folder may be left"
        );
    }
    let folder = node.folders.at("kubelet/pods/uid-of-b");
    assert!(!folder.exists(), "nothing was made for the other pod");
    node.kubelet
        .publish(&volume)
        .await
        .expect("the good request");
}

fn copy(request: &NodePublishVolumeRequest) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: request.volume_id.clone(),
        publish_context: HashMap::new(),
        staging_target_path: String::new(),
        target_path: request.target_path.clone(),
        volume_capability: request.volume_capability.clone(),
        readonly: request.readonly,
        secrets: HashMap::new(),
        volume_context: request.volume_context.clone(),
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn an_unpublish_with_one_thing_wrong_is_refused() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let good = NodeUnpublishVolumeRequest {
        volume_id: volume.volume_id(),
        target_path: node.kubelet.target(&volume).to_string_lossy().into_owned(),
    };
    for (field, wrong) in [
        (
            "volume_id",
            NodeUnpublishVolumeRequest {
                volume_id: String::new(),
                ..good.clone()
            },
        ),
        (
            "target_path",
            NodeUnpublishVolumeRequest {
                target_path: String::new(),
                ..good.clone()
            },
        ),
        (
            "target_path",
            NodeUnpublishVolumeRequest {
                target_path: "/".into(),
                ..good.clone()
            },
        ),
        (
            "target_path",
            NodeUnpublishVolumeRequest {
                target_path: format!("{}/..", good.target_path),
                ..good.clone()
            },
        ),
    ] {
        let mut client = node.kubelet.node().await.unwrap();
        let status = client.node_unpublish_volume(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(field), "{status}");
    }
    assert_eq!(node.read(&volume, "password"), b"correct-horse");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t3_t4_a_target_that_is_not_ours_is_refused_and_not_touched() {
    let node = Node::start().await;
    let elsewhere = node.folders.at("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    type Spoil = fn(&std::path::Path, &std::path::Path);
    for (name, spoil) in [
        (
            "link",
            (|target, elsewhere| symlink(elsewhere, target).unwrap()) as Spoil,
        ),
        ("file", |target, _| fs::write(target, "keep me").unwrap()),
        ("socket", |target, _| {
            drop(UnixListener::bind(target).unwrap());
        }),
        ("full", |target, _| {
            fs::create_dir(target).unwrap();
            fs::write(target.join("file"), "keep me").unwrap();
        }),
        ("parent-link", |target, elsewhere| {
            let folder = target.parent().unwrap();
            fs::remove_file(folder.join("vol_data.json")).unwrap();
            fs::remove_dir(folder).unwrap();
            symlink(elsewhere, folder).unwrap();
        }),
    ] {
        let volume = volume(name);
        node.kubelet.prepare(&volume).unwrap();
        let target = node.kubelet.target(&volume);
        spoil(&target, &elsewhere);
        let request = node.kubelet.publish_request(&volume);
        let mut client = node.kubelet.node().await.unwrap();
        let status = client.node_publish_volume(request).await.expect_err(name);
        assert_eq!(status.code(), Code::FailedPrecondition, "{name}: {status}");
        assert!(status.message().contains("target path"), "{status}");
        assert!(mounts().is_empty(), "{name}");
        assert!(
            fs::read_dir(&elsewhere).unwrap().next().is_none(),
            "{name}: nothing through the link"
        );
        if name == "full" {
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "keep me");
        }
    }
}

/// Class specs that cannot be, and what the error says.
const WRONG_CLASSES: &[(&str, Code, &str)] = &[
    (
        "provider: file\ndefaultMod: 0400",
        Code::InvalidArgument,
        "spec.defaultMod: unknown field",
    ),
    (
        "provider: file\ndefaultMode: 01000",
        Code::InvalidArgument,
        "spec.defaultMode: mode 512 must be between 0 and 511",
    ),
    (
        "provider: file\nitems: [{object: password, path: ../x}]",
        Code::InvalidArgument,
        "spec.items[0].path: path \"../x\" starts with",
    ),
    (
        "provider: file\nitems: [{object: password, path: a}, {object: password, path: a}]",
        Code::InvalidArgument,
        "spec.items[1].path: a is also the path of items[0]",
    ),
    (
        "provider: file\nparameters: {objects: '[password]'}\nitems: [{object: none, path: a}]",
        Code::NotFound,
        "spec.items[0]: there is no object \"none\"",
    ),
    (
        "provider: file\nparameters: {objects: '[password]'}\nitems: [{object: password, key: k, path: a}]",
        Code::Internal,
        "spec.items[0]: object \"password\": it is not JSON or YAML",
    ),
    (
        "provider: file\nparameters: {objects: '[none]'}",
        Code::NotFound,
        "none",
    ),
    (
        "provider: file\nparameters: {objects: '[../shop/password]'}",
        Code::InvalidArgument,
        "parameters.objects[0]",
    ),
    (
        "provider: file\nparameters: {objects: '[password, password]'}",
        Code::InvalidArgument,
        "parameters.objects[1]",
    ),
    (
        "provider: nobody",
        Code::NotFound,
        "there is no provider \"nobody\"; this node has ",
    ),
    (
        "provider: file\nparameters: {objects: '[too-large]'}",
        Code::FailedPrecondition,
        "4194304",
    ),
    (
        "provider: file\nparameters: {objects: '[too-many]'}",
        Code::FailedPrecondition,
        "256",
    ),
];

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r6_a_class_that_cannot_be_mounted_is_refused_with_its_field_and_keeps_the_last_good_volume()
 {
    let node = Node::start().await;
    node.folders.secret("too-large", vec![1; (4 << 20) + 1]);
    for n in 0..257 {
        node.folders.secret(&format!("too-many/{n}"), "x");
    }
    node.folders.class(
        "good",
        "provider: file\nparameters: {objects: '[password]'}",
    );
    eventually("the class is read", || {
        node.logged(&["class read", "shop/good"]) > 0
    })
    .await;
    let running = PodVolume::of_class(crate::harness::pod("running"), "good");
    node.kubelet.publish(&running).await.unwrap();
    let mount = device(&node.kubelet.target(&running));

    for (index, (spec, code, message)) in WRONG_CLASSES.iter().enumerate() {
        // The class of the running pod becomes the wrong one, too.
        node.folders.class("good", spec);
        let name = format!("wrong-{index}");
        node.folders.class(&name, spec);
        let mut volume = volume("new");
        volume
            .attributes
            .insert("secretProviderClass".into(), name.clone());
        let mut status = tonic::Status::ok("");
        for attempt in 0.. {
            status = node.kubelet.publish(&volume).await.expect_err(spec);
            if !status.message().contains("not found") || !status.message().contains(&name) {
                break;
            }
            assert!(attempt < 1000, "the class is never read");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(status.code(), *code, "{spec}: {status}");
        assert!(
            status.message().contains(message),
            "{spec}: {}",
            status.message()
        );
        assert!(!node.kubelet.target(&volume).exists(), "{spec}");
        assert_eq!(mounts(), [node.kubelet.target(&running)], "{spec}");
        node.kubelet
            .publish(&running)
            .await
            .expect("a republish is OK whatever became of the class");
        assert_eq!(node.read(&running, "password"), b"correct-horse", "{spec}");
        assert_eq!(device(&node.kubelet.target(&running)), mount);
    }
    assert!(
        node.logged(&["volume not rotated", "it keeps what it has"]) > 0,
        "and it is told"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p6_the_limit_itself_is_accepted() {
    let node = Node::start().await;
    node.folders
        .secret("large", vec![1; (4 << 20) - "correct-horse".len()]);
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.read(&volume, "large").len(), (4 << 20) - 13);

    let before = fs::read_link(node.kubelet.target(&volume).join("..data")).unwrap();
    node.folders.secret("large", vec![1; (4 << 20) - 12]);
    eventually("the driver saw it", || {
        node.logged(&["volume not rotated", "TooLarge"]) > 0
    })
    .await;
    assert_eq!(
        fs::read_link(node.kubelet.target(&volume).join("..data")).unwrap(),
        before
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_t4_a_folder_of_another_user_is_refused() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.prepare(&volume).unwrap();
    let target = node.kubelet.target(&volume);
    fs::create_dir(&target).unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o777)).unwrap();
    if std::os::unix::fs::chown(&target, Some(65534), None).is_err() {
        // In a user namespace there is no other user: then the folder is full instead.
        fs::write(target.join("file"), "").unwrap();
    }
    let status = node.kubelet.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(mounts().is_empty());
}
