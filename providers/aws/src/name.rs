//! The names of files: what a secret is called, with its slashes translated.

use std::collections::BTreeMap;

use coffer_provider::{ProviderError, clean_text};

/// What becomes of the slashes in a name (`pathTranslation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Translation {
    /// Each is replaced by this character.
    To(char),
    /// They are kept, and make folders.
    Off,
}

impl Translation {
    /// Reads the parameter; the error says what it has to be.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Ok(Self::To('_'));
        }
        if text.eq_ignore_ascii_case("false") {
            return Ok(Self::Off);
        }
        match text.as_bytes() {
            [byte] if byte.is_ascii_graphic() => Ok(Self::To(char::from(*byte))),
            _ => Err("must be one ASCII character that takes the place of `/`, or \"False\""),
        }
    }

    /// The name of the file for what is called `name`.
    pub(crate) fn apply(self, name: &str) -> String {
        match self {
            Self::To(character) => name.replace('/', character.encode_utf8(&mut [0; 4])),
            Self::Off => name.trim_start_matches('/').to_owned(),
        }
    }
}

/// Why a volume cannot hold a file of this name.
///
/// Of the names that merely begin with two dots, the incumbent takes those that its driver then
/// refuses to write; here they are refused at once.
pub(crate) fn problem(name: &str) -> Option<&'static str> {
    let mut components = name.split('/');
    if name.is_empty() {
        Some("must not be empty")
    } else if name.starts_with("..") {
        Some("gives a file name that starts with `..`, which a volume keeps for itself")
    } else if clean_text(name, usize::MAX) != name {
        Some("must not contain control characters")
    } else if components.any(|part| matches!(part, "" | "." | "..")) {
        Some("gives a file name with an empty, `.` or `..` component")
    } else if name.len() > 4096 || name.split('/').any(|part| part.len() > 255) {
        Some("gives a file name of more than 255 bytes between two slashes: set objectAlias")
    } else {
        None
    }
}

/// The files of a class by their names, with the fields that name them.
#[derive(Default)]
pub(crate) struct Files(BTreeMap<String, String>);

impl Files {
    pub(crate) fn add(&mut self, file: &str, field: String) -> Result<(), ProviderError> {
        match self.0.get(file) {
            Some(other) => {
                let problem = format!("gives a file of the same name as {other}: set objectAlias");
                Err(ProviderError::parameter(field, problem))
            }
            None => {
                self.0.insert(file.to_owned(), field);
                Ok(())
            }
        }
    }

    /// No name may be a file for one and a folder for another.
    pub(crate) fn fit_beside_each_other(&self) -> Result<(), ProviderError> {
        for (file, field) in &self.0 {
            for (slash, _) in file.match_indices('/') {
                if let Some(above) = self.0.get(&file[..slash]) {
                    let problem = format!("gives a file below the one of {above}");
                    return Err(ProviderError::parameter(field, problem));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_path_translation() {
        for (translation, name, file) in [
            ("", "/prod/db/pw", "_prod_db_pw"),
            ("-", "/prod/db/pw", "-prod-db-pw"),
            ("False", "/prod/db/pw", "prod/db/pw"),
            ("fAlSe", "//prod/db", "prod/db"),
            ("", "mypath/S1", "mypath_S1"),
            ("-", "mypath/S1", "mypath-S1"),
            ("False", "mypath/S1", "mypath/S1"),
            (
                "",
                "arn:aws:secretsmanager:us-west-2:1:secret:a/b-AbCdEf",
                "arn:aws:secretsmanager:us-west-2:1:secret:a_b-AbCdEf",
            ),
        ] {
            let translation = Translation::parse(translation).expect(translation);
            assert_eq!(translation.apply(name), file);
        }
        for wrong in ["--", "ü", "true", " "] {
            assert!(Translation::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn aws_traversal_is_refused_and_names_that_only_look_like_it_are_not() {
        let off = Translation::Off;
        for wrong in [
            "../a", "./../a", "/../a", "a/../b", "a/..", "..", "../", "/..", "a//b", "", "..x",
        ] {
            assert!(problem(&off.apply(wrong)).is_some(), "{wrong}");
        }
        for right in ["x../y", "x..", "a/..b", "a..b", ".x", "ünï/x"] {
            assert_eq!(problem(&off.apply(right)), None, "{right}");
        }
        // With slashes translated, there is nothing to traverse.
        assert_eq!(problem(&Translation::To('_').apply("/..x")), None);
    }
}
