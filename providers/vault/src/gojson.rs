//! JSON as Go's encoder writes it: files and versions that are compared with those of
//! vault-csi-provider have to be the same byte for byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// A string in quotes, with the characters escaped that Go escapes.
pub(crate) fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    push_string(&mut out, text);
    out
}

/// A value without spaces, its keys sorted.
pub(crate) fn value(value: &Value) -> String {
    let mut out = String::new();
    push_value(&mut out, value);
    out
}

pub(crate) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

fn push_value(out: &mut String, value: &Value) {
    match value {
        Value::String(text) => push_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push_value(out, item);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            // Another crate may have asked serde_json to keep the order of maps.
            let sorted: BTreeMap<_, _> = members.iter().collect();
            for (index, (name, member)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push_string(out, name);
                out.push(':');
                push_value(out, member);
            }
            out.push('}');
        }
        plain => {
            let _ = write!(out, "{plain}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_go_does() {
        let written = string("a\"\\\n\r\t<>&\u{2028}\u{1}\u{8}\u{c}ü/");
        let go = r#""a\"\\\n\r\t\u003c\u003e\u0026\u2028\u0001\b\fü/""#;
        assert_eq!(written, go);
    }

    #[test]
    fn keys_are_sorted_at_every_depth() {
        let json = serde_json::json!({"b": [{"z": 1, "a": null}], "a": true});
        assert_eq!(value(&json), r#"{"a":true,"b":[{"a":null,"z":1}]}"#);
    }
}
