//! More than one region, and regions that are out of order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coffer_provider::{Caller, ErrorKind, Source};

use crate::harness::{EAST, WEST, by_region, caller, error, fetch, files, provider, source, these};
use crate::servers::Moto;
use crate::stub::{Reply, Stub};
use coffer_provider_aws::Settings;

type Trouble = fn() -> Reply;

/// Regions of moto, each of which can be put out of order.
struct Regions {
    moto: Moto,
    stub: Stub,
    troubles: Arc<Mutex<BTreeMap<(&'static str, &'static str), Trouble>>>,
}

impl Regions {
    async fn start() -> Self {
        let moto = Moto::start().await;
        let troubles = Arc::<Mutex<BTreeMap<(&str, &str), Trouble>>>::default();
        let (all, address) = (troubles.clone(), moto.server.address.clone());
        let stub = Stub::start(move |region, request| {
            let operation = request.operation();
            let all: &BTreeMap<(&str, &str), Trouble> = &all.lock().unwrap();
            match all.get(&(region, operation.as_str())) {
                Some(trouble) => trouble(),
                None => Reply::Forward(address.clone()),
            }
        });
        Self {
            stub: stub.await,
            moto,
            troubles,
        }
    }

    /// From now on every read of a region goes like this.
    fn break_reads(&self, region: &'static str, trouble: Trouble) {
        for read in ["GetSecretValue", "BatchGetSecretValue", "GetParameters"] {
            self.break_one(region, read, trouble);
        }
    }

    fn break_one(&self, region: &'static str, operation: &'static str, trouble: Trouble) {
        self.troubles
            .lock()
            .unwrap()
            .insert((region, operation), trouble);
    }

    fn mend(&self) {
        self.troubles.lock().unwrap().clear();
    }

    /// A secret and a parameter in both regions, with the name of the region as their values.
    async fn fill(&self) {
        for region in [WEST, EAST] {
            self.moto.server.secret(region, "db", region).await;
            self.moto.server.parameter(region, "/p", region).await;
        }
    }

    fn settings(&self) -> Settings {
        by_region(&self.stub.address)
    }

    fn source(&self, objects: &str, more: &[(&str, &str)]) -> Arc<dyn Source> {
        source(&provider(self.settings()), objects, more)
    }

    fn reads(&self, region: &str) -> usize {
        let reads = ["GetSecretValue", "BatchGetSecretValue", "GetParameters"];
        reads.iter().map(|read| self.stub.count(region, read)).sum()
    }
}

const BOTH: &str = "
- {objectName: db, objectType: secretsmanager}
- {objectName: /p, objectType: ssmparameter}";
const SECRET: &str = "- {objectName: db, objectType: secretsmanager}";
const STANDBY: [(&str, &str); 1] = [("failoverRegion", EAST)];

fn web() -> Caller {
    caller("shop", "web")
}

