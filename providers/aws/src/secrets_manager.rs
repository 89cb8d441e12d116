//! Secrets Manager: one read for each secret, or one for twenty where the role may do that.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_credential_types::Credentials;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::ProvideErrorMetadata;
use aws_sdk_secretsmanager::primitives::Blob;
use aws_sdk_secretsmanager::types::{Filter, FilterNameStringType, SecretValueEntry};
use coffer_provider::{ErrorKind, ProviderError, SecretBytes, Version};
use futures_util::future::join_all;

use crate::error::{Failure, is_outage};
use crate::gather::Gather;
use crate::objects::Selector;
use crate::value::{Place, Value};

const CURRENT: &str = "AWSCURRENT";
/// The most secrets of one BatchGetSecretValue.
const BATCH: usize = 20;
const GET: &str = "secretsmanager:GetSecretValue";
const BATCH_GET: &str = "secretsmanager:BatchGetSecretValue";
const DESCRIBE: &str = "secretsmanager:DescribeSecret";

type Answer = Result<Value, ProviderError>;

/// Secrets Manager in one region, as one role.
///
/// What the role is denied here is remembered until its next login, so that a right that was granted
/// meanwhile is noticed.
pub(crate) struct SecretsManager {
    client: Client,
    place: Place,
    gather: Arc<Gather<Selector, Answer>>,
    may_batch: AtomicBool,
    may_describe: AtomicBool,
}

impl SecretsManager {
    pub(crate) fn new(place: Place, login: Credentials) -> Self {
        Self {
            client: place.region.secrets_manager(login),
            place,
            gather: Arc::default(),
            may_batch: AtomicBool::new(true),
            may_describe: AtomicBool::new(true),
        }
    }

    pub(crate) async fn value(this: &Arc<Self>, selector: &Selector) -> Answer {
        let secrets = this.clone();
        let read = move |selectors| async move { secrets.values(selectors).await };
        let answer = Gather::ask(&this.gather, selector.clone(), read).await;
        answer.unwrap_or_else(|| Err(this.place.cut_short(&selector.id, GET)))
    }

    async fn values(&self, selectors: Vec<Selector>) -> HashMap<Selector, Answer> {
        // A batch knows neither versions nor labels: it always gives the current ones.
        let is_current = |selector: &&Selector| {
            selector.version.is_none() && selector.label.as_deref().is_none_or(|l| l == CURRENT)
        };
        let current: Vec<_> = selectors.iter().filter(is_current).collect();
        let mut answers = HashMap::new();
        if current.len() > 1 && self.may_batch.load(Ordering::Relaxed) {
            let batches = join_all(current.chunks(BATCH).map(|batch| self.batch(batch))).await;
            answers.extend(batches.into_iter().flatten());
        }
        let left = selectors.into_iter().filter(|s| !answers.contains_key(s));
        let one = async |selector: Selector| {
            let answer = self.one(&selector).await;
            (selector, answer)
        };
        let ones = join_all(left.map(one)).await;
        answers.extend(ones);
        answers
    }

    /// The current values of several secrets. What is not in the answer has to be read by itself.
    async fn batch(&self, selectors: &[&Selector]) -> HashMap<Selector, Answer> {
        let ids = selectors
            .iter()
            .map(|selector| selector.id.clone())
            .collect();
        let request = self
            .client
            .batch_get_secret_value()
            .set_secret_id_list(Some(ids));
        let sent = self.place.region.send(BATCH_GET, request.send()).await;
        let answer = match sent {
            Ok(answer) => answer,
            Err(error) => return self.batch_failed(selectors, &error),
        };
        let mut answers = HashMap::new();
        for entry in answer.secret_values.unwrap_or_default() {
            let is_it = |s: &&&Selector| is_called(&entry, &s.id);
            let called: Vec<_> = selectors.iter().filter(is_it).collect();
            let value = entry_value(entry);
            for selector in called {
                if let Some(value) = value.clone() {
                    answers.insert((*selector).clone(), Ok(value));
                }
            }
        }
        for error in answer.errors.unwrap_or_default() {
            let id = error.secret_id.unwrap_or_default();
            let code = error.error_code.unwrap_or_default();
            for selector in selectors.iter().filter(|selector| selector.id == id) {
                let asked = self.place.asked(&selector.id, GET);
                let refused = asked.refused(&code, 0, error.message.as_deref());
                answers.insert((*selector).clone(), Err(refused));
            }
        }
        answers
    }

