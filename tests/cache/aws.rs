//! The AWS provider behind the cache, with AWS in memory: how often it is asked in a day, and what becomes
//! of a throttle.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use coffer_provider::{Provider, ProviderError};
use coffer_provider_aws::testing::{Request, in_memory};
use coffer_provider_aws::{Cluster, Settings};
use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::pods::{Account, MINUTE, Node, SECOND, Volume, pass};

const DAY: Duration = Duration::from_secs(24 * 3600);
const STS: &str = "AssumeRoleWithWebIdentity";

/// Every ServiceAccount has the role of its name.
struct Roles;

#[async_trait]
impl Cluster for Roles {
    async fn annotation(
        &self,
        _: &str,
        service_account: &str,
        key: &str,
    ) -> Result<Option<String>, ProviderError> {
        let role = || format!("arn:aws:iam::123456789012:role/{service_account}");
        Ok(key.ends_with("role-arn").then(role))
    }

    async fn node_region(&self) -> Result<Option<String>, ProviderError> {
        Ok(None)
    }

    fn forget(&self, _: &str, _: &str) {}
}

/// What was asked: when, as which role, for what. A batch is one for each of its objects.
#[derive(Clone, Debug)]
struct Call {
    at: Instant,
    role: String,
    object: String,
}

/// How many requests AWS allows for now, of STS or of the other services.
struct Allowed {
    sts: bool,
    since: Instant,
    per_second: f64,
    level: f64,
    at: Instant,
    let_in: usize,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    requests: BTreeMap<String, usize>,
    /// Counts the changes of all objects together.
    version: u64,
    allowed: Option<Allowed>,
}

/// AWS in memory. Clones are the same.
#[derive(Clone, Default)]
struct Aws(Arc<Mutex<State>>);

