//! YAML in a parameter, without the types that a parser would check: so the mistakes in it can be told with
//! their places.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::ProviderError;

/// A piece of YAML.
#[derive(Debug, PartialEq, Eq)]
pub enum Yaml {
    /// Written as nothing or `null`.
    Null,
    /// Text, in quotes or where it looks like nothing else.
    Text(String),
    /// A number or a boolean, as text.
    Scalar(String),
    /// A sequence.
    List(Vec<Yaml>),
    /// A mapping, in its order.
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    /// Reads the one document in `field`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::InvalidParameters`], naming the field and the place in it.
    pub fn parse(field: &str, text: &str) -> Result<Self, ProviderError> {
        let options = serde_saphyr::options! {
            // A secret or a folder may be called `on` or `y`.
            strict_booleans: true,
            // A page of aliases must not grow to a million entries.
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            // Below its first line the parser's error draws a piece of the text.
            let error = error
                .without_snippet()
                .render_with_formatter(&serde_saphyr::UserMessageFormatter);
            ProviderError::parameter(field, error.lines().next().unwrap_or("is not YAML"))
        })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("YAML")
    }

    fn visit_str<E>(self, text: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Yaml::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Yaml::Map(fields))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Scalar(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Yaml, E> {
        Ok(Yaml::Scalar(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Yaml, E> {
        Ok(Yaml::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Scalar(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        Yaml::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_told_from_text() {
        let text = |text: &str| Yaml::Text(text.to_owned());
        let scalar = |text: &str| Yaml::Scalar(text.to_owned());
        let yaml = Yaml::parse(
            "objects",
            "{a: [on, '5', 5, -1, 1.5, true], b: ~, c: {d: }}",
        );
        let expected = Yaml::Map(vec![
            (
                "a".into(),
                Yaml::List(vec![
                    text("on"),
                    text("5"),
                    scalar("5"),
                    scalar("-1"),
                    scalar("1.5"),
                    scalar("true"),
                ]),
            ),
            ("b".into(), Yaml::Null),
            ("c".into(), Yaml::Map(vec![("d".into(), Yaml::Null)])),
        ]);
        assert_eq!(yaml.ok(), Some(expected));
    }

    #[test]
    fn an_error_names_the_field_in_one_line() {
        for text in ["[a", "{a: 1, a: 2}"] {
            let error = Yaml::parse("objects", text).expect_err(text).to_string();
            assert!(
                error.starts_with("objects: ") && !error.contains("\\u{a}"),
                "{error}"
            );
        }
    }
}
