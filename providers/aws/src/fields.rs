//! A mapping of a class, read field by field; what nobody asked for is left over.

use std::collections::BTreeMap;

use coffer_provider::{ProviderError, Yaml};

/// The fields of one mapping, by their names in small letters: the incumbent's parser goes by those.
pub(crate) struct Fields {
    /// The path of the mapping, for errors.
    pub(crate) at: String,
    left: BTreeMap<String, (String, Yaml)>,
}

impl Fields {
    /// Takes a mapping over; `None` where it is something else.
    pub(crate) fn new(at: String, node: Yaml) -> Option<Self> {
        let Yaml::Map(fields) = node else {
            return None;
        };
        let lower = |(name, node): (String, Yaml)| (name.to_lowercase(), (name, node));
        let left = fields.into_iter().map(lower).collect();
        Some(Self { at, left })
    }

    /// An error about one field.
    pub(crate) fn wrong(&self, field: &str, problem: impl AsRef<str>) -> ProviderError {
        ProviderError::parameter(format!("{}.{field}", self.at), problem)
    }

    pub(crate) fn node(&mut self, field: &str) -> Option<Yaml> {
        match self.left.remove(&field.to_lowercase())?.1 {
            Yaml::Null => None,
            node => Some(node),
        }
    }

    /// A field that is text; an empty one is the same as none.
    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ProviderError> {
        match self.node(field) {
            None => Ok(None),
            // As the incumbent's parser takes it: every scalar is text.
            Some(Yaml::Text(text) | Yaml::Scalar(text)) => {
                Ok(Some(text).filter(|text| !text.is_empty()))
            }
            Some(_) => Err(self.wrong(field, "must be text")),
        }
    }

    /// A field that is four octal digits, in quotes.
    pub(crate) fn permission(&mut self) -> Result<Option<u32>, ProviderError> {
        const FIELD: &str = "filePermission";
        let Some(text) = self.text(FIELD)? else {
            return Ok(None);
        };
        let mode = match text.as_bytes() {
            [b'0', rest @ ..] if rest.len() == 3 => u32::from_str_radix(&text, 8).ok(),
            _ => None,
        };
        let problem = "must be four octal digits in quotes, such as \"0640\", and at most \"0777\"";
        mode.map(Some).ok_or_else(|| self.wrong(FIELD, problem))
    }

    /// The paths of the fields that nobody asked for.
    pub(crate) fn left_over(self) -> impl Iterator<Item = String> {
        let Self { at, left } = self;
        left.into_values()
            .map(move |(name, _)| format!("{at}.{name}"))
    }
}
