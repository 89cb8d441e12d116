//! When a signed SSH key ends: the store does not say it beside the key, so it is read from it
//! (OpenSSH's PROTOCOL.certkeys). Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The end of a certificate's validity in seconds since 1970, where it has one.
pub(crate) fn ends(signed_key: &str) -> Option<u64> {
    let mut words = signed_key.split_ascii_whitespace();
    let kind = words.next()?;
    // What stands between nonce and serial number is another public key for each kind.
    let parts_of_the_key = match kind.strip_suffix("-cert-v01@openssh.com")? {
        "ssh-ed25519" => 1,
        "ssh-rsa"
        | "ecdsa-sha2-nistp256"
        | "ecdsa-sha2-nistp384"
        | "ecdsa-sha2-nistp521"
        | "sk-ssh-ed25519" => 2,
        "sk-ecdsa-sha2-nistp256" => 3,
        "ssh-dss" => 4,
        _ => return None,
    };
    let bytes = STANDARD.decode(words.next()?).ok()?;
    let mut rest = Rest(&bytes);
    // Its kind and the nonce come first.
    for _ in 0..2 + parts_of_the_key {
        rest.text()?;
    }
    let (_serial_number, _type) = (rest.take::<8>()?, rest.take::<4>()?);
    let (_id, _principals) = (rest.text()?, rest.text()?);
    let _after = rest.take::<8>()?;
    let before = u64::from_be_bytes(*rest.take()?);
    (before != u64::MAX).then_some(before)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(*self.take()?);
        let (text, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_has_no_end() {
        for text in [
            "",
            "ssh-ed25519 AAAA",
            "ssh-ed25519-cert-v01@openssh.com",
            "ssh-ed25519-cert-v01@openssh.com AAAA",
            "ssh-ed25519-cert-v01@openssh.com /////w==",
            "rot13-cert-v01@openssh.com AAAAAA==",
        ] {
            assert_eq!(ends(text), None, "{text}");
        }
    }
}
