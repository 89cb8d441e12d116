//! `coffer doctor` beside a driver: what it finds, and what it says to do.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::harness::{Node, volume};

/// What it says, and whether that was good.
fn doctor(node: &Node, more: &[&str]) -> (String, bool) {
    let at = |name: &str| node.folders.at(name).display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .arg("doctor")
        .arg(format!("--endpoint=unix://{}", at("plugin/csi.sock")))
        .arg(format!("--kubelet-root={}", at("kubelet")))
        .arg(format!("--classes={}", at("classes")))
        .arg(format!("--metrics-addr={}", node.metrics))
        .arg("--node-id=node-1")
        .args(more)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.success())
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let mut node = Node::start().await;
    node.kubelet.publish(&volume("a")).await.unwrap();
    let (said, good) = doctor(&node, &[]);
    assert!(good, "{said}");
    for found in [
        "ok    the kernel is new enough",
        "ok    1 volumes hold ",
        "csi.sock answers as secrets-store.csi.k8s.io",
        "ok    every secret in use could be read",
    ] {
        assert!(said.contains(found), "{found} is not in\n{said}");
    }
    assert!(
        !said.contains("reg.sock"),
        "no kubelet has made a folder for it"
    );

    let (said, good) = doctor(&node, &["--driver-name=another.example"]);
    assert!(!good, "{said}");
    assert!(
        said.contains("is the socket of secrets-store.csi.k8s.io"),
        "{said}"
    );
    let (said, good) = doctor(
        &node,
        &["--node-budget=1Mi", "--vault-addr=http://127.0.0.1:1"],
    );
    assert!(!good, "{said}");
    assert!(
        said.contains("BAD   http://127.0.0.1:1 cannot be reached"),
        "{said}"
    );

    std::fs::create_dir_all(node.folders.at("kubelet/plugins_registry")).unwrap();
    node.end(Signal::SIGTERM);
    let (said, good) = doctor(&node, &[]);
    assert!(!good, "{said}");
    for found in [
        "csi.sock does not answer",
        "there is no secrets-store.csi.k8s.io-reg.sock in",
        "weak  no metrics are served at",
        "2 of ",
    ] {
        assert!(said.contains(found), "{found} is not in\n{said}");
    }
}
