//! Reasons to gRPC codes: the only place that knows both.
//!
//! To the kubelet `Canceled`, `DeadlineExceeded`, `ResourceExhausted`, `Aborted` and `Unavailable` mean
//! that something may be left on the node, so that it unpublishes before it forgets the volume; every
//! other code means that nothing is.

use tonic::{Code, Status};

use crate::error::{PublishError, Reason};

pub(super) fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidRequest | Reason::InvalidClass => Code::InvalidArgument,
        Reason::ClassNotFound | Reason::ProviderNotFound | Reason::SecretNotFound => Code::NotFound,
        Reason::PermissionDenied => Code::PermissionDenied,
        Reason::Unauthenticated => Code::Unauthenticated,
        // Final: waiting does not make a secret smaller.
        Reason::TooLarge
        | Reason::TargetRefused
        | Reason::VolumeElsewhere
        | Reason::VolumeImmutable => Code::FailedPrecondition,
        Reason::ApiServerUnavailable | Reason::StoreUnavailable => Code::Unavailable,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::VolumeDiffers => Code::AlreadyExists,
        Reason::VolumeBusy | Reason::Unpublished => Code::Aborted,
        Reason::QueueFull | Reason::NodeExhausted => Code::ResourceExhausted,
        Reason::InvalidAnswer | Reason::NodeFailure => Code::Internal,
    }
}

/// What the kubelet is told, and through it the pod's owner. The details stay empty, as CSI wants.
pub(crate) fn status(error: &PublishError) -> Status {
    let reason = error.reason();
    Status::new(code(reason), format!("{}: {error}", reason.as_str()))
}
