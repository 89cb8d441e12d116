//! What a plugin answered, judged as the incumbent judges it, and more strictly where that would leave half
//! a volume behind.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use coffer_proto::provider::{File, MountResponse, ObjectVersion};
use coffer_provider::{
    Caller, ErrorKind, Format, Life, ProviderError, Secret, SecretBytes, SecretFile, Sharing,
    Version, clean_text,
};
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::{Code, Status};
use tracing::warn;

use crate::mask::mask;

/// From here on a Secret cannot hold what a volume does.
const SECRET_BYTES: usize = 1 << 20;

const SHOWN: usize = 80;

/// What a plugin says that it has done.
pub(crate) struct Answer {
    /// The files; none where it has written them by itself.
    pub(crate) files: Vec<SecretFile>,
    /// What it calls what it has read.
    pub(crate) versions: Vec<ObjectVersion>,
}

/// Judges an answer (§1.4 of the protocol; G4).
///
/// # Errors
/// With what is wrong with it, and nothing of what is in it.
pub(crate) fn judge(
    plugin: &'static str,
    answer: MountResponse,
    caller: &Caller,
) -> Result<Answer, ProviderError> {
    if let Some(error) = answer.error.as_ref().filter(|error| !error.code.is_empty()) {
        let code = clean_text(&mask(&error.code, caller), SHOWN);
        return Err(ProviderError::new(
            ErrorKind::Unavailable,
            format!("the plugin gives the error code {code}"),
        ));
    }
    if answer.object_version.is_empty() {
        return Err(wrong("without object versions"));
    }
    let size = answer.encoded_len();
    if size > SECRET_BYTES {
        warn!(
            provider = plugin,
            bytes = size,
            "an answer of this plugin is larger than a Secret can be"
        );
    }
    let files = answer.files.into_iter().map(|file| file_of(file, caller));
    let files: Vec<SecretFile> = files.collect::<Result<_, _>>()?;
    let mut paths = BTreeSet::new();
    if let Some(twice) = files.iter().find(|file| !paths.insert(&file.name)) {
        let path = clean_text(&twice.name, SHOWN);
        return Err(wrong(&format!("with two files {path:?}")));
    }
    Ok(Answer {
        files,
        versions: answer.object_version,
    })
}

fn wrong(how: &str) -> ProviderError {
    ProviderError::new(
        ErrorKind::InvalidAnswer,
        format!("the plugin answered {how}"),
    )
}

fn file_of(file: File, caller: &Caller) -> Result<SecretFile, ProviderError> {
    if mask(&file.path, caller) != file.path {
        return Err(wrong("with a secret of the pod in the name of a file"));
    }
    let mode = u32::try_from(file.mode).ok().filter(|mode| *mode <= 0o777);
    let Some(mode) = mode else {
        let path = clean_text(&file.path, SHOWN);
        return Err(wrong(&format!("with a mode for {path:?} that is none")));
    };
    Ok(SecretFile {
        format: format_of(&file.path),
        name: file.path,
        bytes: SecretBytes::new(file.contents),
        // 0 is no mode to a plugin, but that it has no opinion.
        mode: Some(mode).filter(|mode| *mode != 0),
    })
}

/// How `items[].key` looks into a file: by its name, since a plugin does not say.
#[must_use]
pub fn format_of(path: &str) -> Format {
    match path.rsplit('.').next() {
        Some("yaml" | "yml") => Format::Yaml,
        _ => Format::Json,
    }
}

/// All files as one secret. Its version follows the content, not the plugin's word: what it is made with is
/// known to this process alone, so it says nothing of the content to anybody else.
///
/// # Errors
/// When the kernel has no random number.
pub(crate) fn secret(
    files: Vec<SecretFile>,
    versions: &[ObjectVersion],
) -> Result<Secret, ProviderError> {
    static KEY: OnceLock<[u8; 32]> = OnceLock::new();
    let key = match KEY.get() {
        Some(key) => key,
        None => {
            let mut key = [0; 32];
            rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).map_err(
                |_| ProviderError::new(ErrorKind::Unavailable, "the node has no random numbers"),
            )?;
            KEY.get_or_init(|| key)
        }
    };
    let mut hash = Sha256::new_with_prefix(key);
    let mut add = |part: &[u8]| {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    };
    for version in versions {
        add(version.id.as_bytes());
        add(version.version.as_bytes());
    }
    for file in &files {
        add(file.name.as_bytes());
        add(&file.mode.unwrap_or(0).to_le_bytes());
        add(file.bytes.expose());
    }
    let version: String = hash.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Secret {
        files,
        version: Version::new(version)?,
        life: Life::Static,
        // Of those that the class and the pod have made one identity.
        sharing: Sharing::ServiceAccount,
    })
}

/// What a call that failed means.
pub(crate) fn failure(status: &Status, caller: &Caller, answer_bytes: usize) -> ProviderError {
    use std::error::Error;
    // Not the plugin's words, but what became of the connection.
    if status.source().is_some() {
        return ProviderError::new(
            ErrorKind::Unavailable,
            "the plugin broke the call off, or does not keep to gRPC",
        );
    }
    // What tonic and prost say by themselves of an answer has no other mark.
    let by_itself = |code, start| status.code() == code && status.message().starts_with(start);
    if by_itself(Code::OutOfRange, "Error, decoded message") {
        return ProviderError::new(
            ErrorKind::TooLarge,
            format!(
                "the plugin's answer has more than {answer_bytes} bytes (--max-call-recv-msg-size)"
            ),
        );
    }
    if by_itself(Code::Internal, "failed to decode Protobuf message") {
        return wrong("with something else than the protocol has");
    }
    let kind = match status.code() {
        Code::InvalidArgument => ErrorKind::InvalidParameters,
        Code::NotFound => ErrorKind::NotFound,
        Code::PermissionDenied => ErrorKind::PermissionDenied,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        // Most plugins have one code for everything: it may work later.
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => ErrorKind::Unavailable,
        Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss => ErrorKind::InvalidAnswer,
    };
    match status.message() {
        "" => ProviderError::new(kind, format!("the plugin says no: {}", status.code())),
        text => ProviderError::new(kind, format!("the plugin says: {}", mask(text, caller))),
    }
}
