//! A store's answer, taken apart without a copy of what is not asked for. Nothing here quotes it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::gojson;

/// Levels of an answer; a class has no use for more, and a parser no stack.
const DEPTH: usize = 64;

/// The longest time that is believed, a hundred years: sums with it stay within what clocks can hold.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A JSON object whose members are looked at one by one. A name that stands there twice is refused:
/// two readers of it could see two secrets.
#[derive(Clone, Default)]
pub(crate) struct Object<'a>(BTreeMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Object<'a> {
    pub(crate) fn parse(json: &'a [u8]) -> Option<Self> {
        if depth(json) > DEPTH {
            return None;
        }
        serde_json::from_slice(json).ok()
    }

    pub(crate) fn of(value: &'a RawValue) -> Option<Self> {
        serde_json::from_str(value.get()).ok()
    }

    /// A member that is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0
            .get(name)
            .copied()
            .filter(|value| value.get() != "null")
    }

    pub(crate) fn object(&self, name: &str) -> Option<Self> {
        self.get(name).and_then(Object::of)
    }

    pub(crate) fn text(&self, name: &str) -> Option<Zeroizing<String>> {
        self.get(name).and_then(text)
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(|value| value.get().parse().ok())
    }

    /// A time in seconds.
    pub(crate) fn seconds(&self, name: &str) -> Option<Duration> {
        Some(Duration::from_secs(self.number(name)?).min(FOREVER))
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.get() == "true")
    }

    /// A list of texts; what is none is left out.
    pub(crate) fn texts(&self, name: &str) -> Vec<Zeroizing<String>> {
        let list = self.get(name).and_then(list);
        list.unwrap_or_default()
            .into_iter()
            .filter_map(text)
            .collect()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(AsRef::as_ref)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut members = BTreeMap::new();
                while let Some(Name(name)) = map.next_key()? {
                    if members.insert(name, map.next_value()?).is_some() {
                        return Err(A::Error::custom("a name stands twice"));
                    }
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn text(value: &RawValue) -> Option<Zeroizing<String>> {
    serde_json::from_str(value.get()).ok().map(Zeroizing::new)
}

fn list(value: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(value.get()).ok()
}

/// The bytes of a value: a string's characters, anything else as Go writes it.
pub(crate) fn bytes(value: &RawValue) -> Option<Zeroizing<Vec<u8>>> {
    if let Some(mut text) = text(value) {
        return Some(Zeroizing::new(std::mem::take(&mut *text).into_bytes()));
    }
    let mut out = Zeroizing::new(String::with_capacity(value.get().len() * 2));
    push(&mut out, value)?;
    Some(Zeroizing::new(std::mem::take(&mut *out).into_bytes()))
}

/// Writes a value without spaces and with sorted keys; numbers keep the form that the store gave them.
pub(crate) fn push(out: &mut String, value: &RawValue) -> Option<()> {
    match value.get().as_bytes().first()? {
        b'"' => gojson::push_string(out, &text(value)?),
        b'{' => push_object(out, &Object::of(value)?)?,
        b'[' => {
            out.push('[');
            for (index, item) in list(value)?.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push(out, item)?;
            }
            out.push(']');
        }
        _ => out.push_str(value.get()),
    }
    Some(())
}

pub(crate) fn push_object(out: &mut String, object: &Object<'_>) -> Option<()> {
    out.push('{');
    for (index, (name, member)) in object.0.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        gojson::push_string(out, name);
        out.push(':');
        push(out, member)?;
    }
    out.push('}');
    Some(())
}

/// What an RFC 6901 pointer leads to.
pub(crate) fn pointed_at<'a>(data: &Object<'a>, pointer: &str) -> Option<&'a RawValue> {
    let mut steps = pointer
        .split('/')
        .skip(1)
        .map(|step| step.replace("~1", "/").replace("~0", "~"));
    let mut value = data.get(&steps.next()?)?;
    for step in steps {
        value = match value.get().as_bytes().first()? {
            b'{' => Object::of(value)?.get(&step)?,
            b'[' => list(value)?.into_iter().nth(step.parse().ok()?)?,
            _ => return None,
        };
    }
    (value.get() != "null").then_some(value)
}

/// How deep brackets are nested. Only sound JSON has an exact depth, and nothing else is parsed.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether the text is JSON at all, whatever is in it.
pub(crate) fn is_json(body: &[u8]) -> bool {
    depth(body) <= DEPTH && serde_json::from_slice::<IgnoredAny>(body).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str, key: &str) -> Option<String> {
        let object = Object::parse(json.as_bytes())?;
        let bytes = bytes(object.get(key)?)?;
        Some(String::from_utf8(bytes.to_vec()).expect("text"))
    }

    #[test]
    fn vault_values_come_out_as_its_provider_writes_them() {
        let json = r#"{"s":"a\"ü","n":10,"f":1.50,"big":12345678901234567890123,"b":true,
            "o":{"z":[1, 2 ,{"y":null}],"a":"<&>"},"e":"","null":null}"#;
        for (key, expected) in [
            ("s", "a\"ü"),
            ("n", "10"),
            ("f", "1.50"),
            ("big", "12345678901234567890123"),
            ("b", "true"),
            ("o", r#"{"a":"\u003c\u0026\u003e","z":[1,2,{"y":null}]}"#),
            ("e", ""),
        ] {
            assert_eq!(value(json, key).as_deref(), Some(expected), "{key}");
        }
        assert_eq!(value(json, "null"), None);
        assert_eq!(value(json, "absent"), None);
    }

    #[test]
    fn a_pointer_leads_through_objects_and_lists() {
        let json = br#"{"a":{"b/c":[{"d~":1},null]},"x":2}"#;
        let object = Object::parse(json).expect("an object");
        for (pointer, expected) in [
            ("/x", Some("2")),
            ("/a/b~1c/0/d~0", Some("1")),
            ("/a/b~1c/1", None),
            ("/a/b~1c/2", None),
            ("/x/y", None),
            ("/", None),
        ] {
            let found = pointed_at(&object, pointer).map(RawValue::get);
            assert_eq!(found, expected, "{pointer}");
        }
    }

    #[test]
    fn rule_s9_nesting_has_an_end() {
        let nested =
            |levels: usize| format!("{{\"a\":{}1{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(Object::parse(nested(DEPTH - 1).as_bytes()).is_some());
        assert!(Object::parse(nested(DEPTH).as_bytes()).is_none());
        assert!(Object::parse(nested(1 << 20).as_bytes()).is_none());
        let brackets_in_text = format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(1000));
        assert!(Object::parse(brackets_in_text.as_bytes()).is_some());
    }

    #[test]
    fn rule_s10_what_is_not_one_json_object_is_refused() {
        for text in [
            "",
            "<html>",
            "[]",
            "1",
            "null",
            "{",
            "{} {}",
            r#"{"a":1,"a":1}"#,
        ] {
            assert!(Object::parse(text.as_bytes()).is_none(), "{text}");
        }
        let twice_below = br#"{"a":{"b":1,"b":2}}"#;
        let object = Object::parse(twice_below).expect("its own names stand once");
        assert!(object.object("a").is_none());
    }
}
