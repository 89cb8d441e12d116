//! Class files.

use coffer::class::read_documents;

use crate::mutation::{damaged_text, shows_all, try_cases};

const WORDS: &[&str] = &[
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "<<: *a\n",
    "!!binary ",
    "!<!> ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "\n",
    "\n  ",
    "\t",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "\"\\x1b[31m\"",
    "\\u0000",
    "# ",
    "null",
    "~",
    "true",
    "0400",
    "0o400",
    "-1",
    "2147483648",
    "1e400",
    "provider: file\n",
    "parameters: {a: b}\n",
    "sources: []\n",
    "items:\n",
    "path: ../x",
    "path: ..data",
    "mode: 04755",
    "defaultMode: 0",
    "optional: true",
    "immutable: true",
    "encoding: base64",
    "refresh: {interval: 0s}",
    "interval: 999999999999h",
    "maxStale: -1s",
    "sharing: Pod",
    "\u{feff}",
    "\u{202e}",
    "? ",
    "!!python/object/apply:os.system ",
];

#[test]
fn rule_r11_no_class_file_makes_the_driver_panic_and_what_is_wrong_is_told_plainly() {
    try_cases(10_000, &damaged_text("classes", WORDS), |text| {
        let documents = match read_documents(&text) {
            Ok(documents) => documents,
            Err(error) => return assert!(shows_all(&error.to_string()), "{error:?}"),
        };
        for document in documents {
            match document.class {
                Err(error) => assert!(shows_all(&error.to_string()), "{error:?}"),
                Ok(class) => {
                    assert!(!class.sources.is_empty());
                    assert!(!class.name.name.is_empty() && !class.name.namespace.is_empty());
                    assert!(class.default_mode.bits() <= 0o777);
                    for item in &class.items {
                        assert!(!item.path.as_str().starts_with(".."), "{}", item.path);
                        assert!(item.mode.is_none_or(|mode| mode.bits() <= 0o777));
                    }
                }
            }
        }
    });
}

#[test]
fn a_class_file_read_twice_is_the_same() {
    try_cases(2_000, &damaged_text("classes", WORDS), |text| {
        let hashes = || {
            let documents = read_documents(&text).unwrap_or_default();
            let hashes = documents
                .into_iter()
                .map(|document| document.class.map(|class| class.hash).ok());
            hashes.collect::<Vec<_>>()
        };
        assert_eq!(hashes(), hashes());
    });
}

/// Small files that are large once they are read.
#[test]
fn rule_r11_a_class_file_that_unfolds_without_end_is_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb += &format!("a{level}: &a{level} [{before}]\n");
    }
    for (name, text) in [
        ("aliases of aliases", bomb),
        ("deep lists", "[".repeat(100_000)),
        ("deep maps", "{a: ".repeat(100_000)),
        (
            "deep blocks",
            (0..5_000).map(|depth| " ".repeat(depth) + "a:\n").collect(),
        ),
    ] {
        assert!(read_documents(&text).is_err(), "{name}");
    }
}
