//! The path of a file in a volume.

use std::fmt;

use coffer_provider::clean_text;
use schemars::JsonSchema;
use serde::Deserialize;

/// Longest name between two slashes, in bytes (NAME_MAX).
const MAX_NAME: usize = 255;
/// Longest path, in bytes (PATH_MAX).
const MAX_PATH: usize = 4096;
/// Most names in one path. Real parameter names of stores reach 15.
const MAX_DEPTH: usize = 32;

/// A relative path that stays in its volume: whatever is written there is below the root of the
/// volume, and beside what the driver keeps there for itself.
///
/// The rules are those of a Secret volume (`items[].path` in the Kubernetes API), and in addition no
/// name has characters that a terminal would not show.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct VolumePath(String);

/// Why a path cannot be one. `Display` shows what is wrong with it, with the path made visible.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("path {path:?} {problem}")]
pub struct PathError {
    path: String,
    problem: &'static str,
}

impl VolumePath {
    /// Takes a path as it stands: nothing is resolved or cut.
    ///
    /// # Errors
    /// Names the rule that the path breaks.
    pub fn new(path: impl Into<String>) -> Result<Self, PathError> {
        let path = path.into();
        match problem(&path) {
            None => Ok(Self(path)),
            Some(problem) => Err(PathError {
                path: clean_text(&path, 80),
                problem,
            }),
        }
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names that the path consists of; at least one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The name in the root of the volume.
    #[must_use]
    pub fn first_name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(first, _)| first)
    }

    /// The folders that the path needs, from the outermost to the innermost.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

fn problem(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.len() > MAX_PATH {
        return Some("is longer than 4096 bytes");
    }
    if path.starts_with('/') {
        return Some("is absolute");
    }
    // The driver's own names in the root of a volume: `..data` and the generations behind it.
    if path.starts_with("..") {
        return Some("starts with `..`");
    }
    if clean_text(path, usize::MAX) != path {
        return Some("has a character that cannot be seen");
    }
    let mut depth = 0;
    for name in path.split('/') {
        depth += 1;
        match name {
            "" => return Some("has an empty name in it"),
            "." | ".." => return Some("has `.` or `..` in it"),
            long if long.len() > MAX_NAME => return Some("has a name longer than 255 bytes"),
            _ => {}
        }
    }
    (depth > MAX_DEPTH).then_some("is more than 32 folders deep")
}

impl TryFrom<String> for VolumePath {
    type Error = PathError;

    fn try_from(path: String) -> Result<Self, PathError> {
        Self::new(path)
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_p1_a_path_that_could_leave_its_volume_is_refused() {
        for bad in [
            "",
            "/",
            "/etc/passwd",
            ".",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            "a/..",
            "..data",
            "..2026_11_25",
            "..",
            "a\0b",
            "a\nb",
            "a\u{1b}[2J",
            "a\u{7f}",
            "a\u{202e}b",
            "\u{200b}",
        ] {
            let error = VolumePath::new(bad).expect_err(bad).to_string();
            assert!(!error.contains(|c: char| c.is_control()), "{error:?}");
        }
        for good in [
            "a", ".x", "a/b", "a/..b", "a b", "ü", "a..b", "$(x)", "-rf", "a\\b",
        ] {
            assert_eq!(VolumePath::new(good).expect(good).as_str(), good);
        }
    }

    #[test]
    fn rule_p2_lengths_are_counted_in_bytes() {
        let deep = |n: usize| vec!["a"; n].join("/");
        let long = |n: usize| vec!["x".repeat(127); n].join("/");
        for (path, fits) in [
            ("ü".repeat(127), true),
            ("x".repeat(255), true),
            ("x".repeat(256), false),
            ("ü".repeat(200), false),
            (deep(32), true),
            (deep(33), false),
            (long(32), true),
            (format!("{}/{}", long(32), "y"), false),
        ] {
            assert_eq!(
                VolumePath::new(path.clone()).is_ok(),
                fits,
                "{}",
                path.len()
            );
        }
    }

    #[test]
    fn a_path_knows_its_folders() {
        let path = VolumePath::new("a/b/c").expect("good");
        assert_eq!(path.folders().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(path.first_name(), "a");
    }
}
