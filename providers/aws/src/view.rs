//! From the value of a secret to files: decoded, whole, and taken apart as the class wants it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coffer_provider::{ErrorKind, Format, ProviderError, SecretBytes, SecretFile};
use jmespath::{Context, DEFAULT_RUNTIME, Expression, Rcvar, Variable};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::name::{self, Translation};

/// How the text of a value stands for its bytes (`objectEncoding`, as the Azure plugin has it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Encoding {
    #[default]
    Utf8,
    Base64,
    Hex,
}

impl Encoding {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.to_ascii_lowercase().as_str() {
            "utf-8" => Ok(Self::Utf8),
            "base64" => Ok(Self::Base64),
            "hex" => Ok(Self::Hex),
            _ => Err("must be utf-8, base64 or hex"),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Base64 => "base64",
            Self::Hex => "hex",
        }
    }

    fn decode(self, value: SecretBytes) -> Result<SecretBytes, ProviderError> {
        let decoded = match self {
            Self::Utf8 => return Ok(value),
            // Tools wrap base64 and end it with a line feed.
            Self::Base64 => STANDARD.decode(&*without_space(value.expose())).ok(),
            Self::Hex => hex(&without_space(value.expose())),
        };
        decoded.map(SecretBytes::new).ok_or_else(|| {
            let problem = format!("its value is not {}: objectEncoding says so", self.as_str());
            ProviderError::new(ErrorKind::InvalidAnswer, problem)
        })
    }
}

fn without_space(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let kept = text.iter().filter(|byte| !byte.is_ascii_whitespace());
    let mut clean = Zeroizing::new(Vec::with_capacity(text.len()));
    clean.extend(kept);
    clean
}

fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    text.chunks(2).map(byte).collect()
}

/// One extraction of `jmesPath`.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) file: String,
    pub(crate) path: Expression<'static>,
    pub(crate) encoding: Encoding,
    pub(crate) mode: Option<u32>,
}

/// Which parts of a JSON value become files of their own.
#[derive(Clone)]
pub(crate) enum Members {
    Listed(Vec<Member>),
    /// Each key of the object, by its own name (`jmesPath: "*"`).
    All(Translation),
}

/// What becomes of one value.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) encoding: Encoding,
    pub(crate) mode: Option<u32>,
    pub(crate) members: Members,
}

impl View {
    /// The files of one value: the whole of it as `file`, then its members. No error quotes the value.
    pub(crate) fn files(
        &self,
        file: &str,
        value: SecretBytes,
    ) -> Result<Vec<SecretFile>, ProviderError> {
        let value = self.encoding.decode(value)?;
        let mut files = vec![SecretFile {
            name: file.to_owned(),
            bytes: value.clone(),
            format: Format::Json,
            mode: self.mode,
        }];
        match &self.members {
            Members::Listed(members) if members.is_empty() => {}
            Members::Listed(members) => {
                let value = std::str::from_utf8(value.expose()).ok();
                let json = value
                    .and_then(|text| Variable::from_json(text).ok())
                    .ok_or_else(|| invalid("its value is not JSON, which jmesPath needs"))?;
                let json = Rcvar::new(json);
                for member in members {
                    files.push(member.of(&json)?);
                }
            }
            Members::All(translation) => self.every_member(&value, *translation, &mut files)?,
        }
        Ok(files)
    }

    fn every_member(
        &self,
        value: &SecretBytes,
        translation: Translation,
        files: &mut Vec<SecretFile>,
    ) -> Result<(), ProviderError> {
        let members: BTreeMap<String, &RawValue> = serde_json::from_slice(value.expose())
            .map_err(|_| invalid("its value is not a JSON object, which jmesPath \"*\" needs"))?;
        for (key, member) in members {
            let name = translation.apply(&key);
            if name::problem(&name).is_some() {
                return Err(invalid(
                    "a key of its JSON value cannot be the name of a file",
                ));
            }
            let bytes = match member.get() {
                "null" => continue,
                text if text.starts_with('"') => serde_json::from_str::<String>(text)
                    .map_err(|_| invalid("its value is not valid JSON"))?
                    .into_bytes(),
                text => text.as_bytes().to_vec(),
            };
            files.push(SecretFile {
                name,
                bytes: SecretBytes::new(bytes),
                format: Format::Json,
                mode: self.mode,
            });
        }
        Ok(())
    }
}

