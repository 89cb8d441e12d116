//! How a value is written in a store that takes text only. Pure.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use coffer_provider::SecretBytes;
use serde::Deserialize;
use zeroize::Zeroizing;

/// How the value of an item is written in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    /// As the text that it is: a value that is not UTF-8 is an error.
    #[serde(rename = "utf-8")]
    Utf8,
    /// In the alphabet of RFC 4648 §4; spaces, line breaks and missing padding do not matter.
    #[serde(rename = "base64")]
    Base64,
    /// As hexadecimal digits, small or large; spaces and line breaks do not matter.
    #[serde(rename = "hex")]
    Hex,
}

/// A value that is not written as it should be. Says nothing of the value.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("is not {}", .0.as_str())]
pub struct EncodingError(Encoding);

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Encoding {
    /// The word for it in a class.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Base64 => "base64",
            Self::Hex => "hex",
        }
    }

    /// What `value` stands for.
    ///
    /// # Errors
    /// When it is not written in this way.
    pub fn decode(self, value: &SecretBytes) -> Result<SecretBytes, EncodingError> {
        let text = value.expose();
        let decoded = match self {
            Self::Utf8 => std::str::from_utf8(text).is_ok().then(|| value.clone()),
            Self::Base64 => base64(&dense(text)).map(SecretBytes::from),
            Self::Hex => hex(&dense(text)).map(SecretBytes::from),
        };
        decoded.ok_or(EncodingError(self))
    }
}

/// Without what an editor or `base64` itself puts in: line breaks and spaces.
fn dense(text: &[u8]) -> Zeroizing<Vec<u8>> {
    // As large as it can become: growing would leave copies behind.
    let mut dense = Zeroizing::new(Vec::with_capacity(text.len()));
    dense.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    dense
}

fn base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = LENIENT.decode_slice(text, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

fn hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, []) = text.as_chunks::<2>() else {
        return None;
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(pairs.len()));
    for [high, low] in pairs {
        bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(encoding: Encoding, text: &[u8]) -> Option<Vec<u8>> {
        let decoded = encoding.decode(&SecretBytes::new(text.to_vec()));
        decoded.ok().map(|bytes| bytes.expose().to_vec())
    }

    #[test]
    fn values_come_out_byte_for_byte() {
        use Encoding::{Base64, Hex, Utf8};
        let cases: [(Encoding, &[u8], &[u8]); 15] = [
            (Utf8, b"", b""),
            (Utf8, "pässword\n".as_bytes(), "pässword\n".as_bytes()),
            (Base64, b"", b""),
            (Base64, b"cGFzcw==", b"pass"),
            (Base64, b"cGFzcw", b"pass"),
            (Base64, b"cGFzcw==\n", b"pass"),
            (Base64, b" cGF\r\nzcw\t==", b"pass"),
            (Base64, b"AP+/", &[0, 0xff, 0xbf]),
            (Base64, b"AA==", &[0]),
            (Hex, b"", b""),
            (Hex, b"00ff", &[0, 0xff]),
            (Hex, b"00FF\n", &[0, 0xff]),
            (Hex, b"00 fF", &[0, 0xff]),
            (Hex, b"70617373", b"pass"),
            (Hex, b"0\n0", &[0]),
        ];
        for (encoding, text, bytes) in cases {
            let found = decode(encoding, text);
            assert_eq!(found.as_deref(), Some(bytes), "{encoding:?} {text:?}");
        }
        let every_byte: Vec<u8> = (0..=255).collect();
        let text = LENIENT.encode(&every_byte);
        assert_eq!(decode(Base64, text.as_bytes()), Some(every_byte.clone()));
        let text: String = every_byte.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(decode(Hex, text.as_bytes()), Some(every_byte));
    }

    #[test]
    fn what_is_not_written_so_is_refused_without_a_word_of_it() {
        use Encoding::{Base64, Hex, Utf8};
        let cases: [(Encoding, &[u8]); 11] = [
            (Utf8, &[0xff]),
            (Utf8, &[0xc3]),
            (Utf8, &[0xed, 0xa0, 0x80]),
            (Base64, b"cGFzc*=="),
            (Base64, b"c"),
            (Base64, b"cGFzcw==cGFzcw=="),
            (Base64, b"_-_-"),
            (Base64, b"cGFzcx=="),
            (Hex, b"0"),
            (Hex, b"0g"),
            (Hex, b"0x00"),
        ];
        for (encoding, text) in cases {
            let error = encoding.decode(&SecretBytes::new(text.to_vec()));
            let error = error.err().expect("it is refused").to_string();
            assert_eq!(error, format!("is not {}", encoding.as_str()), "{text:?}");
        }
    }
}
