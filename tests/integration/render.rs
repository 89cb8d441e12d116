//! `coffer render` and `coffer demo`, as a person runs them.

use std::fs;
use std::process::{Command, Output};

fn coffer(arguments: &[&str]) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(arguments)
        .output()
        .unwrap();
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
