//! Requests to one store: at most so many at once, each with a deadline, a limit for its answer, and
//! to no place but the one that was checked.
//!
//! The requests are vaultrs' own types, or ours of the same kind (`calls.rs`). They are built by
//! rustify and sent from here: rustify's own client has no limits, follows redirects with the token
//! in hand, and keeps answers in errors that it logs.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coffer_provider::{ErrorKind, ProviderError};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustify::Endpoint;
use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use url::Url;
use zeroize::Zeroizing;

use crate::address::{self, Origin};
use crate::answer::Object;
use crate::error;
use crate::headers::{Headers, INDEX, INLINE_FAILED};
use crate::resolver::{RefusedAddress, Resolver};
use crate::settings::Rules;
use crate::tls::Tls;

/// A standby that is behind is asked this often, and not for longer than so.
const STALE_TRIES: u32 = 3;
const STALE_WAIT: Duration = Duration::from_millis(250);
const MAX_STALE_WAIT: Duration = Duration::from_secs(2);

/// A store, and the pool of connections to it.
pub(crate) struct Connection {
    origin: Origin,
    client: Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    gate: Arc<Semaphore>,
    rules: Arc<Rules>,
}

/// An answer, whatever it says.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// How long the store wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        seconds.parse().ok().map(Duration::from_secs)
    }

    /// The state of the store that this answer was given in.
    pub(crate) fn index(&self) -> Option<HeaderValue> {
        self.headers.get(INDEX).cloned()
    }

    /// Whether the store says no for now only.
    pub(crate) fn may_pass(&self) -> bool {
        let busy = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::PRECONDITION_FAILED,
        ];
        self.status.is_server_error() || busy.contains(&self.status)
    }

    /// Whether the login that went with the request was refused, and not the request.
    pub(crate) fn is_refused_login(&self) -> bool {
        self.headers.contains_key(INLINE_FAILED)
    }

    /// Whether a standby says that it has not seen yet what was asked for: nothing was done.
    fn is_stale(&self) -> bool {
        match self.status {
            StatusCode::PRECONDITION_FAILED => true,
            // A quota has words.
            StatusCode::TOO_MANY_REQUESTS => Object::parse(&self.body)
                .is_some_and(|body| body.get("errors").is_some_and(|e| e.get() == "[]")),
            _ => false,
        }
    }
}

impl Connection {
    pub(crate) fn new(
        origin: Origin,
        tls: &Tls,
        gate: Arc<Semaphore>,
        rules: Arc<Rules>,
    ) -> Result<Self, ProviderError> {
        let config = tls.config().map_err(|problem| {
            ProviderError::new(ErrorKind::Unavailable, "TLS cannot be used on this node")
                .with_detail(problem)
        })?;
        let mut tcp = HttpConnector::new_with_resolver(Resolver {
            checks: (!rules.names(&origin)).then(|| rules.clone()),
        });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(rules.settings.limits.connect));
        let https = HttpsConnectorBuilder::new().with_tls_config(config);
        // Which one it may be was decided with the origin.
        let mut https = https.https_or_http();
        if let Some(name) = &tls.server_name {
            let name = ServerName::try_from(name.clone()).map_err(|_| {
                ProviderError::new(ErrorKind::InvalidParameters, "the TLS server name is none")
            })?;
            https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_timer(TokioTimer::new())
            .build(https.enable_http1().wrap_connector(tcp));
        Ok(Self {
            origin,
            client,
            gate,
            rules,
        })
    }

    /// A request as it will be sent, its body wiped when nobody needs it any more.
    pub(crate) fn request(&self, call: &impl Endpoint) -> Result<Request<Bytes>, ProviderError> {
        let unbuilt =
            || ProviderError::new(ErrorKind::InvalidParameters, "the request cannot be built");
        let mut request = call.request(self.origin.as_str()).map_err(|_| unbuilt())?;
        // vaultrs begins some paths with a slash: joined to a base with a path they would have two.
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", PathAndQuery::as_str);
        let uri = format!("{}/v1{path}", self.origin).parse();
        *request.uri_mut() = uri.map_err(|_| unbuilt())?;
        Ok(request.map(|body| Bytes::from_owner(Zeroizing::new(body))))
    }

    /// Builds a request, sends it, and reads the answer to its end.
    pub(crate) async fn call(
        &self,
        call: &impl Endpoint,
        headers: &Headers,
    ) -> Result<Reply, ProviderError> {
        self.send(self.request(call)?, headers).await
    }

    /// Sends a request and reads the answer to its end. It is repeated where a standby says that it did
    /// nothing, and nowhere else: when to ask again after a failure is the driver's to say.
    pub(crate) async fn send(
        &self,
        mut request: Request<Bytes>,
        headers: &Headers,
    ) -> Result<Reply, ProviderError> {
        headers.put_into(request.headers_mut())?;
        let mut reply = self.follow(request.clone()).await?;
        for _ in 1..STALE_TRIES {
            if !reply.is_stale() {
                break;
            }
            let wait = reply.retry_after().unwrap_or(STALE_WAIT);
            tokio::time::sleep(wait.min(MAX_STALE_WAIT)).await;
            reply = self.follow(request.clone()).await?;
        }
        Ok(reply)
    }

