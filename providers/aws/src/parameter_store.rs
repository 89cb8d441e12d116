//! Parameter Store: ten parameters in one read, whoever of the role wants them.

use std::collections::HashMap;
use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_sdk_ssm::Client;
use aws_sdk_ssm::types::Parameter;
use coffer_provider::{ErrorKind, ProviderError, SecretBytes, Version};
use futures_util::future::join_all;

use crate::arn::Arn;
use crate::gather::Gather;
use crate::objects::Selector;
use crate::value::{Place, Value};

/// The most names of one GetParameters.
const BATCH: usize = 10;
const GET: &str = "ssm:GetParameters";
const GET_BY_PATH: &str = "ssm:GetParametersByPath";

type Answer = Result<Value, ProviderError>;

/// Parameter Store in one region, as one role.
pub(crate) struct ParameterStore {
    client: Client,
    place: Place,
    gather: Arc<Gather<Selector, Answer>>,
}

impl ParameterStore {
    pub(crate) fn new(place: Place, login: Credentials) -> Self {
        Self {
            client: place.region.parameter_store(login),
            place,
            gather: Arc::default(),
        }
    }

    pub(crate) async fn value(this: &Arc<Self>, selector: &Selector) -> Answer {
        let parameters = this.clone();
        let read = move |selectors| async move { parameters.values(selectors).await };
        let answer = Gather::ask(&this.gather, selector.clone(), read).await;
        answer.unwrap_or_else(|| Err(this.place.cut_short(&selector.id, GET)))
    }

    async fn values(&self, selectors: Vec<Selector>) -> HashMap<Selector, Answer> {
        let batches = batches(selectors);
        let answers = join_all(batches.into_iter().map(|batch| self.batch(batch))).await;
        answers.into_iter().flatten().collect()
    }

    async fn batch(&self, selectors: Vec<Selector>) -> Vec<(Selector, Answer)> {
        let answers = self.ask(selectors).await;
        // One that the role may not read, or whose key is gone, fails the others with it.
        if answers.len() == 1 || !answers.iter().all(|(_, answer)| is_somebodys_own(answer)) {
            return answers;
        }
        let alone = answers
            .into_iter()
            .map(|(selector, _)| self.ask(vec![selector]));
        join_all(alone).await.into_iter().flatten().collect()
    }

    async fn ask(&self, selectors: Vec<Selector>) -> Vec<(Selector, Answer)> {
        let names = selectors.iter().map(with_version).collect();
        let request = self.client.get_parameters().with_decryption(true);
        let request = request.set_names(Some(names));
        let sent = self.place.region.send(GET, request.send()).await;
        let sent = sent.map(|answer| answer.parameters.unwrap_or_default());
        let found = sent.map(|found| found.into_iter().filter_map(named_value));
        let found = found.map(HashMap::<_, _>::from_iter);
        let answer = |selector: Selector| {
            let name = with_version(&selector);
            let asked = self.place.asked(&name, GET);
            let value = match &found {
                Ok(found) => found.get(path(&selector.id)).cloned().ok_or_else(|| {
                    let hint = "check the name, the region, and the version or label";
                    asked.says(ErrorKind::NotFound, "does not exist", "", hint)
                }),
                Err(error) => Err(asked.failed(error)),
            };
            (selector, value)
        };
        selectors.into_iter().map(answer).collect()
    }

    pub(crate) async fn below(&self, prefix: &str) -> Result<Vec<(String, Value)>, ProviderError> {
        let asked = self.place.asked(prefix, GET_BY_PATH);
        let folder = match prefix.trim_end_matches('/') {
            "" => "/",
            folder => folder,
        };
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let request = self
                .client
                .get_parameters_by_path()
                .path(folder)
                .recursive(true)
                .with_decryption(true)
                .set_next_token(next);
            let answer = self.place.region.send(GET_BY_PATH, request.send()).await;
            let answer = answer.map_err(|error| asked.failed(&error))?;
            for parameter in answer.parameters.unwrap_or_default() {
                let name = parameter.name.clone().unwrap_or_default();
                if let Some((_, value)) = named_value(parameter) {
                    found.push((name, value));
                }
            }
            next = answer.next_token;
            self.place
                .check_below(prefix, GET_BY_PATH, found.len(), next.is_some())?;
            if next.is_none() {
                return Ok(found);
            }
        }
    }
}

