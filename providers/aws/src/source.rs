//! One class on its way through the regions: logged in, read, and taken apart into files.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use async_trait::async_trait;
use coffer_provider::{
    Caller, ErrorKind, IdentifiedBy, Life, ObjectRef, Pod, ProviderError, Secret, Sharing, Source,
    Version,
};
use futures_util::future::join_all;
use sha2::{Digest, Sha256};

use crate::Cluster;
use crate::arn;
use crate::error::is_outage;
use crate::login::Account;
use crate::name;
use crate::objects::{Entry, Reach, Selector};
use crate::parameters::{Class, Via};
use crate::sessions::{Session, Sessions};
use crate::value::Value;

type Answer = Result<Secret, ProviderError>;

pub(crate) struct AwsSource {
    class: Class,
    identified_by: IdentifiedBy,
    /// Those that a ServiceAccount may name.
    audiences: Arc<[String]>,
    objects: Vec<ObjectRef>,
    /// Where in the class a request comes from.
    places: HashMap<String, usize>,
    sessions: Arc<Sessions>,
    cluster: Arc<dyn Cluster>,
}

impl AwsSource {
    pub(crate) fn new(
        class: Class,
        audiences: Arc<[String]>,
        sessions: Arc<Sessions>,
        cluster: Arc<dyn Cluster>,
    ) -> Self {
        let objects: Vec<_> = class
            .entries
            .iter()
            .map(|entry| entry.object.clone())
            .collect();
        let place = |(at, object): (usize, &ObjectRef)| (object.request.clone(), at);
        Self {
            identified_by: identified_by(&class),
            places: objects.iter().enumerate().map(place).collect(),
            objects,
            audiences: match class.login.via {
                Via::WebIdentity => audiences,
                Via::PodIdentity(_) => Arc::default(),
            },
            class,
            sessions,
            cluster,
        }
    }

    /// The entry that an object stands for; whoever asks got it from us.
    fn entry(&self, object: &ObjectRef) -> Option<&Entry> {
        self.places
            .get(&object.request)
            .map(|at| &self.class.entries[*at])
    }

    /// The regions in their order.
    async fn regions(&self) -> Result<Vec<String>, ProviderError> {
        let mut regions = Vec::with_capacity(1 + self.class.failover.len());
        regions.push(match &self.class.region {
            Some(region) => region.clone(),
            None => {
                let region = self.cluster.node_region().await?;
                let region = region
                    .filter(|region| arn::is_region(region))
                    .ok_or_else(|| {
                        let problem =
                            "is missing, and the node has no label topology.kubernetes.io/region";
                        ProviderError::parameter("parameters.region", problem)
                    })?;
                self.class.check_regions(&region)?;
                region
            }
        });
        regions.extend_from_slice(&self.class.failover);
        Ok(regions)
    }

    async fn session(&self, region: &str, caller: &Caller) -> Result<Arc<Session>, ProviderError> {
        let login = &self.class.login;
        self.sessions
            .session(&self.identified_by, login, region, caller)
            .await
    }

    /// Asks one region for these entries; `None` for those that it cannot have.
    async fn read(
        &self,
        caller: &Caller,
        region: &str,
        first: bool,
        entries: &[&Entry],
    ) -> Vec<Option<Answer>> {
        let selectors: Vec<_> = entries.iter().map(|e| e.selector(region, first)).collect();
        let read = async |session: &Result<Arc<Session>, ProviderError>, at: usize| {
            let selector = selectors[at]?;
            Some(match session {
                Ok(session) => secret(session, entries[at], selector).await,
                Err(error) => Err(error.clone()),
            })
        };
        let mut now = self.session(region, caller).await;
        let mut answers = join_all((0..entries.len()).map(|at| read(&now, at))).await;
        let is_refused = |answer: &Option<Answer>| matches!(answer, Some(Err(error)) if error.kind() == ErrorKind::Unauthenticated);
        let places = 0..entries.len();
        let refused: Vec<_> = places.filter(|at| is_refused(&answers[*at])).collect();
        // Credentials can end before their time. New ones are tried once.
        if let Ok(last) = &now
            && !refused.is_empty()
        {
            self.sessions.forget(last);
            now = self.session(region, caller).await;
            let again = join_all(refused.iter().map(|at| read(&now, *at))).await;
            for (at, answer) in refused.into_iter().zip(again) {
                answers[at] = answer;
            }
        }
        answers
    }

