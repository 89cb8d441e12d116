//! A small API server: classes that can be listed and watched, Events and status objects that can be written, and the
//! failures that a real one has once in a while. It listens at one address for as long as the test lasts, and is there
//! or away.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::harness::free_address;

const GROUP: &str = "secrets-store.csi.x-k8s.io";

pub(crate) struct FakeApiServer {
    address: SocketAddr,
    folder: TempDir,
    kept: Arc<Kept>,
    running: Option<Runtime>,
}

/// What survives an outage.
struct Kept(Mutex<World>, broadcast::Sender<Value>);

#[derive(Default)]
struct World {
    version: u64,
    classes: BTreeMap<String, Value>,
    statuses: BTreeMap<String, Value>,
    events: Vec<Value>,
    requests: Vec<(Method, String)>,
    crds: Value,
    /// Each answer takes this long.
    latency: Duration,
    /// A watch from any version is told that it is too old.
    forgets: bool,
    /// Nobody may write.
    forbids: bool,
    /// By Namespace, what a write is answered with: a quota, or a webhook that is away.
    fails: BTreeMap<String, u16>,
}

type Shared = State<Arc<Kept>>;

impl FakeApiServer {
    pub(crate) fn start() -> Self {
        let (watchers, _) = broadcast::channel(1024);
        let mut server = Self {
            address: free_address(),
            folder: tempfile::tempdir().unwrap(),
            kept: Arc::new(Kept(Mutex::default(), watchers)),
            running: None,
        };
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             clusters: [{{name: a, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: a, user: {{}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n",
            server.address
        );
        std::fs::write(server.kubeconfig(), kubeconfig).unwrap();
        server.serves(coffer::kube::crd::definitions());
        server.comes_back();
        server
    }

    /// The file that leads clients here.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The flag that leads the driver here.
    pub(crate) fn flag(&self) -> String {
        format!("--kubeconfig={}", self.kubeconfig().display())
    }

    /// Every connection is cut, and nobody listens.
    pub(crate) fn goes_away(&mut self) {
        if let Some(running) = self.running.take() {
            // No thread of a runtime may wait for the end of one. With it the listener is gone.
            std::thread::spawn(move || drop(running)).join().unwrap();
        }
    }

    pub(crate) fn comes_back(&mut self) {
        let kept = self.kept.clone();
        let routes = Router::new()
            .route(&format!("/apis/{GROUP}/v1/secretproviderclasses"), get(classes))
            .route(
                &format!("/apis/{GROUP}/v1/namespaces/{{namespace}}/secretproviderclasspodstatuses"),
                any(statuses),
            )
            .route(
                &format!("/apis/{GROUP}/v1/namespaces/{{namespace}}/secretproviderclasspodstatuses/{{name}}"),
                any(status),
            )
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", any(events))
            .route(&format!("/openapi/v3/apis/{GROUP}/v1"), get(descriptions))
            .with_state(kept);
        let running = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        running.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
        self.running = Some(running);
    }

    /// Each watch ends, as it does every few minutes; a next one goes on where it ended.
    pub(crate) fn cuts_watches(&self) {
        self.kept.1.send(Value::Null).unwrap();
    }

    /// From now on, or no longer, the versions that watches begin from are too old.
    pub(crate) fn forgets(&self, forgets: bool) {
        self.world().forgets = forgets;
    }

    pub(crate) fn forbids(&self, forbids: bool) {
        self.world().forbids = forbids;
    }

    /// From now on each write in the Namespace is answered with this error.
    pub(crate) fn fails_in(&self, namespace: &str, code: u16) {
        self.world().fails.insert(namespace.to_owned(), code);
    }

    pub(crate) fn answers_after(&self, latency: Duration) {
        self.world().latency = latency;
    }

    /// The CRDs that are installed, as YAML documents.
    pub(crate) fn serves(&self, definitions: String) {
        let mut schemas = serde_json::Map::new();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&definitions).unwrap();
        for document in documents {
            let kind = document["spec"]["names"]["kind"].as_str().unwrap();
            let mut schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": GROUP, "kind": kind, "version": "v1"}]);
            schemas.insert(kind.to_owned(), schema);
        }
        self.world().crds = json!({"openapi": "3.0.0", "components": {"schemas": schemas}});
    }

    /// Makes or changes a class of the Namespace `shop`.
    pub(crate) fn class(&self, name: &str, spec: &str) {
        self.class_with(name, spec, None);
    }

    /// The same, with a value of the annotation that asks for a refresh.
    pub(crate) fn class_with(&self, name: &str, spec: &str, mark: Option<&str>) {
        self.class_in("shop", name, spec, mark);
    }

    /// The same in another Namespace.
    pub(crate) fn class_in(&self, namespace: &str, name: &str, spec: &str, mark: Option<&str>) {
        let spec: Value = serde_saphyr::from_str(spec).unwrap();
        let mut class = json!({
            "apiVersion": format!("{GROUP}/v1"), "kind": "SecretProviderClass",
            "metadata": {"name": name, "namespace": namespace, "uid": name}, "spec": spec,
        });
        if let Some(mark) = mark {
            class["metadata"]["annotations"] = json!({format!("{GROUP}/refresh"): mark});
        }
        let mut world = self.world();
        let name = format!("{namespace}/{name}");
        let known = world.classes.contains_key(&name);
        world.stamp(&mut class);
        world.classes.insert(name, class.clone());
        drop(world);
        self.tell(if known { "MODIFIED" } else { "ADDED" }, class);
    }

    pub(crate) fn delete_class(&self, name: &str) {
        let mut world = self.world();
        let mut class = world.classes.remove(&format!("shop/{name}")).unwrap();
        world.stamp(&mut class);
        drop(world);
        self.tell("DELETED", class);
    }

    fn tell(&self, what: &str, class: Value) {
        // Nobody may be watching.
        let _ = self.kept.1.send(json!({"type": what, "object": class}));
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.kept.0.lock().unwrap()
    }

    /// The status objects, by Namespace and name.
    pub(crate) fn statuses(&self) -> BTreeMap<String, Value> {
        self.world().statuses.clone()
    }

    pub(crate) fn status(&self, name: &str) -> Value {
        let statuses = self.statuses();
        statuses
            .get(&format!("shop/{name}"))
            .cloned()
            .unwrap_or_default()
    }

    /// Puts a status object there, as somebody else would.
    pub(crate) fn put_status(&self, name: &str, mut object: Value) {
        let mut world = self.world();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!("shop");
        object["metadata"]["uid"] = json!("of-somebody-else");
        world.stamp(&mut object);
        world.statuses.insert(format!("shop/{name}"), object);
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.world().events.clone()
    }

    /// The notes of the Events of a pod with this reason.
    pub(crate) fn notes(&self, pod: &str, reason: &str) -> Vec<String> {
        let of = |event: &&Value| event["regarding"]["name"] == pod && event["reason"] == reason;
        let events = self.events();
        let notes = events.iter().filter(of);
        notes
            .map(|event| event["note"].as_str().unwrap().to_owned())
            .collect()
    }

    /// How often it was asked for something by this method whose path holds `part`.
    pub(crate) fn asked(&self, method: &Method, part: &str) -> usize {
        let world = self.world();
        let asked = world.requests.iter();
        asked
            .filter(|(with, path)| with == method && path.contains(part))
            .count()
    }

    /// How many requests wanted to write.
    pub(crate) fn writes(&self) -> usize {
        let world = self.world();
        world
            .requests
            .iter()
            .filter(|(method, _)| method != Method::GET)
            .count()
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.goes_away();
    }
}

impl World {
    fn stamp(&mut self, object: &mut Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
    }
}

async fn arrives(kept: &Arc<Kept>, method: &Method, uri: &Uri) -> Option<Response> {
    let (latency, fails) = {
        let mut world = kept.0.lock().unwrap();
        world.requests.push((method.clone(), uri.to_string()));
        let namespace = uri.path().split("/namespaces/").nth(1);
        let namespace = namespace.and_then(|path| path.split('/').next());
        let fails = namespace.and_then(|namespace| world.fails.get(namespace));
        (
            world.latency,
            world.forbids.then_some(403).or(fails.copied()),
        )
    };
    tokio::time::sleep(latency).await;
    let code = fails.filter(|_| method != Method::GET)?;
    Some(refuse(
        code,
        if code == 403 {
            "Forbidden"
        } else {
            "InternalError"
        },
    ))
}

fn refuse(code: u16, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("the answer is {reason}"), "reason": reason, "code": code,
    });
    answer(code, &status)
}