    /// Turns a request into a connection of another kind: a WebSocket whose handshake is done.
    pub(crate) async fn open(
        &self,
        call: &impl Endpoint,
        headers: &Headers,
    ) -> Result<Upgraded, ProviderError> {
        let mut request = self.request(call)?;
        headers.put_into(request.headers_mut())?;
        let (key, accept) = handshake();
        for (name, value) in [
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static("websocket")),
            (SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
            (SEC_WEBSOCKET_KEY, key),
        ] {
            request.headers_mut().insert(name, value);
        }
        for _ in 0..=self.rules.settings.limits.redirects {
            let limit = self.rules.settings.limits.attempt;
            let asked = timeout(limit, self.ask_for_socket(request.clone()));
            let answer = asked.await.map_err(|_| self.late())??;
            let status = answer.status();
            if status == StatusCode::SWITCHING_PROTOCOLS {
                if answer.headers().get(SEC_WEBSOCKET_ACCEPT) != Some(&accept) {
                    return Err(self.refused("does not speak WebSocket as it has to"));
                }
                let upgraded = hyper::upgrade::on(answer).await;
                return upgraded.map_err(|error| error::transport(self.origin.as_str(), &error));
            }
            let location = answer
                .headers()
                .get(LOCATION)
                .filter(|_| status.is_redirection());
            let Some(location) = location else {
                return Err(error::no_events(status));
            };
            *request.uri_mut() = self.target(request.uri(), location)?;
        }
        Err(self.refused("redirects too often"))
    }

    async fn ask_for_socket(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Incoming>, ProviderError> {
        let _turn = self.gate.acquire().await;
        self.exchange_head(request).await
    }

    /// One request, and the places it is sent on to.
    async fn follow(&self, mut request: Request<Bytes>) -> Result<Reply, ProviderError> {
        for _ in 0..=self.rules.settings.limits.redirects {
            let reply = self.attempt(request.clone()).await?;
            let Some(location) = reply.headers.get(LOCATION) else {
                return Ok(reply);
            };
            if !reply.status.is_redirection() {
                return Ok(reply);
            }
            *request.uri_mut() = self.target(request.uri(), location)?;
            let keeps_its_method = matches!(
                reply.status,
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            );
            if !keeps_its_method && request.method() != Method::GET {
                return Err(self.refused("redirects a write in a way that loses it"));
            }
        }
        Err(self.refused("redirects too often"))
    }

    /// Where a redirect leads, if the token may go there.
    fn target(&self, from: &Uri, location: &HeaderValue) -> Result<Uri, ProviderError> {
        let target = location.to_str().ok().and_then(|location| {
            let url = Url::parse(&from.to_string()).ok()?.join(location).ok()?;
            let origin = Origin::of(&url)?;
            Some((origin, url.as_str().parse().ok()?))
        });
        let (origin, uri) = target.ok_or_else(|| self.refused("redirects to nowhere"))?;
        let downgrade = self.origin.is_https() && !origin.is_https();
        if origin == self.origin || (self.rules.names(&origin) && !downgrade) {
            return Ok(uri);
        }
        let problem = format!(
            "redirects to {origin}, and the administrator has not allowed it (--vault-address)"
        );
        Err(self.refused(&problem))
    }

    fn refused(&self, what: &str) -> ProviderError {
        error::unreadable(self.origin.as_str(), what)
    }

    async fn attempt(&self, request: Request<Bytes>) -> Result<Reply, ProviderError> {
        let _turn = self.gate.acquire().await;
        let limit = self.rules.settings.limits.attempt;
        let answered = timeout(limit, self.exchange(request)).await;
        answered.unwrap_or_else(|_| Err(self.late()))
    }

    fn late(&self) -> ProviderError {
        let limit = self.rules.settings.limits.attempt;
        let problem = format!("{} did not answer within {limit:?}", self.origin);
        ProviderError::new(ErrorKind::DeadlineExceeded, problem)
    }

    /// Sends a request, and reads the answer to the end of its head.
    async fn exchange_head(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Incoming>, ProviderError> {
        if let Some(what) = self.literal_refused() {
            return Err(error::transport(self.origin.as_str(), &what));
        }
        let answer = self.client.request(request.map(Full::new)).await;
        answer.map_err(|error| error::transport(self.origin.as_str(), &error))
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Reply, ProviderError> {
        let lost = |error: &(dyn std::error::Error + 'static)| {
            error::transport(self.origin.as_str(), error)
        };
        let (parts, mut incoming) = self.exchange_head(request).await?.into_parts();
        let limit = self.rules.settings.limits.body;
        let mut chunks: Vec<Bytes> = Vec::new();
        let mut length = 0;
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| lost(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            length += data.len();
            if length > limit {
                let problem = format!("{} answers with more than {limit} bytes", self.origin);
                return Err(ProviderError::new(ErrorKind::TooLarge, problem));
            }
            chunks.push(data);
        }
        // Made at its full size: a buffer that grows leaves copies behind.
        let mut body = Zeroizing::new(Vec::with_capacity(length));
        for chunk in &chunks {
            body.extend_from_slice(chunk);
        }
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    /// No resolver is asked about a host that is an address: interfaces may have come since the class
    /// was read.
    fn literal_refused(&self) -> Option<RefusedAddress> {
        let ip = self.origin.ip()?;
        if self.rules.names(&self.origin) {
            return None;
        }
        address::refused(ip, &self.rules.settings.node_addresses).map(RefusedAddress)
    }
}

/// The key of a WebSocket handshake, and what proves that it was understood (RFC 6455, 1.3).
fn handshake() -> (HeaderValue, HeaderValue) {
    let mut nonce = [0; 16];
    // It keeps caches from answering, and no secret; without randomness it does so less well.
    let _ = aws_lc_rs::rand::fill(&mut nonce);
    let key = STANDARD.encode(nonce);
    let understood = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, understood.as_bytes()));
    let value = |text: String| HeaderValue::try_from(text).expect("base64 is a header");
    (value(key), value(accept))
}
