//! `kubernetes.io/ssh-auth`: a private key for SSH. The API server looks only whether it is empty.

use crate::key::PrivateKey;
use crate::{Data, ObjectError};

const KEY: &str = "ssh-privatekey";

/// The key stays as it is, to the last byte; other keys, such as known_hosts, do not matter.
pub(crate) fn contents(given: Data) -> Result<Data, ObjectError> {
    let Some(key) = given.get(KEY) else {
        let problem = "is missing: kubernetes.io/ssh-auth has that key";
        return Err(ObjectError::new(KEY, problem));
    };
    check(key.expose()).map_err(|problem| ObjectError::new(KEY, problem))?;
    Ok(given)
}

fn check(text: &[u8]) -> Result<(), &'static str> {
    const OPENSSH: &[u8] = b"-----BEGIN OPENSSH PRIVATE KEY-----";
    if !text.starts_with(OPENSSH) {
        return PrivateKey::from_pem(text).map(drop);
    }
    // One with a passphrase is taken: who uses it may have the passphrase from elsewhere.
    match ssh_key::PrivateKey::from_openssh(text) {
        Ok(_) => Ok(()),
        Err(_) => Err("is not a whole private key of OpenSSH"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_provider::SecretBytes;

    fn kept(key: &[u8]) -> Result<(), ObjectError> {
        let given = Data::from([
            (KEY.to_owned(), SecretBytes::new(key.to_vec())),
            ("known_hosts".to_owned(), SecretBytes::new(b"x".to_vec())),
        ]);
        let made = contents(given)?;
        assert_eq!(made.len(), 2);
        assert_eq!(made[KEY].expose(), key);
        Ok(())
    }

    #[test]
    fn keys_of_openssh_and_of_openssl_stay_as_they_are() {
        for key in [
            include_str!("../testdata/ssh_ed25519"),
            include_str!("../testdata/ssh_ecdsa"),
            include_str!("../testdata/ssh_rsa"),
            include_str!("../testdata/ssh_locked"),
            include_str!("../testdata/rsa_pkcs1.pem"),
            include_str!("../testdata/ec_sec1.pem"),
        ] {
            assert_eq!(kept(key.as_bytes()), Ok(()));
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_a_word_of_it() {
        let good = include_str!("../testdata/ssh_ed25519");
        let half = &good[..good.len() / 2];
        let other = good.replacen("b3BlbnNzaC1rZXktdjE", "b3BlbnNzaC1rZXktdjI", 1);
        assert_ne!(other, good);
        for bad in [
            "",
            "hunter2",
            half,
            &other,
            include_str!("../testdata/rsa_locked.pem"),
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI hunter2",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ] {
            let error = kept(bad.as_bytes()).expect_err("it is refused");
            assert_eq!(error.field(), KEY);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = contents(Data::new()).err().expect("nothing");
        assert!(error.to_string().starts_with("ssh-privatekey: is missing"));
    }
}