fn answer(code: u16, object: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    (
        code,
        [("content-type", "application/json")],
        object.to_string(),
    )
        .into_response()
}

async fn classes(State(kept): Shared, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default().split('&');
    let query: BTreeMap<_, _> = query.filter_map(|part| part.split_once('=')).collect();
    let watches = query.contains_key("watch");
    // Before anything else, so that nothing comes between.
    let changes = kept.1.subscribe();
    arrives(&kept, &Method::GET, &uri).await;
    let world = kept.0.lock().unwrap();
    if watches && world.forgets {
        let gone = json!({"type": "ERROR", "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410,
        }});
        return answer(200, &gone);
    }
    if watches {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let version = |class: &Value| -> u64 {
            class["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        };
        // What changed since; of what was deleted a real one tells too, and no test here needs it.
        let since = world.classes.values().filter(|class| version(class) > from);
        let since: Vec<_> = since
            .map(|class| json!({"type": "MODIFIED", "object": class}))
            .collect();
        let seen = world.version;
        drop(world);
        let changes = BroadcastStream::new(changes)
            .map(Result::unwrap)
            .take_while(|change| std::future::ready(!change.is_null()))
            .filter(move |change| std::future::ready(version(&change["object"]) > seen));
        let lines = tokio_stream::iter(since).chain(changes);
        let lines = lines.map(|change| Ok::<_, Infallible>(Bytes::from(format!("{change}\n"))));
        return Body::from_stream(lines).into_response();
    }
    let from: usize = query
        .get("continue")
        .map_or(0, |from| from.parse().unwrap());
    let limit: usize = query
        .get("limit")
        .map_or(usize::MAX, |limit| limit.parse().unwrap());
    let items: Vec<_> = world.classes.values().skip(from).take(limit).collect();
    let more = world.classes.len() > from + items.len();
    let next = if more {
        (from + items.len()).to_string()
    } else {
        String::new()
    };
    let list = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "SecretProviderClassList", "items": items,
        "metadata": {"resourceVersion": world.version.to_string(), "continue": next},
    });
    answer(200, &list)
}

