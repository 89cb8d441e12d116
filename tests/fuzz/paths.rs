//! Names of files: paths in a volume, and sets of them.

use std::path::{Component, Path};

use coffer::class::Mode;
use coffer::payload::{Limits, Payload};
use coffer::volume_path::VolumePath;
use coffer_provider::SecretBytes;
use proptest::collection::vec;

use crate::mutation::{damaged_text, shows_all, try_cases};

const WORDS: &[&str] = &[
    "/",
    "//",
    "..",
    "../",
    "/..",
    "/./",
    ".",
    "..data",
    "..2026_",
    "\0",
    "\n",
    "\r",
    "\t",
    "\u{1b}[2J",
    "\u{7f}",
    "\u{85}",
    "\u{202e}",
    "\u{2066}",
    "\u{200b}",
    "\u{feff}",
    "a",
    "ü",
    "\\",
    "-",
    " ",
    "xxxxxxxx",
];

#[test]
fn rule_p1_rule_p2_a_path_that_is_taken_stays_in_its_volume() {
    try_cases(20_000, &damaged_text("paths", WORDS), |text| {
        let path = match VolumePath::new(text.clone()) {
            Ok(path) => path,
            // P5: what is refused is shown, and shows what it hides.
            Err(error) => return assert!(shows_all(&error.to_string()), "{error:?}"),
        };
        assert_eq!(path.as_str(), text);
        assert!(text.len() <= 4096 && !text.starts_with(".."), "{text:?}");
        let components: Vec<_> = Path::new(&text).components().collect();
        let names: Vec<_> = path.names().collect();
        assert!(names.len() <= 32, "{text:?}");
        assert_eq!(components.len(), names.len(), "{text:?}");
        for (component, name) in components.iter().zip(&names) {
            assert_eq!(*component, Component::Normal(name.as_ref()), "{text:?}");
            assert!(name.len() <= 255, "{text:?}");
        }
        assert_eq!(path.folders().count() + 1, names.len());
    });
}

#[test]
fn rule_p5_a_name_with_something_hidden_in_it_is_refused_and_shown() {
    for hidden in [
        "\n",
        "\r",
        "\u{1b}[31m",
        "\u{7f}",
        "\u{9b}",
        "\u{202e}",
        "\u{2066}",
        "\u{200f}",
        "\u{2028}",
    ] {
        let error = VolumePath::new(format!("a{hidden}b")).expect_err(hidden);
        let told = error.to_string();
        assert!(shows_all(&told), "{told:?}");
        let code = u32::from(hidden.chars().next().unwrap());
        assert!(told.contains(&format!("u{{{code:x}}}")), "{told}");
    }
}

#[test]
fn rule_p3_no_file_of_a_set_is_in_the_way_of_another() {
    let sets = vec(damaged_text("paths", WORDS), 1..6);
    try_cases(5_000, &sets, |texts| {
        let paths: Vec<_> = texts.iter().flat_map(VolumePath::new).collect();
        let mode = Mode::try_from(0o644).unwrap();
        let files = paths
            .iter()
            .map(|path| (path.clone(), SecretBytes::new(vec![1]), mode));
        let payload = Payload::new(files, None, &Limits::default());
        let in_the_way = |one: &VolumePath, other: &VolumePath| {
            one == other || other.folders().any(|folder| folder == one.as_str())
        };
        let conflict = paths.iter().enumerate().any(|(at, one)| {
            let others = paths.iter().enumerate().filter(|(other, _)| *other != at);
            others
                .map(|(_, other)| other)
                .any(|other| in_the_way(one, other))
        });
        match payload {
            Ok(payload) => {
                assert!(!conflict, "{paths:?}");
                assert_eq!(payload.files().len(), paths.len());
            }
            Err(error) => {
                assert!(conflict, "{paths:?}: {error}");
                assert!(shows_all(&error.to_string()), "{error:?}");
            }
        }
    });
}