impl Aws {
    fn provider(&self) -> Arc<dyn Provider> {
        let aws = self.clone();
        let answer = move |request: &Request<'_>| aws.answer(request);
        let provider = in_memory(&Settings::new(Vec::new()), Arc::new(Roles), answer);
        Arc::new(provider.unwrap())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn change(&self) {
        self.state().version += 1;
    }

    /// From now on no more than this is let in, to STS or to the others.
    fn allow(&self, per_second: f64, sts: bool) {
        let now = Instant::now();
        self.state().allowed = Some(Allowed {
            sts,
            since: now,
            per_second,
            level: per_second.max(1.0),
            at: now,
            let_in: 0,
        });
    }

    /// From now on everything is let in again. Gives how many were, and how many could have been.
    fn allow_all(&self) -> (usize, f64) {
        let allowed = self.state().allowed.take().unwrap();
        let time = allowed.since.elapsed().as_secs_f64();
        let burst = allowed.per_second.max(1.0);
        (allowed.let_in, allowed.per_second * time + burst)
    }

    fn requests(&self, operations: &[&str]) -> usize {
        let state = self.state();
        let of = |operation: &&str| state.requests.get(*operation).copied().unwrap_or(0);
        operations.iter().map(of).sum()
    }

    fn answer(&self, request: &Request<'_>) -> (u16, String) {
        let now = Instant::now();
        let mut state = self.state();
        let operation = match request.operation {
            "" => STS,
            operation => operation,
        };
        *state.requests.entry(operation.to_owned()).or_default() += 1;
        let allowed = state.allowed.as_mut();
        if let Some(allowed) = allowed.filter(|allowed| allowed.sts == (operation == STS)) {
            let passed = (now - allowed.at).as_secs_f64();
            let most = allowed.per_second.max(1.0);
            allowed.level = (allowed.level + passed * allowed.per_second).min(most);
            allowed.at = now;
            if allowed.level < 1.0 {
                let throttle = match operation {
                    STS => "<ErrorResponse><Error><Code>Throttling</Code></Error></ErrorResponse>",
                    _ => r#"{"__type": "ThrottlingException", "message": "Rate exceeded"}"#,
                };
                return (400, throttle.to_owned());
            }
            allowed.level -= 1.0;
            allowed.let_in += 1;
        }
        if operation == STS {
            let form = String::from_utf8_lossy(request.body);
            let role = form.split("role%2F").nth(1).unwrap();
            return (200, credentials(role.split('&').next().unwrap()));
        }
        let body: Value = serde_json::from_slice(request.body).unwrap();
        let names = match (&body["SecretId"], &body["SecretIdList"], &body["Names"]) {
            (Value::String(name), _, _) => vec![name.clone()],
            (_, Value::Array(names), _) | (_, _, Value::Array(names)) => names
                .iter()
                .map(|name| name.as_str().unwrap().to_owned())
                .collect(),
            _ => panic!("{operation}: {body}"),
        };
        let role = request.authorization.split("Credential=ROLE-").nth(1);
        let role = role.unwrap().split('/').next().unwrap();
        state.calls.extend(names.iter().map(|object| Call {
            at: now,
            role: role.to_owned(),
            object: object.clone(),
        }));
        let version = state.version;
        let secret = |name: &String| {
            json!({
                "Name": name,
                "ARN": format!("arn:aws:secretsmanager:us-west-2:123456789012:secret:{name}-AbCdEf"),
                "VersionId": format!("version-{version}"),
                "SecretString": format!("{name} v{version}"),
            })
        };
        let answer = match operation {
            "GetSecretValue" => secret(&names[0]),
            "BatchGetSecretValue" => {
                let secrets: Vec<_> = names.iter().map(secret).collect();
                json!({"SecretValues": secrets})
            }
            "DescribeSecret" => json!({
                "Name": names[0],
                "VersionIdsToStages": {format!("version-{version}"): ["AWSCURRENT"]},
            }),
            "GetParameters" => {
                let parameters = names.iter().map(|name| {
                    json!({
                        "Name": name,
                        "Value": format!("{name} v{version}"),
                        "Version": version,
                        "LastModifiedDate": 1_700_000_000,
                    })
                });
                json!({"Parameters": parameters.collect::<Vec<_>>()})
            }
            other => panic!("{other}"),
        };
        (200, answer.to_string())
    }
}

/// Keys of a role, good for an hour.
fn credentials(role: &str) -> String {
    let ends = jiff::Timestamp::try_from(SystemTime::now() + 60 * MINUTE).unwrap();
    format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
         <AccessKeyId>ROLE-{role}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
         <SessionToken>t</SessionToken><Expiration>{ends}</Expiration>\
         </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
}

/// A class with so many objects of a service.
fn class(kind: &str, objects: usize, interval: &str) -> Value {
    let entry = |number| format!("- {{objectName: o{number}, objectType: {kind}}}\n");
    let objects: String = (0..objects).map(entry).collect();
    json!({
        "provider": "aws",
        "refresh": {"interval": interval},
        "parameters": {"region": "us-west-2", "objects": objects},
    })
}

/// Volumes of `accounts` accounts, each with so many pods, that have read what they need.
async fn volumes(node: &Node, accounts: usize, replicas: usize, class: &Value) -> Vec<Volume> {
    let volumes = new_volumes(node, accounts, replicas, class);
    for volume in &volumes {
        volume.read().await.unwrap();
    }
    volumes
}

fn new_volumes(node: &Node, accounts: usize, replicas: usize, class: &Value) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for number in 0..accounts {
        let account = Account::new("shop", &format!("a{number}"), &format!("uid-{number}"));
        for replica in 0..replicas {
            let uid = format!("{number}-{replica}");
            let token = account.token(&uid, SystemTime::now() + 2 * DAY);
            let pod = account.pod_with_tokens(&uid, &json!({"sts.amazonaws.com": token}));
            volumes.push(node.volume(&pod, class.clone()));
        }
    }
    volumes
}

#[tokio::test(start_paused = true)]
async fn aws_statement_3_a_day_costs_one_call_for_each_object_of_a_role_and_tick() {
    const PODS: usize = 20;
    // One is enough to count by: the others of a pod cost the same.
    const OBJECTS: usize = 1;
    for replicas in [1, 5, 20] {
        let aws = Aws::default();
        let node = Node::new().and("aws", aws.provider());
        let accounts = PODS / replicas;
        let class = class("secretsmanager", OBJECTS, "2m");
        let volumes = volumes(&node, accounts, replicas, &class).await;
        assert_eq!(aws.requests(&[STS]), accounts, "a login for each account");
        assert_eq!(aws.requests(&["GetSecretValue"]), accounts * OBJECTS);

        tokio::time::sleep(DAY).await;
        let mut asked = BTreeMap::<_, Vec<Instant>>::new();
        for call in &aws.state().calls {
            let key = (call.role.clone(), call.object.clone());
            asked.entry(key).or_default().push(call.at);
        }
        assert_eq!(asked.len(), accounts * OBJECTS, "distinct (role, object)");
        let mut ticks = 0;
        for (key, asked) in &asked {
            // The first look comes anywhere in the interval, so that nodes part.
            for gap in asked[1..].windows(2).map(|pair| pair[1] - pair[0]) {
                let tick = 95 * SECOND..=121 * SECOND;
                assert!(
                    tick.contains(&gap),
                    "{key:?} was asked for again after {gap:?}"
                );
            }
            assert!((720..=900).contains(&asked.len()), "{}", asked.len());
            ticks += asked.len() - 1;
        }
        let calls = aws.requests(&["DescribeSecret"]);
        assert_eq!(calls, ticks, "one call for each object and tick");
        let reads = aws.requests(&["GetSecretValue", "BatchGetSecretValue"]);
        assert_eq!(reads, accounts * OBJECTS, "nothing has changed");
        // An hour each, renewed five minutes early.
        let logins = aws.requests(&[STS]) / accounts;
        assert!((26..=28).contains(&logins), "{logins} logins");

        let each = calls as f64 / (accounts * OBJECTS) as f64;
        let monthly = each * 30.0 * 5000.0 / replicas as f64 * 0.05 / 10_000.0;
        println!("1,000 pods × 5 secrets, k = {replicas}: ${monthly:.2} a month for calls");
        assert!(monthly <= 680.0 / replicas as f64);
        drop(volumes);
    }
}

