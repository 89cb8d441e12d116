//! Who a pod is to AWS: IRSA, Pod Identity, a second role, and refusals.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use coffer_provider::{Caller, ErrorKind, ServiceAccountToken, Sharing, Source};
use coffer_provider_aws::{AwsProvider, PodIdentityAgent, Settings};

use crate::harness::{
    EAST, OTHER_AUDIENCE, ROLE, WEST, by_region, caller, caller_for, cluster, error, fetch, files,
    provider, settings, source, these,
};
use crate::servers::{Ministack, Moto};
use crate::stub::{Reply, Stub};

const SECRET: &str = "- {objectName: db, objectType: secretsmanager}";
const AGENT_AUDIENCE: &str = "pods.eks.amazonaws.com";
const POD_IDENTITY: [(&str, &str); 1] = [("usePodIdentity", "true")];

fn agent_caller() -> Caller {
    caller_for(AGENT_AUDIENCE, "shop", "web")
}

/// What the agent lends: keys that end at this time.
fn lent(ends: &str) -> Reply {
    let body = format!(
        r#"{{"AccessKeyId":"ASIAAGENT","SecretAccessKey":"s","Token":"t","AccountId":"123456789012","Expiration":"{ends}"}}"#
    );
    Reply::Answer(200, vec![], body)
}

/// Moto with the secret `db`, and settings for an agent at these addresses.
async fn moto_with_agents(ipv4: &str, ipv6: &str) -> (Moto, Settings) {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "x").await;
    let settings = Settings {
        pod_identity: PodIdentityAgent {
            ipv4: format!("http://{ipv4}"),
            ipv6: format!("http://{ipv6}"),
        },
        ..settings(&moto.server.address)
    };
    (moto, settings)
}