    fn batch_failed<E>(
        &self,
        selectors: &[&Selector],
        error: &Failure<E>,
    ) -> HashMap<Selector, Answer>
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let fail = |selector: &Selector| {
            let failed = self.place.asked(&selector.id, BATCH_GET).failed(error);
            (selector.clone(), Err(failed))
        };
        let failed: HashMap<_, Answer> = selectors.iter().map(|selector| fail(selector)).collect();
        let is = |what: fn(&ProviderError) -> bool| {
            failed
                .values()
                .any(|answer| answer.as_ref().is_err_and(what))
        };
        if is(|error| error.kind() == ErrorKind::PermissionDenied) {
            self.may_batch.store(false, Ordering::Relaxed);
        }
        // Otherwise one secret may be to blame: the others are read without it.
        if is(|error| is_outage(error) || error.kind() == ErrorKind::Unauthenticated) {
            return failed;
        }
        HashMap::new()
    }

    async fn one(&self, selector: &Selector) -> Answer {
        let asked = self.place.asked(&selector.id, GET);
        let request = self
            .client
            .get_secret_value()
            .secret_id(&selector.id)
            .set_version_id(selector.version.clone())
            .set_version_stage(stage(selector));
        let answer = self.place.region.send(GET, request.send()).await;
        let answer = answer.map_err(|error| asked.failed(&error))?;
        value(
            answer.secret_string,
            answer.secret_binary,
            answer.version_id,
        )
        .ok_or_else(|| {
            let problem = "has no value yet";
            asked.says(ErrorKind::NotFound, problem, "", "")
        })
    }

    pub(crate) async fn below(&self, prefix: &str) -> Result<Vec<(String, Value)>, ProviderError> {
        let asked = self.place.asked(prefix, BATCH_GET);
        let named = Filter::builder()
            .key(FilterNameStringType::Name)
            .values(prefix)
            .build();
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let request = self
                .client
                .batch_get_secret_value()
                .filters(named.clone())
                .set_next_token(next);
            let answer = self.place.region.send(BATCH_GET, request.send()).await;
            let answer = answer.map_err(|error| asked.failed(&error))?;
            // A set with a hole in it is not what the class asks for.
            if let Some(error) = answer.errors.unwrap_or_default().into_iter().next() {
                let id = error.secret_id.unwrap_or_default();
                let code = error.error_code.unwrap_or_default();
                let asked = self.place.asked(&id, GET);
                return Err(asked.refused(&code, 0, error.message.as_deref()));
            }
            for mut entry in answer.secret_values.unwrap_or_default() {
                let name = entry.name.take().unwrap_or_default();
                // The filter does not mind the letter case.
                if let Some(value) = entry_value(entry).filter(|_| name.starts_with(prefix)) {
                    found.push((name, value));
                }
            }
            next = answer.next_token;
            self.place
                .check_below(prefix, BATCH_GET, found.len(), next.is_some())?;
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The version that carries the wanted label; a read would give the same one.
    pub(crate) async fn version(&self, selector: &Selector) -> Option<Version> {
        if let (Some(version), None) = (&selector.version, &selector.label) {
            return Version::new(version).ok();
        }
        if !self.may_describe.load(Ordering::Relaxed) {
            return None;
        }
        let asked = self.place.asked(&selector.id, DESCRIBE);
        let request = self.client.describe_secret().secret_id(&selector.id);
        let answer = self.place.region.send(DESCRIBE, request.send()).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if asked.failed(&error).kind() == ErrorKind::PermissionDenied {
                    self.may_describe.store(false, Ordering::Relaxed);
                }
                return None;
            }
        };
        // Pending deletion: a read says so.
        if answer.deleted_date.is_some() {
            return None;
        }
        let wanted = stage(selector)?;
        let stages = answer.version_ids_to_stages.unwrap_or_default();
        let (version, _) = stages
            .into_iter()
            .find(|(_, labels)| labels.contains(&wanted))?;
        let is_it = selector
            .version
            .as_ref()
            .is_none_or(|pinned| *pinned == version);
        Version::new(version).ok().filter(|_| is_it)
    }
}

/// The label to ask for: by a version alone, none.
fn stage(selector: &Selector) -> Option<String> {
    match (&selector.label, &selector.version) {
        (Some(label), _) => Some(label.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(CURRENT.to_owned()),
    }
}

/// Whether a class may call this secret so: by name, by ARN, or by the ARN without its random end.
fn is_called(entry: &SecretValueEntry, id: &str) -> bool {
    let is_end = |rest: &str| rest.len() == 7 && rest.starts_with('-');
    entry.name() == Some(id)
        || entry
            .arn()
            .and_then(|arn| arn.strip_prefix(id))
            .is_some_and(|rest| rest.is_empty() || is_end(rest))
}

fn entry_value(entry: SecretValueEntry) -> Option<Value> {
    value(entry.secret_string, entry.secret_binary, entry.version_id)
}

fn value(text: Option<String>, binary: Option<Blob>, version: Option<String>) -> Option<Value> {
    let bytes = match (text, binary) {
        (Some(text), _) => text.into_bytes(),
        (None, Some(binary)) => binary.into_inner(),
        (None, None) => return None,
    };
    Some(Value {
        bytes: SecretBytes::new(bytes),
        version: Version::new(version?).ok()?,
    })
}