#[tokio::test(start_paused = true)]
async fn aws_statement_4_a_change_arrives_within_the_interval_and_a_second_and_nothing_else_does() {
    for kind in ["secretsmanager", "ssmparameter"] {
        let aws = Aws::default();
        let node = Node::new().and("aws", aws.provider());
        let volumes = volumes(&node, 2, 2, &class(kind, 5, "30s")).await;
        for volume in &volumes {
            volume.subscriber.changed().now_or_never();
        }
        for change in 1..=5 {
            pass(3 * MINUTE + 7 * SECOND).await;
            for volume in &volumes {
                let told = volume.subscriber.changed().now_or_never();
                assert!(told.is_none(), "{kind}: told of nothing");
            }
            aws.change();
            pass(31 * SECOND).await;
            for volume in &volumes {
                let values = volume.values().unwrap();
                let is_new = |value: &String| value.ends_with(&format!(" v{change}"));
                assert!(values.iter().all(is_new), "{kind}: {values:?}");
                volume.subscriber.changed().now_or_never().unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rule_s11_a_throttle_of_five_minutes_is_kept_to_and_loses_no_rotation() {
    for (kind, accounts, per_second) in [
        ("secretsmanager", 40, 2.0),
        ("secretsmanager", 8, 0.2),
        ("ssmparameter", 40, 0.5),
    ] {
        let aws = Aws::default();
        let node = Node::new().and("aws", aws.provider());
        let volumes = volumes(&node, accounts, 1, &class(kind, 5, "30s")).await;
        pass(2 * MINUTE).await;
        let reads = [
            "DescribeSecret",
            "GetSecretValue",
            "BatchGetSecretValue",
            "GetParameters",
        ];
        let before = aws.requests(&reads);

        aws.allow(per_second, false);
        aws.change();
        for _ in 0..10 {
            pass(30 * SECOND).await;
            for volume in &volumes {
                let values = volume.values().expect("what was there stays there");
                assert_eq!(values.len(), 5);
            }
        }
        let asked = aws.requests(&reads) - before;
        let (let_in, allowed) = aws.allow_all();
        assert!(asked as f64 <= 1.1 * allowed, "{asked} of {allowed}");
        assert!(
            let_in as f64 >= 0.4 * allowed,
            "{let_in} of {allowed} were used"
        );

        aws.change();
        pass(MINUTE).await;
        for volume in &volumes {
            let values = volume.values().unwrap();
            let is_new = |value: &String| value.ends_with(" v2");
            assert!(values.iter().all(is_new), "{kind}: {values:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rule_s11_logins_keep_to_a_throttle_too() {
    let aws = Aws::default();
    let node = Node::new().and("aws", aws.provider());
    let volumes = new_volumes(&node, 60, 1, &class("secretsmanager", 1, "2m"));
    aws.allow(0.5, true);
    // As a kubelet whose pods do not start.
    for _ in 0..30 {
        let read = futures_util::future::join_all(volumes.iter().map(Volume::read)).await;
        for error in read.into_iter().filter_map(Result::err) {
            assert!(error.to_string().contains("asked too often"), "{error}");
        }
        pass(2 * SECOND).await;
    }
    let asked = aws.requests(&[STS]);
    let (let_in, allowed) = aws.allow_all();
    assert!(asked as f64 <= 1.1 * allowed, "{asked} of {allowed}");
    assert!(
        let_in as f64 >= 0.4 * allowed.min(60.0),
        "{let_in} of {allowed} were used"
    );
    pass(MINUTE).await;
    for volume in &volumes {
        volume.read().await.unwrap();
    }
}