fn not_found() -> Reply {
    Reply::error(400, "ResourceNotFoundException", "not here")
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_statement_6_the_standby_region_is_asked_in_need_only() {
    let regions = Regions::start().await;
    regions.moto.server.secret(WEST, "db", "west").await;
    let source = regions.source(SECRET, &STANDBY);
    assert_eq!(files(&*source, &web()).await, these(&[("db", "west")]));
    let seen = regions.stub.seen();
    let in_east = seen
        .iter()
        .filter(|request| request.path.starts_with("/us-east-2"));
    assert_eq!(
        in_east.count(),
        0,
        "not even a login, and no copy there is no harm"
    );
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_r1_to_r4_every_kind_of_outage_leads_to_the_second_region() {
    let regions = Regions::start().await;
    regions.fill().await;
    let in_time = Settings {
        timeout: Duration::from_secs(10),
        ..regions.settings()
    };
    let source = source(&provider(in_time), BOTH, &STANDBY);
    let all = |region| these(&[("db", region), ("_p", region)]);
    let troubles: [(&str, Trouble); 4] = [
        ("throttled", Reply::throttle),
        ("broken", Reply::broken),
        ("cut off", || Reply::Close),
        ("silent", || Reply::Hang),
    ];
    for (name, trouble) in troubles {
        regions.break_reads(WEST, trouble);
        assert_eq!(files(&*source, &web()).await, all(EAST), "{name}");
        regions.mend();
        assert_eq!(
            files(&*source, &web()).await,
            all(WEST),
            "{name}: the first is back"
        );
    }
    regions.break_one(WEST, "GetParameters", Reply::broken);
    let mixed = these(&[("db", WEST), ("_p", EAST)]);
    assert_eq!(
        files(&*source, &web()).await,
        mixed,
        "each object by itself"
    );
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_r5_r6_r13_r16_an_outage_stays_one_whatever_the_second_region_says() {
    let regions = Regions::start().await;
    regions.fill().await;
    let source = regions.source(BOTH, &STANDBY);
    regions.break_reads(WEST, Reply::broken);
    for (trouble, says) in [
        (Reply::throttle as Trouble, "asked too often"),
        (not_found, "does not exist"),
    ] {
        regions.break_reads(EAST, trouble);
        for answer in fetch(&*source, &web()).await {
            let error = answer.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            let text = error.to_string();
            for part in [WEST, EAST, "InternalServiceError", says] {
                assert!(text.contains(part), "{text} lacks {part}");
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_r10_r11_r14_a_no_of_the_first_region_is_final() {
    let regions = Regions::start().await;
    regions.moto.server.secret(EAST, "db", "east").await;
    regions.moto.server.parameter(EAST, "/p", "east").await;
    let source = regions.source(BOTH, &STANDBY);
    for answer in fetch(&*source, &web()).await {
        assert_eq!(answer.err().unwrap().kind(), ErrorKind::NotFound);
    }
    regions.break_reads(WEST, || Reply::error(400, "AccessDeniedException", "no"));
    for answer in fetch(&*source, &web()).await {
        assert_eq!(answer.err().unwrap().kind(), ErrorKind::PermissionDenied);
    }
    assert_eq!(regions.reads(EAST), 0);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_r20_to_r25_batches_and_stand_ins_come_from_the_second_region() {
    let regions = Regions::start().await;
    let mut objects = String::new();
    let mut expected = Vec::new();
    for number in 0..15 {
        let (name, value) = (format!("/p/{number}"), format!(r#"{{"k":"{number}"}}"#));
        regions.moto.server.parameter(EAST, &name, &value).await;
        objects += &format!(
            "- {{objectName: {name}, objectType: ssmparameter, backupArn: x, jmesPath: [{{path: k, objectAlias: k{number}}}]}}\n"
        );
        expected.push((format!("_p_{number}"), value));
        expected.push((format!("k{number}"), number.to_string()));
    }
    regions.moto.server.parameter(EAST, "/standby", "s").await;
    objects += "- {objectName: /main, objectType: ssmparameter, objectAlias: alias, failoverObject: {objectName: /standby}}\n";
    expected.push(("alias".into(), "s".into()));
    regions.break_reads(WEST, Reply::broken);
    let source = regions.source(&objects, &STANDBY);
    assert_eq!(
        files(&*source, &web()).await,
        expected.into_iter().collect()
    );
    assert_eq!(regions.stub.count(EAST, "GetParameters"), 2);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn regions_are_asked_in_their_order_even_for_the_login() {
    let regions = Regions::start().await;
    regions.moto.server.secret("eu-west-1", "db", "third").await;
    let source = regions.source(SECRET, &[("failoverRegion", "us-east-2, eu-west-1")]);
    let denied = || Reply::sts_error(503, "ServiceUnavailable", "oh");
    regions.break_one(WEST, "AssumeRoleWithWebIdentity", denied);
    regions.break_reads(EAST, Reply::throttle);
    assert_eq!(files(&*source, &web()).await, these(&[("db", "third")]));
    assert_eq!((regions.reads(WEST), regions.reads(EAST)), (0, 1));
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_r17_to_r19_the_eager_mode_asks_both_and_believes_every_no() {
    let regions = Regions::start().await;
    regions.fill().await;
    let eager = [STANDBY[0], ("failoverMode", "Always")];
    let source = regions.source(BOTH, &eager);
    let all = |region| these(&[("db", region), ("_p", region)]);
    assert_eq!(files(&*source, &web()).await, all(WEST));
    assert_eq!(regions.reads(EAST), 2);
    regions.break_reads(EAST, Reply::broken);
    assert_eq!(
        files(&*source, &web()).await,
        all(WEST),
        "an outage of the second"
    );
    regions.mend();
    regions.break_reads(WEST, Reply::broken);
    assert_eq!(
        files(&*source, &web()).await,
        all(EAST),
        "an outage of the first"
    );
    for broken in [WEST, EAST] {
        regions.mend();
        regions.break_reads(broken, not_found);
        for answer in fetch(&*source, &web()).await {
            assert_eq!(
                answer.err().unwrap().kind(),
                ErrorKind::NotFound,
                "{broken}"
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn aws_an_arn_is_asked_of_its_own_region_only() {
    let regions = Regions::start().await;
    let made = regions.moto.server.secret(WEST, "db", "west").await;
    let arn = made["ARN"].as_str().unwrap();
    let objects = format!("- {{objectName: '{arn}', objectAlias: db}}");
    let source = regions.source(&objects, &STANDBY);
    assert_eq!(files(&*source, &web()).await, these(&[("db", "west")]));
    regions.break_reads(WEST, Reply::throttle);
    assert_eq!(error(&*source, &web()).await.kind(), ErrorKind::Unavailable);
    assert_eq!(regions.reads(EAST), 0);
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn rule_s3_s4_s10_a_store_out_of_order_is_asked_once_and_told_truly() {
    let regions = Regions::start().await;
    regions.moto.server.secret(WEST, "db", "x").await;
    let in_time = Settings {
        timeout: Duration::from_secs(10),
        ..regions.settings()
    };
    let source = source(&provider(in_time), SECRET, &[]);
    // The login has had its time.
    while fetch(&*source, &web()).await[0].is_err() {}
    let seconds = Duration::from_secs;
    let endless = || {
        Reply::Answer(
            200,
            vec![],
            format!(r#"{{"SecretString":"{}"}}"#, "x".repeat(5 << 20)),
        )
    };
    let troubles: [(Trouble, ErrorKind, Option<Duration>, &str); 6] = [
        (
            || Reply::Hang,
            ErrorKind::DeadlineExceeded,
            None,
            "no answer in time",
        ),
        (
            || Reply::Close,
            ErrorKind::Unavailable,
            None,
            "cannot be reached",
        ),
        (
            Reply::throttle,
            ErrorKind::Unavailable,
            None,
            "asked too often",
        ),
        (
            || Reply::Answer(503, vec![("retry-after", "7")], "<html>".into()),
            ErrorKind::Unavailable,
            Some(seconds(7)),
            "HTTP 503",
        ),
        (
            || Reply::Answer(200, vec![], "<html>canary".into()),
            ErrorKind::InvalidAnswer,
            None,
            "cannot be read",
        ),
        (endless, ErrorKind::InvalidAnswer, None, "cannot be read"),
    ];
    for (trouble, kind, retry_after, says) in troubles {
        regions.break_reads(WEST, trouble);
        let before = regions.reads(WEST);
        let error = error(&*source, &web()).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.retry_after(), retry_after, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        assert_eq!(
            regions.reads(WEST),
            before + 1,
            "{error}: the driver decides when to ask again"
        );
    }
}
