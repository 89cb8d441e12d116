//! AWS in the memory of a test, for a paused clock: no socket can be waited for on one.

use std::fmt;
use std::sync::Arc;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;

use crate::{AwsProvider, Cluster, InvalidSettings, Settings};

/// A request as AWS gets it.
#[derive(Debug)]
pub struct Request<'a> {
    /// Where it goes.
    pub uri: &'a str,
    /// What for, as in `GetSecretValue`; empty for STS, whose body says it.
    pub operation: &'a str,
    /// As whom: the header with the signature, which names the access key.
    pub authorization: &'a str,
    /// JSON, or a form for STS.
    pub body: &'a [u8],
}

type Answers = dyn Fn(&Request<'_>) -> (u16, String) + Send + Sync;

/// A provider that asks `answers` instead of AWS: each gives an HTTP status and a body.
///
/// # Errors
/// As [`AwsProvider::new`].
pub fn in_memory(
    settings: &Settings,
    cluster: Arc<dyn Cluster>,
    answers: impl Fn(&Request<'_>) -> (u16, String) + Send + Sync + 'static,
) -> Result<AwsProvider, InvalidSettings> {
    let client = SharedHttpClient::new(InMemory(Arc::new(answers)));
    AwsProvider::through(client, settings, cluster)
}

#[derive(Clone)]
struct InMemory(Arc<Answers>);

impl fmt::Debug for InMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("InMemory")
    }
}

impl HttpConnector for InMemory {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let header = |name| request.headers().get(name).unwrap_or_default();
        let operation = header("x-amz-target");
        let (status, body) = (self.0)(&Request {
            uri: request.uri(),
            operation: operation.rsplit('.').next().unwrap_or_default(),
            authorization: header("authorization"),
            body: request.body().bytes().unwrap_or_default(),
        });
        let status = StatusCode::try_from(status).expect("a status of HTTP");
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body))))
    }
}

impl HttpClient for InMemory {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
