//! One class at its store: each distinct request once, however many objects are made of its answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coffer_provider::{
    Caller, Changes, ErrorKind, IdentifiedBy, Lease, Life, ObjectRef, ProviderError, Secret,
    Source, Version,
};
use futures_util::future::join_all;
use http::StatusCode;

use crate::answer::Object as Json;
use crate::calls::Call;
use crate::error;
use crate::events;
use crate::files::{self, Answer};
use crate::http::Reply;
use crate::lease::{self, Unclaimed};
use crate::login::{Denial, Login, LoginKey};
use crate::mounts::{Mount, Told};
use crate::object::{Method, Object, Request, Selection};
use crate::parameters::Class;
use crate::pki::NodeKey;
use crate::store::Stores;
use crate::token::StoreToken;
use crate::version::kv_version;

/// Where what was wrapped is unwrapped.
const UNWRAP: &str = "sys/wrapping/unwrap";

/// A class and the store it asks.
pub(crate) struct VaultSource {
    class: Class,
    identified_by: IdentifiedBy,
    references: Vec<ObjectRef>,
    /// For each of them, what the store is asked.
    answers: Vec<String>,
    stores: Arc<Stores>,
}

impl VaultSource {
    pub(crate) fn new(class: Class, stores: Arc<Stores>) -> Self {
        let by_spelling = stores.version_key.configured;
        let references = class.objects.iter();
        let references = references.map(|object| object.reference(&class.namespace, by_spelling));
        let answers = class.objects.iter();
        let answers = answers.map(|object| object.request.canonical(&class.namespace));
        Self {
            answers: answers.collect(),
            references: references.collect(),
            identified_by: class.identified_by(),
            class,
            stores,
        }
    }

    fn key(&self, caller: &Caller) -> LoginKey {
        let IdentifiedBy::Token { store, .. } = &self.identified_by else {
            unreachable!("the store tells callers apart by their tokens")
        };
        LoginKey::new(store, &self.class, caller)
    }

    fn position(&self, reference: &ObjectRef) -> Option<usize> {
        self.references.iter().position(|known| known == reference)
    }

    fn object(&self, reference: &ObjectRef) -> Result<&Object, ProviderError> {
        let index = self.position(reference);
        let object = index.and_then(|index| self.class.objects.get(index));
        object.ok_or_else(|| {
            let problem = format!("{} is not an object of this class", reference.name);
            ProviderError::new(ErrorKind::InvalidParameters, problem)
        })
    }

    /// The answers to the requests of `objects`, each asked for once.
    async fn read_each<'a>(
        &self,
        login: &Arc<Login>,
        caller: &Caller,
        objects: &[Result<&'a Object, ProviderError>],
    ) -> Vec<(&'a Request, Result<Answer, ProviderError>)> {
        let mut requests: Vec<&Request> = Vec::new();
        for object in objects.iter().flatten() {
            if !requests.contains(&&object.request) {
                requests.push(&object.request);
            }
        }
        let reads = requests.into_iter();
        let reads =
            reads.map(|request| async move { (request, self.read(login, caller, request).await) });
        join_all(reads).await
    }

    async fn read(
        &self,
        login: &Arc<Login>,
        caller: &Caller,
        request: &Request,
    ) -> Result<Answer, ProviderError> {
        let made = match request.key {
            Some(kind) => Some(NodeKey::make(request, kind).await?),
            None => None,
        };
        let call = Call::read(request, made.as_ref().map(|made| made.csr.as_str()));
        let call = call.map_err(|_| {
            error::unreadable(&request.path, "secretArgs cannot be written as JSON")
        })?;
        let (token, reply) = self.ask(login, caller, Arc::new(call)).await?;
        let path = &request.path;
        if reply.is_refused_login() {
            return Err(login.refusal(&reply));
        }
        if !reply.status.is_success() {
            return Err(error::read(path, &self.class.role, &reply));
        }
        if reply.body.is_empty() {
            return Err(error::unreadable(path, "the store's answer is empty"));
        }
        let body = Json::parse(&reply.body).ok_or_else(|| {
            error::unreadable(
                path,
                "the store's answer is not a JSON object of at most 64 levels",
            )
        })?;
        let unclaimed = files::lease_id(&body).map(|id| {
            token.hold_a_lease();
            Unclaimed::new(login, &self.class.namespace, id)
        });
        let data = body.object("data");
        let versioned = match data {
            Some(data) => self.is_versioned(login, &token, request, &data).await,
            None => false,
        };
        Ok(Answer {
            versioned,
            request: request.clone(),
            private_key: made.map(|made| made.private_key),
            token,
            unclaimed,
            body: reply.body,
        })
    }

