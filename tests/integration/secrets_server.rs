//! An API server that knows Secrets and pods, as far as it matters who owns which field: POST, GET with and
//! without content, server-side apply, merge patches, preconditions, what cannot change. It writes down
//! every request, and can fail, hang, or have somebody else come first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use coffer::kube::ApiServer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// What happens to a request instead of, or before, an answer.
pub(crate) enum Fault {
    /// It is answered with this code and message.
    Answer(u16, &'static str),
    /// It is never answered.
    Hang,
    /// Somebody else does this first.
    Before(Box<dyn FnOnce(&mut Cluster) + Send>),
}

/// The objects, each by its path.
#[derive(Default)]
pub(crate) struct Cluster {
    objects: BTreeMap<String, Value>,
    /// By path and manager: the fields that it has applied, or made.
    fields: BTreeMap<(String, String), BTreeSet<String>>,
    /// Every request, as `METHOD path?query`.
    pub(crate) requests: Vec<String>,
    faults: VecDeque<(&'static str, Fault)>,
    last_version: u64,
}

/// The API server, on a port of its own.
#[derive(Clone)]
pub(crate) struct SecretsServer {
    cluster: Arc<Mutex<Cluster>>,
    port: u16,
    kubeconfig: Arc<TempDir>,
}

impl SecretsServer {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let cluster = Arc::new(Mutex::new(Cluster::default()));
        let routes = Router::new().fallback(serve).with_state(cluster.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let kubeconfig = Arc::new(tempfile::tempdir().unwrap());
        Self {
            cluster,
            port,
            kubeconfig,
        }
    }

    /// Its clients' way in.
    pub(crate) async fn client(&self) -> ApiServer {
        let file: PathBuf = self.kubeconfig.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\n\
             clusters: [{{name: fake, cluster: {{server: 'http://127.0.0.1:{}'}}}}]\n\
             users: [{{name: fake, user: {{}}}}]\n\
             contexts: [{{name: fake, context: {{cluster: fake, user: fake}}}}]\n",
            self.port
        );
        std::fs::write(&file, text).unwrap();
        ApiServer::of(Some(&file)).await.unwrap()
    }

    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// The next request of this method meets this.
    pub(crate) fn meets(&self, method: &'static str, fault: Fault) {
        self.cluster().faults.push_back((method, fault));
    }

    /// A pod of the Namespace `shop`, with these owners: kind, name and UID.
    pub(crate) fn pod(&self, name: &str, uid: &str, owners: &[(&str, &str, &str)]) {
        let owners = owners.iter().map(|(kind, name, uid)| {
            json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true})
        });
        let metadata = json!({"name": name, "namespace": "shop", "uid": uid,
            "ownerReferences": owners.collect::<Vec<_>>()});
        let path = format!("/api/v1/namespaces/shop/pods/{name}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}});
        self.cluster().objects.insert(path, pod);
    }

    /// A Secret of the Namespace `shop`, if it is there.
    pub(crate) fn secret(&self, name: &str) -> Option<Value> {
        self.cluster().objects.get(&secret_path(name)).cloned()
    }

    /// How many requests there were that would write, and how many that read Secrets.
    pub(crate) fn counted(&self) -> (usize, usize) {
        let cluster = self.cluster();
        let (reads, writes): (Vec<_>, Vec<_>) = cluster
            .requests
            .iter()
            .filter(|request| request.contains("/secrets"))
            .partition(|request| request.starts_with("GET"));
        (writes.len(), reads.len())
    }
}

pub(crate) fn secret_path(name: &str) -> String {
    format!("/api/v1/namespaces/shop/secrets/{name}")
}

impl Cluster {
    /// Somebody else writes a Secret of the Namespace `shop` whole.
    pub(crate) fn put(&mut self, name: &str, mut secret: Value) {
        secret["metadata"]["name"] = json!(name);
        secret["metadata"]["namespace"] = json!("shop");
        self.insert(&secret_path(name), secret, "somebody (Update)");
    }