    /// Asks one region after the other for what those before it could not give.
    async fn in_need(
        &self,
        caller: &Caller,
        regions: &[String],
        entries: &[&Entry],
    ) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = vec![None; entries.len()];
        for (index, region) in regions.iter().enumerate() {
            let is_open = |answer: &Option<Answer>| match answer {
                None => true,
                Some(answer) => answer.as_ref().is_err_and(is_outage),
            };
            let open: Vec<_> = (0..entries.len())
                .filter(|at| is_open(&answers[*at]))
                .collect();
            if open.is_empty() {
                break;
            }
            let asked: Vec<_> = open.iter().map(|at| entries[*at]).collect();
            let read = self.read(caller, region, index == 0, &asked).await;
            for (at, answer) in open.into_iter().zip(read) {
                let before = answers[at].take();
                answers[at] = match (before, answer) {
                    // It stays an outage: what a standby region lacks, the first one may have.
                    (Some(Err(first)), Some(Err(then))) => Some(Err(both(&first, &then))),
                    (before, None) => before,
                    (_, answer) => answer,
                };
            }
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(nowhere))
            .collect()
    }

    /// Asks all regions, as the incumbent does: one that says no is enough for a failure, and one that
    /// is out of order is none.
    async fn everywhere(
        &self,
        caller: &Caller,
        regions: &[String],
        entries: &[&Entry],
    ) -> Vec<Answer> {
        let read = |(index, region): (usize, &String)| {
            let region = region.clone();
            async move { self.read(caller, &region, index == 0, entries).await }
        };
        let read = join_all(regions.iter().enumerate().map(read)).await;
        let mut answers: Vec<Option<Answer>> = vec![None; entries.len()];
        for (at, answer) in read
            .into_iter()
            .flat_map(|answers| answers.into_iter().enumerate())
        {
            let before = answers[at].take();
            answers[at] = match (before, answer) {
                (before, None) => before,
                (None, answer) => answer,
                (Some(Err(first)), Some(Err(then))) if is_outage(&first) && is_outage(&then) => {
                    Some(Err(both(&first, &then)))
                }
                (Some(Err(first)), _) if !is_outage(&first) => Some(Err(first)),
                (Some(Err(_)), answer) => answer,
                (Some(Ok(_)), Some(Err(then))) if !is_outage(&then) => Some(Err(then)),
                (before, _) => before,
            };
        }
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(nowhere))
            .collect()
    }
}

#[async_trait]
impl Source for AwsSource {
    fn identified_by(&self) -> &IdentifiedBy {
        &self.identified_by
    }

    async fn known_as(&self, pod: &Pod) -> Option<String> {
        match self.class.login.via {
            Via::WebIdentity => self.sessions.role_of(pod).await,
            // The agent knows the role, and the driver does not.
            Via::PodIdentity(_) => None,
        }
    }

    fn further_audiences(&self) -> &[String] {
        &self.audiences
    }

    fn objects(&self) -> &[ObjectRef] {
        &self.objects
    }

    fn can_give(&self, object: &ObjectRef, file: &str) -> bool {
        let Some(entry) = self.entry(object) else {
            return false;
        };
        // What nobody declares is looked for where names are not known before.
        let is_declared = || self.class.entries.iter().any(|entry| entry.declares(file));
        entry.declares(file) || entry.may_have(file) && !is_declared()
    }

    async fn fetch(&self, caller: &Caller, objects: &[ObjectRef]) -> Vec<Answer> {
        let entries: Option<Vec<_>> = objects.iter().map(|object| self.entry(object)).collect();
        let Some(entries) = entries else {
            let problem = "an object is asked for that is not one of this class";
            let error = ProviderError::new(ErrorKind::InvalidParameters, problem);
            return vec![Err(error); objects.len()];
        };
        if entries.is_empty() {
            return Vec::new();
        }
        match self.regions().await {
            Ok(regions) if self.class.eager => self.everywhere(caller, &regions, &entries).await,
            Ok(regions) => self.in_need(caller, &regions, &entries).await,
            Err(error) => vec![Err(error); objects.len()],
        }
    }

