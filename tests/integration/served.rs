//! Our providers as plugins of another driver, and of our own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffer::fake_kubelet::{connect, token_of};
use coffer_proto::provider::csi_driver_provider_client::CsiDriverProviderClient;
use coffer_proto::provider::{File, MountRequest, MountResponse, ObjectVersion, VersionRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::bao::Bao;
use crate::harness::{Node, PATIENCE, eventually, pod, replace, volume};

/// `coffer provider NAME`.
struct Served {
    folder: tempfile::TempDir,
    socket: PathBuf,
    name: &'static str,
    flags: Vec<String>,
    process: Option<Child>,
}

impl Served {
    async fn start(name: &'static str, flags: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("secrets")).unwrap();
        let socket = folder.path().join(format!("{name}.sock"));
        let mut served = Self {
            socket,
            name,
            flags: flags.to_vec(),
            process: None,
            folder,
        };
        served.run().await;
        served
    }

    async fn file() -> Self {
        let served = Self::start("file", &[]).await;
        served.secret("password", "correct-horse");
        served.secret("tls/key", "key");
        served
    }

    async fn run(&mut self) {
        let process = Command::new(env!("CARGO_BIN_EXE_coffer"))
            .args(["provider", self.name, "--interval=10s", "--log-level=trace"])
            .arg(format!("--endpoint=unix://{}", self.socket.display()))
            .arg(format!(
                "--file-root={}",
                self.folder.path().join("secrets").display()
            ))
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(fs::File::create(self.log_file()).unwrap())
            .spawn();
        self.process = Some(process.unwrap());
        let start = Instant::now();
        while connect(&self.socket).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap()
    }

    fn secret(&self, name: &str, value: &str) {
        let file = self.folder.path().join("secrets/shop").join(name);
        replace(&file, value.as_bytes());
    }

    async fn client(&self) -> CsiDriverProviderClient<Channel> {
        CsiDriverProviderClient::new(connect(&self.socket).await.unwrap())
    }

    async fn mount(&self, request: MountRequest) -> Result<MountResponse, tonic::Status> {
        let answer = self.client().await.mount(request).await;
        answer.map(tonic::Response::into_inner)
    }

    fn end(&mut self, signal: Signal) -> bool {
        let mut process = self.process.take().unwrap();
        kill(Pid::from_raw(process.id() as i32), signal).unwrap();
        process.wait().unwrap().success()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What the incumbent sends for a volume of the class `shop` of the pod `a`, but for tokens.
fn attributes(more: &[(&str, &str)]) -> Value {
    let mut attributes = json!({
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "a",
        "csi.storage.k8s.io/pod.namespace": "shop",
        "csi.storage.k8s.io/pod.uid": "uid-of-a",
        "csi.storage.k8s.io/serviceAccount.name": "web",
        "secretProviderClass": "shop",
    });
    for (key, value) in more {
        attributes[*key] = json!(value);
    }
    attributes
}

fn request(attributes: &Value, target_path: &str) -> MountRequest {
    MountRequest {
        attributes: attributes.to_string(),
        secrets: "null".into(),
        target_path: target_path.into(),
        permission: "420".into(),
        current_object_version: vec![],
    }
}

/// A request as the incumbent puts it on the wire, with the escapes of its JSON and a file mode of 0440.
const STORED: &[&[u8]] = &[
    b"\x0a\xba\x02",
    br#"{"comment":"a \u003c b","csi.storage.k8s.io/ephemeral":"true","csi.storage.k8s.io/pod.name":"a","csi.storage.k8s.io/pod.namespace":"shop","csi.storage.k8s.io/pod.uid":"uid-of-a","csi.storage.k8s.io/serviceAccount.name":"web","objects":"- path: password\n  name: pw\n- path: tls/key\n","secretProviderClass":"shop"}"#,
    b"\x12\x04null",
    b"\x1a\x1d/pods/a/volumes/secrets/mount",
    b"\x22\x03288",
    b"\x2a\x08\x0a\x02pw\x12\x02v7",
];

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_stored_request_of_the_incumbent_is_answered() {
    let served = Served::file().await;
    let request = MountRequest::decode(STORED.concat().as_slice()).unwrap();
    assert!(request.encode_to_vec() == STORED.concat(), "whole");
    let answer = served.mount(request.clone()).await.unwrap();
    let file = |path: &str, contents: &str| File {
        path: path.into(),
        mode: 0o440,
        contents: contents.into(),
    };
    let files = [file("pw", "correct-horse"), file("tls/key", "key")];
    assert!(answer.files == files);
    assert!(answer.error.is_none());
    let [pw, key] = answer.object_version.try_into().unwrap();
    assert_eq!((pw.id.as_str(), key.id.as_str()), ("pw", "tls/key"));
    assert!(!pw.version.is_empty() && pw.version != key.version);

    let version = VersionRequest {
        version: "v1alpha1".into(),
    };
    let said = served
        .client()
        .await
        .version(version)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(said.version, "v1alpha1");
    assert_eq!(said.runtime_name, "coffer-file");
    assert_eq!(said.runtime_version, env!("CARGO_PKG_VERSION"));

    // Within an interval another answer comes, with another version of the object alone that has changed.
    served.secret("password", "battery-staple");
    let start = Instant::now();
    let next = loop {
        let next = served.mount(request.clone()).await.unwrap();
        if next.files[0].contents == b"battery-staple" {
            break next;
        }
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let version = |id: &str| -> ObjectVersion {
        let mut versions = next.object_version.iter();
        versions.find(|one| one.id == id).unwrap().clone()
    };
    assert_ne!(version("pw"), pw);
    assert_eq!(version("tls/key"), key);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_request_that_no_driver_sends_is_refused_by_its_field() {
    let served = Served::file().await;
    let good = || request(&attributes(&[]), "/a");
    assert_eq!(served.mount(good()).await.unwrap().files.len(), 2);
    type Change = fn(&mut MountRequest);
    let without_uid: Change = |request| {
        request.attributes = request.attributes.replace("pod.uid", "pod.id");
    };
    let cases: [(Change, &str); 6] = [
        (
            |request| request.attributes.clear(),
            "attributes: must be a JSON object",
        ),
        (
            |request| request.attributes = "[\"canary\"]".into(),
            "attributes: must be a JSON object",
        ),
        (
            |request| request.secrets = "{\"canary\"".into(),
            "secrets: must be a JSON object",
        ),
        (
            |request| request.permission = "rw-canary".into(),
            "permission: must be a decimal",
        ),
        (
            |request| request.permission = "4095".into(),
            "spec.defaultMode: ",
        ),
        (without_uid, "csi.storage.k8s.io/pod.uid: is missing"),
    ];
    for (change, words) in cases {
        let mut request = good();
        change(&mut request);
        let status = served.mount(request).await.err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(words), "{status}");
        assert!(!status.message().contains("canary"), "{status}");
    }
    let missing = attributes(&[("objects", "[missing]")]);
    let status = served.mount(request(&missing, "/b")).await.err().unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(!served.log().contains("correct-horse"));
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn the_socket_goes_with_its_process_and_comes_back_with_the_next() {
    use std::os::unix::fs::PermissionsExt;
    let mut served = Served::file().await;
    let mode = fs::metadata(&served.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    served.end(Signal::SIGKILL);
    assert!(served.socket.exists());
    served.run().await;
    assert!(served.mount(request(&attributes(&[]), "/a")).await.is_ok());
    // One that takes its place keeps its socket when the first one goes.
    let first = served.process.take().unwrap();
    served.run().await;
    eventually("the second one has the socket", || {
        let log = fs::read_to_string(served.log_file()).unwrap();
        log.contains("provider served")
    })
    .await;
    let second = served.process.replace(first).unwrap();
    assert!(served.end(Signal::SIGTERM));
    served.process = Some(second);
    assert!(served.mount(request(&attributes(&[]), "/a")).await.is_ok());
    assert!(served.end(Signal::SIGTERM));
    assert!(!served.socket.exists());
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn a_provider_that_is_not_there_is_told_with_those_that_are() {
    let flags: [&[&str]; 2] = [&["vualt"], &["file"]];
    for flags in flags {
        let ended = Command::new(env!("CARGO_BIN_EXE_coffer"))
            .arg("provider")
            .args(flags)
            .output()
            .unwrap();
        assert!(!ended.status.success());
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let words = format!(
            "there is no provider {:?}; there are {}openbao, vault, and file with --file-root",
            flags[0],
            if cfg!(feature = "aws") { "aws, " } else { "" },
        );
        assert!(said.contains(&words), "{said}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn our_own_driver_mounts_what_our_own_plugin_gives() {
    let served = Served::file().await;
    let flags = [
        format!(
            "--additional-provider-volume-paths={}",
            socket_folder(&served).display()
        ),
        "--prefer-plugin=file".to_owned(),
    ];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let class = "provider: file\nrefresh: {interval: 10s}\nitems:\n- {object: tls/key, path: key}";
    let node = Node::start_with_class(class, &flags).await;
    node.folders
        .secret("password", "of the driver's own provider");
    node.kubelet.publish(&volume("a")).await.unwrap();
    assert_eq!(node.read(&volume("a"), "key"), b"key");
    served.secret("tls/key", "another");
    node.eventually_reads(&volume("a"), "key", b"another").await;
}

fn socket_folder(served: &Served) -> &Path {
    served.socket.parent().unwrap()
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn openbao_is_served_with_one_login_for_an_account() {
    let bao = Bao::start().await;
    let secret = json!({"data": {"password": "correct-horse"}});
    bao.put("secret/data/shop", secret).await;
    let role = bao.role(json!({"bound_subject": "system:serviceaccount:shop:web"}));
    bao.put("auth/jwt/role/shop", role).await;
    let flags = [
        format!("--vault-address={}", bao.url()),
        "--vault-mount=jwt".to_owned(),
    ];
    let served = Served::start("vault", &flags).await;
    let before = bao.tokens().await;
    for name in ["a", "b"] {
        let volume = crate::vault::volume(&bao, name, "web");
        let tokens = &volume.secrets[coffer::tokens::KEY];
        let objects = "[{objectName: password, secretPath: secret/data/shop, secretKey: password}]";
        let attributes = attributes(&[
            ("vaultAddress", bao.url().as_str()),
            ("roleName", "shop"),
            ("objects", objects),
            ("csi.storage.k8s.io/pod.name", name),
            ("csi.storage.k8s.io/pod.uid", &volume.pod.uid),
            ("csi.storage.k8s.io/serviceAccount.tokens", tokens),
        ]);
        let answer = served
            .mount(request(&attributes, &format!("/{name}")))
            .await
            .unwrap();
        assert_eq!(answer.files[0].path, "password");
        assert_eq!(answer.files[0].contents, b"correct-horse");
        assert_eq!(answer.files[0].mode, 0o644);
    }
    assert_eq!(bao.tokens().await, before + 1, "one login for the account");
    // Another pod's token is nobody's (I4).
    let stolen = json!({"vault": {
        "token": token_of(&pod("b")), "expirationTimestamp": "2090-01-01T00:00:00Z",
    }});
    let attributes = attributes(&[
        ("vaultAddress", bao.url().as_str()),
        ("roleName", "shop"),
        (
            "objects",
            "[{objectName: p, secretPath: secret/data/shop, secretKey: password}]",
        ),
        (
            "csi.storage.k8s.io/serviceAccount.tokens",
            &stolen.to_string(),
        ),
    ]);
    let status = served
        .mount(request(&attributes, "/a"))
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[cfg(feature = "aws")]
#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn aws_is_served_by_the_role_of_the_pods_service_account() {
    use crate::aws;
    let moto = crate::aws_servers::Moto::start().await;
    moto.server.secret(aws::WEST, "shop", "correct-horse").await;
    let accounts = tempfile::tempdir().unwrap();
    let account = accounts.path().join("web.yaml");
    fs::write(account, aws::manifest("web", "shop")).unwrap();
    let (mut flags, _ca) = aws::flags(&moto.server.address);
    flags.push(format!("--classes={}", accounts.path().display()));
    let served = Served::start("aws", &flags).await;
    let volume = aws::volume("a", "web", "shop");
    let tokens = &volume.secrets[coffer::tokens::KEY];
    let objects = "- {objectName: shop, objectType: secretsmanager}";
    let attributes = attributes(&[
        ("objects", objects),
        ("csi.storage.k8s.io/serviceAccount.tokens", tokens),
    ]);
    let answer = served.mount(request(&attributes, "/a")).await.unwrap();
    assert_eq!(answer.files[0].path, "shop");
    assert_eq!(answer.files[0].contents, b"correct-horse");
}
