//! What is to be done about one Secret, by what a class wants and what is there. Pure.

use std::collections::BTreeMap;

use coffer_sync::{Data, SecretObject};
use sha2::{Digest, Sha256};

use super::stamp::Stamp;
use crate::kube::{Live, LiveMeta, Write};

/// Secrets that have this label belong to the driver, as upstream's do. Whoever takes it off takes the
/// Secret over.
pub const MANAGED: &str = "secrets-store.csi.k8s.io/managed";
/// The class that a Secret is made for: no other one writes it (K4).
pub const CLASS: &str = "secrets-store.csi.x-k8s.io/class";
/// The [`Stamp`] of its content.
pub const VERSION: &str = "secrets-store.csi.x-k8s.io/version";

/// A Secret that a volume wants, with its content. Holds secrets: no `Debug`.
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) name: String,
    kind: String,
    class: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    data: Data,
    immutable: bool,
    stamp: Stamp,
    /// Of all that a write would write but the time.
    pub(super) hash: [u8; 32],
}

/// What is to be done.
pub(super) enum Next {
    /// There is none: make it.
    Create,
    /// It is as it should be.
    Keep,
    /// It is newer than what the volume has.
    KeepNewer,
    /// It is the driver's, and another one than it should be; without these keys from now on.
    Write(Vec<String>),
    /// It is not to be touched.
    Leave(Hindrance),
}

/// Why a Secret is not touched: a sentence for the pod's owner.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Hindrance {
    #[error(
        "is there already, and none of this driver's: it stays as it is. Delete it, take another secretName, or give it the label {MANAGED}=true"
    )]
    Foreign,
    #[error(
        "belongs to the SecretProviderClass {0}, and keeps its content: take another secretName"
    )]
    OtherClass(String),
    #[error("has the type {0}, which cannot be changed: delete it for the change")]
    OtherType(String),
    #[error("is immutable, and keeps its content: delete it for the change")]
    Immutable,
    #[error("is being deleted: it is made anew when it is gone")]
    Deleting,
}

impl Wanted {
    pub(super) fn new(
        namespace: &str,
        class: &str,
        object: &SecretObject,
        data: Data,
        stamp: Stamp,
    ) -> Self {
        let mut labels = object.labels.clone();
        labels.insert(MANAGED.to_owned(), "true".to_owned());
        let mut annotations = object.annotations.clone();
        annotations.insert(CLASS.to_owned(), class.to_owned());
        annotations.remove(VERSION);
        let mut wanted = Self {
            namespace: namespace.to_owned(),
            name: object.name.clone(),
            kind: object.kind.as_str().to_owned(),
            class: class.to_owned(),
            labels,
            annotations,
            data,
            immutable: object.immutable,
            stamp,
            hash: [0; 32],
        };
        wanted.hash = wanted.hashed();
        let version = wanted.stamp.text();
        wanted.annotations.insert(VERSION.to_owned(), version);
        wanted
    }

    /// What is sent. One that is immutable stays so: that cannot be taken back.
    pub(super) fn write(&self, immutable: bool) -> Write<'_> {
        Write {
            namespace: &self.namespace,
            name: &self.name,
            kind: &self.kind,
            labels: &self.labels,
            annotations: &self.annotations,
            data: &self.data,
            immutable: self.immutable || immutable,
        }
    }

    pub(super) fn next(&self, live: Option<&Live>) -> Next {
        let Some(live) = live else {
            return Next::Create;
        };
        if let Some(hindrance) = self.hindrance(&live.meta) {
            return Next::Leave(hindrance);
        }
        if live.kind != self.kind {
            return Next::Leave(Hindrance::OtherType(live.kind.clone()));
        }
        let there = live.meta.annotations.get(VERSION);
        let there = there.and_then(|text| Stamp::parse(text));
        if there
            .as_ref()
            .is_some_and(|there| self.stamp.is_older_than(there))
        {
            return Next::KeepNewer;
        }
        let equal = equal(&self.data, &live.data);
        if live.immutable && !equal {
            return Next::Leave(Hindrance::Immutable);
        }
        let described = self.describes(&live.meta)
            && (live.immutable || !self.immutable)
            && there.is_some_and(|there| !self.stamp.is_numbered_higher(&there));
        match equal && described {
            true => Next::Keep,
            false => Next::Write(self.surplus(live)),
        }
    }

    /// Whether a Secret is another's, by its metadata alone.
    fn hindrance(&self, live: &LiveMeta) -> Option<Hindrance> {
        if live.labels.get(MANAGED).map(String::as_str) != Some("true") {
            return Some(Hindrance::Foreign);
        }
        if live.deleting {
            return Some(Hindrance::Deleting);
        }
        match live.annotations.get(CLASS) {
            Some(class) if *class == self.class => None,
            Some(class) => Some(Hindrance::OtherClass(class.clone())),
            None => self.upstreams_class(live).map(Hindrance::OtherClass),
        }
    }

    /// Upstream does not write down the class. Where it made a pod's status object the owner, the end of
    /// that one's name says whether it was another one.
    fn upstreams_class(&self, live: &LiveMeta) -> Option<String> {
        let ours = format!("-{}-{}", self.namespace, self.class);
        let mut statuses = live
            .owners
            .iter()
            .filter(|owner| owner.kind == "SecretProviderClassPodStatus")
            .peekable();
        let first = statuses.peek()?.name.clone();
        let is_ours = statuses.any(|owner| owner.name.ends_with(&ours));
        (!is_ours).then(|| format!("of the status {first}"))
    }

    /// Labels and annotations of others do not matter.
    fn describes(&self, live: &LiveMeta) -> bool {
        let all = |ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>| {
            let mut ours = ours.iter().filter(|(name, _)| *name != VERSION);
            ours.all(|(name, value)| theirs.get(name) == Some(value))
        };
        all(&self.labels, &live.labels) && all(&self.annotations, &live.annotations)
    }

    fn surplus(&self, live: &Live) -> Vec<String> {
        let keys = live.data.keys().filter(|key| !self.data.contains_key(*key));
        keys.cloned().collect()
    }

    fn hashed(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut put = |part: &[u8]| {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        put(self.class.as_bytes());
        put(self.kind.as_bytes());
        put(&[u8::from(self.immutable)]);
        for map in [&self.labels, &self.annotations, &self.stamp.objects] {
            put(&(map.len() as u64).to_be_bytes());
            for (name, value) in map {
                put(name.as_bytes());
                put(value.as_bytes());
            }
        }
        for (key, bytes) in &self.data {
            put(key.as_bytes());
            put(bytes.expose());
        }
        hash.finalize().into()
    }
}

fn equal(one: &Data, other: &Data) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|((key, bytes), (other_key, other_bytes))| {
                key == other_key && bytes.expose() == other_bytes.expose()
            })
}

#[cfg(test)]
mod tests;
