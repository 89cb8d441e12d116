//! Why a volume could not be published: a reason for people, from which `csi/status.rs` makes a code.

use coffer_provider::{ErrorKind, ProviderError};

use crate::class::{ClassError, ClassName, ModeError};
use crate::volume::{TargetPath, VolumeError};
use crate::volume_path::{PathError, VolumePath};

/// One word per cause, the same in statuses, logs, metrics and the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The kubelet or the pod asks for something that cannot be.
    InvalidRequest,
    /// The class cannot be used as it is written.
    InvalidClass,
    /// There is no such class in the pod's Namespace.
    ClassNotFound,
    /// No provider has the name that the class gives.
    ProviderNotFound,
    /// The store does not have an object, or the object has not got a key.
    SecretNotFound,
    /// The store refuses this identity.
    PermissionDenied,
    /// There is no token that the store accepts.
    Unauthenticated,
    /// The volume would pass a limit.
    TooLarge,
    /// The API server cannot be asked now.
    ApiServerUnavailable,
    /// The store cannot be asked now.
    StoreUnavailable,
    /// There was no answer in time.
    DeadlineExceeded,
    /// The store answered with something that cannot be mounted.
    InvalidAnswer,
    /// The same volume is published at another target path.
    VolumeElsewhere,
    /// The same volume is published with other arguments.
    VolumeDiffers,
    /// Another operation on the volume did not end in time.
    VolumeBusy,
    /// The volume was unpublished meanwhile.
    Unpublished,
    /// What lies at the target path is not ours to touch.
    TargetRefused,
    /// The volume keeps what it has, though its class is another one now.
    VolumeImmutable,
    /// Too many volumes wait for the store.
    QueueFull,
    /// The node has no room or no descriptors left.
    NodeExhausted,
    /// The kernel did not do what it should.
    NodeFailure,
}

impl Reason {
    /// The word itself.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "InvalidRequest",
            Self::InvalidClass => "InvalidClass",
            Self::ClassNotFound => "ClassNotFound",
            Self::ProviderNotFound => "ProviderNotFound",
            Self::SecretNotFound => "SecretNotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::Unauthenticated => "Unauthenticated",
            Self::TooLarge => "TooLarge",
            Self::ApiServerUnavailable => "ApiServerUnavailable",
            Self::StoreUnavailable => "StoreUnavailable",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::InvalidAnswer => "InvalidAnswer",
            Self::VolumeElsewhere => "VolumeElsewhere",
            Self::VolumeDiffers => "VolumeDiffers",
            Self::VolumeBusy => "VolumeBusy",
            Self::Unpublished => "Unpublished",
            Self::TargetRefused => "TargetRefused",
            Self::VolumeImmutable => "VolumeImmutable",
            Self::QueueFull => "QueueFull",
            Self::NodeExhausted => "NodeExhausted",
            Self::NodeFailure => "NodeFailure",
        }
    }
}

