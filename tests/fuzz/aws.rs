//! What a class says of AWS, and the values that AWS gives.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use coffer::volume_path::VolumePath;
use coffer_provider::{
    Caller, Parameters, Pod, Provider, ProviderError, ServiceAccount, ServiceAccountToken, Source,
};
use coffer_provider_aws::testing::in_memory;
use coffer_provider_aws::{AwsProvider, Cluster, Settings};
use proptest::sample::select;
use serde_json::json;

use crate::mutation::{damaged, damaged_text, shows_all, try_cases};

const WORDS: &[&str] = &[
    "..",
    "/../",
    "/",
    "\0",
    "\n",
    "\t",
    "\u{1b}[31m",
    "\u{202e}",
    "*",
    "&a ",
    "*a",
    "~",
    "''",
    "\"",
    "[",
    "{",
    "- ",
    "0900",
    "0644",
    "arn:",
    "arn:aws:ssm:",
    ":",
    "False",
    "objectAlias",
    "jmesPath: \"*\"",
    "@",
    "&",
    "|",
    "`{`",
    "a[?b]",
];

struct NoCluster;

#[async_trait]
impl Cluster for NoCluster {
    async fn annotation(
        &self,
        _: &str,
        _: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError> {
        let role = || "arn:aws:iam::123456789012:role/shop".to_owned();
        Ok(key.ends_with("role-arn").then(role))
    }

    async fn node_region(&self) -> Result<Option<String>, ProviderError> {
        Ok(None)
    }

    fn forget(&self, _: &str, _: &str) {}
}

/// AWS with one value, which everything has.
fn aws(value: Arc<Mutex<Vec<u8>>>) -> AwsProvider {
    let answer = move |request: &coffer_provider_aws::testing::Request<'_>| {
        if request.operation.is_empty() {
            let ends = jiff::Timestamp::try_from(SystemTime::now() + Duration::from_secs(3600));
            let ends = ends.unwrap();
            let keys = "<AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>";
            let answer = "AssumeRoleWithWebIdentity";
            return (
                200,
                format!(
                    "<{answer}Response><{answer}Result><Credentials>{keys}<Expiration>{ends}</Expiration></Credentials>\
                     </{answer}Result></{answer}Response>"
                ),
            );
        }
        let value = value.lock().unwrap();
        let value = String::from_utf8_lossy(&value);
        (
            200,
            json!({"Name": "a", "VersionId": "v", "SecretString": value}).to_string(),
        )
    };
    in_memory(&Settings::new(Vec::new()), Arc::new(NoCluster), answer).unwrap()
}

fn source(aws: &AwsProvider, parameters: &[(&str, &str)]) -> Result<Arc<dyn Source>, String> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    let parameters: Parameters = parameters.iter().map(owned).collect();
    aws.source(&parameters).map_err(|error| error.to_string())
}

/// What is taken has files that a volume can hold, each once, and what is refused is told so that one sees it.
fn is_sound(source: Result<Arc<dyn Source>, String>) {
    let source = match source {
        Ok(source) => source,
        Err(error) => {
            assert!(shows_all(&error), "{error:?}");
            return assert!(error.starts_with("parameters."), "{error}");
        }
    };
    let mut names = BTreeSet::new();
    for object in source.objects() {
        assert!(names.insert(&object.name), "{} twice", object.name);
        VolumePath::new(object.name.clone()).unwrap();
        assert!(source.can_give(object, &object.name), "{}", object.name);
    }
}

#[test]
fn rule_p1_a_damaged_list_of_objects_is_refused_or_means_files_that_can_be() {
    let aws = aws(Arc::default());
    try_cases(5_000, &damaged_text("aws-objects", WORDS), |objects| {
        for translation in ["", "False", "-"] {
            is_sound(source(
                &aws,
                &[
                    ("objects", &objects),
                    ("region", "us-west-2"),
                    ("failoverRegion", "us-east-2"),
                    ("pathTranslation", translation),
                ],
            ));
        }
    });
}

#[test]
fn rule_p1_every_other_parameter_can_be_any_text() {
    let aws = aws(Arc::default());
    let keys = select(vec![
        "region",
        "failoverRegion",
        "failoverMode",
        "pathTranslation",
        "usePodIdentity",
        "preferredAddressType",
        "assumeRoleArn",
        "assumeRoleExternalId",
        "other",
    ]);
    let objects = ("objects", "- {objectName: a/b, objectType: secretsmanager}");
    let cases = (keys, damaged_text("aws-objects", WORDS));
    try_cases(5_000, &cases, |(key, text)| {
        // Whole lines are long for these.
        let text: String = text
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(40)
            .collect();
        is_sound(source(&aws, &[objects, (key, &text)]));
    });
}

#[test]
fn rule_o1_a_damaged_value_is_taken_apart_or_refused_and_never_quoted() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let value = Arc::<Mutex<Vec<u8>>>::default();
    let aws = aws(value.clone());
    let views = [
        "",
        ", objectEncoding: base64",
        ", objectEncoding: hex",
        ", jmesPath: '*'",
        ", jmesPath: [{path: user, objectAlias: u}, {path: to_string(list), objectAlias: l}]",
        ", jmesPath: [{path: 'list[2].b || db.host', objectAlias: h}, {path: port, objectAlias: p}]",
        ", jmesPath: [{path: '\"pass-word\"', objectAlias: b, objectEncoding: base64}]",
    ];
    let sources = views.map(|view| {
        let objects = format!("- {{objectName: a, objectType: secretsmanager{view}}}");
        let parameters = [("objects", objects.as_str()), ("region", "us-west-2")];
        source(&aws, &parameters).unwrap_or_else(|error| panic!("{error}"))
    });
    let caller = Caller {
        pod: Pod {
            name: "web".into(),
            namespace: "shop".into(),
            uid: "uid".into(),
            service_account: ServiceAccount {
                name: "web".into(),
                uid: Some("uid-of-web".into()),
            },
        },
        token: Some(ServiceAccountToken::new(
            "a.b.c".into(),
            SystemTime::now() + Duration::from_secs(3600),
        )),
        further_tokens: Default::default(),
        sharing: coffer_provider::Sharing::ServiceAccount,
        forwarded: Default::default(),
        secrets: Default::default(),
    };
    let canary = "hunter2hunter2";
    try_cases(
        300,
        &damaged("aws-values", &["\"", "{", "}", canary, "\\u", "null", ":"]),
        |bytes| {
            let marked = [bytes.as_slice(), canary.as_bytes()].concat();
            for given in [bytes, marked] {
                *value.lock().unwrap() = given;
                for source in &sources {
                    let mut answers = runtime.block_on(source.fetch(&caller, source.objects()));
                    match answers.remove(0) {
                        Ok(secret) => {
                            assert!(
                                secret
                                    .files
                                    .iter()
                                    .all(|file| VolumePath::new(file.name.clone()).is_ok())
                            );
                        }
                        Err(error) => {
                            let text = format!("{error} {:?}", error.detail());
                            assert!(!text.contains(canary), "{text}");
                            assert!(shows_all(&error.to_string()), "{error:?}");
                        }
                    }
                }
            }
        },
    );
}
