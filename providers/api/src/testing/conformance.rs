//! What every provider promises to the driver, checked from outside.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};

use crate::{Caller, ErrorKind, ObjectRef, Parameters, Provider, ProviderError, Secret, Source};

/// A provider with a store that the suite may play with. Two objects exist, `first` and `second`;
/// a third name is free.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The provider under test.
    fn provider(&self) -> Arc<dyn Provider>;

    /// Parameters that read exactly these objects, in this order.
    fn parameters(&self, names: &[&str]) -> Parameters;

    /// Parameters that cannot be, and the field that their error has to name.
    fn bad_parameters(&self) -> Vec<(Parameters, &'static str)>;

    /// Somebody whom the store gives both objects.
    fn caller(&self) -> Caller;

    /// Somebody whom the store gives neither.
    fn stranger(&self) -> Caller;

    /// Makes `value` the content of the object `name`.
    async fn write(&self, name: &str, value: &[u8]);
}

/// Runs the whole suite.
///
/// # Panics
/// With the promise that does not hold.
pub async fn conformance(subject: &dyn Subject) {
    parameters_are_checked_without_a_store(subject);
    a_batch_answers_each_object_in_order(subject).await;
    a_missing_object_fails_alone(subject).await;
    a_stranger_gets_nothing(subject).await;
    values_are_exact(subject).await;
    versions_follow_the_data(subject).await;
    a_dropped_fetch_does_no_harm(subject).await;
    changes_are_told(subject).await;
}

fn source(subject: &dyn Subject, names: &[&str]) -> Arc<dyn Source> {
    match subject.provider().source(&subject.parameters(names)) {
        Ok(source) => source,
        Err(error) => panic!("good parameters for {names:?} are refused: {error}"),
    }
}

async fn fetch(source: &dyn Source, caller: &Caller) -> Vec<Result<Secret, ProviderError>> {
    let answers = source.fetch(caller, source.objects()).await;
    assert_eq!(
        answers.len(),
        source.objects().len(),
        "one answer per object"
    );
    answers
}

async fn fetch_one(source: &dyn Source, caller: &Caller) -> Secret {
    let mut answers = fetch(source, caller).await;
    match answers.remove(0) {
        Ok(secret) => secret,
        Err(error) => panic!("{} cannot be read: {error}", source.objects()[0].name),
    }
}

fn parameters_are_checked_without_a_store(subject: &dyn Subject) {
    for (parameters, field) in subject.bad_parameters() {
        let Err(error) = subject.provider().source(&parameters) else {
            panic!("bad parameters are taken: {parameters:?}");
        };
        assert_eq!(error.kind(), ErrorKind::InvalidParameters, "{error}");
        assert!(
            error.to_string().contains(field),
            "{error} does not name {field}"
        );
    }
    let source = source(subject, &["first", "second"]);
    let names: Vec<_> = source.objects().iter().map(|o| o.name.as_str()).collect();
    assert_eq!(
        names,
        ["first", "second"],
        "objects come in the order of the class"
    );
    let [first, second] = source.objects() else {
        panic!("two objects were asked for")
    };
    assert_ne!(
        first.request, second.request,
        "two objects are two requests"
    );
    let again = self::source(subject, &["first"]);
    assert_eq!(
        again.objects()[0].request,
        first.request,
        "a request has one text"
    );
    assert_eq!(again.identified_by(), source.identified_by());
}

async fn a_batch_answers_each_object_in_order(subject: &dyn Subject) {
    subject.write("first", b"one").await;
    subject.write("second", b"two").await;
    let source = source(subject, &["second", "first"]);
    let answers = fetch(&*source, &subject.caller()).await;
    for (answer, (name, value)) in answers.iter().zip([("second", b"two"), ("first", b"one")]) {
        let Ok(secret) = answer else {
            panic!("{name} cannot be read")
        };
        let [file] = secret.files.as_slice() else {
            panic!("{name} is one file")
        };
        assert_eq!(file.name, name);
        assert_eq!(file.bytes.expose(), value, "{name}");
    }
    let none: &[ObjectRef] = &[];
    assert!(source.fetch(&subject.caller(), none).await.is_empty());
}

async fn a_missing_object_fails_alone(subject: &dyn Subject) {
    let source = source(subject, &["first", "third", "second"]);
    let answers = fetch(&*source, &subject.caller()).await;
    assert!(
        answers[0].is_ok() && answers[2].is_ok(),
        "the others are there"
    );
    let Err(error) = &answers[1] else {
        panic!("an object that does not exist was read")
    };
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(
        error.to_string().contains("third"),
        "{error} names the object"
    );
}

async fn a_stranger_gets_nothing(subject: &dyn Subject) {
    let source = source(subject, &["first", "second"]);
    for answer in fetch(&*source, &subject.stranger()).await {
        let Err(error) = answer else {
            panic!("a stranger was given an object")
        };
        let kind = error.kind();
        assert!(
            matches!(
                kind,
                ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated
            ),
            "{kind:?}: {error}"
        );
    }
}

async fn values_are_exact(subject: &dyn Subject) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let source = source(subject, &["first"]);
    for value in [&b""[..], b"\n", &every_byte, &[0xff; 100_000]] {
        subject.write("first", value).await;
        let secret = fetch_one(&*source, &subject.caller()).await;
        assert!(
            secret.files[0].bytes.expose() == value,
            "{} bytes",
            value.len()
        );
    }
}

async fn versions_follow_the_data(subject: &dyn Subject) {
    let source = source(subject, &["first", "second"]);
    let caller = subject.caller();
    let versions = async || {
        let answers = fetch(&*source, &caller).await;
        let version =
            |answer: Result<Secret, ProviderError>| answer.map(|secret| secret.version).ok();
        let fetched: Vec<_> = answers.into_iter().map(version).collect();
        let cheap = source.versions(&caller, source.objects()).await;
        assert_eq!(cheap.len(), fetched.len(), "one version per object");
        for (cheap, fetched) in cheap.iter().zip(&fetched) {
            assert!(
                cheap.is_none() || cheap == fetched,
                "{cheap:?} is not {fetched:?}"
            );
        }
        fetched
    };
    let before = versions().await;
    assert_eq!(before, versions().await, "nothing changed");
    subject.write("second", b"another").await;
    let after = versions().await;
    assert_eq!(before[0], after[0], "the first did not change");
    assert_ne!(before[1], after[1], "the second did");
}

async fn a_dropped_fetch_does_no_harm(subject: &dyn Subject) {
    let source = source(subject, &["first", "second"]);
    let caller = subject.caller();
    for _ in 0..8 {
        drop(fetch(&*source, &caller).now_or_never());
    }
    let all = join_all((0..32).map(|_| fetch(&*source, &caller))).await;
    assert!(all.iter().flatten().all(Result::is_ok), "side by side");
}

async fn changes_are_told(subject: &dyn Subject) {
    let source = source(subject, &["first"]);
    let caller = subject.caller();
    let Some(mut changes) = source.watch(&caller) else {
        return; // This store does not tell of changes: the driver asks on its own schedule.
    };
    let before = fetch_one(&*source, &caller).await.version;
    subject.write("first", b"a change that is told").await;
    let patience = Duration::from_secs(10);
    let told = async {
        loop {
            changes.next().await.expect("the watch goes on");
            if fetch_one(&*source, &caller).await.version != before {
                return;
            }
        }
    };
    assert!(
        tokio::time::timeout(patience, told).await.is_ok(),
        "a change was not told within {patience:?}"
    );
}
