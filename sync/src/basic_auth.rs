//! `kubernetes.io/basic-auth`: a name, a password, or both.

use crate::{Data, ObjectError};

/// As the API server has it: one of the two, which may be empty; further keys do not matter.
pub(crate) fn contents(given: Data) -> Result<Data, ObjectError> {
    match given.contains_key("username") || given.contains_key("password") {
        true => Ok(given),
        false => Err(ObjectError::new(
            "data",
            "kubernetes.io/basic-auth has a key username or password, or both",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::SecretBytes;

    #[test]
    fn one_of_the_two_is_enough() {
        for (keys, good) in [
            (&["username", "password"][..], true),
            (&["username"], true),
            (&["password", "url"], true),
            (&["user", "pass"], false),
            (&[], false),
        ] {
            let given = keys
                .iter()
                .map(|key| ((*key).to_owned(), SecretBytes::new(Vec::new())));
            assert_eq!(contents(given.collect()).is_ok(), good, "{keys:?}");
        }
    }
}