    /// Asks with the token there is, and once more with another one if the store knows it no longer: a 403 is
    /// the policy's.
    async fn ask(
        &self,
        login: &Arc<Login>,
        caller: &Caller,
        call: Arc<Call>,
    ) -> Result<(Arc<StoreToken>, Reply), ProviderError> {
        let namespace = &self.class.namespace;
        let connection = &login.store.connection;
        let token = login.token(caller).await?;
        let reply = connection.call(&*call, &token.headers(namespace)).await?;
        if reply.status != StatusCode::FORBIDDEN {
            return Ok((token, reply));
        }
        match login.denied(&token, caller, &call, namespace).await? {
            Denial::Policy => Ok((token, reply)),
            Denial::Answered(another, reply) => Ok((another, reply)),
            Denial::Retry(another) => {
                let reply = connection.call(&*call, &another.headers(namespace)).await?;
                Ok((another, reply))
            }
        }
    }

    /// Whether the values lie one level deeper. Only an answer that looks like it is asked about.
    async fn is_versioned(
        &self,
        login: &Login,
        token: &StoreToken,
        request: &Request,
        data: &Json<'_>,
    ) -> bool {
        let metadata = data
            .object("metadata")
            .and_then(|metadata| metadata.number("version"));
        if data.object("data").is_none() || metadata.is_none() {
            return false;
        }
        let (namespace, path) = (&self.class.namespace, &request.path);
        if request.method.writes() {
            // A read that was wrapped comes out as it went in, from whatever mount.
            return path == UNWRAP || path.ends_with(&format!("/{UNWRAP}"));
        }
        // Who may not ask for the mount is left with what it looks like.
        if login.no_mount.has(namespace, path) {
            return true;
        }
        let headers = token.headers(namespace);
        let mounts = &login.store.mounts;
        match mounts.of(&login.store.connection, &headers, path).await {
            Told::Mount(mount) => mount.versioned,
            Told::No => {
                login.no_mount.put(namespace, path);
                true
            }
            Told::NotNow => true,
        }
    }

    /// The version of a KV v2 secret without its values.
    async fn version(
        &self,
        login: &Arc<Login>,
        caller: &Caller,
        object: &Object,
    ) -> Option<Version> {
        let request = &object.request;
        if request.method != Method::Get || object.selection == Selection::Response {
            return None;
        }
        let wanted = match request.query.as_deref() {
            None => None,
            Some(query) => Some(query.strip_prefix("version=")?.parse().ok()?),
        };
        let namespace = &self.class.namespace;
        let mount = login.store.mounts.known(namespace, &request.path)?;
        let call = metadata_call(&mount, &request.path)?;
        if login.may_not(namespace, &mount.path) {
            return None;
        }
        let asked = self.ask(login, caller, Arc::new(call)).await;
        let (_, reply) = asked.ok()?;
        if reply.status == StatusCode::FORBIDDEN && !reply.is_refused_login() {
            login.remember_denial(namespace, mount.path);
        }
        let body = Json::parse(&reply.body).filter(|_| reply.status.is_success())?;
        let data = body.object("data")?;
        let number = match wanted {
            Some(0) | None => data.number("current_version")?,
            Some(number) => number,
        };
        let version = data.object("versions")?.object(&number.to_string())?;
        // A read says how it ended.
        if version.is_true("destroyed")
            || version.text("deletion_time").is_some_and(|t| !t.is_empty())
        {
            return None;
        }
        Version::new(kv_version(number, &version.text("created_time")?)).ok()
    }
}

fn metadata_call(mount: &Mount, path: &str) -> Option<Call> {
    let below = path.strip_prefix(&mount.path)?.strip_prefix("/data/")?;
    mount.versioned.then(|| Call::metadata(&mount.path, below))
}

#[async_trait]
impl Source for VaultSource {
    fn identified_by(&self) -> &IdentifiedBy {
        &self.identified_by
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.references
    }

