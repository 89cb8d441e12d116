//! What the kernel said about a file, as a sentence for the owner of the pod and advice to the reader.

use coffer_provider::{ErrorKind, ObjectRef, ProviderError};
use rustix::io::Errno;

use crate::parameters::WHOLE_FOLDER;

/// Why one look at an object failed, and whether it is worth another.
pub(crate) enum Trouble {
    /// It is so until somebody changes it.
    Lasting(ProviderError),
    /// It is not there, unless a swap of `..data` removed the folder that we stood in.
    Missing(ProviderError),
    /// Somebody is at it. The error holds once we stop waiting.
    Passing(ProviderError),
}

impl Trouble {
    pub(crate) fn into_error(self) -> ProviderError {
        let (Self::Lasting(error) | Self::Missing(error) | Self::Passing(error)) = self;
        error
    }

    /// The same in the middle of a folder: a link there outlives its target for the length of a swap.
    pub(crate) fn in_a_folder(self) -> Self {
        match self {
            Self::Missing(error) => Self::Passing(error),
            other => other,
        }
    }
}

/// What is asked for: the words for errors, which name it and never a path of the node.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) object: &'a ObjectRef,
}

impl Wanted<'_> {
    /// A sentence about `path`, which the object is or holds.
    pub(crate) fn says(&self, kind: ErrorKind, path: &str, what: &str) -> ProviderError {
        let ObjectRef { name, request } = self.object;
        let namespace = self.namespace;
        let subject = match path {
            WHOLE_FOLDER => format!("the folder of Namespace {namespace}"),
            path if name == request || name.is_empty() => path.to_owned(),
            path => format!("{name}: {path}"),
        };
        ProviderError::new(kind, format!("{subject} {what}"))
    }

    pub(crate) fn lasting(&self, kind: ErrorKind, path: &str, what: &str) -> Trouble {
        Trouble::Lasting(self.says(kind, path, what))
    }

    pub(crate) fn being_written(&self, path: &str) -> Trouble {
        Trouble::Passing(self.says(ErrorKind::Unavailable, path, "is being written"))
    }

    /// What it means that `path` below the folder of the Namespace could not be opened or read.
    pub(crate) fn refused(&self, errno: Errno, path: &str) -> Trouble {
        let namespace = self.namespace;
        match errno {
            Errno::NOENT | Errno::NOTDIR => Trouble::Missing(self.says(
                ErrorKind::NotFound,
                path,
                &format!("does not exist in the folder of Namespace {namespace}"),
            )),
            // openat2 says so for `..`, an absolute link and a mount point alike.
            Errno::XDEV => self.lasting(
                ErrorKind::PermissionDenied,
                path,
                &format!("leads out of the folder of Namespace {namespace}, by a link or a mount"),
            ),
            // Links in a circle, and the magic ones of /proc.
            Errno::LOOP => self.lasting(
                ErrorKind::PermissionDenied,
                path,
                "is a link that cannot be followed",
            ),
            Errno::ACCESS | Errno::PERM => self.lasting(
                ErrorKind::PermissionDenied,
                path,
                "cannot be read by the driver: its owner or its mode forbids it",
            ),
            Errno::NAMETOOLONG => {
                self.lasting(ErrorKind::TooLarge, path, "has a path that is too long")
            }
            // A rename got in the way of a `..` in a link: the kernel could not rule out an escape.
            Errno::AGAIN => self.being_written(path),
            other => Trouble::Lasting(
                self.says(ErrorKind::Unavailable, path, "cannot be read")
                    .with_detail(other.to_string()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_has_its_kind() {
        let object = &ObjectRef {
            name: "web".into(),
            request: "tls".into(),
        };
        let namespace = "shop";
        let wanted = Wanted { namespace, object };
        for (errno, kind, again) in [
            (Errno::NOENT, ErrorKind::NotFound, false),
            (Errno::NOTDIR, ErrorKind::NotFound, false),
            (Errno::XDEV, ErrorKind::PermissionDenied, false),
            (Errno::LOOP, ErrorKind::PermissionDenied, false),
            (Errno::ACCESS, ErrorKind::PermissionDenied, false),
            (Errno::PERM, ErrorKind::PermissionDenied, false),
            (Errno::NAMETOOLONG, ErrorKind::TooLarge, false),
            (Errno::AGAIN, ErrorKind::Unavailable, true),
            (Errno::MFILE, ErrorKind::Unavailable, false),
            (Errno::IO, ErrorKind::Unavailable, false),
        ] {
            let trouble = wanted.refused(errno, "tls/a");
            assert_eq!(matches!(trouble, Trouble::Passing(_)), again, "{errno}");
            let error = trouble.into_error();
            assert_eq!(error.kind(), kind, "{errno}");
            assert!(error.to_string().starts_with("web: tls/a "), "{error}");
        }
    }
}
