//! The servers that stand in for AWS, each started for one test on a free port of its own.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SigningParams, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::http::{Request, wait_for};

/// Values, versions, and a recorder that counts calls. Everybody may read everything.
pub(crate) struct Moto {
    pub(crate) server: Server,
    _recording: tempfile::TempDir,
}

impl Moto {
    pub(crate) async fn start() -> Self {
        let recording = tempfile::tempdir().unwrap();
        let port = free_port().to_string();
        let mut moto = python("COFFER_MOTO");
        moto.current_dir(recording.path());
        moto.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port]);
        let server = Server::start(moto, &port, "/moto-api/").await;
        Self {
            server,
            _recording: recording,
        }
    }

    /// From now on calls are counted.
    pub(crate) async fn record(&self) {
        for step in ["reset-recording", "start-recording"] {
            self.recorder("POST", step).await;
        }
    }

    /// What was asked since then: operation and request.
    pub(crate) async fn recorded(&self) -> Vec<Request> {
        self.recorder("POST", "stop-recording").await;
        let lines = self.recorder("GET", "download-recording").await;
        let lines = String::from_utf8(lines).unwrap();
        lines.lines().map(recorded).collect()
    }

    /// How often each operation was asked for.
    pub(crate) async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for request in self.recorded().await {
            *counts.entry(request.operation()).or_default() += 1;
        }
        counts
    }

    async fn recorder(&self, method: &str, step: &str) -> Vec<u8> {
        let request = Request::new(method, &format!("/moto-api/recorder/{step}"));
        request.ask(&self.server.address).await.unwrap().1
    }
}

fn recorded(line: &str) -> Request {
    let line: Value = serde_json::from_str(line).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let headers = line["headers"].as_object().unwrap();
    Request {
        method: text(&line["method"]),
        path: text(&line["url"]),
        headers: headers
            .iter()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect(),
        body: STANDARD.decode(text(&line["body"])).unwrap(),
    }
}

/// Trust policies and rights.
pub(crate) struct Ministack {
    pub(crate) server: Server,
}

impl Ministack {
    /// One that asks everybody who they are; `root` may do everything.
    pub(crate) async fn start() -> Self {
        let port = free_port().to_string();
        let mut ministack = python("COFFER_MINISTACK");
        ministack.args(["-m", "ministack"]).envs([
            ("BIND_HOST", "127.0.0.1"),
            ("GATEWAY_PORT", port.as_str()),
            ("SERVICES", "secretsmanager,ssm,sts,iam,kms"),
            ("MINISTACK_REGION", "us-west-2"),
            ("MINISTACK_ACCOUNT_ID", "123456789012"),
            ("AUTH", "true"),
            ("AWS_ACCESS_KEY_ID", "root"),
            ("AWS_SECRET_ACCESS_KEY", "rootsecret"),
        ]);
        let server = Server::start(ministack, &port, "/_ministack/health").await;
        Self { server }
    }

