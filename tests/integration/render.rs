//! `coffer render` and `coffer demo`, as a person runs them.

use std::fs;
use std::process::{Command, Output};

fn coffer(arguments: &[&str]) -> (bool, String) {
    told(Command::new(env!("CARGO_BIN_EXE_coffer")).args(arguments))
}

fn told(command: &mut Command) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.success(), text)
}

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shop");

#[test]
fn render_shows_what_would_be_mounted_and_masks_the_values() {
    let class = format!("{EXAMPLE}/class.yaml");
    let root = format!("--file-root={EXAMPLE}/secrets");
    let (good, text) = coffer(&["render", &class, &root]);
    assert!(good, "{text}");
    for line in [
        "SecretProviderClass shop/shop",
        "  provider file, as the Namespace shop",
        "    reads db.json",
        "    db/password                      0400       13 bytes  ********",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("correct-horse"), "{text}");

    let (good, text) = coffer(&["render", &class]);
    assert!(good, "{text}");
    assert!(
        text.contains("db/password                      0400  from db.json, key password"),
        "{text}"
    );
}

#[cfg(feature = "aws")]
#[test]
fn render_shows_what_aws_would_be_asked_for_and_as_whom() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/aws/class.yaml");
    // Of a machine that trusts somebody, as every one does that AWS is asked from.
    let authority = rcgen::generate_simple_self_signed(["nowhere.example".to_owned()]).unwrap();
    let ca = tempfile::NamedTempFile::new().unwrap();
    fs::write(ca.path(), authority.cert.pem()).unwrap();
    let mut render = Command::new(env!("CARGO_BIN_EXE_coffer"));
    let (good, text) = told(
        render
            .args(["render", file])
            .env("SSL_CERT_FILE", ca.path()),
    );
    assert!(good, "{text}");
    let whom = "  provider aws, as the pod's ServiceAccount (audience sts.amazonaws.com) in the role \
                the ServiceAccount's at us-west-2, else us-east-2\n    reads shop_db\n    reads db-before\n    \
                reads checkout\n  files\n";
    assert!(text.contains(whom), "{text}");
    assert!(
        text.contains("    db/password                      0400  from db-password\n"),
        "{text}"
    );
}

#[test]
fn render_shows_what_vault_would_be_asked_for_and_as_whom() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/vault/class.yaml");
    let (good, text) = coffer(&["render", file]);
    assert!(good, "{text}");
    for line in [
        "SecretProviderClass shop/shop-db\n",
        "(audience vault) in the role shop at https://vault.example:8200",
        "    db/username                      0644  from username\n",
        "    db/password                      0400  from password\n",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
}

#[test]
fn render_knows_what_the_driver_is_told_of_stores_and_shows_the_secrets_of_the_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("class.yaml");
    let class = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
        metadata: {name: a, namespace: b}\nspec:\n  provider: vault\n  parameters:\n    roleName: shop\n    \
        objects: '[{objectName: a, secretPath: secret/data/a, secretKey: a}]'\n  \
        secretObjects:\n  - {secretName: s, type: Opaque, data: [{objectName: a, key: a}]}\n  - {secretName: t}\n";
    fs::write(&file, class).unwrap();
    let file = file.to_str().unwrap();
    let (good, text) = coffer(&["render", file]);
    assert!(!good && text.contains("vaultAddress"), "{text}");
    let address = "--vault-addr=https://192.0.2.7:8200";
    let (good, text) = coffer(&["render", file, address]);
    assert!(good, "{text}");
    for line in [
        "in the role shop at https://192.0.2.7:8200",
        "    s                                Opaque\n",
        "    would not be made: secretObjects[1].data: ",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    // A driver in a pod does not see by itself that this is its node.
    let class = class.replace(
        "roleName: shop",
        "roleName: shop\n    vaultAddress: https://192.0.2.7:8200",
    );
    fs::write(file, class).unwrap();
    let own = "--node-addresses=192.0.2.6,192.0.2.7";
    let (good, text) = coffer(&["render", file, own]);
    assert!(!good && text.contains("an address of the node"), "{text}");
    let (good, text) = coffer(&["render", file, "--node-addresses=192.0.2.6"]);
    assert!(good, "{text}");
}

#[test]
fn render_says_what_is_wrong_and_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("class.yaml");
    for (content, message) in [
        ("kind: Pod\n", "has no SecretProviderClass in it"),
        ("a: [", "cannot read"),
        (
            "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\n\
             metadata: {name: a, namespace: b}\nspec: {provider: file, itms: []}\n",
            "would not be mounted: spec.itms: unknown field",
        ),
    ] {
        fs::write(&file, content).unwrap();
        let (good, text) = coffer(&["render", file.to_str().unwrap()]);
        assert!(!good && text.contains(message), "{text}");
    }
    let (good, text) = coffer(&["render", "/does/not/exist"]);
    assert!(
        !good && text.contains("cannot read /does/not/exist"),
        "{text}"
    );
}

#[test]
#[ignore = "needs a mount namespace: cargo xtask test"]
fn the_demo_holds() {
    let (good, text) = coffer(&["demo"]);
    assert!(good, "{text}");
    for line in [
        "..data -> ..",
        "db/password    0400",
        "The secret changes",
        "nothing is left of it",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    assert!(!text.contains("correct-horse"), "{text}");
}