async fn events(State(kept): Shared, method: Method, uri: Uri, body: Bytes) -> Response {
    if let Some(refused) = arrives(&kept, &method, &uri).await {
        return refused;
    }
    let event: Value = serde_json::from_slice(&body).unwrap();
    // What comes before the part that is made up has to look like the beginning of a name.
    let prefix = event["metadata"]["generateName"].as_str().unwrap();
    if !prefix.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-') {
        return refuse(422, "Invalid");
    }
    kept.0.lock().unwrap().events.push(event.clone());
    answer(201, &event)
}

async fn statuses(
    State(kept): Shared,
    Path(namespace): Path<String>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    if let Some(refused) = arrives(&kept, &method, &uri).await {
        return refused;
    }
    assert_eq!(method, Method::POST);
    let mut object: Value = serde_json::from_slice(&body).unwrap();
    let mut world = kept.0.lock().unwrap();
    let name = format!(
        "{namespace}/{}",
        object["metadata"]["name"].as_str().unwrap()
    );
    if world.statuses.contains_key(&name) {
        return refuse(409, "AlreadyExists");
    }
    world.stamp(&mut object);
    object["metadata"]["uid"] = json!(format!("uid-{}", world.version));
    world.statuses.insert(name, object.clone());
    answer(201, &object)
}

async fn status(
    State(kept): Shared,
    Path((namespace, name)): Path<(String, String)>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    if let Some(refused) = arrives(&kept, &method, &uri).await {
        return refused;
    }
    let mut world = kept.0.lock().unwrap();
    let name = format!("{namespace}/{name}");
    let Some(known) = world.statuses.get(&name).cloned() else {
        return refuse(404, "NotFound");
    };
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    match method {
        Method::PUT => {
            let mut object = sent;
            if object["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"] {
                return refuse(409, "Conflict");
            }
            object["metadata"]["uid"] = known["metadata"]["uid"].clone();
            world.stamp(&mut object);
            world.statuses.insert(name, object.clone());
            answer(200, &object)
        }
        Method::DELETE => {
            for field in ["uid", "resourceVersion"] {
                if sent["preconditions"][field] != known["metadata"][field] {
                    return refuse(409, "Conflict");
                }
            }
            world.statuses.remove(&name);
            answer(200, &known)
        }
        _ => answer(200, &known),
    }
}

async fn descriptions(State(kept): Shared, uri: Uri) -> Response {
    arrives(&kept, &Method::GET, &uri).await;
    let crds = kept.0.lock().unwrap().crds.clone();
    answer(200, &crds)
}