    /// Makes a role that `trusted` (an account of a Namespace) may take, and that may do `allowed`.
    pub(crate) async fn role(&self, name: &str, trusted: &str, allowed: &[(&str, &str)]) {
        let issuer = "issuer.example";
        let trust = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": {"Federated": format!("arn:aws:iam::123456789012:oidc-provider/{issuer}")},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {
                format!("{issuer}:sub"): format!("system:serviceaccount:{trusted}"),
                format!("{issuer}:aud"): "sts.amazonaws.com",
            }},
        }]});
        let statement = |&(action, resource): &(&str, &str)| json!({"Effect": "Allow", "Action": action, "Resource": resource});
        let statements: Vec<_> = allowed.iter().map(statement).collect();
        let policy = json!({"Version": "2012-10-17", "Statement": statements});
        self.iam("CreateRole", name, "AssumeRolePolicyDocument", &trust)
            .await;
        // There is no policy without a statement.
        if !allowed.is_empty() {
            let field = "PolicyName=own&PolicyDocument";
            self.iam("PutRolePolicy", name, field, &policy).await;
        }
    }

    async fn iam(&self, action: &str, role: &str, field: &str, document: &Value) {
        let document: String = document
            .to_string()
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let body = format!("Action={action}&Version=2010-05-08&RoleName={role}&{field}={document}");
        let form = "application/x-www-form-urlencoded";
        self.as_root("us-east-1", "iam", &[("content-type", form)], body)
            .await;
    }

    /// Makes a secret with a value.
    pub(crate) async fn secret(&self, name: &str, value: &str) {
        let body = json!({"Name": name, "SecretString": value}).to_string();
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "secretsmanager.CreateSecret"),
        ];
        self.as_root("us-west-2", "secretsmanager", &headers, body)
            .await;
    }

    async fn as_root(&self, region: &str, service: &str, headers: &[(&str, &str)], body: String) {
        let root = Credentials::new("root", "rootsecret", None, None, "root").into();
        let signing = v4::SigningParams::builder()
            .identity(&root)
            .region(region)
            .name(service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .unwrap();
        let host = [("host", self.server.address.as_str())];
        let headers: Vec<_> = host.iter().chain(headers).copied().collect();
        let url = format!("http://{}/", self.server.address);
        let payload = SignableBody::Bytes(body.as_bytes());
        let signable = SignableRequest::new("POST", url, headers.iter().copied(), payload);
        let signed = sign(signable.unwrap(), &SigningParams::V4(signing)).unwrap();
        let signature = signed.output().headers();
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let request = Request {
            headers: headers
                .iter()
                .copied()
                .chain(signature)
                .map(owned)
                .collect(),
            body: body.into_bytes(),
            ..Request::new("POST", "/")
        };
        let (status, answer) = request.ask(&self.server.address).await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    }
}

/// A server that speaks the protocols of AWS.
pub(crate) struct Server {
    pub(crate) address: String,
    child: Child,
}

impl Server {
    async fn start(mut command: Command, port: &str, ready: &str) -> Self {
        // It must not hold on to the output of the tests.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = Self {
            address: format!("127.0.0.1:{port}"),
            child: command.spawn().unwrap(),
        };
        wait_for(&server.address, ready).await;
        server
    }

    /// Asks Secrets Manager or SSM as somebody who may do everything.
    pub(crate) async fn call(&self, region: &str, target: &str, body: Value) -> Value {
        let service = match target.starts_with("secretsmanager") {
            true => "secretsmanager",
            false => "ssm",
        };
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let request = Request {
            headers: vec![
                header("Authorization", &authorization(region, service)),
                header("X-Amz-Target", target),
                header("Content-Type", "application/x-amz-json-1.1"),
            ],
            body: body.to_string().into_bytes(),
            ..Request::new("POST", "/")
        };
        let (status, answer) = request.ask(&self.address).await.unwrap();
        assert_eq!(
            status,
            200,
            "{target}: {}",
            String::from_utf8_lossy(&answer)
        );
        serde_json::from_slice(&answer).unwrap()
    }

    /// Makes a secret with a value, or gives it a new one.
    pub(crate) async fn secret(&self, region: &str, name: &str, value: &str) -> Value {
        let create = json!({"Name": name, "SecretString": value});
        self.call(region, "secretsmanager.CreateSecret", create)
            .await
    }

    pub(crate) async fn change(&self, region: &str, name: &str, value: &str) -> Value {
        let put = json!({"SecretId": name, "SecretString": value});
        self.call(region, "secretsmanager.PutSecretValue", put)
            .await
    }

    /// Makes a parameter, or a new version of it.
    pub(crate) async fn parameter(&self, region: &str, name: &str, value: &str) {
        let put = json!({"Name": name, "Value": value, "Type": "SecureString", "Overwrite": true});
        self.call(region, "AmazonSSM.PutParameter", put).await;
    }

    pub(crate) async fn label(&self, region: &str, name: &str, version: u32, label: &str) {
        let put = json!({"Name": name, "ParameterVersion": version, "Labels": [label]});
        self.call(region, "AmazonSSM.LabelParameterVersion", put)
            .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A header that says where a request goes; nobody looks at its signature.
fn authorization(region: &str, service: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=root/20260101/{region}/{service}/aws4_request, SignedHeaders=host, Signature=00"
    )
}

fn python(modules: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "xtask says where the part is")]
    let modules = std::env::var_os(modules)
        .unwrap_or_else(|| panic!("{modules} is not set: run it by cargo xtask test"));
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", modules);
    python
}

/// Below the ports that the kernel gives to whoever asks for any, so that nobody takes it in the meantime.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(251);
    loop {
        let next = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 20_000 + (next % 10_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
