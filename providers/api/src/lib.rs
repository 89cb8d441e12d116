//! What a store has to do to be a provider of Coffer, and the values that both sides use.
//!
//! A [`Provider`] turns the `parameters` of a SecretProviderClass into a [`Source`], once and without
//! I/O. The source says what identifies a caller to its store and which objects it reads; the driver
//! decides when they are read, shares the answers among callers that the store cannot tell apart, and
//! writes them into volumes. A provider keeps clients and logins, never a pod's token, and knows
//! nothing of volumes, schedules or Kubernetes.
//!
//! A new provider is one crate that passes [`testing::conformance`] and one line where the driver is
//! put together.

mod caller;
mod error;
mod fields;
mod object;
mod secret;
#[cfg(feature = "testing")]
pub mod testing;
mod yaml;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;

pub use caller::{Audiences, Caller, Forwarded, IdentifiedBy, Pod, ServiceAccount};
pub use error::{ErrorKind, ProviderError, clean_text};
pub use object::{Format, Lease, Life, ObjectRef, Secret, SecretFile, Sharing, Version};
pub use secret::{SecretBytes, ServiceAccountToken};
pub use yaml::Yaml;

/// The `parameters` of one source of a SecretProviderClass, as its author wrote them.
pub type Parameters = BTreeMap<String, String>;

/// One item for each time that an object of a source may have changed; bursts may come as one.
pub type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

/// A kind of store.
pub trait Provider: Send + Sync {
    /// Checks the parameters of one source. Pure: no I/O and no waiting, since it runs on the way to
    /// every publish.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidParameters`], naming the parameter and what it has to be.
    fn source(&self, parameters: &Parameters) -> Result<Arc<dyn Source>, ProviderError>;
}

/// A provider and the name that classes call it by.
pub type NamedProvider = (&'static str, Arc<dyn Provider>);

/// Providers that are not part of the process: they come and go while it runs.
pub trait Providers: Send + Sync {
    /// The provider of this name, if it is on the node now or was before.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidParameters`] for a name that no such provider can have.
    fn find(&self, name: &str) -> Result<Option<NamedProvider>, ProviderError>;

    /// The names of those that are on the node now, sorted.
    fn names(&self) -> Vec<String>;

    /// Whether this one is wanted even where the process has a provider of its own by that name.
    fn is_preferred(&self, name: &str) -> bool;
}

/// What one class asks of one store, checked.
///
/// Every method can be called at any time, from many tasks at once, and its future can be dropped at
/// any point without harm to other calls.
#[async_trait]
pub trait Source: Send + Sync {
    /// What the store tells callers apart by. Answers are only ever shared by callers for whom this
    /// comes out the same.
    fn identified_by(&self) -> &IdentifiedBy;

    /// What the store will know the pod's ServiceAccount as, where not the class but somebody else decides that:
    /// a part of what answers are shared by. Asked before a volume reads anything, so it may wait a while;
    /// `None` where that is unknown, or not so.
    async fn known_as(&self, _pod: &Pod) -> Option<String> {
        None
    }

    /// Audiences that the store may want a token for instead of the declared one, by what the provider
    /// learns of the ServiceAccount when it is asked.
    fn further_audiences(&self) -> &[String] {
        &[]
    }

    /// The tokens that are handed on to whoever reads for this source, where that is somebody else. Those that
    /// the pod does not have are no error.
    fn forwards(&self) -> Option<&Audiences> {
        None
    }

    /// What can be read, in the order of the class; names are unique.
    fn objects(&self) -> &[ObjectRef];

    /// Whether a file of this name can come of `object`, so that it has to be read for an item that wants
    /// the file.
    fn can_give(&self, object: &ObjectRef, file: &str) -> bool {
        object.names(file)
    }

    /// Objects for which this is the same text are taken out of one answer of the store. They are always
    /// read together, so that no volume has a user of one answer with the password of another.
    fn answer_of<'a>(&'a self, object: &'a ObjectRef) -> &'a str {
        &object.request
    }

    /// Reads `objects` as `caller`: one answer for each, in the same order.
    ///
    /// A batch is one call so that a store which reads many in one request can do so. One object that
    /// fails does not fail the others.
    async fn fetch(
        &self,
        caller: &Caller,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>>;

    /// Asks for the versions of `objects` where the store answers that more cheaply than a read:
    /// one for each, in the same order, `None` where only a read can tell.
    async fn versions(&self, _caller: &Caller, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        vec![None; objects.len()]
    }

    /// Follows the objects for `caller` where the store tells of changes by itself.
    ///
    /// An item means "look again", not "it is different". The stream ends when the store no longer
    /// tells; `None` means that it never does.
    fn watch(&self, _caller: &Caller) -> Option<Changes> {
        None
    }

    /// The volume that this source was made for now holds these answers to [`Self::fetch`], each file under the
    /// name that it has there.
    fn written(&self, _secrets: &[&Secret]) {}

    /// What that volume now holds, each object with its version, in the words of whoever reads for this source;
    /// nothing where the driver knows the objects by itself.
    fn holds(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Prolongs a lease that [`Life::Leased`] called renewable.
    ///
    /// # Errors
    /// When the store refuses, the secret is good until the end that was last reported.
    async fn renew(&self, _caller: &Caller, _lease: &Lease) -> Result<Life, ProviderError> {
        Err(ProviderError::new(
            ErrorKind::InvalidParameters,
            "this store has no leases to renew",
        ))
    }

    /// Gives back leases that nobody will use any more after `grace`: by then they have ended, even if
    /// this process has, where the store can do that. Best effort: a store ends them by itself in time.
    async fn release(&self, _caller: &Caller, _leases: &[Lease], _grace: Duration) {}

    /// Ends and forgets what the store gave the caller to be known by: no pod of its identity is left
    /// on the node. Best effort, as [`Self::release`].
    async fn log_out(&self, _caller: &Caller) {}

    /// Forgets the same without ending it: pods that the driver does not know may use what hangs on it.
    fn let_go(&self, _caller: &Caller) {}
}
