//! What is read, and as which files.

use coffer_provider::{ErrorKind, Provider};
use serde_json::json;

use crate::harness::{
    EAST, WEST, by_region, caller, cluster, error, fetch, files, parameters, provider, settings,
    source, these,
};
use crate::servers::Moto;
use crate::stub::{Reply, Stub};
use coffer_provider_aws::AwsProvider;

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_statement_1_one_file_that_exercises_every_field() {
    let moto = Moto::start().await;
    let aws = &moto.server;
    let db = r#"{"user":"shop","pass-word":"x y","port":5432}"#;
    aws.secret(WEST, "app/db", db).await;
    let tls = aws.secret(WEST, "tls", "old").await;
    aws.change(WEST, "tls", "new").await;
    for value in ["1", "2", "3", "4"] {
        aws.parameter(WEST, "/app/flag", value).await;
    }
    aws.label(WEST, "/app/flag", 2, "stable").await;
    let arn = tls["ARN"].as_str().unwrap();
    let standby = arn.replace(WEST, EAST);
    let objects = format!(
        r#"---
- objectName: app/db
  objectType: secretsmanager
  filePermission: "0440"
  inFallback: true
  jmesPath:
    - {{path: user, objectAlias: db/user}}
    - {{Path: '"pass-word"', ObjectAlias: pw, filePermission: "0400"}}
    - {{path: to_string(port), objectAlias: port}}
    - {{path: port, objectAlias: number}}
- objectName: {arn}
  objectAlias: tls
  objectVersionLabel: AWSPREVIOUS
  failoverObject: {{objectName: "{standby}", objectVersionLabel: AWSCURRENT}}
- {{objectName: /app/flag, objectType: ssmparameter, objectVersion: 3}}
- {{objectName: /app/flag, objectType: ssmparameter, objectVersionLabel: stable, objectAlias: flag-stable}}
- {{objectName: /app/flag, objectType: ssmparameter, objectAlias: flag-latest}}
"#
    );
    let more = [
        ("failoverRegion", EAST),
        ("pathTranslation", "-"),
        ("preferredAddressType", "IPv6"),
    ];
    let source = source(&provider(settings(&aws.address)), &objects, &more);
    let caller = caller("shop", "web");
    let expected = these(&[
        ("app-db", db),
        ("db-user", "shop"),
        ("pw", "x y"),
        ("port", "5432"),
        ("number", "5432"),
        ("tls", "old"),
        ("-app-flag", "3"),
        ("flag-stable", "2"),
        ("flag-latest", "4"),
    ]);
    assert_eq!(files(&*source, &caller).await, expected);
    let answers = fetch(&*source, &caller).await;
    let modes = answers.into_iter().flat_map(|secret| secret.unwrap().files);
    let modes: Vec<_> = modes.map(|file| file.mode).collect();
    let (own, other) = (Some(0o440), Some(0o400));
    assert_eq!(modes, [own, own, other, own, own, None, None, None, None]);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_m11_many_parameters_and_binary_secrets_each_get_their_own_value() {
    let moto = Moto::start().await;
    let aws = &moto.server;
    let binary = json!({"Name": "bin", "SecretBinary": "AP8="});
    aws.call(WEST, "secretsmanager.CreateSecret", binary).await;
    aws.secret(WEST, "text", "t").await;
    let mut objects = String::from(
        "- {objectName: bin, objectType: secretsmanager}\n- {objectName: text, objectType: secretsmanager}\n",
    );
    let mut expected = vec![("text".to_owned(), "t".to_owned())];
    for number in (0..11).rev() {
        let name = format!("/p/{number}");
        aws.parameter(WEST, &name, &number.to_string()).await;
        objects += &format!("- {{objectName: {name}, objectType: ssmparameter}}\n");
        expected.push((format!("_p_{number}"), number.to_string()));
    }
    moto.record().await;
    let source = source(&provider(settings(&aws.address)), &objects, &[]);
    let caller = caller("shop", "web");
    let mut all = files(&*source, &caller).await;
    assert!(all.remove("bin").is_some());
    assert_eq!(all, expected.into_iter().collect());
    assert_eq!(moto.counts().await.get("GetParameters"), Some(&2));
    let first = fetch(&*source, &caller).await.remove(0).ok().unwrap();
    assert_eq!(first.files[0].bytes.expose(), [0, 255]);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_both_stages_of_a_secret_lie_side_by_side() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "old").await;
    moto.server.change(WEST, "db", "new").await;
    let objects = "
- {objectName: db, objectType: secretsmanager}
- {objectName: db, objectType: secretsmanager, objectVersionLabel: AWSPREVIOUS, objectAlias: db-before}";
    let source = source(&provider(settings(&moto.server.address)), objects, &[]);
    let both = these(&[("db", "new"), ("db-before", "old")]);
    assert_eq!(files(&*source, &caller("shop", "web")).await, both);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_every_key_of_a_json_secret_and_everything_below_a_prefix_are_files() {
    let moto = Moto::start().await;
    let aws = &moto.server;
    aws.secret(WEST, "app/a", r#"{"user":"u","port":1}"#).await;
    aws.secret(WEST, "app/b", "b").await;
    aws.secret(WEST, "application", "not below it").await;
    for number in 0..12 {
        aws.parameter(WEST, &format!("/app/{number}/x"), &number.to_string())
            .await;
    }
    let provider = provider(settings(&aws.address));
    let caller = caller("shop", "web");
    let keys = "- {objectName: app/a, objectType: secretsmanager, jmesPath: '*'}";
    let keys = files(&*source(&provider, keys, &[]), &caller).await;
    let json = r#"{"user":"u","port":1}"#;
    assert_eq!(
        keys,
        these(&[("app_a", json), ("user", "u"), ("port", "1")])
    );
    let below = "- {objectName: app/*, objectType: secretsmanager}";
    let below = source(&provider, below, &[]);
    assert_eq!(
        files(&*below, &caller).await,
        these(&[("app_a", json), ("app_b", "b")])
    );
    let parameters = "- {objectName: /app/*, objectType: ssmparameter}";
    let off = [("pathTranslation", "False")];
    let parameters = source(&provider, parameters, &off);
    assert_eq!(parameters.objects()[0].name, "app");
    let found = files(&*parameters, &caller).await;
    assert_eq!(found.len(), 12);
    assert_eq!(found.get("app/11/x").map(String::as_str), Some("11"));

    let before = fetch(&*below, &caller)
        .await
        .remove(0)
        .ok()
        .unwrap()
        .version;
    aws.change(WEST, "app/b", "b2").await;
    let after = fetch(&*below, &caller)
        .await
        .remove(0)
        .ok()
        .unwrap()
        .version;
    assert_ne!(before, after, "a version of a set follows each of it");
    let none = source(
        &provider,
        "- {objectName: none/*, objectType: secretsmanager}",
        &[],
    );
    assert_eq!(error(&*none, &caller).await.kind(), ErrorKind::NotFound);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_what_does_not_exist_is_named_and_fails_alone() {
    let moto = Moto::start().await;
    moto.server.parameter(WEST, "/p/a", "a").await;
    moto.server.secret(WEST, "s", "s").await;
    let objects = "
- {objectName: /p/a, objectType: ssmparameter}
- {objectName: /p/none, objectType: ssmparameter}
- {objectName: /p/a, objectType: ssmparameter, objectVersion: 9, objectAlias: nine}
- {objectName: s, objectType: secretsmanager}
- {objectName: none, objectType: secretsmanager}
- {objectName: s, objectType: secretsmanager, objectVersionLabel: none, objectAlias: l}
- {objectName: s, objectType: secretsmanager, objectAlias: j, jmesPath: [{path: a, objectAlias: k}]}";
    let source = source(&provider(settings(&moto.server.address)), objects, &[]);
    let answers = fetch(&*source, &caller("shop", "web")).await;
    let says = |at: usize| match &answers[at] {
        Ok(_) => "read".to_owned(),
        Err(error) => format!("{:?}: {error}", error.kind()),
    };
    assert_eq!((says(0), says(3)), ("read".into(), "read".into()));
    assert!(
        says(1).starts_with("NotFound: /p/none: does not exist"),
        "{}",
        says(1)
    );
    assert!(
        says(2).starts_with("NotFound: /p/a:9: does not exist"),
        "{}",
        says(2)
    );
    assert!(
        says(4).starts_with("NotFound: none: does not exist (ResourceNotFoundException"),
        "{}",
        says(4)
    );
    assert!(says(5).starts_with("NotFound: s: "), "{}", says(5));
    assert_eq!(
        says(6),
        "InvalidAnswer: s: its value is not JSON, which jmesPath needs"
    );
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_a_secret_that_waits_for_its_deletion_is_not_read() {
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "x").await;
    let delete = json!({"SecretId": "db"});
    moto.server
        .call(WEST, "secretsmanager.DeleteSecret", delete)
        .await;
    let objects = "- {objectName: db, objectType: secretsmanager}";
    let source = source(&provider(settings(&moto.server.address)), objects, &[]);
    let caller = caller("shop", "web");
    let error = error(&*source, &caller).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("scheduled for deletion"),
        "{error}"
    );
    assert_eq!(source.versions(&caller, source.objects()).await, [None]);
}

#[test]
fn an_item_can_name_every_file_that_an_entry_gives() {
    let provider = provider(settings("127.0.0.1:1"));
    let objects = r#"
- {objectName: shop/db, objectType: secretsmanager, jmesPath: [{path: user, objectAlias: db/user}]}
- {objectName: all, objectType: secretsmanager, jmesPath: "*"}
- {objectName: /app/*, objectType: ssmparameter}
- {objectName: plain, objectType: secretsmanager}"#;
    for (translation, file, givers) in [
        ("_", "shop_db", &["shop_db"][..]),
        ("_", "db_user", &["shop_db"]),
        ("_", "all", &["all"]),
        ("_", "plain", &["plain"]),
        ("_", "password", &["all"]),
        ("_", "_app_flag", &["all", "_app_*"]),
        ("False", "db/user", &["shop/db"]),
        ("False", "app/flag", &["app"]),
        ("False", "other", &["all"]),
    ] {
        let source = source(&provider, objects, &[("pathTranslation", translation)]);
        let can_give = source
            .objects()
            .iter()
            .filter(|object| source.can_give(object, file));
        let found: Vec<_> = can_give.map(|object| object.name.as_str()).collect();
        assert_eq!(found, givers, "{file}");
    }
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_m12_to_m14_the_region_is_the_classes_or_else_the_nodes() {
    let moto = Moto::start().await;
    moto.server.secret(EAST, "db", "east").await;
    let objects = "- {objectName: db, objectType: secretsmanager}";
    let mut class = parameters(objects, &[]);
    class.remove("region");
    let caller = caller("shop", "web");
    let in_region = |region| {
        let settings = settings(&moto.server.address);
        AwsProvider::new(&settings, cluster(region))
            .unwrap()
            .source(&class)
    };
    let east = in_region(Some(EAST)).ok().unwrap();
    assert_eq!(files(&*east, &caller).await, these(&[("db", "east")]));
    for region in [None, Some("not a region")] {
        let error = error(&*in_region(region).ok().unwrap(), &caller).await;
        assert!(
            error
                .to_string()
                .starts_with("parameters.region: is missing"),
            "{error}"
        );
    }
    // What a class that names its region is told at once, this one is told once the region is known.
    class.insert("failoverRegion".into(), EAST.into());
    let same = AwsProvider::new(&settings(&moto.server.address), cluster(Some(EAST))).unwrap();
    let error = error(&*same.source(&class).ok().unwrap(), &caller).await;
    assert!(
        error
            .to_string()
            .starts_with("parameters.failoverRegion: must not be"),
        "{error}"
    );
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_t1_to_t5_the_sequence_of_a_rotation() {
    let moto = Moto::start().await;
    let aws = &moto.server;
    let first = aws.secret(WEST, "plain", "p1").await;
    aws.secret(WEST, "json", r#"{"k":"1"}"#).await;
    aws.secret(WEST, "custom", "c1").await;
    aws.parameter(WEST, "/p", "1").await;
    let pin = first["VersionId"].as_str().unwrap();
    let objects = format!(
        "
- {{objectName: plain, objectType: secretsmanager}}
- {{objectName: json, objectType: secretsmanager, jmesPath: [{{path: k, objectAlias: key}}]}}
- {{objectName: custom, objectType: secretsmanager, objectVersionLabel: AWSCURRENT, objectAlias: c}}
- {{objectName: plain, objectType: secretsmanager, objectVersion: {pin}, objectAlias: pinned}}
- {{objectName: /p, objectType: ssmparameter}}
- {{objectName: /p, objectType: ssmparameter, objectVersion: 1, objectAlias: one}}"
    );
    let source = source(&provider(settings(&aws.address)), &objects, &[]);
    let caller = caller("shop", "web");
    let versions = async || -> Vec<_> {
        let answers = fetch(&*source, &caller).await.into_iter();
        answers.map(|answer| Some(answer.ok()?.version)).collect()
    };
    let before = versions().await;

    moto.record().await;
    let cheap = source.versions(&caller, source.objects()).await;
    assert_eq!(cheap[..4], before[..4], "nothing changed");
    assert_eq!(cheap[4..], [None, None], "only a read tells of parameters");
    let counts = moto.counts().await;
    assert_eq!(
        counts.get("DescribeSecret"),
        Some(&3),
        "a pinned version needs no question"
    );
    assert_eq!(counts.len(), 1, "{counts:?}");

    aws.change(WEST, "plain", "p2").await;
    aws.change(WEST, "json", r#"{"k":"2"}"#).await;
    aws.parameter(WEST, "/p", "2").await;
    let cheap = source.versions(&caller, source.objects()).await;
    let after = versions().await;
    assert_eq!(cheap[..4], after[..4]);
    let changed: Vec<_> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
    assert_eq!(changed, [true, true, false, false, true, false]);
    let expected = these(&[
        ("plain", "p2"),
        ("json", r#"{"k":"2"}"#),
        ("key", "2"),
        ("c", "c1"),
        ("pinned", "p1"),
        ("_p", "2"),
        ("one", "1"),
    ]);
    assert_eq!(files(&*source, &caller).await, expected);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_one_that_is_denied_does_not_fail_those_that_were_asked_for_with_it() {
    let moto = Moto::start().await;
    for name in ["a", "b", "c"] {
        moto.server
            .parameter(WEST, &format!("/p/{name}"), name)
            .await;
        moto.server.secret(WEST, name, name).await;
    }
    let address = moto.server.address.clone();
    let stub = Stub::start(move |_, request| {
        let asks = |name: &str| String::from_utf8_lossy(&request.body).contains(name);
        match request.operation().as_str() {
            "GetParameters" if asks("/p/b") => Reply::error(400, "AccessDeniedException", "no"),
            "BatchGetSecretValue" => Reply::error(400, "InvalidParameterException", "no"),
            "GetSecretValue" if asks(r#""b""#) => Reply::error(400, "DecryptionFailure", "no"),
            _ => Reply::Forward(address.clone()),
        }
    })
    .await;
    let objects = ["a", "b", "c"].map(|name| {
        format!(
            "- {{objectName: /p/{name}, objectType: ssmparameter}}\n- {{objectName: {name}, objectType: secretsmanager}}\n"
        )
    });
    let source = source(&provider(by_region(&stub.address)), &objects.concat(), &[]);
    let answers = fetch(&*source, &caller("shop", "web")).await;
    let is_read: Vec<_> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(is_read, [true, true, false, false, true, true]);
    let denied = answers.into_iter().filter_map(Result::err);
    let texts: Vec<_> = denied
        .map(|error| (error.kind(), error.to_string()))
        .collect();
    assert!(
        texts
            .iter()
            .all(|(kind, _)| *kind == ErrorKind::PermissionDenied)
    );
    assert!(
        texts[0].1.starts_with("/p/b: access denied"),
        "{}",
        texts[0].1
    );
    assert!(
        texts[1].1.starts_with("b: cannot be decrypted"),
        "{}",
        texts[1].1
    );
    assert_eq!(stub.count(WEST, "GetParameters"), 4);
}
