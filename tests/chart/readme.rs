//! What the chart's README says: values and their defaults, and examples that helm takes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::helm::{NEW, checkout, helm};

fn file(name: &str) -> String {
    fs::read_to_string(checkout("charts/coffer").join(name)).expect("a file of the chart")
}

/// The value of that name, as in `linux.image.tag`.
fn default<'a>(values: &'a Value, name: &str) -> Option<&'a Value> {
    values.pointer(&format!("/{}", name.replace('.', "/")))
}

#[test]
fn every_value_of_the_readme_is_one_with_that_default() {
    let values: Value = serde_saphyr::from_str(&file("values.yaml")).expect("YAML");
    let mut rows = 0;
    for line in file("README.md").lines() {
        let cells: Vec<_> = line
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let [_, name, said, ..] = cells[..] else {
            continue;
        };
        if name == "value" || name.starts_with("---") {
            continue;
        }
        let said: Value = serde_saphyr::from_str(said).expect("YAML");
        assert_eq!(default(&values, name), Some(&said), "{name}");
        rows += 1;
    }
    assert!(rows > 20, "{rows}");
}

#[test]
#[ignore = "needs helm: cargo xtask test"]
fn every_example_of_the_readme_is_taken() {
    let readme = file("README.md");
    let examples: Vec<_> = readme.split("```yaml\n").skip(1).collect();
    assert_eq!(examples.len(), 3);
    for (at, example) in examples.into_iter().enumerate() {
        let (example, _) = example.split_once("```").expect("an end");
        let values = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("readme-{at}.yaml"));
        fs::write(&values, example).expect("written");
        let values = values.display().to_string();
        let more = ["--kube-version", NEW, "--values", &values];
        let made = helm(&["template", "csi-secrets-store"], "default", &more);
        assert_ne!(
            made.expect(example),
            helm(&["template", "csi-secrets-store"], "default", &more[..2]).expect("good")
        );
    }
}
