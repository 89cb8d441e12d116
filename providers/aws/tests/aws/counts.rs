//! How often AWS is asked, by moto's recorder.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use crate::harness::{
    WEST, by_region, caller, cluster, fetch, files, parameters, provider, settings, source,
};
use crate::servers::Moto;
use crate::stub::{Reply, Stub};
use coffer_provider::Provider;
use coffer_provider_aws::AwsProvider;

fn counts(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts
        .iter()
        .map(|&(name, count)| (name.to_owned(), count))
        .collect()
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_statement_2_one_login_for_a_token_life_and_the_region_from_memory() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "x").await;
    let cluster = cluster(Some(WEST));
    let provider = AwsProvider::new(&settings(&moto.server.address), cluster).unwrap();
    let mut class = parameters("- {objectName: db, objectType: secretsmanager}", &[]);
    class.remove("region");
    moto.record().await;
    // Pods of one account, each with a class of its own, and ticks after that.
    let pods: Vec<_> = (0..20)
        .map(|_| provider.source(&class).ok().unwrap())
        .collect();
    let caller = caller("shop", "web");
    for _tick in 0..3 {
        let answers = join_all(pods.iter().map(|pod| fetch(&**pod, &caller))).await;
        assert!(answers.iter().flatten().all(Result::is_ok));
    }
    let expected = counts(&[("AssumeRoleWithWebIdentity", 1), ("GetSecretValue", 3)]);
    assert_eq!(moto.counts().await, expected);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_statement_3_a_hundred_pods_of_a_role_are_one_read() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", r#"{"a":"1"}"#).await;
    let provider = provider(settings(&moto.server.address));
    let objects = "
- {objectName: db, objectType: secretsmanager, jmesPath: [{path: a, objectAlias: a}]}
- {objectName: db, objectType: secretsmanager, objectAlias: again}";
    let caller = caller("shop", "web");
    moto.record().await;
    let pods = (0..100).map(|_| source(&provider, objects, &[]));
    let fetches = pods.map(async |pod| files(&*pod, &caller).await.len());
    let fetched = join_all(fetches).await;
    assert!(fetched.iter().all(|files| *files == 3));
    let expected = counts(&[("AssumeRoleWithWebIdentity", 1), ("GetSecretValue", 1)]);
    assert_eq!(moto.counts().await, expected);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_statement_5_batches_are_filled_across_the_pods_of_a_role() {
    let moto = Moto::start().await;
    let provider = provider(settings(&moto.server.address));
    let caller = caller("shop", "web");
    let mut classes = Vec::new();
    for number in 0..10 {
        moto.server
            .parameter(WEST, &format!("/p/{number}"), "p")
            .await;
        moto.server.secret(WEST, &format!("s/{number}"), "s").await;
        let objects = format!(
            "
- {{objectName: /p/{number}, objectType: ssmparameter}}
- {{objectName: s/{number}, objectType: secretsmanager}}"
        );
        classes.push(source(&provider, &objects, &[]));
    }
    let pinned = "- {objectName: s/0, objectType: secretsmanager, objectVersionLabel: AWSPREVIOUS}";
    moto.server.change(WEST, "s/0", "new").await;
    classes.push(source(&provider, pinned, &[]));
    moto.record().await;
    let answers = join_all(classes.iter().map(|class| fetch(&**class, &caller))).await;
    assert!(answers.iter().flatten().all(Result::is_ok));
    let expected = counts(&[
        ("AssumeRoleWithWebIdentity", 1),
        ("BatchGetSecretValue", 1),
        ("GetParameters", 1),
        // A label is not for a batch.
        ("GetSecretValue", 1),
    ]);
    assert_eq!(moto.counts().await, expected);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn rule_c1_to_c3_accounts_roles_and_regions_never_share_a_login() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "x").await;
    let provider = provider(settings(&moto.server.address));
    let objects = "- {objectName: db, objectType: secretsmanager}";
    let one = source(&provider, objects, &[]);
    let elsewhere = source(&provider, objects, &[("region", "eu-west-1")]);
    let mut made_anew = caller("shop", "web");
    made_anew.pod.service_account.uid = Some("another".into());
    moto.record().await;
    let callers = [
        caller("shop", "web"),
        caller("shop", "api"),
        caller("other", "web"),
        made_anew,
    ];
    for caller in &callers {
        assert!(fetch(&*one, caller).await[0].is_ok());
        assert!(
            fetch(&*elsewhere, caller).await[0].is_err(),
            "it is not there"
        );
    }
    let logins =
        |counts: &BTreeMap<String, usize>| counts.get("AssumeRoleWithWebIdentity").copied();
    assert_eq!(logins(&moto.counts().await), Some(8));
    // An account that has left the node is forgotten, and only that one.
    one.log_out(&callers[0]).await;
    moto.record().await;
    for caller in &callers {
        assert!(fetch(&*one, caller).await[0].is_ok());
    }
    assert_eq!(logins(&moto.counts().await), Some(1));
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn rule_s11_a_region_is_asked_sixteen_questions_at_a_time() {
    let moto = Moto::start().await;
    let address = moto.server.address.clone();
    let stub = Stub::start(move |_, request| match request.operation().as_str() {
        "GetSecretValue" => Reply::Hang,
        _ => Reply::Forward(address.clone()),
    })
    .await;
    let entry = |number| {
        format!(
            "- {{objectName: s/{number}, objectType: secretsmanager, objectVersionLabel: AWSPREVIOUS}}\n"
        )
    };
    let objects: String = (0..40).map(entry).collect();
    let source = source(&provider(by_region(&stub.address)), &objects, &[]);
    let asked = || stub.count(WEST, "GetSecretValue");
    let sixteen = async {
        while asked() < 16 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Long enough for a seventeenth to come along.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let caller = caller("shop", "web");
    tokio::select! {
        _ = fetch(&*source, &caller) => panic!("nobody answers"),
        () = sixteen => assert_eq!(asked(), 16),
    }
}