    fn answer_of<'a>(&'a self, object: &'a ObjectRef) -> &'a str {
        let known = self.position(object);
        known.map_or(&object.request, |index| &self.answers[index])
    }

    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        if objects.is_empty() {
            return Vec::new();
        }
        let asked = async {
            let login = self.stores.login(self.key(caller), &self.class)?;
            // Asked for once, so that a failure is one error for all and not one for each.
            login.token(caller).await?;
            Ok(login)
        };
        let login = match asked.await {
            Ok(login) => login,
            Err(error) => return vec![Err(error); objects.len()],
        };
        let objects: Vec<_> = objects.iter().map(|object| self.object(object)).collect();
        let mut answers = self.read_each(&login, caller, &objects).await;
        let secret = |object: &Result<&Object, ProviderError>| {
            let object = object.as_ref().map_err(Clone::clone)?;
            let mut answers = answers.iter();
            let answer = answers.find(|(request, _)| **request == object.request);
            let (_, answer) = answer.expect("each object's request was made");
            let answer = answer.as_ref().map_err(Clone::clone)?;
            files::secret(object, answer, &self.stores.version_key)
        };
        let secrets: Vec<_> = objects.iter().map(secret).collect();
        let is_used = |request: &Request| {
            let mut pairs = objects.iter().zip(&secrets);
            pairs.any(|pair| matches!(pair, (Ok(object), Ok(_)) if object.request == *request))
        };
        for (request, answer) in &mut answers {
            if let Ok(answer) = answer
                && is_used(request)
                && let Some(lease) = answer.unclaimed.take()
            {
                lease.claim();
            }
        }
        secrets
    }

    async fn versions(&self, caller: &Caller, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        let unknown = || vec![None; objects.len()];
        // With a key versions are made of the content, so it has to be read.
        if self.stores.version_key.configured {
            return unknown();
        }
        let Some(login) = self.stores.logins.known(&self.key(caller)) else {
            return unknown();
        };
        let mut requests: Vec<&Object> = Vec::new();
        let objects: Vec<_> = objects
            .iter()
            .map(|object| self.object(object).ok())
            .collect();
        let same = |a: &Object, b: &Object| {
            let whole = |object: &Object| object.selection == Selection::Response;
            a.request == b.request && whole(a) == whole(b)
        };
        for object in objects.iter().flatten() {
            if !requests.iter().any(|known| same(known, object)) {
                requests.push(object);
            }
        }
        let asks = requests
            .iter()
            .map(|object| self.version(&login, caller, object));
        let versions = join_all(asks).await;
        let version = |object: Option<&Object>| {
            let object = object?;
            let mut known = requests.iter().zip(&versions);
            known.find_map(|(asked, version)| same(asked, object).then(|| version.clone()))?
        };
        objects.into_iter().map(version).collect()
    }

    fn watch(&self, caller: &Caller) -> Option<Changes> {
        // The login that goes with each request cannot go with an event.
        if !self.stores.rules.settings.events || self.class.inline_auth {
            return None;
        }
        let read = self.class.objects.iter().map(|object| &object.request);
        let read = read.filter(|request| !request.method.writes());
        let paths: Vec<_> = read.map(|request| request.path.clone()).collect();
        let login = self.stores.login(self.key(caller), &self.class).ok()?;
        events::changes(&login, &self.class.namespace, caller, paths)
    }

    async fn renew(&self, caller: &Caller, lease: &Lease) -> Result<Life, ProviderError> {
        let login = self.stores.logins.known(&self.key(caller)).ok_or_else(|| {
            ProviderError::new(ErrorKind::NotFound, "the lease has ended with its token")
        })?;
        lease::renew(&login, &self.class.namespace, caller, lease).await
    }

    async fn release(&self, caller: &Caller, leases: &[Lease], grace: Duration) {
        if let Some(login) = self.stores.logins.known(&self.key(caller)) {
            lease::release(&login, &self.class.namespace, leases, grace).await;
        }
    }

    async fn log_out(&self, caller: &Caller) {
        if let Some(login) = self.stores.logins.forget(&self.key(caller)) {
            login.log_out().await;
        }
    }

    fn let_go(&self, caller: &Caller) {
        drop(self.stores.logins.forget(&self.key(caller)));
    }
}
