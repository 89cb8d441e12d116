//! Looks into a structured value for one member (`items[].key`).

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::{ErrorKind, Format, ProviderError, SecretBytes, SecretFile};

impl SecretFile {
    /// The member `key` of a structured value: a string as its characters, every other value as it
    /// is written in JSON. Only that member is copied.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no such member or it is null, and
    /// [`ErrorKind::InvalidAnswer`] where the value has no members. Neither quotes the value.
    pub fn member(&self, key: &str) -> Result<SecretBytes, ProviderError> {
        let unreadable =
            |what: &str| ProviderError::new(ErrorKind::InvalidAnswer, format!("it is not {what}"));
        // The parsers' own messages quote their input: they end here.
        let member = match self.format {
            Format::Opaque => return Err(unreadable("JSON or YAML, so it has no keys")),
            Format::Json => json_member(self.bytes.expose(), key)
                .map_err(|_| unreadable("a valid JSON object"))?,
            Format::Yaml => yaml_member(self.bytes.expose(), key)
                .ok_or_else(|| unreadable("a valid YAML mapping"))?,
        };
        member
            .map(SecretBytes::from)
            .ok_or_else(|| ProviderError::new(ErrorKind::NotFound, format!("it has no key {key}")))
    }
}

type Member = Option<Zeroizing<Vec<u8>>>;

fn json_member(bytes: &[u8], key: &str) -> Result<Member, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let member = OneMember(key, PhantomData::<&RawValue>).deserialize(&mut json)?;
    json.end()?;
    match member.map(RawValue::get) {
        None | Some("null") => Ok(None),
        Some(text) if text.starts_with('"') => {
            let text: String = serde_json::from_str(text)?;
            Ok(Some(Zeroizing::new(text.into_bytes())))
        }
        Some(text) => Ok(Some(Zeroizing::new(text.as_bytes().to_vec()))),
    }
}

/// YAML gives a plain scalar a type by its looks (`no` is a boolean, `007` a number). Read as text
/// it stays what the author wrote; only a member that is a list or a mapping is read by its type.
fn yaml_member(bytes: &[u8], key: &str) -> Option<Member> {
    let text = std::str::from_utf8(bytes).ok()?;
    let as_text = serde_saphyr::with_deserializer_from_str(text, |yaml| {
        OneMember(key, PhantomData::<Option<String>>).deserialize(yaml)
    });
    if let Ok(member) = as_text {
        return Some(member.flatten().map(|m| Zeroizing::new(m.into_bytes())));
    }
    let as_value = serde_saphyr::with_deserializer_from_str(text, |yaml| {
        OneMember(key, PhantomData::<serde_json::Value>).deserialize(yaml)
    });
    Some(
        as_value
            .ok()?
            .map(|m| Zeroizing::new(m.to_string().into_bytes())),
    )
}

/// Takes one member out of a map and skips the others; a key that stands there twice is refused.
struct OneMember<'a, V>(&'a str, PhantomData<V>);

impl<'de, V: Deserialize<'de>> DeserializeSeed<'de> for OneMember<'_, V> {
    type Value = Option<V>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<V>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, V: Deserialize<'de>> Visitor<'de> for OneMember<'_, V> {
    type Value = Option<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<V>, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if name != self.0 {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value()?).is_some() {
                return Err(serde::de::Error::custom("a key stands twice"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(format: Format, text: &str) -> SecretFile {
        SecretFile {
            name: "db".into(),
            bytes: SecretBytes::new(text.as_bytes().to_vec()),
            format,
            mode: None,
        }
    }

    #[test]
    fn a_member_is_the_text_that_its_author_wrote() {
        let json = file(
            Format::Json,
            r#"{"user":"ä\"b","port":5432,"pi":1.50,"big":12345678901234567890123,"tags":["a",{"b":1}],"none":null}"#,
        );
        let yaml = file(
            Format::Yaml,
            "user: \"ä\\\"b\"\nport: 5432\npin: 007\nflag: no\nblock: |\n  one\n  two\ntags: [a, {b: 1}]\nnone: ~\n",
        );
        for (file, key, expected) in [
            (&json, "user", "ä\"b"),
            (&json, "port", "5432"),
            (&json, "pi", "1.50"),
            (&json, "big", "12345678901234567890123"),
            (&json, "tags", r#"["a",{"b":1}]"#),
            (&yaml, "user", "ä\"b"),
            (&yaml, "port", "5432"),
            (&yaml, "pin", "007"),
            (&yaml, "flag", "no"),
            (&yaml, "block", "one\ntwo\n"),
            (&yaml, "tags", r#"["a",{"b":1}]"#),
        ] {
            let member = file.member(key).map_err(|e| e.to_string());
            let text = member.map(|m| String::from_utf8(m.expose().to_vec()));
            assert_eq!(text, Ok(Ok(expected.to_owned())), "{key}");
        }
        for (file, key) in [(&json, "none"), (&json, "x"), (&yaml, "none"), (&yaml, "x")] {
            let error = file.member(key).err().expect("must fail");
            assert_eq!(error.kind(), ErrorKind::NotFound, "{key}");
        }
    }

    #[test]
    fn an_error_never_quotes_the_value() {
        for (format, text) in [
            (Format::Opaque, "canary"),
            (Format::Json, "canary"),
            (Format::Json, r#"["canary"]"#),
            (Format::Json, r#"{"a":"canary"} canary"#),
            (Format::Json, r#"{"a":"canary","a":"canary"}"#),
            (Format::Json, r#""canary""#),
            (Format::Yaml, "canary"),
            (Format::Yaml, "a: canary\na: canary"),
            (Format::Yaml, "a: [canary"),
            (Format::Yaml, "- canary"),
            (Format::Json, ""),
        ] {
            let error = file(format, text).member("a").err().expect(text);
            assert_eq!(error.kind(), ErrorKind::InvalidAnswer, "{text}");
            assert!(!error.to_string().contains("canary"), "{error}");
            assert_eq!(error.detail(), None);
        }
    }
}