/// Puts selectors into requests so that no two of one request are about the same parameter: its name
/// is all that some answers have to tell them apart.
fn batches(selectors: Vec<Selector>) -> Vec<Vec<Selector>> {
    let mut batches: Vec<Vec<Selector>> = Vec::new();
    for selector in selectors {
        let has_room = |batch: &&mut Vec<Selector>| {
            batch.len() < BATCH
                && batch
                    .iter()
                    .all(|other| path(&other.id) != path(&selector.id))
        };
        match batches.iter_mut().find(has_room) {
            Some(batch) => batch.push(selector),
            None => batches.push(vec![selector]),
        }
    }
    batches
}

/// Whether a refusal is about one parameter, and the service just does not say which.
fn is_somebodys_own(answer: &Answer) -> bool {
    let own = [ErrorKind::PermissionDenied, ErrorKind::InvalidParameters];
    answer
        .as_ref()
        .is_err_and(|error| own.contains(&error.kind()))
}

/// What a parameter is asked for by.
fn with_version(selector: &Selector) -> String {
    let Selector {
        id, version, label, ..
    } = selector;
    match version.as_ref().or(label.as_ref()) {
        Some(version) => format!("{id}:{version}"),
        None => id.clone(),
    }
}

/// What the name and the ARN of a parameter have in common. Only names with several parts start with
/// a slash, and an ARN shows none of it.
fn path(id: &str) -> &str {
    let name = match Arn::parse(id) {
        Some(arn) => arn
            .resource
            .strip_prefix("parameter")
            .unwrap_or(arn.resource),
        None => id,
    };
    // A class may have written the version behind the name itself.
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    name.trim_start_matches('/')
}

fn named_value(parameter: Parameter) -> Option<(String, Value)> {
    let name = path(parameter.name.as_deref()?).to_owned();
    // A parameter that was deleted and made anew starts with version 1 again.
    let modified = parameter.last_modified_date?;
    let version = format!(
        "{} {}.{:03}",
        parameter.version,
        modified.secs(),
        modified.subsec_nanos() / 1_000_000
    );
    let value = Value {
        bytes: SecretBytes::new(parameter.value?.into_bytes()),
        version: Version::new(version).ok()?,
    };
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::objects::Service;

    fn selector(id: &str, label: Option<&str>) -> Selector {
        Selector {
            service: Service::ParameterStore,
            id: id.into(),
            version: None,
            label: label.map(str::to_owned),
        }
    }

    #[test]
    fn aws_a_request_has_ten_parameters_and_none_of_them_twice() {
        let many = (0..25)
            .map(|n| selector(&format!("/app/{n}"), None))
            .collect();
        let sizes: Vec<_> = batches(many).iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 5]);
        let arn = "arn:aws:ssm:us-west-2:123456789012:parameter/app/flag";
        let same = [
            ("/app/flag", None),
            ("/app/flag", Some("a")),
            (arn, None),
            ("/app/other", None),
            ("/app/flag:3", None),
        ];
        let batches = batches(same.map(|(id, label)| selector(id, label)).to_vec());
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
    }

    #[test]
    fn a_parameter_is_the_same_by_its_name_and_by_its_arn() {
        for (id, expected) in [
            ("flag", "flag"),
            ("/app/flag", "app/flag"),
            ("/app/flag:3", "app/flag"),
            (
                "arn:aws:ssm:us-west-2:123456789012:parameter/app/flag",
                "app/flag",
            ),
            (
                "arn:aws:ssm:us-west-2:123456789012:parameter/flag:stable",
                "flag",
            ),
        ] {
            assert_eq!(path(id), expected);
        }
    }
}
