//! Names of files and paths of the API, as classes write them. Pure.

/// What a volume can hold. An object that is a folder may have no name: its files lie at the top.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    let parts = || name.split('/');
    if name.is_empty() {
        Ok(())
    } else if name.starts_with('/') {
        Err("must not start with a slash")
    } else if coffer_provider::clean_text(name, usize::MAX) != name {
        Err("must not contain control characters")
    } else if name.len() > 4096 || parts().any(|part| part.len() > 255) || parts().count() > 32 {
        Err("must not be longer than 255 bytes between two slashes, or deeper than 32 levels")
    } else if parts().any(|part| part.is_empty() || part == "." || part.starts_with("..")) {
        Err("must not have empty components, or `.`, or any that start with `..`")
    } else {
        Ok(())
    }
}

/// A path of a mount, a role or a namespace: one that nothing on the way reads in another way.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    let mut parts = path.split('/');
    if path.is_empty() {
        Err("must not be empty")
    } else if path.len() > 2048 {
        Err("must not be longer than 2048 bytes")
    } else if parts.any(|part| part.is_empty() || part == "." || part == "..") {
        Err("must not have empty, `.` or `..` components")
    } else if path.contains(['?', '#', '\\'])
        || coffer_provider::clean_text(path, usize::MAX) != path
    {
        Err("must not contain `?`, `#`, a backslash or control characters")
    } else {
        Ok(())
    }
}

/// `/v1/a/b?c=d` is `a/b` and `c=d`. One prefix is known, as vault-csi-provider does.
pub(crate) fn path_and_query(text: &str) -> Result<(String, Option<String>), &'static str> {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_prefix("v1/").unwrap_or(path);
    // A KV v2 read answers 500 to a slash at the end.
    let path = path.strip_suffix('/').unwrap_or(path);
    check_path(path)?;
    let query = match query {
        None | Some("") => None,
        Some(query) => Some(canonical_query(query)?),
    };
    Ok((path.to_owned(), query))
}

fn canonical_query(query: &str) -> Result<String, &'static str> {
    const PROBLEM: &str = "must have a query such as version=3 after its `?`";
    let escaped = |text: &str| {
        text.split('%').skip(1).all(|escape| {
            let digits = escape.as_bytes().get(..2);
            digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        })
    };
    if !escaped(query) || query.contains([';', '#']) || query.chars().any(char::is_control) {
        return Err(PROBLEM);
    }
    let mut pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    pairs.sort();
    let mut canonical = url::form_urlencoded::Serializer::new(String::new());
    canonical.extend_pairs(pairs);
    Ok(canonical.finish())
}

/// Whether a write there ends what the provider keeps for everybody of an identity. A namespace may
/// stand before it.
pub(crate) fn is_the_providers_own(path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    parts.windows(2).any(|pair| pair == ["sys", "leases"])
        || parts.windows(3).any(|three| {
            three[..2] == ["auth", "token"]
                && ["revoke", "renew", "tidy"]
                    .iter()
                    .any(|verb| three[2].starts_with(verb))
        })
        || parts.windows(2).any(|pair| {
            pair[0] == "sys"
                && ["revoke", "renew"]
                    .iter()
                    .any(|verb| pair[1].starts_with(verb))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vault_path_prefixes_mean_one_path() {
        for (text, expected) in [
            ("secret/data/app", "secret/data/app"),
            ("/secret/data/app", "secret/data/app"),
            ("v1/secret/data/app", "secret/data/app"),
            ("/v1/secret/data/app", "secret/data/app"),
            ("/v1/v1/z", "v1/z"),
            ("v2/x", "v2/x"),
            ("/v2/x", "v2/x"),
            ("v1/x/", "x"),
            ("v10/x", "v10/x"),
        ] {
            assert_eq!(
                path_and_query(text),
                Ok((expected.to_owned(), None)),
                "{text}"
            );
        }
    }

    #[test]
    fn vault_a_query_is_kept_in_one_spelling() {
        for (text, expected) in [
            ("a?", None),
            ("a?version=3", Some("version=3")),
            ("a?b=2&a=1", Some("a=1&b=2")),
            ("a?a=%2f", Some("a=%2F")),
            ("a?a=b?c", Some("a=b%3Fc")),
        ] {
            let query = path_and_query(text).map(|(_, query)| query);
            assert_eq!(query, Ok(expected.map(str::to_owned)), "{text}");
        }
        for text in ["a?b=%zz", "a?b=%2", "a?a;b", "a?a#b"] {
            assert!(path_and_query(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rule_s8_paths_that_could_be_read_in_two_ways_are_refused() {
        for path in [
            "",
            "/",
            "//a",
            "a//b",
            "a/./b",
            "a/../b",
            "..",
            "a/..",
            "a#b",
            "a\\b",
            "a\nb",
            "a/\u{202e}b",
        ] {
            assert!(path_and_query(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn writes_to_what_the_provider_keeps_are_refused() {
        for path in [
            "auth/token/revoke-self",
            "team-a/auth/token/revoke-self",
            "auth/token/renew-self",
            "sys/leases/revoke",
            "sys/leases/renew",
            "ns/team/sys/leases/revoke-prefix/a",
            "sys/revoke",
            "sys/revoke-force/a",
        ] {
            assert!(is_the_providers_own(path), "{path}");
        }
        for path in [
            "auth/token/create",
            "pki/issue/web",
            "sys/wrapping/unwrap",
            "kv/auth/token",
        ] {
            assert!(!is_the_providers_own(path), "{path}");
        }
    }
}
