//! Takes what a plugin was told in confidence out of what it says (G6).

use std::collections::HashSet;

use coffer_provider::Caller;

/// So many characters in a row of a secret are taken for a piece of it, or the whole secret where that is shorter.
const PIECE: usize = 12;

/// Shorter ones are in any text.
const SHORTEST: usize = 4;

/// How much of a text is looked at; what is shown is far shorter.
const LOOKED_AT: usize = 64 << 10;

const MASK: &str = "***";

/// Whether there is a piece of a token or of a secret of the caller in any of the texts.
pub(crate) fn is_told_in(texts: &[&str], caller: &Caller) -> bool {
    (SHORTEST..=PIECE).any(|length| !pieces(length, texts, caller).is_empty())
}

/// The text, with `***` for every piece of a token or of a secret of the caller.
pub(crate) fn mask(text: &str, caller: &Caller) -> String {
    let text = &text[..text.floor_char_boundary(LOOKED_AT)];
    let mut hidden = vec![false; text.len()];
    for length in SHORTEST..=PIECE {
        let pieces = pieces(length, &[text], caller);
        for (at, piece) in text.as_bytes().windows(length).enumerate() {
            if pieces.contains(piece) {
                hidden[at..at + length].fill(true);
            }
        }
    }
    let mut masked = String::with_capacity(text.len());
    let mut before = false;
    for (at, character) in text.char_indices() {
        let is_hidden = hidden[at..at + character.len_utf8()].contains(&true);
        match (is_hidden, before) {
            (false, _) => masked.push(character),
            (true, false) => masked.push_str(MASK),
            (true, true) => {}
        }
        before = is_hidden;
    }
    masked
}

/// The pieces of this length that are in the texts. Secrets can be far longer than those, so none of their other
/// pieces is kept, and they are gone through once for all the texts.
fn pieces<'a>(length: usize, texts: &[&'a str], caller: &'a Caller) -> HashSet<&'a [u8]> {
    let tokens = caller.forwarded.tokens.values();
    let tokens = tokens.map(|token| token.expose().as_bytes());
    let secrets = caller.secrets.values().map(|secret| secret.expose());
    let secrets = tokens.chain(secrets);
    let mut secrets = secrets
        .filter(|secret| secret.len().min(PIECE) == length)
        .peekable();
    if secrets.peek().is_none() {
        return HashSet::new();
    }
    let texts = texts.iter().map(|text| text.as_bytes());
    let told: HashSet<&[u8]> = texts.flat_map(|text| text.windows(length)).collect();
    secrets
        .flat_map(|secret| secret.windows(length))
        .filter(|piece| told.contains(piece))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::testing::caller;
    use coffer_provider::{SecretBytes, ServiceAccountToken};
    use std::time::SystemTime;

    #[test]
    fn rule_g6_no_piece_of_a_token_or_secret_is_left() {
        let mut caller = caller("shop");
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJlLW9mLWl0";
        let expires = SystemTime::UNIX_EPOCH;
        let token_of = |text: &str| ServiceAccountToken::new(text.into(), expires);
        caller
            .forwarded
            .tokens
            .insert("vault".into(), token_of(token));
        for (key, value) in [
            ("id", "abc"),
            ("pin", "1947"),
            ("key", "päss-wörd-of-the-shop"),
        ] {
            let value = SecretBytes::new(value.as_bytes().to_vec());
            caller.secrets.insert(key.into(), value);
        }
        for (text, expected) in [
            ("role not found", "role not found"),
            (token, "***"),
            (&format!("bad token {token}!"), "bad token ***!"),
            (&format!("bad token {}…", &token[..20]), "bad token ***…"),
            (&format!("signature {}", &token[43..]), "signature ***"),
            ("pin 1947 is wrong, id abc", "pin *** is wrong, id abc"),
            ("key=päss-wörd-of-the-shop;", "key=***;"),
            ("key=wörd-of-the-shop;", "key=***;"),
            ("", ""),
        ] {
            assert_eq!(mask(text, &caller), expected, "{text}");
        }
        let long = format!("{}{token}", "x".repeat(1 << 20));
        assert!(mask(&long, &caller).len() <= LOOKED_AT);
    }
}
