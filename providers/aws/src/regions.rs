//! The SDK without its habits: no environment, no files, no metadata service, one HTTP client for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextMut;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::SdkConfig;
use aws_types::app_name::AppName;
use http_body_util::Limited;
use tokio::sync::Semaphore;

use crate::error::{Failure, is_throttle};
use crate::gather::lock;
use crate::pace::Pace;
use crate::settings::{Endpoints, InvalidSettings, Settings};

/// Requests to one region at a time; the others wait for their turn.
const AT_ONCE: usize = 16;

/// Regions that are remembered although nobody uses them: more than there are.
const IDLE: usize = 64;

/// Requests of this node in a second, by service. Parameter Store has 40 for all nodes of an account
/// together (a GetParameters has ten parameters in it), Secrets Manager 10,000, and STS 600.
const PARAMETER_STORE_RATE: f64 = 20.0;
const SECRETS_MANAGER_RATE: f64 = 100.0;
const STS_RATE: f64 = 50.0;

/// The largest answer that is read, in bytes: twenty secrets of the largest size are less.
const MAX_ANSWER: usize = 4 << 20;

/// The regions in use.
pub(crate) struct Regions {
    config: SdkConfig,
    endpoints: Endpoints,
    regions: Mutex<BTreeMap<String, Arc<Region>>>,
}

impl Regions {
    /// Asked through `client`, which every service of every region shares.
    pub(crate) fn new(settings: &Settings, client: SharedHttpClient) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(settings.connect_timeout)
            .operation_attempt_timeout(settings.timeout)
            .operation_timeout(settings.timeout)
            .build();
        let config = SdkConfig::builder()
            .behavior_version(aws_sdk_sts::config::BehaviorVersion::latest())
            .app_name(AppName::new("coffer").expect("it is made of letters"))
            .http_client(client)
            // The driver's cache backs off by the key that failed: a second policy would add to it.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .sleep_impl(TokioSleep::new())
            .use_fips(settings.fips)
            .build();
        Self {
            config,
            endpoints: settings.endpoints.clone(),
            regions: Mutex::default(),
        }
    }

    pub(crate) fn region(&self, name: &str) -> Arc<Region> {
        let mut regions = lock(&self.regions);
        if let Some(region) = regions.get(name) {
            return region.clone();
        }
        // Kept although nobody uses it, for its pace; but names come from classes, and have no end.
        if regions.len() >= IDLE {
            regions.retain(|_, region| Arc::strong_count(region) > 1);
        }
        let region = aws_types::region::Region::new(name.to_owned());
        let region = Arc::new(Region {
            name: name.to_owned(),
            config: self.config.to_builder().region(region).build(),
            endpoints: self.endpoints.clone(),
            turns: Semaphore::new(AT_ONCE),
            secrets_manager: Pace::new(SECRETS_MANAGER_RATE),
            parameter_store: Pace::new(PARAMETER_STORE_RATE),
            sts: Pace::new(STS_RATE),
        });
        regions.insert(name.to_owned(), region.clone());
        region
    }
}

/// One region, as somebody or nobody yet.
pub(crate) struct Region {
    pub(crate) name: String,
    config: SdkConfig,
    endpoints: Endpoints,
    turns: Semaphore,
    secrets_manager: Pace,
    parameter_store: Pace,
    sts: Pace,
}

/// A client that trusts the certificates of the settings, and nobody else's.
pub(crate) fn https(settings: &Settings) -> Result<SharedHttpClient, InvalidSettings> {
    let trust = TrustStore::empty().with_pem_certificate(settings.checked_roots()?);
    let tls = TlsContext::builder().with_trust_store(trust).build();
    let tls = tls.map_err(|error| InvalidSettings::new("roots", &error.to_string()))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https())
}

/// A client of one service. Three crates of the SDK have the same builder, and no trait for it.
macro_rules! client {
    ($region:expr, $service:ident, $endpoint:expr, $credentials:expr) => {{
        let mut config = $service::config::Builder::from(&$region.config).interceptor(AnswerLimit);
        config.set_endpoint_url($region.endpoint($endpoint));
        if let Some(credentials) = $credentials {
            config = config.credentials_provider(credentials);
        }
        $service::Client::from_conf(config.build())
    }};
}

impl Region {
    pub(crate) fn sts(&self, credentials: Option<Credentials>) -> aws_sdk_sts::Client {
        client!(self, aws_sdk_sts, &self.endpoints.sts, credentials)
    }

    pub(crate) fn secrets_manager(&self, login: Credentials) -> aws_sdk_secretsmanager::Client {
        let endpoint = &self.endpoints.secrets_manager;
        client!(self, aws_sdk_secretsmanager, endpoint, Some(login))
    }

    pub(crate) fn parameter_store(&self, login: Credentials) -> aws_sdk_ssm::Client {
        client!(
            self,
            aws_sdk_ssm,
            &self.endpoints.parameter_store,
            Some(login)
        )
    }

    /// Sends one request when it is its turn, and heeds what the answer says of the pace. `action` is what
    /// a policy would name it, which starts with the service.
    pub(crate) async fn send<T, E>(
        &self,
        action: &str,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure<E>>
    where
        E: ProvideErrorMetadata,
    {
        let pace = match action.split(':').next() {
            Some("ssm") => &self.parameter_store,
            Some("sts") => &self.sts,
            _ => &self.secrets_manager,
        };
        pace.turn().await.map_err(Failure::NotItsTurn)?;
        let _turn = self.turns.acquire().await.expect("it is never closed");
        let sent = request.await.map_err(|error| Failure::Sdk(Box::new(error)));
        if sent.as_ref().is_err_and(is_throttle) {
            pace.throttled();
        }
        sent
    }

    fn endpoint(&self, endpoint: &Option<String>) -> Option<String> {
        let endpoint = endpoint.as_ref()?;
        Some(endpoint.replace("{region}", &self.name))
    }
}

/// Refuses an answer that has no end.
#[derive(Debug)]
struct AnswerLimit;

impl Intercept for AnswerLimit {
    fn name(&self) -> &'static str {
        "AnswerLimit"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let unlimited = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(unlimited, MAX_ANSWER));
        Ok(())
    }
}
