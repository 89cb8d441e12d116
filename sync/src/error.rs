//! What is wrong with a Secret that a class wants.

use coffer_provider::clean_text;

/// Why a Secret is not made. `Display` names the field of the class, or the key of the Secret, and what it
/// has to be. It is the same for the same cause, and quotes no value.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct ObjectError {
    field: String,
    problem: String,
}

impl ObjectError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        // Names of the class are in both, and nothing in them may forge a line of a log.
        Self {
            field: clean_text(&field.into(), 256),
            problem: clean_text(&problem.into(), 512),
        }
    }

    /// The field of the class, or the key of the Secret.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What it has to be.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The same, of a field inside of `outer`.
    pub(crate) fn within(self, outer: &str) -> Self {
        Self {
            field: format!("{outer}{}", self.field),
            ..self
        }
    }
}
