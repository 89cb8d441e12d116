//! A provider against a server, and the pods that ask it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coffer_provider::{
    Caller, Forwarded, Parameters, Pod, Provider, ProviderError, Secret, ServiceAccount,
    ServiceAccountToken, Sharing, Source,
};
use coffer_provider_aws::{AwsProvider, Cluster, Endpoints, Settings};
use serde_json::json;

pub(crate) const WEST: &str = "us-west-2";
pub(crate) const EAST: &str = "us-east-2";
pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/shop";

/// What the ServiceAccounts `other-audience` name.
pub(crate) const OTHER_AUDIENCE: &str = "aws.example";

/// A cluster in which every ServiceAccount has the role of its Namespace, but for
/// `nobody` and `odd`.
pub(crate) struct FakeCluster {
    pub(crate) region: Option<String>,
    pub(crate) regions_asked: AtomicUsize,
    pub(crate) roles: Mutex<BTreeMap<String, String>>,
    pub(crate) forgotten: Mutex<Vec<String>>,
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn annotation(
        &self,
        namespace: &str,
        service_account: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError> {
        if key == "eks.amazonaws.com/audience" {
            return Ok((service_account == "other-audience").then(|| OTHER_AUDIENCE.to_owned()));
        }
        assert_eq!(key, "eks.amazonaws.com/role-arn");
        let roles = self.roles.lock().unwrap();
        let own = roles
            .get(&format!("{namespace}/{service_account}"))
            .cloned();
        let role = own.unwrap_or_else(|| format!("arn:aws:iam::123456789012:role/{namespace}"));
        Ok(match service_account {
            "nobody" => None,
            "odd" => Some("shop".to_owned()),
            _ => Some(role),
        })
    }

    async fn node_region(&self) -> Result<Option<String>, ProviderError> {
        self.regions_asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.region.clone())
    }

    fn forget(&self, namespace: &str, service_account: &str) {
        let account = format!("{namespace}/{service_account}");
        self.forgotten.lock().unwrap().push(account);
    }
}

pub(crate) fn cluster(region: Option<&str>) -> Arc<FakeCluster> {
    Arc::new(FakeCluster {
        region: region.map(str::to_owned),
        regions_asked: AtomicUsize::new(0),
        roles: Mutex::default(),
        forgotten: Mutex::default(),
    })
}

/// Settings for a server that is all services of all regions.
pub(crate) fn settings(address: &str) -> Settings {
    let url = Some(format!("http://{address}"));
    Settings {
        endpoints: Endpoints {
            secrets_manager: url.clone(),
            parameter_store: url.clone(),
            sts: url,
        },
        timeout: Duration::from_secs(60),
        ..Settings::new(certificate("nowhere.example").cert.pem().into_bytes())
    }
}

/// A certificate that vouches for itself.
pub(crate) fn certificate(name: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed([name.to_owned()]).unwrap()
}

/// Settings for the same, with the region as the first part of the path: for a [`crate::stub::Stub`].
pub(crate) fn by_region(address: &str) -> Settings {
    settings(&format!("{address}/{{region}}"))
}

pub(crate) fn provider(settings: Settings) -> Arc<AwsProvider> {
    Arc::new(AwsProvider::new(&settings, cluster(Some(WEST))).unwrap())
}

/// `objects` in `us-west-2`, with more parameters.
pub(crate) fn parameters(objects: &str, more: &[(&str, &str)]) -> Parameters {
    let mut parameters = Parameters::from([
        ("region".to_owned(), WEST.to_owned()),
        ("objects".to_owned(), objects.to_owned()),
    ]);
    parameters.extend(
        more.iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned())),
    );
    parameters
}

pub(crate) fn source(
    provider: &AwsProvider,
    objects: &str,
    more: &[(&str, &str)],
) -> Arc<dyn Source> {
    match provider.source(&parameters(objects, more)) {
        Ok(source) => source,
        Err(error) => panic!("{error}"),
    }
}

/// A pod of a ServiceAccount, with a token for STS.
pub(crate) fn caller(namespace: &str, account: &str) -> Caller {
    caller_for("sts.amazonaws.com", namespace, account)
}

pub(crate) fn caller_for(audience: &str, namespace: &str, account: &str) -> Caller {
    let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let claims = json!({
        "iss": "https://issuer.example",
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
        // A list by the kubelet; the stand-in for STS knows only this.
        "aud": audience,
        "exp": 4_000_000_000_u64,
    });
    let token = format!("{}.{}.c2ln", part(json!({"alg": "RS256"})), part(claims));
    let ends = SystemTime::now() + Duration::from_secs(3600);
    Caller {
        pod: Pod {
            name: "web-0".into(),
            namespace: namespace.into(),
            uid: "5a1a9c3e-0c4b-4c39-9d5c-2f8f1b1d7a10".into(),
            service_account: ServiceAccount {
                name: account.into(),
                uid: Some(format!("uid-of-{namespace}-{account}")),
            },
        },
        token: Some(ServiceAccountToken::new(token, ends)),
        further_tokens: BTreeMap::new(),
        sharing: Sharing::ServiceAccount,
        secrets: BTreeMap::new(),
        forwarded: Forwarded::default(),
    }
}

pub(crate) async fn fetch(
    source: &dyn Source,
    caller: &Caller,
) -> Vec<Result<Secret, ProviderError>> {
    source.fetch(caller, source.objects()).await
}

/// All files by name, as text; every object must be there.
pub(crate) async fn files(source: &dyn Source, caller: &Caller) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut files = BTreeMap::new();
    for (answer, object) in fetch(source, caller)
        .await
        .into_iter()
        .zip(source.objects())
    {
        let secret = answer.unwrap_or_else(|error| panic!("{}: {error}", object.name));
        for file in secret.files {
            files.insert(file.name, text(file.bytes.expose()));
        }
    }
    files
}

/// The files that are expected.
pub(crate) fn these(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    files.iter().map(owned).collect()
}

/// The error of the only object.
pub(crate) async fn error(source: &dyn Source, caller: &Caller) -> ProviderError {
    match fetch(source, caller).await.remove(0) {
        Err(error) => error,
        Ok(_) => panic!("{} was read", source.objects()[0].name),
    }
}
