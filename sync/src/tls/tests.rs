use std::time::{Duration, SystemTime};

use coffer_provider::SecretBytes;

use super::*;

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../testdata/", $name)).as_slice()
    };
}

fn data(given: &[(&str, &[u8])]) -> Data {
    let given = given.iter();
    given
        .map(|(key, bytes)| ((*key).to_owned(), SecretBytes::new(bytes.to_vec())))
        .collect()
}

fn text(data: &Data, key: &str) -> String {
    String::from_utf8(data[key].expose().to_vec()).expect("PEM")
}

fn lines(of: &[&[u8]]) -> String {
    let all = of.concat();
    String::from_utf8(all).expect("PEM")
}

fn made(given: &[(&str, &[u8])]) -> Result<Data, String> {
    contents(data(given), SystemTime::now()).map_err(|error| error.to_string())
}

#[test]
fn keys_are_written_as_upstream_writes_them() {
    for (certificate, key, expected) in [
        (
            file!("rsa.crt"),
            file!("rsa_pkcs1.pem"),
            file!("rsa_pkcs1.pem"),
        ),
        (
            file!("rsa.crt"),
            file!("rsa_pkcs8.pem"),
            file!("rsa_pkcs1.pem"),
        ),
        (file!("ec.crt"), file!("ec_sec1.pem"), file!("ec_sec1.pem")),
        (file!("ec.crt"), file!("ec_pkcs8.pem"), file!("ec_sec1.pem")),
        // The parameters of the curve come before the key.
        (
            file!("ec.crt"),
            file!("ec_params.pem"),
            file!("ec_sec1.pem"),
        ),
        (
            file!("ed25519.crt"),
            file!("ed25519.pem"),
            file!("ed25519.pem"),
        ),
    ] {
        let made = made(&[(CERTIFICATE, certificate), (KEY, key)]).expect("good");
        assert_eq!(made.len(), 2);
        assert_eq!(text(&made, CERTIFICATE), lines(&[certificate]));
        assert_eq!(text(&made, KEY), lines(&[expected]));
    }
}

#[test]
fn a_bundle_in_one_file_gives_chain_and_key() {
    let bundle = [
        b"# a note\n",
        file!("ec.crt"),
        file!("ec_pkcs8.pem"),
        file!("ca.crt"),
    ]
    .concat();
    let made = made(&[
        (CERTIFICATE, &bundle),
        (KEY, &bundle),
        (AUTHORITY, file!("ca.crt")),
    ])
    .expect("good");
    let chain = lines(&[file!("ec.crt"), file!("ca.crt")]);
    assert_eq!(text(&made, CERTIFICATE), chain);
    assert_eq!(text(&made, KEY), lines(&[file!("ec_sec1.pem")]));
    assert_eq!(text(&made, AUTHORITY), lines(&[file!("ca.crt")]));
}

#[test]
fn pkcs12_opens_with_its_password_and_with_none() {
    let rsa = lines(&[file!("rsa_pkcs1.pem")]);
    let rsa_chain = lines(&[file!("rsa.crt"), file!("ca.crt")]);
    for (store, password, chain, key) in [
        (file!("empty.p12"), None, rsa_chain.clone(), rsa.clone()),
        (file!("empty.p12"), Some(""), rsa_chain.clone(), rsa.clone()),
        (file!("legacy.p12"), Some("passphrase"), rsa_chain, rsa),
        (
            file!("password.p12"),
            Some("passphrase"),
            lines(&[file!("ec.crt"), file!("ca.crt")]),
            lines(&[file!("ec_sec1.pem")]),
        ),
        (
            file!("ed25519.p12"),
            Some("passphrase"),
            lines(&[file!("ed25519.crt")]),
            lines(&[file!("ed25519.pem")]),
        ),
    ] {
        let mut given = vec![(CERTIFICATE, store), (KEY, store)];
        given.extend(password.map(|password| (PASSWORD, password.as_bytes())));
        let made = made(&given).expect("good");
        assert_eq!(made.len(), 2, "the password is no key of the Secret");
        assert_eq!(text(&made, CERTIFICATE), chain);
        assert_eq!(text(&made, KEY), key);
    }
}

#[test]
fn what_no_server_could_use_is_refused_without_a_word_of_it() {
    let good = [(CERTIFICATE, file!("ec.crt")), (KEY, file!("ec_sec1.pem"))];
    assert!(made(&good).is_ok());
    let upside_down = [file!("ca.crt"), file!("ec.crt")].concat();
    let cut = &file!("ec.crt")[..200];
    let hollow = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (key, wrong, message) in [
        (
            CERTIFICATE,
            file!("rsa.crt"),
            "the key is not that of the certificate",
        ),
        (
            CERTIFICATE,
            &upside_down,
            "the certificate of the key has to be the first one",
        ),
        (
            CERTIFICATE,
            file!("expired.crt"),
            "the certificate has expired",
        ),
        (CERTIFICATE, file!("ec_sec1.pem"), "has no certificate"),
        (CERTIFICATE, hollow, "has a certificate that is none"),
        (CERTIFICATE, cut, "is not whole PEM"),
        (CERTIFICATE, b"hunter2", "is neither PEM nor PKCS#12"),
        (CERTIFICATE, b"", "is neither PEM nor PKCS#12"),
        (
            CERTIFICATE,
            file!("password.p12"),
            "is neither PEM nor PKCS#12",
        ),
        (KEY, file!("ec.crt"), "has no private key"),
        (KEY, file!("rsa_locked.pem"), "is not whole PEM"),
        (
            KEY,
            file!("rsa_locked_pkcs8.pem"),
            "is locked with a passphrase",
        ),
        (
            KEY,
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "is not a private key of RSA",
        ),
        (KEY, b"hunter2", "is neither PEM nor PKCS#12"),
        (AUTHORITY, file!("password.p12"), "has no certificate"),
        (AUTHORITY, b"", "has no certificate"),
        ("tls.pem", b"hunter2", "kubernetes.io/tls has the keys"),
    ] {
        let mut bad = data(&good);
        bad.insert(key.to_owned(), SecretBytes::new(wrong.to_vec()));
        let error = contents(bad, SystemTime::now()).err().expect(message);
        assert_eq!(error.field(), key, "{error}");
        assert!(error.problem().starts_with(message), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    for missing in [CERTIFICATE, KEY] {
        let mut bad = data(&good);
        bad.remove(missing);
        let error = contents(bad, SystemTime::now()).err().expect(missing);
        assert_eq!(error.to_string(), format!("{missing}: is missing"));
    }
}

#[test]
fn a_certificate_is_good_until_it_ends() {
    let given = || {
        data(&[
            (CERTIFICATE, file!("expired.crt")),
            (KEY, file!("ec_sec1.pem")),
        ])
    };
    let first_of_2021 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_609_459_200);
    assert!(contents(given(), first_of_2021 - Duration::from_secs(1)).is_ok());
    assert!(contents(given(), first_of_2021).is_err());
}

#[test]
fn pkcs12_that_asks_for_too_much_is_not_opened() {
    let large = vec![0x30; (256 << 10) + 1];
    let scrypt = [
        0x30, 0x0b, 0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b,
    ];
    for (file, message) in [
        (large.as_slice(), "tls.crt: is larger than any"),
        (&scrypt, "tls.crt: is PKCS#12 with scrypt"),
    ] {
        let error = made(&[(CERTIFICATE, file), (KEY, file)])
            .err()
            .expect(message);
        assert!(error.starts_with(message), "{error}");
    }
}