    /// Somebody else changes a Secret of the Namespace `shop`.
    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let path = secret_path(name);
        let mut secret = self.objects[&path].clone();
        change(&mut secret);
        self.keep(&path, secret);
    }

    /// Somebody else deletes it.
    pub(crate) fn delete(&mut self, name: &str) {
        let path = secret_path(name);
        self.objects.remove(&path);
        self.fields.retain(|(of, _), _| *of != path);
    }

    /// The managers that have applied or made these fields of a Secret.
    pub(crate) fn managers(&self, name: &str, field: &str) -> Vec<&str> {
        let path = secret_path(name);
        let fields = self.fields.iter().filter(|((of, _), _)| *of == path);
        fields
            .filter(|(_, fields)| fields.contains(field))
            .map(|((_, manager), _)| manager.as_str())
            .collect()
    }

    fn insert(&mut self, path: &str, mut object: Value, manager: &str) {
        self.last_version += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.last_version));
        let fields = fields(&object);
        self.fields
            .insert((path.to_owned(), manager.to_owned()), fields);
        self.objects.insert(path.to_owned(), Value::Null);
        self.keep(path, object);
    }

    /// A write that changes nothing is none.
    fn keep(&mut self, path: &str, mut object: Value) {
        if self.objects[path] != object {
            self.last_version += 1;
            object["metadata"]["resourceVersion"] = json!(self.last_version.to_string());
            self.objects.insert(path.to_owned(), object);
        }
    }

    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        query: &str,
        kind: &str,
        body: &Bytes,
    ) -> Answer {
        match *method {
            Method::GET if path.split('/').count() == 7 => self.found(path),
            Method::POST => self.create(path, manager(query)?, parsed(body)?),
            Method::PATCH if kind.contains("apply-patch") => {
                self.apply(path, manager(query)?, parsed(body)?)
            }
            Method::PATCH if kind.contains("merge-patch") => self.merge(path, parsed(body)?),
            _ => Err((
                403,
                "secrets is forbidden: the driver cannot do that".into(),
            )),
        }
    }

    fn found(&self, path: &str) -> Answer {
        let object = self.objects.get(path).cloned();
        object.ok_or_else(|| (404, "not found".into()))
    }

    fn create(&mut self, path: &str, manager: String, body: Value) -> Answer {
        let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
        if self.objects.contains_key(&path) {
            return Err((409, "already exists".into()));
        }
        assert!(body["metadata"]["uid"].is_null() && body["metadata"]["resourceVersion"].is_null());
        self.insert(&path, body, &format!("{manager} (Update)"));
        self.found(&path)
    }

    fn apply(&mut self, path: &str, manager: String, body: Value) -> Answer {
        let live = self
            .found(path)
            .map_err(|_| (409, "uid mismatch: no existing object".into()))?;
        check_preconditions(&live, &body)?;
        let (wanted, key) = (fields(&body), (path.to_owned(), manager));
        let before = self.fields.get(&key).cloned().unwrap_or_default();
        let mut next = live.clone();
        for field in before.difference(&wanted) {
            let others = self
                .fields
                .iter()
                .filter(|((of, by), _)| of == path && *by != key.1);
            if !others.into_iter().any(|(_, fields)| fields.contains(field)) {
                set(&mut next, field, None);
            }
        }
        for field in &wanted {
            let wanted_value = value(&body, field);
            // Whose value is overwritten by force owns it no more.
            if value(&live, field) != wanted_value {
                for ((of, _), fields) in &mut self.fields {
                    if of == path {
                        fields.remove(field);
                    }
                }
            }
            set(&mut next, field, wanted_value);
        }
        check_fixed(&live, &next)?;
        self.fields.insert(key, wanted);
        self.keep(path, next);
        self.found(path)
    }

    fn merge(&mut self, path: &str, body: Value) -> Answer {
        let live = self.found(path)?;
        check_preconditions(&live, &body)?;
        let mut next = live.clone();
        for field in fields(&body) {
            set(
                &mut next,
                &field,
                value(&body, &field).filter(|value| !value.is_null()),
            );
        }
        check_fixed(&live, &next)?;
        self.keep(path, next);
        self.found(path)
    }
}

type Answer = Result<Value, (u16, String)>;

fn manager(query: &str) -> Result<String, (u16, String)> {
    let manager = query
        .split('&')
        .find_map(|part| part.strip_prefix("fieldManager="));
    let manager = manager.ok_or((400, "no fieldManager".to_owned()))?;
    Ok(manager.replace("%2F", "/"))
}

fn parsed(body: &Bytes) -> Answer {
    serde_json::from_slice(body).map_err(|error| (400, error.to_string()))
}

