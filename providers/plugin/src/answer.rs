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

use crate::mask::{is_told_in, mask};

/// From here on a Secret cannot hold what a volume does.
const SECRET_BYTES: usize = 1 << 20;

/// The longest path that a system call takes (PATH_MAX).
const PATH_BYTES: usize = 4096;

const SHOWN: usize = 80;

/// What a plugin says that it has done.
pub(crate) struct Answer {
    /// The files; none where it has written them by itself.
    pub(crate) files: Vec<SecretFile>,
    /// What it calls what it has read.
    pub(crate) versions: Vec<ObjectVersion>,
}

/// Judges an answer (§1.4 of the protocol; G4), which may have so many `files`.
///
/// # Errors
/// With what is wrong with it, and nothing of what is in it.
pub(crate) fn judge(
    plugin: &'static str,
    answer: MountResponse,
    files: usize,
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
    // Before anything that takes its time with each: the bytes of an answer are room for a million.
    for (what, many) in [
        ("files", answer.files.len()),
        ("object versions", answer.object_version.len()),
    ] {
        if many > files {
            return Err(ProviderError::new(
                ErrorKind::TooLarge,
                format!(
                    "the plugin answered with {many} {what}, {files} are allowed (--max-volume-files)"
                ),
            ));
        }
    }
    let size = answer.encoded_len();
    if size > SECRET_BYTES {
        warn!(
            provider = plugin,
            bytes = size,
            "an answer of this plugin is larger than a Secret can be"
        );
    }
    let paths: Vec<_> = answer.files.iter().map(|file| file.path.as_str()).collect();
    if paths.iter().any(|path| path.len() > PATH_BYTES) {
        return Err(wrong("with a path that is longer than 4096 bytes"));
    }
    if is_told_in(&paths, caller) {
        return Err(wrong("with a secret of the pod in the name of a file"));
    }
    let files = answer.files.into_iter().map(file_of);
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

fn file_of(file: File) -> Result<SecretFile, ProviderError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::testing::caller;
    use std::time::{Duration, Instant};

    const FILES: usize = 256;

    fn answer(files: usize) -> MountResponse {
        let file = |n| File {
            path: format!("file-{n}-of-the-shop"),
            mode: 0,
            contents: b"x".to_vec(),
        };
        MountResponse {
            object_version: vec![ObjectVersion::default()],
            error: None,
            files: (0..files).map(file).collect(),
        }
    }

    /// A pod with as much in the Secret of nodePublishSecretRef as one can hold.
    fn secretive() -> Caller {
        let mut caller = caller("shop");
        let value: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_be_bytes).collect();
        caller.secrets.insert("k".into(), SecretBytes::new(value));
        caller
    }

    #[test]
    fn rule_g4_an_answer_with_too_many_files_or_versions_is_refused_before_they_are_looked_at() {
        let mut caller = secretive();
        let name = SecretBytes::new(b"file-7-of-the-shop".to_vec());
        caller.secrets.insert("name".into(), name);
        let mut versions = answer(1);
        versions.object_version = vec![ObjectVersion::default(); FILES + 1];
        for (answer, words) in [
            (answer(300_000), "300000 files, 256 are allowed"),
            (versions, "257 object versions, 256 are allowed"),
        ] {
            let error = judge("mock", answer, FILES, &caller).err().expect(words);
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{words}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let told = judge("mock", answer(FILES), FILES, &caller).err();
        let told = told.expect("a name is a secret");
        assert!(told.to_string().contains("a secret of the pod"), "{told}");
        let mut long = answer(1);
        long.files[0].path = "x".repeat(PATH_BYTES + 1);
        let long = judge("mock", long, FILES, &caller).err().expect("long");
        assert_eq!(long.kind(), ErrorKind::InvalidAnswer);
    }

    #[test]
    fn rule_g4_the_secrets_of_a_pod_are_gone_through_once_for_all_files_of_an_answer() {
        let caller = secretive();
        let judged = |files| {
            let start = Instant::now();
            let judged = judge("mock", answer(files), FILES, &caller);
            assert_eq!(judged.expect("good").files.len(), files);
            start.elapsed()
        };
        // A hundred and more times the time of one, where each has its own turn.
        let (one, all) = (judged(1), judged(FILES));
        assert!(all < one * 16 + Duration::from_secs(1), "{one:?}, {all:?}");
    }
}