/// An address at which nobody listens.
fn nobody() -> String {
    format!("127.0.0.1:{}", crate::servers::free_port())
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_pod_identity_asks_the_agent_as_it_wants_to_be_asked() {
    let agent = Stub::start(|_, _| lent("2099-01-02T03:04:05.123456789Z")).await;
    let (moto, settings) = moto_with_agents(&agent.address, &nobody()).await;
    let source = source(&provider(settings), SECRET, &POD_IDENTITY);
    moto.record().await;
    for _ in 0..3 {
        assert_eq!(
            files(&*source, &agent_caller()).await,
            these(&[("db", "x")])
        );
    }
    let [asked] = agent.seen().try_into().expect("one login for all of them");
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("GET", "/v1/credentials")
    );
    assert_eq!(asked.header("host"), Some(agent.address.as_str()));
    let token = agent_caller().token.unwrap();
    assert_eq!(
        asked.header("authorization"),
        Some(token.expose()),
        "and no Bearer"
    );
    let reads = moto.recorded().await;
    assert_eq!(reads.len(), 3, "and no question to STS");
    let with = |part: &str| {
        let is = |header: Option<&str>| header.is_some_and(|header| header.contains(part));
        reads
            .iter()
            .all(|read| is(read.header("authorization")) || is(read.header("x-amz-security-token")))
    };
    assert!(with("Credential=ASIAAGENT/") && with("t"));
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_pod_identity_goes_on_to_ipv6_where_nobody_answers_by_ipv4() {
    let agent = Stub::start(|_, _| lent("2099-01-02T03:04:05Z")).await;
    let (_moto, settings) = moto_with_agents(&nobody(), &agent.address).await;
    for (family, works) in [("", true), ("ipv6", true), ("ipv4", false)] {
        let more = [POD_IDENTITY[0], ("preferredAddressType", family)];
        let source = source(&provider(settings.clone()), SECRET, &more);
        assert_eq!(
            fetch(&*source, &agent_caller()).await[0].is_ok(),
            works,
            "{family}"
        );
    }
    let (_moto, settings) = moto_with_agents(&nobody(), &nobody()).await;
    let source = source(&provider(settings), SECRET, &POD_IDENTITY);
    let error = error(&*source, &agent_caller()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("does not answer on this node"),
        "{error}"
    );
    assert!(
        error
            .detail()
            .is_some_and(|detail| detail.matches("refused").count() == 2),
        "{error:?}"
    );
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_pod_identity_refusals_are_not_hidden_and_hold_no_token() {
    let broken = Stub::start(|_, request| {
        let token = request.header("authorization").unwrap_or_default();
        let text = format!("[0815]: (ResourceNotFoundException): none for {token}, fault: client");
        Reply::Answer(404, vec![("retry-after", "9")], text)
    })
    .await;
    let (moto, settings) = moto_with_agents(&broken.address, &nobody()).await;
    let source = source(&provider(settings), SECRET, &POD_IDENTITY);
    moto.record().await;
    let error = error(&*source, &agent_caller()).await;
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(
        error.to_string().contains("ResourceNotFoundException"),
        "{error}"
    );
    assert_eq!(error.retry_after(), Some(Duration::from_secs(9)));
    let token = agent_caller().token.unwrap();
    assert!(!format!("{error:?}").contains(token.expose()), "{error:?}");
    assert!(
        moto.recorded().await.is_empty(),
        "nobody else is asked instead"
    );
}

/// The agent and Secrets Manager in one: `lend` answers each login, by its number, and the secret `db` is there.
async fn agent_with_a_secret(
    lend: impl Fn(usize) -> Reply + Send + Sync + 'static,
) -> (Stub, Settings) {
    let logins = AtomicUsize::new(0);
    let stub = Stub::start(move |_, request| match request.operation().as_str() {
        "GetSecretValue" => Reply::secret("db", "x"),
        "/v1/credentials" => lend(logins.fetch_add(1, Ordering::SeqCst)),
        _ => Reply::broken(),
    })
    .await;
    let mut settings = by_region(&stub.address);
    settings.pod_identity.ipv4 = format!("http://{}", stub.address);
    (stub, settings)
}

/// How often the agent was asked.
fn logins(stub: &Stub) -> usize {
    stub.count("v1", "/v1/credentials")
}

/// Lets time pass, and reads: whether that went well, and how often the agent has been asked.
async fn later(time: Duration, source: &dyn Source, stub: &Stub) -> (bool, usize) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
    let is_ok = fetch(source, &agent_caller()).await[0].is_ok();
    (is_ok, logins(stub))
}

#[tokio::test]
async fn credentials_are_renewed_before_they_end_and_last_through_an_outage_until_then() {
    let ends = in_utc(Duration::from_secs(3600));
    let (stub, settings) = agent_with_a_secret(move |login| match login {
        0 => lent(&ends),
        _ => Reply::Answer(500, vec![], "oh".into()),
    })
    .await;
    let source = source(&provider(settings), SECRET, &POD_IDENTITY);
    for (minutes, expected, why) in [
        (0, (true, 1), "the first"),
        (54, (true, 1), "good"),
        (2, (true, 2), "tried early, and good until the end"),
        (0, (true, 2), "not tried by each read"),
        (2, (true, 3), "but again after a while"),
        (3, (false, 4), "the end"),
    ] {
        let time = Duration::from_secs(60 * minutes);
        assert_eq!(later(time, &*source, &stub).await, expected, "{why}");
    }
}

#[tokio::test]
async fn credentials_with_a_short_life_serve_for_most_of_it() {
    let (stub, settings) =
        agent_with_a_secret(|_| lent(&in_utc(Duration::from_secs(4 * 60)))).await;
    let source = source(&provider(settings), SECRET, &POD_IDENTITY);
    for (seconds, logins) in [(0, 1), (0, 1), (170, 1), (20, 2)] {
        let time = Duration::from_secs(seconds);
        assert_eq!(later(time, &*source, &stub).await, (true, logins));
    }
}

#[tokio::test]
async fn with_sharing_pod_each_pod_has_credentials_of_its_own_and_takes_them_along() {
    let (stub, settings) = agent_with_a_secret(|login| {
        let Reply::Answer(status, headers, body) = lent("2099-01-02T03:04:05Z") else {
            panic!("credentials are an answer")
        };
        let body = body.replace("ASIAAGENT", &format!("ASIA{login}"));
        Reply::Answer(status, headers, body)
    })
    .await;
    let source = source(&provider(settings), SECRET, &POD_IDENTITY);
    let pod = |uid: &str, sharing| {
        let mut caller = agent_caller();
        caller.pod.uid = uid.to_owned();
        caller.sharing = sharing;
        caller
    };
    let one = pod("one", Sharing::Pod);
    let other = pod("other", Sharing::Pod);
    let read_with = async |caller: &Caller| {
        assert!(fetch(&*source, caller).await[0].is_ok());
        let read = stub.seen().pop().unwrap();
        let signature = read.header("authorization").unwrap();
        let key = signature.split_once("Credential=").unwrap().1;
        key.split_once('/').unwrap().0.to_owned()
    };
    for _ in 0..2 {
        assert_eq!(read_with(&one).await, "ASIA0");
        assert_eq!(read_with(&other).await, "ASIA1");
    }
    for uid in ["one", "other"] {
        let together = pod(uid, Sharing::ServiceAccount);
        assert_eq!(read_with(&together).await, "ASIA2", "the account's own");
    }
    source.log_out(&one).await;
    assert_eq!(read_with(&other).await, "ASIA1", "nobody else's");
    assert_eq!(read_with(&one).await, "ASIA3");
}

#[tokio::test]
async fn a_login_and_its_account_stay_for_as_long_as_a_class_uses_them() {
    let (stub, settings) = agent_with_a_secret(|_| lent("2099-01-02T03:04:05Z")).await;
    let cluster = cluster(Some(WEST));
    let provider = AwsProvider::new(&settings, cluster.clone()).unwrap();
    let by_agent = |more: &[_]| source(&provider, SECRET, &[&POD_IDENTITY, more].concat());
    let west = by_agent(&[]);
    let failover = by_agent(&[("failoverRegion", EAST)]);
    let east = by_agent(&[("region", EAST)]);
    let by_sts = source(&provider, SECRET, &[]);
    let (agents, own) = (agent_caller(), caller("shop", "web"));
    for (source, caller) in [
        (&west, &agents),
        (&failover, &agents),
        (&east, &agents),
        (&by_sts, &own),
    ] {
        fetch(&**source, caller).await;
    }
    assert_eq!(logins(&stub), 2, "one for each region");

    for (gone, caller) in [(&failover, &agents), (&east, &agents), (&by_sts, &own)] {
        gone.log_out(caller).await;
        assert!(fetch(&*west, &agents).await[0].is_ok());
        assert_eq!(logins(&stub), 2);
        assert!(cluster.forgotten.lock().unwrap().is_empty());
    }
    west.log_out(&agents).await;
    assert_eq!(*cluster.forgotten.lock().unwrap(), ["shop/web"]);
    for source in [&west, &east] {
        assert!(fetch(&**source, &agents).await[0].is_ok());
    }
    assert_eq!(logins(&stub), 4, "both had gone");
}

/// This much from now, as the agent writes it.
fn in_utc(time: Duration) -> String {
    let ends = aws_smithy_types::DateTime::from(SystemTime::now() + time);
    ends.fmt(aws_smithy_types::date_time::Format::DateTime)
        .unwrap()
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_credentials_that_end_before_their_time_are_replaced_once() {
    for (refusals, works, logins) in [(1, true, 2), (usize::MAX, false, 2)] {
        let moto = Moto::start().await;
        moto.server.secret(WEST, "db", "x").await;
        let (left, address) = (AtomicUsize::new(refusals), moto.server.address.clone());
        let stub = Stub::start(move |_, request| {
            let refused = request.operation() == "GetSecretValue"
                && left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok();
            match refused {
                true => Reply::error(400, "ExpiredTokenException", "it has expired"),
                false => Reply::Forward(address.clone()),
            }
        })
        .await;
        let source = source(&provider(by_region(&stub.address)), SECRET, &[]);
        let answer = fetch(&*source, &caller("shop", "web")).await.remove(0);
        assert_eq!(answer.is_ok(), works);
        assert!(works || answer.err().unwrap().kind() == ErrorKind::Unauthenticated);
        assert_eq!(stub.count(WEST, "AssumeRoleWithWebIdentity"), logins);
    }
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_a_second_role_is_taken_with_its_external_id() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "x").await;
    let next = "arn:aws:iam::123456789012:role/next";
    let more = [("assumeRoleArn", next), ("assumeRoleExternalId", "shop:1")];
    let source = source(&provider(settings(&moto.server.address)), SECRET, &more);
    moto.record().await;
    assert_eq!(
        files(&*source, &caller("shop", "web")).await,
        these(&[("db", "x")])
    );
    let recorded = moto.recorded().await;
    let operations: Vec<_> = recorded
        .iter()
        .map(crate::http::Request::operation)
        .collect();
    assert_eq!(
        operations,
        ["AssumeRoleWithWebIdentity", "AssumeRole", "GetSecretValue"]
    );
    let body = |at: usize| String::from_utf8_lossy(&recorded[at].body).into_owned();
    assert!(
        body(0).contains("role%2Fshop&") && body(0).contains("RoleSessionName=shop.web&"),
        "statement 8"
    );
    assert!(
        recorded[0].header("authorization").is_none(),
        "the token speaks for itself"
    );
    assert!(body(1).contains("role%2Fnext&") && body(1).contains("ExternalId=shop%3A1"));
    let key = |at: usize| {
        recorded[at]
            .header("authorization")
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .to_owned()
    };
    assert_ne!(key(1), key(2), "the read is signed by the second role");
    let role = match source.identified_by() {
        coffer_provider::IdentifiedBy::Token { role, .. } => role.clone(),
        _ => String::new(),
    };
    assert!(role.contains(next) && role.contains("shop:1"), "{role}");
}

#[tokio::test]
async fn aws_m16_without_a_role_or_a_token_nobody_is_asked() {
    let stub = Stub::start(|_, _| Reply::broken()).await;
    let mut settings = by_region(&stub.address);
    settings.pod_identity.ipv4 = format!("http://{}", stub.address);
    let provider = provider(settings);
    let irsa = source(&provider, SECRET, &[]);
    let agent = source(&provider, SECRET, &POD_IDENTITY);
    let without = |change: fn(&mut Caller)| {
        let mut caller = caller("shop", "web");
        change(&mut caller);
        caller
    };
    let expired = |caller: &mut Caller| {
        caller.token = Some(ServiceAccountToken::new("canary".into(), SystemTime::now()));
    };
    for (source, caller, kind, says) in [
        (
            &irsa,
            caller("shop", "nobody"),
            ErrorKind::PermissionDenied,
            "eks.amazonaws.com/role-arn",
        ),
        (
            &irsa,
            caller("shop", "odd"),
            ErrorKind::PermissionDenied,
            "something else in it",
        ),
        (
            &irsa,
            without(|c| c.token = None),
            ErrorKind::Unauthenticated,
            "sts.amazonaws.com",
        ),
        (
            &irsa,
            without(expired),
            ErrorKind::Unauthenticated,
            "has expired",
        ),
        (
            &agent,
            without(|c| c.token = None),
            ErrorKind::Unauthenticated,
            "pods.eks.amazonaws.com",
        ),
        (
            &irsa,
            without(|c| c.pod.service_account.uid = None),
            ErrorKind::Unauthenticated,
            "UID",
        ),
    ] {
        let error = error(&**source, &caller).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(stub.seen().is_empty());
}

#[tokio::test]
async fn aws_an_account_that_names_an_audience_is_proven_by_its_token_for_that_one() {
    let stub = Stub::start(|_, _| Reply::sts_error(403, "AccessDenied", "no")).await;
    let read = async |audiences: &[&str], further: bool| {
        let mut settings = by_region(&stub.address);
        settings.audiences = audiences.iter().map(|&name| name.to_owned()).collect();
        let source = source(&provider(settings), SECRET, &[]);
        let mut caller = caller("shop", "other-audience");
        let token = caller_for(OTHER_AUDIENCE, "shop", "other-audience").token;
        if further
            && source
                .further_audiences()
                .iter()
                .any(|name| name == OTHER_AUDIENCE)
        {
            let token = token.unwrap();
            caller.further_tokens.insert(OTHER_AUDIENCE.into(), token);
        }
        error(&*source, &caller).await.to_string()
    };
    for (audiences, further) in [(&[][..], true), (&[OTHER_AUDIENCE][..], false)] {
        let error = read(audiences, further).await;
        for part in [
            OTHER_AUDIENCE,
            "is missing",
            "tokenRequests",
            "--aws-audience",
        ] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
    assert!(
        stub.seen().is_empty(),
        "the token for sts.amazonaws.com stays here"
    );

    let error = read(&[OTHER_AUDIENCE], true).await;
    assert!(
        error.contains("shop:other-audience, aud aws.example)"),
        "{error}"
    );
    let body = String::from_utf8(stub.seen()[0].body.clone()).unwrap();
    let sent = caller_for(OTHER_AUDIENCE, "shop", "other-audience")
        .token
        .unwrap();
    assert!(body.contains(sent.expose()), "{body}");

    // The agent wants one audience, whatever the account says of STS.
    let mut settings = by_region(&stub.address);
    settings.audiences = vec![OTHER_AUDIENCE.into()];
    let agent = source(&provider(settings), SECRET, &POD_IDENTITY);
    assert!(agent.further_audiences().is_empty());
}

#[tokio::test]
async fn an_account_is_forgotten_with_its_last_login() {
    let stub = Stub::start(|_, _| Reply::broken()).await;
    let cluster = cluster(Some(WEST));
    let provider = AwsProvider::new(&by_region(&stub.address), cluster.clone()).unwrap();
    let own = source(&provider, SECRET, &[]);
    let next = source(
        &provider,
        SECRET,
        &[("assumeRoleArn", "arn:aws:iam::123456789012:role/next")],
    );
    let web = caller("shop", "web");
    error(&*own, &web).await;
    error(&*next, &web).await;
    own.log_out(&web).await;
    assert!(cluster.forgotten.lock().unwrap().is_empty());
    next.log_out(&web).await;
    assert_eq!(*cluster.forgotten.lock().unwrap(), ["shop/web"]);
}

#[tokio::test]
async fn aws_statement_7_what_sts_says_reaches_the_pods_owner() {
    for (code, status, kind, says) in [
        (
            "AccessDenied",
            403,
            ErrorKind::PermissionDenied,
            "as system:serviceaccount:shop:web, aud sts.amazonaws.com): its trust policy must let in this",
        ),
        (
            "InvalidIdentityToken",
            400,
            ErrorKind::Unauthenticated,
            "OIDC provider",
        ),
        (
            "ExpiredTokenException",
            400,
            ErrorKind::Unauthenticated,
            "token has expired",
        ),
        (
            "IDPCommunicationError",
            400,
            ErrorKind::Unavailable,
            "issuer",
        ),
        (
            "RegionDisabledException",
            403,
            ErrorKind::InvalidParameters,
            "activate it",
        ),
        (
            "ValidationError",
            400,
            ErrorKind::InvalidParameters,
            "words of AWS",
        ),
        ("Throttling", 400, ErrorKind::Unavailable, "asked too often"),
    ] {
        let stub = Stub::start(move |_, _| Reply::sts_error(status, code, "words of AWS")).await;
        let source = source(&provider(by_region(&stub.address)), SECRET, &[]);
        let error = error(&*source, &caller("shop", "web")).await;
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        for part in [says, ROLE, WEST, "AssumeRoleWithWebIdentity"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        assert!(!text.contains("0815"), "{text}");
        let detail = error.detail().unwrap_or_default();
        assert!(detail.contains("https://issuer.example"), "{detail}");
        assert_eq!(
            stub.seen().len(),
            1,
            "{code}: one question, and no other way in"
        );
        let token = caller("shop", "web").token.unwrap();
        assert!(!format!("{error:?}").contains(token.expose()));
    }
}

#[tokio::test]
#[ignore = "needs ministack: cargo xtask test"]
async fn aws_statement_10_a_role_gets_what_its_policy_allows_and_never_anothers_value() {
    let aws = Ministack::start().await;
    aws.secret("app/db", "canary").await;
    aws.secret("app/other", "other").await;
    let db = "arn:aws:secretsmanager:us-west-2:123456789012:secret:app/db*";
    let all = "arn:aws:secretsmanager:us-west-2:123456789012:secret:app/*";
    aws.role(
        "shop",
        "shop:web",
        &[
            ("secretsmanager:GetSecretValue", db),
            ("secretsmanager:DescribeSecret", db),
        ],
    )
    .await;
    let batch = "secretsmanager:BatchGetSecretValue";
    aws.role(
        "office",
        "office:web",
        &[("secretsmanager:GetSecretValue", all), (batch, "*")],
    )
    .await;
    aws.role("none", "none:web", &[]).await;
    // In front, to count; signatures are of the host that was asked.
    let address = aws.server.address.clone();
    let stub = Stub::start(move |_, _| Reply::Forward(address.clone())).await;
    let provider = provider(settings(&stub.address));
    let objects = "
- {objectName: app/db, objectType: secretsmanager}
- {objectName: app/other, objectType: secretsmanager}";
    let source = source(&provider, objects, &[]);
    let read = async |caller: &Caller| -> Vec<_> {
        let answers = fetch(&*source, caller).await.into_iter();
        let text = |answer: Result<coffer_provider::Secret, coffer_provider::ProviderError>| {
            match answer {
                Ok(secret) => String::from_utf8_lossy(secret.files[0].bytes.expose()).into_owned(),
                Err(error) => format!("{:?}: {error}", error.kind()),
            }
        };
        answers.map(text).collect()
    };
    let office = caller("office", "web");
    assert_eq!(read(&office).await, ["canary", "other"]);
    assert_eq!(stub.count("", "GetSecretValue"), 0);

    let shop = caller("shop", "web");
    for _ in 0..2 {
        let answers = read(&shop).await;
        assert_eq!(answers[0], "canary");
        assert!(
            answers[1]
                .starts_with("PermissionDenied: app/other: access denied (AccessDeniedException"),
            "{}",
            answers[1]
        );
        assert!(
            answers[1].contains(ROLE) && answers[1].contains("needs secretsmanager:GetSecretValue"),
            "{}",
            answers[1]
        );
    }
    assert_eq!(
        stub.count("", "BatchGetSecretValue"),
        2,
        "one of each role: the denial is remembered"
    );

    for _ in 0..2 {
        let versions = source.versions(&office, source.objects()).await;
        assert_eq!(versions, [None, None]);
    }
    assert_eq!(
        stub.count("", "DescribeSecret"),
        2,
        "one for each object, once"
    );

    for answer in read(&caller("none", "web")).await {
        assert!(answer.starts_with("PermissionDenied: "), "{answer}");
    }
    // The role of shop, asked for by accounts that its trust policy does not name.
    for answer in read(&caller("shop", "api")).await {
        assert!(
            answer.starts_with(
                "PermissionDenied: arn:aws:iam::123456789012:role/shop: access denied"
            ),
            "{answer}"
        );
        assert!(
            answer.contains("system:serviceaccount:shop:api"),
            "{answer}"
        );
    }
    for answer in read(&caller_for("vault", "shop", "db")).await {
        assert!(answer.starts_with("PermissionDenied: "), "{answer}");
    }
}

/// Set for the process that has the environment of somebody who is not a pod.
const IN_AWS: &str = "COFFER_TEST_WITH_KEYS";

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn rule_d9_keys_of_the_environment_and_the_metadata_service_are_not_used() {
    #[expect(
        clippy::disallowed_methods,
        reason = "this test starts itself with another environment"
    )]
    if std::env::var_os(IN_AWS).is_some() {
        return reads_as_the_pod_alone().await;
    }
    let metadata = Stub::start(|_, _| Reply::Answer(200, vec![], "canary".into())).await;
    let home = tempfile::tempdir().unwrap();
    let keys = "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = canary\n";
    let file = home.path().join("credentials");
    std::fs::write(&file, keys).unwrap();
    let url = format!("http://{}", metadata.address);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--ignored", "--exact"])
        .arg("login::rule_d9_keys_of_the_environment_and_the_metadata_service_are_not_used")
        .env(IN_AWS, "1")
        .env("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
        .env("AWS_SECRET_ACCESS_KEY", "canary")
        .env("AWS_SHARED_CREDENTIALS_FILE", file)
        .envs([
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
            ("AWS_ENDPOINT_URL", &url),
        ])
        .envs([
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url),
            ("HTTP_PROXY", &url),
            ("http_proxy", &url),
        ])
        .env("AWS_REGION", "eu-north-1");
    let output = tokio::task::spawn_blocking(move || child.output())
        .await
        .unwrap()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
    assert!(metadata.seen().is_empty(), "{:?}", metadata.seen());
}

async fn reads_as_the_pod_alone() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "x").await;
    let provider = provider(settings(&moto.server.address));
    let source = source(&provider, SECRET, &[]);
    moto.record().await;
    assert_eq!(
        files(&*source, &caller("shop", "web")).await,
        these(&[("db", "x")])
    );
    let mut without = caller("shop", "api");
    without.token = None;
    assert_eq!(
        error(&*source, &without).await.kind(),
        ErrorKind::Unauthenticated
    );
    let recorded = moto.recorded().await;
    assert_eq!(recorded.len(), 2, "a login and a read");
    for request in recorded {
        let signature = request.header("authorization").unwrap_or_default();
        assert!(!signature.contains("AKIA"), "{signature}");
    }
}