fn check_preconditions(live: &Value, body: &Value) -> Result<(), (u16, String)> {
    let differs = |field: &str| {
        let wanted = &body["metadata"][field];
        !wanted.is_null() && *wanted != live["metadata"][field]
    };
    if differs("resourceVersion") {
        return Err((409, "the object has been modified".into()));
    }
    match differs("uid") {
        true => Err((
            422,
            "Secret is invalid: metadata.uid: Invalid value: field is immutable".into(),
        )),
        false => Ok(()),
    }
}

fn check_fixed(live: &Value, next: &Value) -> Result<(), (u16, String)> {
    if live["type"] != next["type"] {
        return Err((422, "type: field is immutable".into()));
    }
    let fixed = live["immutable"] == true;
    match fixed && (live["data"] != next["data"] || next["immutable"] != true) {
        true => Err((
            422,
            "data: field is immutable when `immutable` is set".into(),
        )),
        false => Ok(()),
    }
}

/// The fields of an object that somebody can own.
fn fields(object: &Value) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for at in ["data", "metadata/labels", "metadata/annotations"] {
        let map = object.pointer(&format!("/{at}")).and_then(Value::as_object);
        fields.extend(
            map.into_iter()
                .flatten()
                .map(|(key, _)| format!("{at}|{key}")),
        );
    }
    for owner in object["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
    {
        fields.insert(format!("owner|{}", owner["uid"].as_str().unwrap()));
    }
    for single in ["type", "immutable"] {
        if !object[single].is_null() {
            fields.insert(format!("{single}|"));
        }
    }
    fields
}

fn value(object: &Value, field: &str) -> Option<Value> {
    let (at, key) = field.split_once('|').unwrap();
    match at {
        "owner" => {
            let owners = object["metadata"]["ownerReferences"].as_array()?;
            owners.iter().find(|owner| owner["uid"] == key).cloned()
        }
        "type" | "immutable" => object.get(at).cloned(),
        _ => object.pointer(&format!("/{at}"))?.get(key).cloned(),
    }
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    let (at, key) = field.split_once('|').unwrap();
    if at == "owner" {
        let mut owners = object["metadata"]["ownerReferences"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        owners.retain(|owner| owner["uid"] != key);
        owners.extend(value);
        object["metadata"]["ownerReferences"] = json!(owners);
        return;
    }
    let (map, key) = match at {
        "type" | "immutable" => (object, at),
        "data" => (&mut object["data"], key),
        _ => (&mut object["metadata"][&at["metadata/".len()..]], key),
    };
    if map.is_null() {
        *map = Value::Object(Map::new());
    }
    let map = map.as_object_mut().unwrap();
    match value {
        Some(value) => drop(map.insert(key.to_owned(), value)),
        None => drop(map.remove(key)),
    }
}

async fn serve(State(cluster): State<Arc<Mutex<Cluster>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // Events, status objects and CRDs are another test's.
    if !parts.uri.path().starts_with("/api/v1/") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let header = |name| {
        parts
            .headers
            .get(name)
            .map_or("", |value: &header::HeaderValue| value.to_str().unwrap())
    };
    let fault = {
        let mut cluster = cluster.lock().unwrap();
        cluster
            .requests
            .push(format!("{} {}", parts.method, parts.uri));
        match cluster.faults.front() {
            Some((method, _))
                if *method == parts.method.as_str() && parts.uri.path().contains("/secrets") =>
            {
                cluster.faults.pop_front().map(|(_, fault)| fault)
            }
            _ => None,
        }
    };
    let answer = match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Answer(code, message)) => Err((code, message.to_owned())),
        other => {
            let mut cluster = cluster.lock().unwrap();
            if let Some(Fault::Before(first)) = other {
                first(&mut cluster);
            }
            let query = parts.uri.query().unwrap_or_default();
            let kind = header(header::CONTENT_TYPE);
            cluster.answer(&parts.method, parts.uri.path(), query, kind, &body)
        }
    };
    match answer {
        Ok(mut object) => {
            if header(header::ACCEPT).contains("PartialObjectMetadata") {
                object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": object["metadata"]});
            }
            as_json(StatusCode::OK, &object)
        }
        Err((code, message)) => {
            let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
                "code": code, "reason": "Failed", "message": message, "metadata": {}});
            as_json(StatusCode::from_u16(code).unwrap(), &status)
        }
    }
}

fn as_json(code: StatusCode, body: &Value) -> Response {
    (
        code,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}