impl Member {
    fn of(&self, json: &Rcvar) -> Result<SecretFile, ProviderError> {
        let path = self.path.as_str();
        // Not `search`, which copies the value for each path.
        let mut context = Context::new(path, &DEFAULT_RUNTIME);
        // What the library says of a value may quote it.
        let found = jmespath::interpret(json, self.path.as_ast(), &mut context)
            .map_err(|_| invalid(&format!("jmesPath {path} cannot be applied to its value")))?;
        let text = match &*found {
            Variable::String(text) => text.clone(),
            Variable::Number(number) => number.to_string(),
            Variable::Bool(value) => value.to_string(),
            Variable::Null => return Err(missing(path)),
            _ => {
                let problem =
                    format!("jmesPath {path} gives a list or an object: wrap it in to_string()");
                return Err(invalid(&problem));
            }
        };
        let bytes = self.encoding.decode(SecretBytes::new(text.into_bytes()));
        Ok(SecretFile {
            name: self.file.clone(),
            bytes: bytes.map_err(|error| invalid(&format!("jmesPath {path}: {error}")))?,
            format: Format::Json,
            mode: self.mode,
        })
    }
}

fn invalid(problem: &str) -> ProviderError {
    ProviderError::new(ErrorKind::InvalidAnswer, problem)
}

