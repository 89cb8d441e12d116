//! Why a store did not give what was asked for.

use std::time::Duration;

/// The longest text of an error, in bytes: it ends up in a pod's Event.
const MAX_MESSAGE: usize = 256;

/// What went wrong, from the point of view of whoever has to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The class asks for something that cannot be.
    InvalidParameters,
    /// The store does not have the object.
    NotFound,
    /// The store knows the caller and says no.
    PermissionDenied,
    /// The store does not accept the caller's token, or there is none.
    Unauthenticated,
    /// The answer is larger than a limit.
    TooLarge,
    /// The store cannot be asked now; the same request may work later.
    Unavailable,
    /// The store did not answer in time.
    DeadlineExceeded,
    /// The store answered, but not with what its protocol promises.
    InvalidAnswer,
}

/// A failure of a provider.
///
/// `Display` is one sentence for the owner of the pod: the same for the same cause, without request
/// ids, times or values. What only an operator needs goes into the detail, which is logged on the node.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct ProviderError(Box<Parts>);

/// Behind a pointer, so that results that hold an error stay small.
#[derive(Clone, Debug)]
struct Parts {
    kind: ErrorKind,
    message: String,
    detail: Option<String>,
    retry_after: Option<Duration>,
}

impl ProviderError {
    /// An error with a sentence; it is cleaned with [`clean_text`].
    pub fn new(kind: ErrorKind, message: impl AsRef<str>) -> Self {
        Self(Box::new(Parts {
            kind,
            message: clean_text(message.as_ref(), MAX_MESSAGE),
            detail: None,
            retry_after: None,
        }))
    }

    /// A parameter that cannot be: `field` is its path below the source, as in `parameters.objects[2].path`.
    pub fn parameter(field: impl AsRef<str>, problem: impl AsRef<str>) -> Self {
        Self::new(
            ErrorKind::InvalidParameters,
            format!("{}: {}", field.as_ref(), problem.as_ref()),
        )
    }

    /// Adds what only the log of the node gets, such as a request id.
    #[must_use]
    pub fn with_detail(mut self, detail: impl AsRef<str>) -> Self {
        self.0.detail = Some(clean_text(detail.as_ref(), 4 * MAX_MESSAGE));
        self
    }

    /// Adds the time for which the store does not want to be asked again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What only the log gets.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// How long the store wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

/// Makes foreign text fit to be shown: characters that steer a terminal or reorder text become
/// visible escapes, and what is longer than `limit` bytes is cut at a character.
#[must_use]
pub fn clean_text(text: &str, limit: usize) -> String {
    const CUT: &str = "…";
    let mut clean = String::with_capacity(text.len().min(limit));
    for character in text.chars() {
        let before = clean.len();
        if is_hidden(character) {
            clean.extend(character.escape_unicode());
        } else {
            clean.push(character);
        }
        if clean.len() > limit {
            clean.truncate(before);
            while clean.len() + CUT.len() > limit && clean.pop().is_some() {}
            clean.push_str(CUT);
            break;
        }
    }
    clean
}

/// Control characters, and the ones that change the direction of the text around them.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_cut_and_shows_what_it_hides() {
        assert_eq!(clean_text("denied", 256), "denied");
        assert_eq!(clean_text("a\nb\u{1b}[31m", 256), "a\\u{a}b\\u{1b}[31m");
        assert_eq!(clean_text("abc\u{202e}def", 256), "abc\\u{202e}def");
        let long = clean_text(&"ü".repeat(1 << 20), 256);
        assert!(long.len() <= 256 && long.ends_with('…'), "{}", long.len());
        assert_eq!(clean_text("exactly8", 8), "exactly8");
    }

    #[test]
    fn an_error_says_its_sentence_and_keeps_its_detail_apart() {
        let error = ProviderError::new(ErrorKind::Unavailable, "the store is sealed")
            .with_detail("request 0815")
            .with_retry_after(Duration::from_secs(3));
        assert_eq!(error.to_string(), "the store is sealed");
        assert_eq!(error.detail(), Some("request 0815"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    }
}