    async fn versions(&self, caller: &Caller, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        let unknown = || vec![None; objects.len()];
        let Ok(regions) = self.regions().await else {
            return unknown();
        };
        let region = &regions[0];
        let Ok(session) = self.session(region, caller).await else {
            return unknown();
        };
        let version = async |object| {
            let entry = self.entry(object)?;
            match entry.reach {
                Reach::One => session.version(entry.selector(region, true)?).await,
                Reach::Prefix(_) => None,
            }
        };
        join_all(objects.iter().map(version)).await
    }

    async fn log_out(&self, caller: &Caller) {
        // Nobody is told: credentials end by themselves.
        self.let_go(caller);
    }

    fn let_go(&self, caller: &Caller) {
        if let Ok(account) = Account::of(caller) {
            self.sessions.log_out(&self.identified_by, &account);
        }
    }
}

fn identified_by(class: &Class) -> IdentifiedBy {
    let first = class.region.as_deref().unwrap_or("the node's region");
    let then = if class.eager { " and " } else { ", else " };
    let mut store = first.to_owned();
    for region in &class.failover {
        store += then;
        store += region;
    }
    let role = match &class.login.then {
        None => "the ServiceAccount's".to_owned(),
        Some(next) => {
            let id = next
                .external_id
                .as_deref()
                .map(|id| format!(" with external id {id}"));
            next.arn.clone() + &id.unwrap_or_default()
        }
    };
    IdentifiedBy::Token {
        audience: class.audience().to_owned(),
        store,
        role,
    }
}

/// Reads one entry.
async fn secret(session: &Session, entry: &Entry, selector: &Selector) -> Answer {
    let found = match entry.reach {
        Reach::One => {
            let value = session.value(selector).await?;
            vec![(entry.object.name.clone(), value)]
        }
        Reach::Prefix(translation) => {
            let mut found = session.below(selector).await?;
            // Services give them in any order.
            found.sort_by(|(one, _), (other, _)| one.cmp(other));
            let file = |(name, value): (String, Value)| (translation.apply(&name), value);
            found.into_iter().map(file).collect()
        }
    };
    let named = |error: ProviderError| {
        ProviderError::new(error.kind(), format!("{}: {error}", selector.id))
    };
    let version = version(&found, entry.reach);
    let mut files = Vec::with_capacity(found.len());
    for (file, value) in found {
        if let Some(problem) = name::problem(&file) {
            let problem = format!("{}: an object below it {problem}", selector.id);
            return Err(ProviderError::new(ErrorKind::InvalidAnswer, problem));
        }
        files.extend(entry.view.files(&file, value.bytes).map_err(named)?);
    }
    Ok(Secret {
        files,
        version,
        life: Life::Static,
        sharing: Sharing::ServiceAccount,
    })
}

/// The version of one is the store's own; of a set it is made of the names and versions in it.
fn version(found: &[(String, Value)], reach: Reach) -> Version {
    if let (Reach::One, [(_, value)]) = (reach, found) {
        return value.version.clone();
    }
    let mut hash = Sha256::new();
    for (name, value) in found {
        for text in [name, value.version.as_str()] {
            hash.update(text);
            hash.update([0]);
        }
    }
    let mut version = String::from("set-");
    for byte in &hash.finalize()[..16] {
        write!(version, "{byte:02x}").expect("a String takes everything");
    }
    Version::new(version).expect("it is short and printable")
}

/// Two regions failed: what to do is what the first one's error says.
fn both(first: &ProviderError, then: &ProviderError) -> ProviderError {
    let detail = |error: &ProviderError| error.detail().unwrap_or_default().to_owned();
    let error = ProviderError::new(first.kind(), format!("{first}; {then}")).with_detail(format!(
        "{}; {}",
        detail(first),
        detail(then)
    ));
    match first.retry_after() {
        Some(after) => error.with_retry_after(after),
        None => error,
    }
}

fn nowhere() -> Answer {
    let problem = "none of the regions can have this ARN";
    Err(ProviderError::new(ErrorKind::InvalidParameters, problem))
}
