//! `bootstrap.kubernetes.io/token`: the right to join a cluster. The API server checks nothing of it, and
//! who uses one passes over one that is wrong without a word.

use coffer_provider::SecretBytes;

use crate::{Data, ObjectError};

const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const GROUP_PREFIX: &str = "system:bootstrappers:";

pub(crate) fn contents(namespace: &str, name: &str, given: Data) -> Result<Data, ObjectError> {
    if namespace != NAMESPACE {
        let problem = format!("a bootstrap token is one in the Namespace {NAMESPACE} alone");
        return Err(ObjectError::new("type", problem));
    }
    for (key, value) in &given {
        check(key, value).map_err(|problem| ObjectError::new(key, problem))?;
    }
    for needed in ["token-id", "token-secret"] {
        if !given.contains_key(needed) {
            return Err(ObjectError::new(needed, "is missing"));
        }
    }
    let id = given["token-id"].expose();
    if name.strip_prefix(NAME_PREFIX).map(str::as_bytes) != Some(id) {
        let problem = format!("must be {NAME_PREFIX} and the token-id");
        return Err(ObjectError::new("secretName", problem));
    }
    Ok(given)
}

fn check(key: &str, value: &SecretBytes) -> Result<(), &'static str> {
    let bytes = value.expose();
    let of = |length: usize| {
        bytes.len() == length
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text")?;
    let (good, problem) = match key {
        "token-id" => (of(6), "must be 6 small letters or digits"),
        "token-secret" => (of(16), "must be 16 small letters or digits"),
        "expiration" => (
            // What Kubernetes cannot read is a token that has expired.
            text.len() >= 20 && text.contains('T') && text.parse::<jiff::Timestamp>().is_ok(),
            "must be a time as in 2030-01-31T12:00:00Z",
        ),
        "usage-bootstrap-signing" | "usage-bootstrap-authentication" => {
            (matches!(text, "true" | "false"), "must be true or false")
        }
        "auth-extra-groups" => (
            text.split(',').all(is_group),
            "must be groups that begin with system:bootstrappers:, between commas",
        ),
        "description" => (true, ""),
        _ => (false, "is not a key of a bootstrap token"),
    };
    good.then_some(()).ok_or(problem)
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`
fn is_group(group: &str) -> bool {
    let small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let Some((last, before)) = group
        .strip_prefix(GROUP_PREFIX)
        .and_then(|rest| rest.as_bytes().split_last())
    else {
        return false;
    };
    let inside = |byte: &u8| small(*byte) || matches!(byte, b':' | b'-');
    small(*last) && before.len() <= 255 && before.iter().all(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("token-id", "abc123"),
        ("token-secret", "0123456789abcdef"),
        ("expiration", "2030-01-31T12:00:00Z"),
        ("usage-bootstrap-signing", "true"),
        ("usage-bootstrap-authentication", "false"),
        (
            "auth-extra-groups",
            "system:bootstrappers:a,system:bootstrappers:b-c:d",
        ),
        ("description", "for ünït tests"),
    ];

    fn data(pairs: &[(&str, &str)]) -> Data {
        let pairs = pairs.iter();
        pairs
            .map(|(key, text)| {
                let bytes = SecretBytes::new(text.as_bytes().to_vec());
                ((*key).to_owned(), bytes)
            })
            .collect()
    }

    #[test]
    fn a_token_of_the_full_rules_is_taken() {
        let name = "bootstrap-token-abc123";
        assert!(contents("kube-system", name, data(GOOD)).is_ok());
        assert!(contents("kube-system", name, data(&GOOD[..2])).is_ok());
    }

    #[test]
    fn rule_k2_a_bootstrap_token_that_would_be_none_is_refused() {
        let name = "bootstrap-token-abc123";
        for (namespace, name, field) in [
            ("shop", name, "type"),
            ("kube-system", "bootstrap-token-abc124", "secretName"),
            ("kube-system", "abc123", "secretName"),
        ] {
            let error = contents(namespace, name, data(GOOD)).err().expect(field);
            assert_eq!(error.field(), field);
        }
        let long = format!("system:bootstrappers:{}", "a".repeat(257));
        for (key, wrong) in [
            ("token-id", "ABC123"),
            ("token-id", "abc12"),
            ("token-id", "abc123\n"),
            ("token-secret", "0123456789abcde"),
            ("token-secret", "0123456789abcdeF"),
            ("expiration", "tomorrow"),
            ("expiration", "2031-02-28"),
            ("usage-bootstrap-signing", "True"),
            ("usage-bootstrap-authentication", "1"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:a,"),
            ("auth-extra-groups", "system:bootstrappers:"),
            ("auth-extra-groups", "system:bootstrappers:a-"),
            ("auth-extra-groups", &long),
            ("token", "x"),
        ] {
            let mut bad = data(GOOD);
            bad.insert(key.to_owned(), SecretBytes::new(wrong.as_bytes().to_vec()));
            let error = contents("kube-system", name, bad).err().expect(wrong);
            assert_eq!(error.field(), key);
            // Short ones, and the prefix itself, are words of any sentence.
            let is_a_word = wrong.len() < 5 || wrong == GROUP_PREFIX;
            assert!(is_a_word || !error.problem().contains(wrong), "{error}");
        }
        for missing in ["token-id", "token-secret"] {
            let mut bad = data(GOOD);
            bad.remove(missing);
            let error = contents("kube-system", name, bad).err().expect(missing);
            assert_eq!(error.to_string(), format!("{missing}: is missing"));
        }
    }
}
