//! A mistake of ours, or of a provider: one request fails, and everything else goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coffer::catalog::Catalog;
use coffer_provider::testing::ScriptedProvider;
use coffer_provider::{
    Caller, IdentifiedBy, ObjectRef, Parameters, Provider, ProviderError, Secret, Source,
};
use serde_json::json;
use tonic::Code;

use crate::node::{Node, PATIENCE, put_class, volume_of, volumes};

/// A store that works, and a provider that panics: in the driver's own task where `at` is `source`, and in
/// that of the cache where it is `fetch`.
#[derive(Clone)]
struct Bomb {
    inner: ScriptedProvider,
    armed: Arc<AtomicBool>,
}

impl Provider for Bomb {
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        let at = parameters.get("at").map(String::as_str);
        assert!(at != Some("source") || !self.armed.load(SeqCst), "boom");
        let armed = (at == Some("fetch")).then(|| self.armed.clone());
        let inner = self.inner.source(parameters)?;
        Ok(Arc::new(BombSource { inner, armed }))
    }
}

struct BombSource {
    inner: Arc<dyn Source>,
    armed: Option<Arc<AtomicBool>>,
}

#[async_trait]
impl Source for BombSource {
    fn identified_by(&self) -> &IdentifiedBy {
        self.inner.identified_by()
    }

    fn objects(&self) -> &[ObjectRef] {
        self.inner.objects()
    }

    async fn fetch(
        &self,
        by: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        let armed = self.armed.as_ref().is_some_and(|armed| armed.load(SeqCst));
        assert!(!armed, "boom");
        self.inner.fetch(by, objects).await
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r11_a_panic_fails_one_request_is_counted_and_nothing_else_notices() {
    let inner = ScriptedProvider::default();
    inner.set_value("a", "one");
    let armed = Arc::new(AtomicBool::new(true));
    let bomb = Bomb {
        inner: inner.clone(),
        armed: armed.clone(),
    };
    let catalog = Catalog::default()
        .with("scripted", Arc::new(inner))
        .with("bomb", Arc::new(bomb));
    let node = Node::start(catalog).await;
    let objects = |at: &str| json!({"provider": "bomb", "parameters": {"objects": "a", "at": at}});
    put_class(&node.classes, "source", objects("source"));
    put_class(&node.classes, "fetch", objects("fetch"));
    put_class(
        &node.classes,
        "good",
        json!({"provider": "scripted", "parameters": {"objects": "a"}}),
    );
    let good = volume_of("good", "good");
    node.kubelet.publish(&good).await.unwrap();

    let mut counted = node.counted("coffer_panics_total").await;
    for class in ["source", "fetch"] {
        let volume = volume_of(class, class);
        for _ in 0..2 {
            let status = node.kubelet.publish(&volume).await.unwrap_err();
            assert_eq!(status.code(), Code::Internal, "{class}: {status}");
            assert!(
                status.message().contains("please report"),
                "{class}: {status}"
            );
        }
        let now = node.counted("coffer_panics_total").await;
        assert!(now > counted, "{class}: it is counted");
        counted = now;
        assert_eq!(volumes(), 1, "{class}: nothing was mounted");
        node.kubelet.publish(&good).await.unwrap();
        node.kubelet
            .publish(&volume_of("new", "good"))
            .await
            .unwrap();
        node.kubelet
            .unpublish(&volume_of("new", "good"))
            .await
            .unwrap();
    }
    armed.store(false, SeqCst);
    for class in ["source", "fetch"] {
        let volume = volume_of(class, class);
        let start = Instant::now();
        // What a store has failed with is remembered for a moment.
        while let Err(status) = node.kubelet.publish(&volume).await {
            assert!(start.elapsed() < PATIENCE, "{class}: {status}");
        }
        node.kubelet.unpublish(&volume).await.unwrap();
    }
    node.kubelet.unpublish(&good).await.unwrap();
    assert_eq!(volumes(), 0);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_r11_a_panic_in_a_rotation_is_not_the_end_of_all_rotations() {
    let inner = ScriptedProvider::default();
    inner.set_value("a", "one");
    inner.set_value("b", "two");
    let armed = Arc::new(AtomicBool::new(false));
    let bomb = Bomb {
        inner,
        armed: armed.clone(),
    };
    let node = Node::start(Catalog::default().with("bomb", Arc::new(bomb))).await;
    let objects =
        |names: &str| json!({"provider": "bomb", "parameters": {"objects": names, "at": "source"}});
    put_class(&node.classes, "class", objects("a"));
    let volume = volume_of("pod", "class");
    node.kubelet.publish(&volume).await.unwrap();

    let before = node.counted("coffer_panics_total").await;
    armed.store(true, SeqCst);
    put_class(&node.classes, "class", objects("a,b"));
    let start = Instant::now();
    while node.counted("coffer_panics_total").await == before {
        assert!(start.elapsed() < PATIENCE, "the class was not looked at");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let file = node.kubelet.target(&volume);
    assert!(file.join("a").exists() && !file.join("b").exists());
    armed.store(false, SeqCst);
    while !file.join("b").exists() {
        assert!(
            start.elapsed() < PATIENCE,
            "the volume is not rotated any more"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