/// Why a volume could not be published.
///
/// `Display` ends up in an Event of the pod: a sentence that names what its owner can change, the same
/// for the same cause.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A field of the CSI request.
    #[error("{field}: {problem}")]
    InvalidRequest {
        /// As CSI names it.
        field: &'static str,
        /// What it has to be.
        problem: String,
    },
    /// The pod's volume does not say which class it wants.
    #[error(
        "volumeAttributes.secretProviderClass: name a SecretProviderClass of the pod's Namespace"
    )]
    NoClass,
    /// The pod has no token for a store.
    #[error(
        "there is no token for the audience {0:?}: list it in spec.tokenRequests of the CSIDriver"
    )]
    NoToken(String),
    /// The pod's token for a store is of no more use.
    #[error(
        "the token for the audience {0:?} has expired: the kubelet brings another one; is the clock of the node right?"
    )]
    TokenExpired(String),
    /// A token without an audience is one for the API server.
    #[error(
        "the audience is empty: a token for it is good for the API server itself, and is not given to a store"
    )]
    EmptyAudience,
    /// The classes are not known yet.
    #[error("the SecretProviderClasses have not been read from the API server yet")]
    ClassesUnknown,
    /// The class is not there. Its first words are upstream's: people and tools look for them.
    #[error("failed to get secretproviderclass {0}: not found, create it in the pod's Namespace")]
    ClassNotFound(ClassName),
    /// The class has a mistake.
    #[error("SecretProviderClass {name}: {error}")]
    InvalidClass {
        /// The class.
        name: ClassName,
        /// What is wrong.
        error: ClassError,
    },
    /// A provider that is not there.
    #[error(
        "SecretProviderClass {class}: there is no provider {provider:?}; this node has {known}"
    )]
    ProviderNotFound {
        /// The class.
        class: ClassName,
        /// The name that it gives.
        provider: String,
        /// The names that there are.
        known: String,
    },
    /// A provider does not take its parameters.
    #[error("SecretProviderClass {class}: spec.{source_path}{error}")]
    Parameters {
        /// The class.
        class: ClassName,
        /// `sources[n].`, or nothing in the short form.
        source_path: String,
        /// Which parameter, and why not.
        error: ProviderError,
    },
    /// Too many others wait for the same store.
    #[error("provider {provider}: too many volumes wait for this store already")]
    QueueFull {
        /// The provider's name.
        provider: String,
    },
    /// A provider could not read an object.
    #[error("provider {provider}: {error}")]
    Provider {
        /// The provider's name.
        provider: String,
        /// What it says.
        #[source]
        error: ProviderError,
    },
    /// An item that cannot be had from what was read.
    #[error("spec.items[{index}]: {message}")]
    Item {
        /// Its place in the class.
        index: usize,
        /// What went wrong.
        kind: ErrorKind,
        /// The sentence.
        message: String,
    },
    /// A name from a store that cannot be a path.
    #[error("{0}: map it with spec.items")]
    Path(PathError),
    /// A mode from a store that cannot be one.
    #[error("file {file:?}: {problem}")]
    StoreMode {
        /// The file.
        file: String,
        /// What is wrong.
        problem: ModeError,
    },
    /// Two files want one path.
    #[error("two files have the path {path}: map them with spec.items")]
    PathTwice {
        /// The path.
        path: VolumePath,
    },
    /// A file lies where another needs a folder.
    #[error("{path} is a file, and a folder of another file: map them with spec.items")]
    PathIsFolder {
        /// The path.
        path: VolumePath,
    },
    /// There is nothing to write.
    #[error("the sources of the class gave no file at all")]
    NothingToMount,
    /// More than a volume may hold.
    #[error("the volume would have {size} {what}, {limit} are allowed")]
    TooLarge {
        /// Of what there is too much.
        what: &'static str,
        /// How much there is.
        size: usize,
        /// How much there may be.
        limit: usize,
    },
    /// The class has changed under a volume that is to stay as it is.
    #[error(
        "SecretProviderClass {0} has changed, and the volume is immutable: it keeps what it has, make the pod anew for the change"
    )]
    Immutable(ClassName),
    /// What is to stay as it is would end by itself.
    #[error(
        "SecretProviderClass {0}: spec.immutable: a secret has a lease, which ends when nobody renews it: remove immutable"
    )]
    LeaseCannotStay(ClassName),
    /// The store took too long.
    #[error("the store did not answer within {0} s")]
    DeadlineExceeded(u64),
    /// Another operation on the volume took too long.
    #[error("another operation on this volume has not ended yet")]
    Busy,
    /// The volume was unpublished while it was published.
    #[error("the volume was unpublished meanwhile")]
    Unpublished,
    /// A mistake of ours.
    #[error("the driver failed on this volume: see its log on the node, and please report it")]
    Panicked,
    /// One volume id, two target paths.
    #[error("target_path: the volume is already published at {0}")]
    Elsewhere(TargetPath),
    /// One volume id, two sets of arguments.
    #[error("the volume is already published with other arguments")]
    Different,
    /// The node.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl PublishError {
    /// What only the log of the node gets.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Parameters { error, .. } | Self::Provider { error, .. } => error.detail(),
            _ => None,
        }
    }

    /// The provider that it is about; empty where it is about none.
    #[must_use]
    pub fn provider(&self) -> &str {
        match self {
            Self::Provider { provider, .. } | Self::QueueFull { provider } => provider,
            _ => "",
        }
    }

    /// The one word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::InvalidRequest { .. } | Self::NoClass | Self::NoToken(_) => {
                Reason::InvalidRequest
            }
            Self::TokenExpired(_) => Reason::Unauthenticated,
            Self::EmptyAudience | Self::LeaseCannotStay(_) => Reason::InvalidClass,
            Self::Immutable(_) => Reason::VolumeImmutable,
            Self::QueueFull { .. } => Reason::QueueFull,
            Self::ClassesUnknown => Reason::ApiServerUnavailable,
            Self::ClassNotFound(_) => Reason::ClassNotFound,
            Self::ProviderNotFound { .. } => Reason::ProviderNotFound,
            Self::Parameters { error, .. } | Self::Provider { error, .. } => {
                kind_reason(error.kind())
            }
            Self::Item { kind, .. } => kind_reason(*kind),
            Self::InvalidClass { .. }
            | Self::Path(_)
            | Self::StoreMode { .. }
            | Self::PathTwice { .. }
            | Self::PathIsFolder { .. } => Reason::InvalidClass,
            Self::NothingToMount => Reason::SecretNotFound,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::DeadlineExceeded(_) => Reason::DeadlineExceeded,
            Self::Busy => Reason::VolumeBusy,
            Self::Unpublished => Reason::Unpublished,
            Self::Elsewhere(_) => Reason::VolumeElsewhere,
            Self::Different => Reason::VolumeDiffers,
            Self::Panicked => Reason::NodeFailure,
            Self::Volume(error) => error.reason(),
        }
    }
}

pub(crate) fn kind_reason(kind: ErrorKind) -> Reason {
    match kind {
        ErrorKind::InvalidParameters => Reason::InvalidClass,
        ErrorKind::NotFound => Reason::SecretNotFound,
        ErrorKind::PermissionDenied => Reason::PermissionDenied,
        ErrorKind::Unauthenticated => Reason::Unauthenticated,
        ErrorKind::TooLarge => Reason::TooLarge,
        ErrorKind::Unavailable => Reason::StoreUnavailable,
        ErrorKind::DeadlineExceeded => Reason::DeadlineExceeded,
        ErrorKind::InvalidAnswer => Reason::InvalidAnswer,
    }
}
