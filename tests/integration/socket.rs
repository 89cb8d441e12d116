//! Who may speak to the driver, and what it says about itself.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use coffer::fake_kubelet::connect;
use coffer_proto::csi::identity_client::IdentityClient;
use coffer_proto::csi::node_service_capability::{self, Rpc, rpc};
use coffer_proto::csi::*;
use tonic::Code;

use crate::harness::{Node, PATIENCE};

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d11_only_root_and_the_driver_s_own_user_may_connect() {
    if let Some(socket) = std::env::var_os(STRANGER) {
        return a_stranger_is_refused(Path::new(&socket));
    }
    let node = Node::start().await;
    let (folder, socket) = (
        node.folders.at("plugin"),
        node.folders.at("plugin/csi.sock"),
    );
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&socket)), (0o700, 0o600));
    // Even somebody who can reach the socket is refused, before a byte of theirs is read.
    for path in [node.folders.root.path(), &folder, &socket] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let stranger = Command::new("/proc/self/exe")
        .args(["--exact", "--include-ignored", "--nocapture"])
        .arg("socket::rule_d11_only_root_and_the_driver_s_own_user_may_connect")
        .env(STRANGER, &socket)
        .uid(65534)
        .output();
    match stranger {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}");
            let refused = node.logged(&["connection to the CSI socket refused", "uid 65534"]);
            assert_eq!(refused, 1);
        }
        // In a user namespace with one user there is nobody to refuse.
        Err(error) => {
            let users = fs::read_to_string("/proc/self/uid_map").unwrap();
            assert!(!users.contains("4294967295"), "{error}");
        }
    }
    node.kubelet
        .node()
        .await
        .expect("root is served all the same");
}

/// Set for the process that plays the stranger.
const STRANGER: &str = "COFFER_TEST_STRANGER";

/// A server of HTTP/2 speaks first; one that refuses hangs up without a byte.
fn a_stranger_is_refused(socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("the socket itself can be reached");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may have hung up already.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    match stream.read(&mut [0; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("a stranger was served: {other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_socket_of_an_earlier_process_is_replaced_and_anything_else_is_not() {
    let mut node = Node::start().await;
    node.end(nix::sys::signal::Signal::SIGKILL);
    let socket = node.folders.at("plugin/csi.sock");
    assert!(socket.exists(), "a killed driver leaves its socket");
    node.run().await;
    node.end(nix::sys::signal::Signal::SIGTERM);
    fs::write(&socket, "not a socket").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["node", "--node-id=n", "--metrics-addr="])
        .arg(format!("--endpoint=unix://{}", socket.display()))
        .arg(format!(
            "--kubelet-root={}",
            node.folders.at("kubelet").display()
        ))
        .arg(format!(
            "--classes={}",
            node.folders.at("classes").display()
        ))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("something that is not a socket"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&socket).unwrap(), "not a socket");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_setting_that_cannot_be_ends_the_driver_with_its_name() {
    let node = Node::start().await;
    let existing = node.folders.root.path().display().to_string();
    let run = |flags: &[String]| {
        let output = Command::new(env!("CARGO_BIN_EXE_coffer"))
            .args(["node", "--node-id=n", "--metrics-addr="])
            .arg(format!("--endpoint=unix://{existing}/other/csi.sock"))
            .args(flags)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (flags, message) in [
        (
            vec!["--classes=/does/not/exist".to_owned()],
            "/does/not/exist",
        ),
        (
            vec![
                format!("--classes={existing}"),
                "--file-root=/does/not/exist".into(),
            ],
            "--file-root /does/not/exist",
        ),
        (
            vec![
                format!("--classes={existing}"),
                "--kubelet-root=here".into(),
            ],
            "--kubelet-root \"here\"",
        ),
        (
            vec![format!("--classes={existing}"), "--endpoint=tcp://x".into()],
            "--endpoint",
        ),
    ] {
        let said = run(&flags);
        assert!(
            said.starts_with("coffer: ") || said.contains("error:"),
            "{said}"
        );
        assert!(said.contains(message), "{said}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn the_driver_introduces_itself_as_a_node_plugin() {
    let node = Node::start().await;
    let channel = connect(&node.folders.at("plugin/csi.sock")).await.unwrap();
    let mut identity = IdentityClient::new(channel);
    let info = identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.name, "secrets-store.csi.k8s.io");
    assert_eq!(info.vendor_version, env!("CARGO_PKG_VERSION"));
    let capabilities = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap();
    assert!(capabilities.into_inner().capabilities.is_empty());
    let probe = identity.probe(ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));

    let mut client = node.kubelet.node().await.unwrap();
    let info = client
        .node_get_info(NodeGetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.node_id.as_str(), info.max_volumes_per_node),
        ("node-1", 0)
    );
    assert!(info.accessible_topology.is_none());
    let answer = client
        .node_get_capabilities(NodeGetCapabilitiesRequest {})
        .await
        .unwrap();
    let capabilities = answer
        .into_inner()
        .capabilities
        .into_iter()
        .map(|c| match c.r#type {
            Some(node_service_capability::Type::Rpc(Rpc { r#type })) => r#type,
            None => -1,
        });
    let capabilities: Vec<_> = capabilities.collect();
    assert_eq!(
        capabilities,
        [
            rpc::Type::GetVolumeStats as i32,
            rpc::Type::VolumeMountGroup as i32
        ]
    );

    let stage = client
        .node_stage_volume(NodeStageVolumeRequest::default())
        .await
        .unwrap_err();
    let unstage = client
        .node_unstage_volume(NodeUnstageVolumeRequest::default())
        .await
        .unwrap_err();
    let expand = client
        .node_expand_volume(NodeExpandVolumeRequest::default())
        .await
        .unwrap_err();
    for status in [stage, unstage, expand] {
        assert_eq!(status.code(), Code::Unimplemented);
    }
    for path in ["/healthz", "/readyz"] {
        assert!(node.http(path).await.starts_with("HTTP/1.1 200"), "{path}");
    }
}
