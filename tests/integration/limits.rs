//! Limits of stores and of what a volume remembers, each at the limit, below and beyond it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coffer::fake_kubelet::PodVolume;
use coffer_provider::testing::{Answer, ScriptedProvider};
use coffer_provider::{
    Caller, Format, IdentifiedBy, Lease, Life, ObjectRef, Parameters, Provider, ProviderError,
    Secret, SecretBytes, SecretFile, Sharing, Source, Version,
};
use tonic::Code;

use crate::harness::{PATIENCE, mounts, pod};
use crate::scripted::Scripted;

/// A volume of pod `name` with a class of the same name.
fn volume(name: &str) -> PodVolume {
    PodVolume::of_class(pod(name), name)
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_store_has_its_requests_and_its_queue_and_who_comes_then_is_sent_away() {
    const REQUESTS: usize = 3;
    const QUEUE: usize = 4;
    let node = Scripted::start_as(ScriptedProvider::default(), [], |config| {
        config.cache.slots = REQUESTS;
        config.cache.queue = QUEUE;
    })
    .await;
    let mut volumes = Vec::new();
    for index in 0..REQUESTS + QUEUE {
        let name = format!("hangs-{index}");
        let class = format!("provider: scripted\nparameters: {{objects: {name}}}");
        node.store.set(&name, Answer::Hang);
        node.class(&name, &class).await;
        volumes.push(volume(&name));
    }
    let publish = |volume: &PodVolume| {
        let (kubelet, volume) = (node.kubelet.clone(), volume.clone());
        tokio::spawn(async move { kubelet.publish(&volume).await })
    };
    let mut waiting: Vec<_> = volumes.iter().map(publish).collect();
    node.store.set("a", Answer::Hang);
    let shop = PodVolume::of_class(pod("shop"), "shop");
    let start = Instant::now();
    // With one waiting less than there are, one request too many would be in the store.
    let refused = loop {
        // It needs fewer calls than they do: they go first.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let refused = node.publish_within(&shop, Duration::from_secs(5)).await;
        // Whoever comes first has the place: while this one had it, one of the others was sent away.
        let mut all_wait = true;
        for (volume, waits) in volumes.iter().zip(&mut waiting) {
            if waits.is_finished() {
                all_wait = false;
                let status = std::mem::replace(waits, publish(volume)).await.unwrap();
                assert_eq!(status.unwrap_err().code(), Code::ResourceExhausted);
            }
        }
        if all_wait && refused.code() == Code::ResourceExhausted {
            break refused;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "there is always room: {refused}"
        );
    };
    assert_eq!(
        refused.message(),
        "QueueFull: provider scripted: too many volumes wait for this store already"
    );
    for volume in &volumes {
        node.kubelet.unpublish(volume).await.unwrap();
    }
    node.store.set_value("a", "one");
    node.kubelet.publish(&shop).await.expect("there is room");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_first_mount_waits_for_its_store_as_long_as_the_administrator_says() {
    let node = Scripted::start_as(ScriptedProvider::default(), [], |config| {
        config.bounds.publish_timeout = Duration::from_secs(6);
    })
    .await;
    let shop = PodVolume::of_class(pod("shop"), "shop");
    node.store.set("b", Answer::Hang);
    let start = Instant::now();
    let refused = node.publish_within(&shop, Duration::from_secs(60)).await;
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
    // Less the moments that the call took to come to the store.
    let says = [6, 5].map(|s| format!("DeadlineExceeded: the store did not answer within {s} s"));
    assert!(
        says.iter().any(|says| says == refused.message()),
        "{refused}"
    );
    assert!(start.elapsed() >= Duration::from_secs(6));
    assert!(mounts().is_empty());
    node.store.set_value("b", "two");
    node.store.set_latency(Duration::from_millis(500));
    node.kubelet.publish(&shop).await.expect("in time");
}

/// A store whose objects have versions and a life of their own.
#[derive(Clone)]
struct Peculiar {
    objects: Vec<ObjectRef>,
    version: String,
    life: Life,
}

impl Peculiar {
    fn provider(version: String, life: Life) -> Arc<dyn Provider> {
        let objects = Vec::new();
        Arc::new(Self {
            objects,
            version,
            life,
        })
    }
}

impl Provider for Peculiar {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let object = |index: usize| ObjectRef {
            name: format!("object-{index}"),
            request: format!("object-{index}"),
        };
        let count = parameters["count"].parse().unwrap();
        let objects = (0..count).map(object).collect();
        Ok(Arc::new(Self {
            objects,
            ..self.clone()
        }))
    }
}

#[tonic::async_trait]
impl Source for Peculiar {
    fn identified_by(&self) -> &IdentifiedBy {
        &IdentifiedBy::Namespace
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    async fn fetch(&self, _: &Caller, objects: &[ObjectRef]) -> Vec<Result<Secret, ProviderError>> {
        let answer = |object: &ObjectRef| {
            Ok(Secret {
                files: vec![SecretFile {
                    name: object.name.clone(),
                    bytes: SecretBytes::new(b"value".to_vec()),
                    format: Format::Opaque,
                    mode: None,
                }],
                version: Version::new(self.version.clone())?,
                life: self.life.clone(),
                sharing: Sharing::ServiceAccount,
            })
        };
        objects.iter().map(answer).collect()
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn what_a_volume_remembers_may_reach_64_kib_and_not_pass_them() {
    let peculiar = Peculiar::provider("v".repeat(Version::MAX_BYTES), Life::Static);
    let node = Scripted::start_as(
        ScriptedProvider::default(),
        [("peculiar", peculiar)],
        |config| config.limits.files = 1024,
    )
    .await;
    // What each object takes, and what the record takes without any.
    let object = 16 + Version::MAX_BYTES + r#""":{"version":""},"#.len();
    let frame = 64 + r#"{"layout":1,"class":"","objects":{}}"#.len() - 1;
    let most = ((64 << 10) - frame) / object;
    for (name, count) in [("below", most - 1), ("at", most)] {
        let class = format!("provider: peculiar\nparameters: {{count: '{count}'}}");
        node.class(name, &class).await;
        node.kubelet.publish(&volume(name)).await.expect(name);
    }
    let class = format!("provider: peculiar\nparameters: {{count: '{}'}}", most + 1);
    node.class("beyond", &class).await;
    let refused = node
        .publish_within(&volume("beyond"), Duration::from_secs(60))
        .await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let size = frame + (most + 1) * object;
    let says = format!(
        "TooLarge: the volume would have {size} bytes of names and versions to remember, 65536 are allowed"
    );
    assert_eq!(refused.message(), says);
    assert_eq!(mounts().len(), 2);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_secret_with_a_lease_cannot_stay_as_it_is() {
    let duration = Duration::from_secs(3600);
    let leased = Life::Leased {
        lease: Lease::new("lease".into()),
        duration,
        renewable: true,
    };
    let stores = [
        ("leased", Peculiar::provider("1".into(), leased)),
        (
            "ends",
            Peculiar::provider("1".into(), Life::Expires(duration)),
        ),
    ];
    let node = Scripted::start_with(ScriptedProvider::default(), stores).await;
    for provider in ["leased", "ends"] {
        let spec = format!("provider: {provider}\nparameters: {{count: '1'}}\nimmutable: true");
        node.class(provider, &spec).await;
    }
    let refused = node
        .publish_within(&volume("leased"), Duration::from_secs(60))
        .await;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(
        refused.message(),
        "InvalidClass: SecretProviderClass shop/leased: spec.immutable: a secret has a lease, which ends when nobody renews it: remove immutable"
    );
    assert!(mounts().is_empty());
    node.kubelet
        .publish(&volume("ends"))
        .await
        .expect("a certificate can: it is good until its end, whoever looks");
}
