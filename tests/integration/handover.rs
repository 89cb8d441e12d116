//! An upgrade, where two processes of the driver are there for a moment; and what a container misses that
//! mounts a file by subPath.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use coffer::fake_kubelet::PodVolume;

use crate::harness::{Node, PATIENCE, device, eventually, mounts, volume};

fn volume_of(round: usize) -> PodVolume {
    volume(&format!("round-{round}"))
}

fn in_a_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    !map.contains("4294967295")
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r10_the_next_process_waits_until_the_one_before_has_drained() {
    let mut node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    let mount = device(&node.kubelet.target(&volume));
    let socket = node.folders.at("plugin/csi.sock");
    for (round, signal) in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM]
        .into_iter()
        .enumerate()
    {
        let mut before = node.run_another();
        eventually("the next process says that it waits", || {
            node.logged(&["another driver process has not ended yet"]) == round + 1
        })
        .await;
        let next = volume_of(round);
        node.kubelet
            .publish(&next)
            .await
            .expect("the one before serves");
        node.kubelet.unpublish(&next).await.unwrap();
        assert_eq!(node.logged(&["driver started"]), round + 1);

        kill(Pid::from_raw(before.id() as i32), signal).unwrap();
        let ended = before.wait().unwrap();
        assert_eq!(ended.success(), signal == Signal::SIGTERM);
        node.answers().await;
        node.kubelet.publish(&next).await.unwrap();
        assert_eq!(node.logged(&["driver started"]), round + 2);
        assert!(socket.exists(), "nobody took away the socket of another");
        // In a user namespace it does not know the volume of the one before, and leaves it alone.
        let again = node.kubelet.publish(&volume).await;
        assert!(again.is_ok() || in_a_user_namespace(), "{again:?}");
        assert_eq!(device(&node.kubelet.target(&volume)), mount);
        node.kubelet.unpublish(&next).await.unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&node.folders.at("plugin")), mode(&socket)),
            (0o700, 0o600)
        );
    }
    // One that only waits can be told to stop.
    let mut serving = node.run_another();
    eventually("the next process says that it waits", || {
        node.logged(&["another driver process has not ended yet"]) == 4
    })
    .await;
    assert!(node.end(Signal::SIGTERM).success());
    node.kubelet.unpublish(&volume).await.unwrap();
    assert!(mounts().is_empty());
    serving.kill().unwrap();
    serving.wait().unwrap();
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r12_a_container_with_a_subpath_is_counted_and_told_of_once() {
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.publish(&volume).await.unwrap();
    // As the kubelet does it: the file behind the links, bound to a file of the pod's.
    let bound = node
        .folders
        .at("kubelet/pods/uid-of-a/volume-subpaths/secrets/web/0");
    fs::create_dir_all(bound.parent().unwrap()).unwrap();
    fs::write(&bound, "").unwrap();
    let file = fs::canonicalize(node.kubelet.target(&volume).join("password")).unwrap();
    let none = None::<&str>;
    mount(Some(&file), &bound, none, MsFlags::MS_BIND, none).unwrap();

    for value in ["battery-staple", "paper-clip"] {
        node.folders.secret("password", value);
        node.eventually_reads(&volume, "password", value.as_bytes())
            .await;
        assert_eq!(
            fs::read(&bound).unwrap(),
            b"correct-horse",
            "it keeps its first file"
        );
    }
    eventually("it is told", || node.logged(&["by subPath"]) > 0).await;
    // The count follows the switch that the reader has seen.
    let counted = "coffer_rotations_past_subpath_total 2";
    let start = Instant::now();
    while !node.http("/metrics").await.contains(counted) {
        assert!(start.elapsed() < PATIENCE, "both are counted");
    }
    assert_eq!(
        node.logged(&["by subPath", "uid-of-a"]) + node.logged(&["by subPath"]),
        1,
        "and once"
    );
    node.kubelet.unpublish(&volume).await.unwrap();
    nix::mount::umount2(&bound, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p5_nothing_of_a_request_can_forge_a_line_of_the_log_or_of_an_event() {
    const FORGED: &str = "\nFORGED line\u{1b}[2K\u{202e}";
    let node = Node::start().await;
    let volume = volume("a");
    node.kubelet.prepare(&volume).unwrap();
    let good = node.kubelet.publish_request(&volume);
    let keys: Vec<_> = good.volume_context.keys().cloned().collect();
    let mut requests = Vec::new();
    for key in keys {
        let mut request = good.clone();
        request
            .volume_context
            .get_mut(&key)
            .unwrap()
            .push_str(FORGED);
        requests.push((key, request));
    }
    let mut request = good.clone();
    request.volume_id.push_str(FORGED);
    requests.push(("volume_id".into(), request));
    let mut request = good.clone();
    request
        .target_path
        .insert_str(request.target_path.len() - "/mount".len(), FORGED);
    requests.push(("target_path".into(), request));
    let mut request = good;
    request
        .volume_context
        .insert("objects".into(), format!("[password, {FORGED}]"));
    requests.push(("an attribute".into(), request));

    let hidden = |text: &str| coffer_provider::clean_text(text, usize::MAX) != text;
    for (field, request) in requests {
        let mut client = node.kubelet.node().await.unwrap();
        let status = client.node_publish_volume(request).await.expect_err(&field);
        assert!(!hidden(status.message()), "{field}: {status:?}");
        assert!(mounts().is_empty(), "{field}");
    }
    node.folders.class(
        "shop",
        &format!("provider: file\n\"a{}\": b", "\\nFORGED line\\e[2K"),
    );
    eventually("the class is refused", || {
        node.logged(&["class not usable"]) > 0
    })
    .await;
    for line in node.log().lines() {
        assert!(!hidden(line) && !line.starts_with("FORGED"), "{line:?}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p12_files_of_the_node_that_a_class_names_are_not_opened() {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let node = Node::start().await;
    let key = node.folders.at("client.key");
    fs::write(&key, "the driver's own").unwrap();
    let opened = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    opened.add_watch(&key, AddWatchFlags::IN_OPEN).unwrap();
    let spec = [
        "vaultCACertPath",
        "vaultTLSClientCertPath",
        "vaultTLSClientKeyPath",
        "caFile",
        "objects",
    ]
    .map(|parameter| match parameter {
        "objects" => format!("objects: \"[{}, {}]\"", key.display(), "../../client.key"),
        named => format!("{named}: {}", key.display()),
    })
    .join(", ");
    node.folders
        .class("local", &format!("provider: file\nparameters: {{{spec}}}"));
    eventually("the class is read", || {
        node.logged(&["class read", "shop/local"]) > 0
    })
    .await;
    let mut volume = volume("a");
    volume
        .attributes
        .insert("secretProviderClass".into(), "local".into());
    let status = node.kubelet.publish(&volume).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert!(mounts().is_empty());
    assert!(opened.read_events().is_err(), "somebody has opened it");
}
