//! Who gets what: the tokens that the kubelet brings, the identities that they prove, and the classes of
//! other Namespaces.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coffer::fake_kubelet::{PodVolume, token_of};
use coffer_provider::{
    Caller, Format, IdentifiedBy, Life, ObjectRef, Parameters, Pod, Provider, ProviderError,
    Secret, SecretBytes, SecretFile, Sharing, Source, Version,
};
use tonic::Code;

use crate::harness::{eventually, mounts, volume};
use crate::scripted::{AUDIENCE, Scripted, by_token, seconds_from_now, volume_of, with_token};

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Publishes a volume that must not come to be, and without a word to the store.
async fn refused(node: &Scripted, volume: &PodVolume, code: Code, words: &str) {
    let status = node.kubelet.publish(volume).await.expect_err(words);
    assert_eq!(status.code(), code, "{words}: {status}");
    assert!(status.message().contains(words), "{words}: {status}");
    assert_eq!(node.store.fetches(), 0, "{words}: the store was called");
    assert!(mounts().is_empty(), "{words}");
    assert!(!node.kubelet.target(volume).exists(), "{words}");
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d1_a_token_of_somebody_else_is_refused_and_never_sent() {
    let node = Scripted::start_with_tokens().await;
    type Change = fn(&mut Pod);
    for (whose, change) in [
        (
            "Namespace",
            (|pod| pod.namespace = "other".into()) as Change,
        ),
        ("ServiceAccount", |pod| {
            pod.service_account.name = "root".into();
        }),
        ("pod", |pod| pod.uid = "uid-of-another".into()),
    ] {
        let mut volume = volume("a");
        let mut other = volume.pod.clone();
        change(&mut other);
        volume.bring_token(AUDIENCE, &token_of(&other), seconds_from_now(3600));
        let words = format!("has a token of another {whose} than the kubelet names");
        refused(&node, &volume, Code::InvalidArgument, &words).await;
    }
    node.kubelet.publish(&volume_of("a", "web")).await.unwrap();
    assert_eq!(node.store.fetches(), 2);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d3_a_token_at_its_end_is_not_sent_and_the_next_one_is() {
    let node = Scripted::start_with_tokens().await;
    let mut volume = volume("a");
    let token = token_of(&volume.pod);
    for left in [-3600, 0, 5] {
        volume.bring_token(AUDIENCE, &token, seconds_from_now(left));
        let words = "the token for the audience \"vault\" has expired";
        refused(&node, &volume, Code::Unauthenticated, words).await;
    }
    volume.bring_token(AUDIENCE, &token, seconds_from_now(600));
    node.kubelet.publish(&volume).await.unwrap();
    assert_eq!(node.store.fetches(), 2);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d3_a_volume_whose_token_has_ended_waits_for_the_next_one() {
    let node = Scripted::start_with_tokens().await;
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}\nrefresh: {strategy: Get}";
    node.class("asking", spec).await;
    let mut volume = with_token(PodVolume::of_class(volume("a").pod, "asking"));
    node.kubelet.publish(&volume).await.unwrap();
    node.store.set_value("a", "new");
    let token = token_of(&volume.pod);
    volume.bring_token(AUDIENCE, &token, seconds_from_now(-1));
    for _ in 0..3 {
        node.kubelet.publish(&volume).await.expect("it is complete");
    }
    // Long enough for a look that must not be.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(node.store.fetches(), 2, "nothing is sent");
    assert_eq!(node.read(&volume, "a"), "one");
    volume.bring_token(AUDIENCE, &token, seconds_from_now(600));
    node.kubelet.publish(&volume).await.unwrap();
    eventually("the next token is used", || {
        node.read(&volume, "a") == "new"
    })
    .await;
    assert_eq!(node.store.fetches(), 3);
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d5_a_token_without_an_audience_is_never_given_to_a_store() {
    let node = Scripted::start_with(by_token(""), []).await;
    let mut volume = volume("a");
    volume.bring_token("", &token_of(&volume.pod), seconds_from_now(3600));
    let words = "a token for it is good for the API server itself";
    refused(&node, &volume, Code::InvalidArgument, words).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d6_an_audience_that_is_missing_is_named_with_its_cure() {
    let node = Scripted::start_with_tokens().await;
    let words = "there is no token for the audience \"vault\": list it in spec.tokenRequests";
    let mut volume = volume("a");
    refused(&node, &volume, Code::InvalidArgument, words).await;
    volume.bring_token("sts", &token_of(&volume.pod), seconds_from_now(3600));
    refused(&node, &volume, Code::InvalidArgument, words).await;
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d7_malformed_tokens_are_refused_without_a_word_of_them() {
    let node = Scripted::start_with_tokens().await;
    let nested = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let no_jwt = r#"{"vault":{"token":"canary","expirationTimestamp":"2099-01-01T00:00:00Z"}}"#;
    for (tokens, words) in [
        ("canary", "is not the JSON that a kubelet writes"),
        (
            r#"{"vault":"canary"}"#,
            "is not the JSON that a kubelet writes",
        ),
        (&nested, "is not the JSON that a kubelet writes"),
        (&"canary".repeat(100_000), "has more than 262144 bytes"),
        (no_jwt, "has a token that is not one of a ServiceAccount"),
    ] {
        let mut volume = volume("a");
        volume.secrets.insert(TOKENS.into(), tokens.to_owned());
        refused(&node, &volume, Code::InvalidArgument, words).await;
        let status = node.kubelet.publish(&volume).await.unwrap_err();
        assert!(!status.message().contains("canary"), "{status}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d8_a_class_of_another_namespace_does_not_exist() {
    let node = Scripted::start().await;
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}";
    node.folders
        .class_with("name: theirs, namespace: other", "theirs", spec);
    node.knows("other", "theirs").await;
    let mut neighbour = PodVolume::of_class(volume("b").pod, "theirs");
    neighbour.pod.namespace = "other".into();
    node.kubelet.publish(&neighbour).await.expect("it is there");
    node.kubelet.unpublish(&neighbour).await.unwrap();
    let asked = node.store.fetches();
    let names = ["theirs", "other/theirs", "../other/theirs", "other.theirs"];
    // Each is waited for a moment, as any class that is not there.
    let calls = names.map(async |name| {
        let volume = PodVolume::of_class(volume(&name.replace('/', "-")).pod, name);
        let status = node.kubelet.publish(&volume).await.expect_err(name);
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let words = format!("failed to get secretproviderclass shop/{name}: not found");
        assert!(status.message().contains(&words), "{status}");
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(node.store.fetches(), asked);
    assert!(mounts().is_empty());
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_c1_rule_c2_each_identity_asks_for_itself_and_its_pods_share_the_answer() {
    let node = Scripted::start_with_tokens().await;
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}";
    node.folders
        .class_with("name: shop, namespace: other", "other", spec);
    node.knows("other", "shop").await;
    let mut made_anew = volume_of("d", "web");
    made_anew.pod.service_account.uid = Some("of the second one".into());
    let mut elsewhere = volume_of("e", "web");
    elsewhere.pod.namespace = "other".into();
    for (volume, fetches, who) in [
        (volume_of("a", "web"), 2, "the first pod"),
        (volume_of("b", "web"), 2, "a second pod of its account"),
        (volume_of("c", "job"), 4, "another account"),
        (with_token(made_anew), 6, "one that was made anew"),
        (
            with_token(elsewhere),
            8,
            "its namesake of another Namespace",
        ),
    ] {
        node.kubelet.publish(&volume).await.expect(who);
        assert_eq!(node.store.fetches(), fetches, "{who}");
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn a_class_can_have_every_pod_ask_for_itself() {
    let node = Scripted::start_with_tokens().await;
    let spec = "provider: scripted\nparameters: {objects: 'a,b'}\nsharing: Pod";
    node.class("alone", spec).await;
    for (pods, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let mut volume = volume_of(name, "web");
        let class = ("secretProviderClass".into(), "alone".into());
        volume.attributes.extend([class]);
        node.kubelet.publish(&volume).await.unwrap();
        assert_eq!(node.store.fetches(), 2 * pods);
    }
}

/// A store that gives callers the token that they came with, so that a volume shows which one it was.
#[derive(Clone)]
struct Mirror {
    identified_by: IdentifiedBy,
    objects: Vec<ObjectRef>,
    looks: Arc<AtomicUsize>,
}

impl Mirror {
    fn of(audience: &str) -> Arc<dyn Provider> {
        Arc::new(Self {
            identified_by: IdentifiedBy::Token {
                audience: audience.into(),
                store: "https://mirror".into(),
                role: String::new(),
            },
            objects: vec![ObjectRef {
                name: "token".into(),
                request: "token".into(),
            }],
            looks: Arc::default(),
        })
    }
}

impl Provider for Mirror {
    fn source(&self, _: &Parameters) -> Result<Arc<dyn Source>, ProviderError> {
        Ok(Arc::new(self.clone()))
    }
}

#[tonic::async_trait]
impl Source for Mirror {
    fn identified_by(&self) -> &IdentifiedBy {
        &self.identified_by
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        let look = self.looks.fetch_add(1, Ordering::SeqCst).to_string();
        let token = caller.token.as_ref().map_or("none", |token| token.expose());
        let answer = |object: &ObjectRef| {
            Ok(Secret {
                files: vec![SecretFile {
                    name: object.name.clone(),
                    bytes: SecretBytes::new(token.as_bytes().to_vec()),
                    format: Format::Opaque,
                    mode: None,
                }],
                version: Version::new(look.clone())?,
                life: Life::Static,
                sharing: Sharing::ServiceAccount,
            })
        };
        objects.iter().map(answer).collect()
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_d4_each_source_sees_the_token_for_its_own_audience_and_no_other() {
    let mirrors = [("mirror-a", Mirror::of("a")), ("mirror-b", Mirror::of("b"))];
    let node = Scripted::start_with(Default::default(), mirrors).await;
    let spec = "sources: [{name: a, provider: mirror-a}, {name: b, provider: mirror-b}]\n\
         items: [{source: a, object: token, path: a}, {source: b, object: token, path: b}]";
    node.class("mirrors", spec).await;
    let mut volume = PodVolume::of_class(volume("a").pod, "mirrors");
    let token = token_of(&volume.pod);
    for audience in ["a", "b", "c", ""] {
        let token = format!("{token}-for-{audience}");
        volume.bring_token(audience, &token, seconds_from_now(3600));
    }
    node.kubelet.publish(&volume).await.unwrap();
    for audience in ["a", "b"] {
        assert_eq!(
            node.read(&volume, audience),
            format!("{token}-for-{audience}")
        );
    }
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn the_token_of_whichever_pod_lasts_longest_is_the_one_that_is_used() {
    let mirror = [("mirror", Mirror::of(AUDIENCE))];
    let node = Scripted::start_with(Default::default(), mirror).await;
    let spec = "provider: mirror\nrefresh: {strategy: Get}";
    node.class("mirror", spec).await;
    let volumes = ["a", "b"].map(|name| PodVolume::of_class(volume(name).pod, "mirror"));
    let bring = async |pod: usize, seconds: i64| {
        let mut volume = volumes[pod].clone();
        let token = token_of(&volume.pod);
        volume.bring_token(AUDIENCE, &token, seconds_from_now(seconds));
        node.kubelet.publish(&volume).await.unwrap();
    };
    bring(0, 1000).await;
    bring(1, 2000).await;
    for (pod, seconds, used) in [(0, 1500, 1), (0, 3000, 0), (1, 2500, 0), (1, 4000, 1)] {
        bring(pod, seconds).await;
        let expected = token_of(&volumes[used].pod);
        eventually("both volumes show the token that was used", || {
            volumes
                .iter()
                .all(|volume| node.read(volume, "token") == expected)
        })
        .await;
    }
}
