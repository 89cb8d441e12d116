//! Whose socket a plugin may have, and which names.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::Instant;

use coffer::fake_kubelet::PodVolume;
use tonic::Code;

use super::process::Plugin;
use super::{node, node_and_plugin, refused, sockets};
use crate::harness::{PATIENCE, pod, volume};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g1_a_socket_that_is_not_a_trusted_users_is_refused() {
    let node = node(&[]).await;
    let folder = sockets(&node);
    fs::create_dir_all(&folder).unwrap();
    let absent = refused(&node, "a", Code::NotFound, "no provider \"mock\"").await;
    assert!(absent.contains("file, openbao, vault"), "{absent}");

    let mut plugin = Plugin::start(&folder, "mock").await;
    let socket = &plugin.socket.clone();
    let elsewhere = node.folders.at("elsewhere.sock");
    fs::rename(socket, &elsewhere).unwrap();
    symlink(&elsewhere, socket).unwrap();
    refused(&node, "b", Code::Unavailable, "it is not a socket").await;
    fs::remove_file(socket).unwrap();
    fs::write(socket, "").unwrap();
    refused(&node, "c", Code::Unavailable, "it is not a socket").await;
    fs::rename(&elsewhere, socket).unwrap();

    for mode in [0o775, 0o757] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        let words = "nobody else may write to it";
        refused(&node, &format!("d{mode}"), Code::Unavailable, words).await;
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    node.kubelet.publish(&volume("e")).await.unwrap();
    node.kubelet.unpublish(&volume("e")).await.unwrap();

    plugin.kill();
    refused(&node, "f", Code::Unavailable, "cannot be reached").await;
    fs::remove_file(socket).unwrap();
    refused(&node, "g", Code::Unavailable, "no mock.sock in").await;
    assert!(plugin.mounts().len() == 1, "nobody was asked but once");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g1_another_users_socket_is_used_only_if_the_user_is_listed() {
    const SOMEBODY: u32 = 1000;
    for (flag, works) in [
        ("--plugin-uids=1001", false),
        ("--plugin-uids=1001,1000", true),
    ] {
        let (node, plugin) = node_and_plugin(&[flag]).await;
        // In a user namespace of an ordinary user there is nobody but root, whose socket is another's if
        // root is the user that is not there.
        if chown(&plugin.socket, Some(SOMEBODY), None).is_err() {
            let status = node.kubelet.publish(&volume("a")).await;
            assert!(status.is_ok(), "root's is always used");
            continue;
        }
        match works {
            true => node.kubelet.publish(&volume("a")).await.unwrap(),
            false => {
                let words = "it must belong to root or a user of --plugin-uids";
                refused(&node, "a", Code::Unavailable, words).await;
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_g2_a_name_that_no_plugin_can_have_is_refused() {
    let node = node(&[]).await;
    for (index, name) in ["../mock", "mo.ck", &"m".repeat(31)].iter().enumerate() {
        let class = format!("bad{index}");
        node.folders.class(&class, &format!("provider: '{name}'"));
        let volume = PodVolume::of_class(pod(&class), &class);
        let start = Instant::now();
        let status = loop {
            let status = node.kubelet.publish(&volume).await.unwrap_err();
            if status.code() != Code::NotFound || start.elapsed() > PATIENCE {
                break status;
            }
        };
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(
            status.message().contains("spec.provider: must be 1 to 30"),
            "{status}"
        );
    }
}
