//! A JSON or YAML value, split into its members.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use coffer_provider::SecretBytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Data;
use crate::spec::Split;

/// Every member of `value` by its name: a string as its characters, every other value as it is written
/// in JSON. A scalar of YAML stays the text that its author wrote (`007`, `no`), and a member that is
/// null is left out, both as in `items[].key` of a class.
pub(crate) fn members(split: Split, value: &SecretBytes, most: usize) -> Result<Data, String> {
    // The parsers' own messages quote their input: they end here.
    let (what, read) = match split {
        Split::Json => ("a JSON object", json(value.expose(), most)),
        Split::Yaml => ("a YAML mapping", yaml(value.expose(), most)),
    };
    read.ok_or_else(|| format!("is not {what}, or has a member twice, or more than {most} of them"))
}

fn json(bytes: &[u8], most: usize) -> Option<Data> {
    let raw: Members<Box<RawValue>> = serde_json::from_slice(bytes).ok()?;
    let mut data = Data::new();
    for (name, raw) in raw.within(most)? {
        match raw.get() {
            "null" => {}
            text if text.starts_with('"') => {
                let text: String = serde_json::from_str(text).ok()?;
                data.insert(name, SecretBytes::new(text.into_bytes()));
            }
            text => drop(data.insert(name, SecretBytes::new(text.as_bytes().to_vec()))),
        }
    }
    Some(data)
}

/// YAML gives a scalar a type by its looks. Read as text it stays what it was; lists and mappings are read
/// by their types.
fn yaml(bytes: &[u8], most: usize) -> Option<Data> {
    let text = std::str::from_utf8(bytes).ok()?;
    // Once to see that it is a mapping of few enough members.
    let seen: Members<IgnoredAny> = serde_saphyr::from_str(text).ok()?;
    seen.within(most)?;
    if let Ok(texts) = serde_saphyr::from_str::<Members<Option<String>>>(text) {
        let texts = texts.0.into_iter();
        let present = texts.filter_map(|(name, text)| Some((name, text?)));
        return Some(
            present
                .map(|(name, text)| (name, SecretBytes::new(text.into_bytes())))
                .collect(),
        );
    }
    let typed: Members<Value> = serde_saphyr::from_str(text).ok()?;
    let mut data = Data::new();
    for (name, value) in typed.0 {
        let bytes = match value {
            Value::Null => continue,
            Value::Array(_) | Value::Object(_) => value.to_string().into_bytes(),
            scalar => text_of(text, &name, &scalar)?.into_bytes(),
        };
        data.insert(name, SecretBytes::new(bytes));
    }
    Some(data)
}

/// The text of one scalar beside members that are none.
fn text_of(yaml: &str, name: &str, scalar: &Value) -> Option<String> {
    if let Value::String(text) = scalar {
        return Some(text.clone());
    }
    let read = serde_saphyr::with_deserializer_from_str(yaml, |deserializer| {
        deserializer.deserialize_map(OneText(name))
    });
    read.ok()
}

/// A mapping, in which no name stands twice.
struct Members<V>(BTreeMap<String, V>);

impl<V> Members<V> {
    fn within(self, most: usize) -> Option<BTreeMap<String, V>> {
        (self.0.len() <= most).then_some(self.0)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Read<V> {
            type Value = Members<V>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    if members.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a name stands twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read(PhantomData))
    }
}

/// Takes one member out of a map as text.
struct OneText<'a>(&'a str);

impl<'de> Visitor<'de> for OneText<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            match name == self.0 {
                true => found = Some(map.next_value()?),
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        found.ok_or_else(|| serde::de::Error::custom("it is not there"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(split: Split, text: &str) -> Option<Vec<(String, String)>> {
        let data = members(split, &SecretBytes::new(text.as_bytes().to_vec()), 4).ok()?;
        let text = |bytes: SecretBytes| String::from_utf8(bytes.expose().to_vec());
        Some(
            data.into_iter()
                .map(|(name, bytes)| (name, text(bytes).expect("text")))
                .collect(),
        )
    }

    fn pairs(pairs: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        let pairs = pairs.iter();
        Some(
            pairs
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn members_are_the_text_that_their_author_wrote() {
        for (kind, text, expected) in [
            (
                Split::Json,
                r#"{"user":"ä\"b","port":5432,"pi":1.50,"none":null}"#,
                &[("pi", "1.50"), ("port", "5432"), ("user", "ä\"b")][..],
            ),
            (
                Split::Json,
                r#" {"tags": ["a", {"b": 1}], "big": 12345678901234567890123} "#,
                &[
                    ("big", "12345678901234567890123"),
                    ("tags", r#"["a", {"b": 1}]"#),
                ],
            ),
            (Split::Json, "{}", &[]),
            (
                Split::Yaml,
                "user: x\npin: 007\nflag: no\nnone: null\n",
                &[("flag", "no"), ("pin", "007"), ("user", "x")],
            ),
            (
                Split::Yaml,
                "pin: 1.50\ntags: [a, b]\ntext: '007'\n",
                &[("pin", "1.50"), ("tags", r#"["a","b"]"#), ("text", "007")],
            ),
        ] {
            assert_eq!(split(kind, text), pairs(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_members_is_refused_without_a_word_of_it() {
        for (kind, text) in [
            (Split::Json, ""),
            (Split::Json, "hunter2"),
            (Split::Json, "[1]"),
            (Split::Json, "\"hunter2\""),
            (Split::Json, r#"{"a":1,"a":2}"#),
            (Split::Json, r#"{"a":1} hunter2"#),
            (Split::Json, r#"{"a":1,"b":1,"c":1,"d":1,"e":1}"#),
            (Split::Yaml, "hunter2"),
            (Split::Yaml, "- hunter2"),
            (Split::Yaml, "a: 1\na: 2"),
            (Split::Yaml, "a: ["),
            (Split::Yaml, "{a: 1, b: 1, c: 1, d: 1, e: 1}"),
        ] {
            let error = members(kind, &SecretBytes::new(text.as_bytes().to_vec()), 4);
            let error = error.err().expect(text);
            assert!(
                error.starts_with("is not a") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