/// Not [`ErrorKind::NotFound`]: the secret is there.
fn missing(path: &str) -> ProviderError {
    invalid(&format!("jmesPath {path} finds nothing in its value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(encoding: Encoding, members: Members) -> View {
        View {
            encoding,
            mode: Some(0o440),
            members,
        }
    }

    fn listed(paths: &[(&str, &str)]) -> Members {
        let member = |&(path, file): &(&str, &str)| Member {
            file: file.into(),
            path: jmespath::compile(path).expect(path),
            encoding: Encoding::Utf8,
            mode: None,
        };
        Members::Listed(paths.iter().map(member).collect())
    }

    fn files(view: &View, value: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let files = view.files("db", SecretBytes::new(value.to_vec()));
        let named = |file: SecretFile| (file.name, file.bytes.expose().to_vec());
        files
            .map(|files| files.into_iter().map(named).collect())
            .map_err(|error| error.to_string())
    }

    fn expect(view: &View, value: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = [("db", value)]
            .iter()
            .chain(expected)
            .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
            .collect();
        assert_eq!(files(view, value.as_bytes()), Ok(expected));
    }

    #[test]
    fn aws_scalars_of_a_json_value_are_text() {
        let value = r#"{"db":{"user":"ä\"b"},"port":5432,"on":true,"pass-word":" x\n","big":9223372036854775807}"#;
        let view = view(
            Encoding::Utf8,
            listed(&[
                ("db.user", "user"),
                ("port", "port"),
                ("on", "on"),
                ("\"pass-word\"", "pw"),
                ("big", "big"),
                ("to_string(db)", "object"),
            ]),
        );
        let object = r#"{"user":"ä\"b"}"#;
        let expected = [
            ("user", "ä\"b"),
            ("port", "5432"),
            ("on", "true"),
            ("pw", " x\n"),
            ("big", "9223372036854775807"),
            ("object", object),
        ];
        expect(&view, value, &expected);
    }

    #[test]
    fn rule_r11_odd_expressions_are_refused_or_answered_and_never_panic() {
        let json =
            r#"{"a":[1,"x",{"b":null},[]],"n":-0.0,"big":1e308,"s":"ü","i":-9223372036854775808}"#;
        for path in [
            "a[::0]",
            "a[::-1]",
            "a[-2147483648::-1]",
            "a[2147483647:-2147483648:1]",
            "a[-2147483648]",
            "a[2147483647]",
            "a[9999999999999999999999]",
            "a[-]",
            "[[[",
            "a[?b==`1`]",
            "a[?`",
            "`{`",
            "`1e999`",
            "to_number('1e999')",
            "abs(i)",
            "abs(`-9223372036854775808`)",
            "sum(a)",
            "sum([big,big,big])",
            "avg(`[]`)",
            "max(a)",
            "max_by(a, &b)",
            "min_by(`[]`, &x)",
            "sort(a)",
            "sort_by(a, &b)",
            "join('', a)",
            "join(s, `[\"x\"]`)",
            "reverse(s)",
            "ends_with(s, '')",
            "contains(s, '')",
            "length(s)",
            "merge()",
            "merge(@, n)",
            "map(&b, a)",
            "not_null()",
            "keys(a)",
            "type(&a)",
            "to_string(&a)",
            "&a",
            "@",
            "*",
            "a.*",
            "*.*.*",
            "a[]|[]|[]",
            "ceil(big)",
            "floor(n)",
            "'",
            "\"",
            "\"\\ud800\"",
            "'\\u'",
            "\0",
            "\u{202e}",
            "foo(",
            "foo()",
            "a ||",
            "!",
            "!a",
            "a[*].b.c[0]",
        ] {
            if let Ok(compiled) = jmespath::compile(path) {
                let member = Member {
                    file: "x".into(),
                    path: compiled,
                    encoding: Encoding::Utf8,
                    mode: None,
                };
                let members = Members::Listed(vec![member]);
                let _ = files(&view(Encoding::Utf8, members), json.as_bytes());
            }
        }
    }

    #[test]
    fn every_key_of_a_json_value_can_be_a_file() {
        let all = |translation| view(Encoding::Utf8, Members::All(translation));
        let value = r#"{"b/c":"x","a":1.50,"none":null,"list":[1, 2]}"#;
        expect(
            &all(Translation::To('_')),
            value,
            &[("a", "1.50"), ("b_c", "x"), ("list", "[1, 2]")],
        );
        expect(
            &all(Translation::Off),
            value,
            &[("a", "1.50"), ("b/c", "x"), ("list", "[1, 2]")],
        );
        let error = files(&all(Translation::Off), br#"{"../canary":"x"}"#);
        assert!(error.is_err_and(|text| !text.contains("canary")));
    }

    #[test]
    fn a_value_is_decoded_before_anything_else() {
        let plain = || Members::Listed(Vec::new());
        for (encoding, text, bytes) in [
            (Encoding::Base64, "AP8=\n", &[0, 255][..]),
            (Encoding::Hex, "00fF", &[0, 255]),
            (Encoding::Utf8, "AP8=", b"AP8="),
        ] {
            let files = files(&view(encoding, plain()), text.as_bytes());
            assert_eq!(files, Ok(vec![("db".into(), bytes.to_vec())]));
        }
        let json = view(Encoding::Base64, listed(&[("a", "a")]));
        let files = files(&json, b"eyJhIjoiYiJ9");
        assert_eq!(files.map(|files| files[1].1.clone()), Ok(b"b".to_vec()));
    }

    #[test]
    fn aws_errors_name_the_path_and_never_quote_the_value() {
        let utf8 = Encoding::Utf8;
        for (view, value, says) in [
            (view(utf8, listed(&[("a", "a")])), "canary", "not JSON"),
            (
                view(utf8, listed(&[("a", "a")])),
                r#"{"b":"canary"}"#,
                "jmesPath a finds nothing",
            ),
            (
                view(utf8, listed(&[("a", "a")])),
                r#"{"a":["canary"]}"#,
                "to_string()",
            ),
            (
                view(utf8, listed(&[("abs(a)", "a")])),
                r#"{"a":"canary"}"#,
                "abs(a)",
            ),
            (
                view(utf8, Members::All(Translation::Off)),
                r#"["canary"]"#,
                "not a JSON object",
            ),
            (view(Encoding::Base64, listed(&[])), "canary!", "not base64"),
            (view(Encoding::Hex, listed(&[])), "canary", "not hex"),
            (view(Encoding::Hex, listed(&[])), "abc", "not hex"),
        ] {
            let error = files(&view, value.as_bytes()).expect_err(value);
            assert!(error.contains(says), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
