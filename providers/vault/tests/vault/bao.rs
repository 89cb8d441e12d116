//! A real OpenBao, one for each test: in development mode, which is there in a fifth of a second, or with
//! a storage that outlives it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer_provider::{Caller, ServiceAccountToken, testing};
use serde_json::{Value, json};

use crate::stand_in::{Seen, StandIn, ask};

/// Names the binary of OpenBao.
const BAO: &str = "COFFER_BAO";
/// The root's token in development mode.
const ROOT: &str = "root";

const POLICY: &str = r#"
path "secret/data/*"     { capabilities = ["read"] }
path "secret/metadata/*" { capabilities = ["read"] }
path "kv1/*"             { capabilities = ["read"] }
path "pki/issue/*"       { capabilities = ["update"] }
path "pki/sign/*"        { capabilities = ["update"] }
path "rabbitmq/creds/*"  { capabilities = ["read"] }
"#;

/// A running server with KV v2 at `secret`, KV v1 at `kv1`, policy `app`, and role `app` of the jwt
/// mount for ServiceAccount `app` of Namespace `test`.
pub(crate) struct Bao {
    server: Child,
    root: String,
    pub(crate) address: SocketAddr,
    key: rcgen::KeyPair,
    home: tempfile::TempDir,
}

impl Bao {
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let address = free_address();
        let bao = Self {
            server: serve(address, home.path()),
            root: ROOT.to_owned(),
            address,
            key: rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            home,
        };
        // The mount of `secret` comes after the first answer.
        bao.wait_until_it_answers("secret/config", 200).await;
        bao.seed().await;
        bao
    }

    /// One that has everything still after [`Self::kill`] and [`Self::wake`].
    pub(crate) async fn start_kept() -> Self {
        let home = tempfile::tempdir().unwrap();
        let address = free_address();
        let mut bao = Self {
            server: serve_kept(address, home.path()),
            root: String::new(),
            address,
            key: rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            home,
        };
        bao.wait_until_it_answers("sys/init", 200).await;
        let keys = json!({"secret_shares": 1, "secret_threshold": 1});
        let keys = bao.put("sys/init", keys).await;
        bao.root = keys["root_token"].as_str().unwrap().to_owned();
        std::fs::write(
            bao.home.path().join("key"),
            keys["keys"][0].as_str().unwrap(),
        )
        .unwrap();
        bao.unseal().await;
        let kv = json!({"type": "kv", "options": {"version": "2"}});
        bao.put("sys/mounts/secret", kv).await;
        // It makes its keys beside the answer.
        bao.wait_until_it_answers("secret/config", 200).await;
        bao.seed().await;
        bao
    }

    /// Starts one that keeps its storage again, with all that was in it.
    pub(crate) async fn wake(&mut self) {
        self.server = serve_kept(self.address, self.home.path());
        self.wait_until_it_answers("sys/init", 200).await;
        self.unseal().await;
    }

    async fn unseal(&self) {
        let key = std::fs::read_to_string(self.home.path().join("key")).unwrap();
        self.put("sys/unseal", json!({ "key": key })).await;
        // On a standby, which it is for a moment, nothing can be written.
        self.wait_until_it_answers("sys/health", 200).await;
    }

    async fn wait_until_it_answers(&self, path: &str, expected: u16) {
        for _ in 0..600 {
            let answer = self.try_admin("GET", path, &Value::Null).await;
            if answer.is_some_and(|(status, _)| status == expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("OpenBao does not answer");
    }

    async fn seed(&self) {
        self.put("sys/policies/acl/app", json!({"policy": POLICY}))
            .await;
        self.put(
            "sys/mounts/kv1",
            json!({"type": "kv", "options": {"version": "1"}}),
        )
        .await;
        self.enable_jwt("").await;
        self.put("auth/jwt/role/app", self.role(json!({}))).await;
    }

    pub(crate) async fn enable_jwt(&self, namespace: &str) {
        self.put(&format!("{namespace}sys/auth/jwt"), json!({"type": "jwt"}))
            .await;
        let config = json!({"jwt_validation_pubkeys": [self.key.public_key_pem()]});
        self.put(&format!("{namespace}auth/jwt/config"), config)
            .await;
    }

    /// A role of a jwt mount for the ServiceAccount `app`.
    pub(crate) fn role(&self, more: Value) -> Value {
        let mut role = json!({
            "role_type": "jwt",
            "bound_audiences": "vault",
            "user_claim": "sub",
            "bound_subject": "system:serviceaccount:test:app",
            "token_policies": "app",
            "token_ttl": "20m",
        });
        for (name, value) in more.as_object().unwrap() {
            role[name] = value.clone();
        }
        role
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The public half of the key that signs tokens.
    pub(crate) fn public_key(&self) -> String {
        self.key.public_key_pem()
    }

    /// A counter before it.
    pub(crate) async fn counted(&self) -> StandIn {
        StandIn::before(self.address).await
    }

    /// Asks as root.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.try_admin(method, path, &body)
            .await
            .expect("OpenBao answers")
    }

    /// Asks as root for something that must succeed.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.admin("POST", path, body).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    }

    async fn try_admin(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let request = Seen {
            method: method.to_owned(),
            path: format!("/v1/{path}"),
            headers: BTreeMap::from([("x-vault-token".to_owned(), self.root.clone())]),
            body: match body {
                Value::Null => Vec::new(),
                body => body.to_string().into_bytes(),
            },
        };
        let answer = String::from_utf8(ask(self.address, &request).await.ok()?).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    /// A pod of ServiceAccount `app` in Namespace `test`.
    pub(crate) fn app(&self) -> Caller {
        self.pod("app", "vault", 600)
    }

    /// A pod of a ServiceAccount in Namespace `test`, with a token for so many seconds.
    pub(crate) fn pod(&self, service_account: &str, audience: &str, seconds: u64) -> Caller {
        let mut caller = testing::caller("test");
        caller.pod.service_account.name = service_account.to_owned();
        let subject = format!("system:serviceaccount:test:{service_account}");
        let now = SystemTime::now();
        let expires = now + Duration::from_secs(seconds);
        let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "https://kubernetes.default.svc",
            "sub": subject,
            "aud": [audience],
            "iat": unix(now),
            "nbf": unix(now),
            "exp": unix(expires),
            "kubernetes.io": {
                "namespace": "test",
                "serviceaccount": {"name": service_account, "uid": "b2c9"},
            },
        });
        caller.token = Some(ServiceAccountToken::new(self.sign(&claims), expires));
        caller
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!(
            "{}.{}",
            part(&json!({"alg": "ES256", "typ": "JWT"})),
            part(claims)
        );
        let pkcs8 = self.key.serialize_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).unwrap();
        let signature = key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// How many tokens there are besides the root's.
    pub(crate) async fn tokens(&self) -> usize {
        let (_, list) = self
            .admin("LIST", "auth/token/accessors", Value::Null)
            .await;
        list["data"]["keys"]
            .as_array()
            .map_or(0, |keys| keys.len() - 1)
    }

    /// Makes a CA at `pki` and its role `web`.
    pub(crate) async fn enable_pki(&self) {
        self.put(
            "sys/mounts/pki",
            json!({"type": "pki", "config": {"max_lease_ttl": "8760h"}}),
        )
        .await;
        let root = json!({"common_name": "example.com", "ttl": "8760h"});
        self.put("pki/root/generate/internal", root).await;
        let role = json!({"allowed_domains": "example.com", "allow_subdomains": true,
            "key_type": "ec", "key_bits": 256, "max_ttl": "72h"});
        self.put("pki/roles/web", role).await;
    }

    /// Starts it again where it was, with nothing in it but what every one has.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.server = serve(self.address, self.home.path());
        self.wait_until_it_answers("secret/config", 200).await;
        self.seed().await;
    }

    /// Stops it at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        // It may be dead already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(address: SocketAddr, home: &Path) -> Child {
    Command::new(binary())
        .args(["server", "-dev", "-dev-no-store-token"])
        .arg(format!("-dev-root-token-id={ROOT}"))
        .arg(format!("-dev-listen-address={address}"))
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// With raft of one node: of its kinds of storage on a disk, the one that needs no other server.
fn serve_kept(address: SocketAddr, home: &Path) -> Child {
    let (ip, port) = (address.ip(), address.port());
    let data = home.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let config = json!({
        "storage": {"raft": {"path": data, "node_id": "one"}},
        "listener": {"tcp": {"address": address, "cluster_address": format!("{ip}:{}", port + 1), "tls_disable": true}},
        "api_addr": format!("http://{address}"),
        "cluster_addr": format!("http://{ip}:{}", port + 1),
    });
    let file = home.join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    Command::new(binary())
        .arg("server")
        .arg(format!("-config={}", file.display()))
        .env("HOME", home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[expect(clippy::disallowed_methods, reason = "xtask says where it is")]
fn binary() -> PathBuf {
    std::env::var_os(BAO)
        .unwrap_or_else(|| panic!("{BAO} is not set: run cargo xtask test"))
        .into()
}

/// Its cluster port is the one after its own, so each test has a loopback address for itself.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let next = (std::process::id() << 8).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let [_, high, middle, low] = next.to_be_bytes();
        let ip = Ipv4Addr::new(127, high.max(1), middle, low);
        let free = |port| TcpListener::bind((ip, port)).is_ok();
        if free(8200) && free(8201) {
            return SocketAddr::from((ip, 8200));
        }
    }
}
