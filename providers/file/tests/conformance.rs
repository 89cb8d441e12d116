//! The file provider keeps the promises of the suite, with a real folder as the store.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use coffer_provider::testing::{Subject, caller, conformance};
use coffer_provider::{Caller, Parameters, Provider};
use coffer_provider_file::{FileProvider, Limits};

struct Folder {
    root: tempfile::TempDir,
    provider: Arc<FileProvider>,
    replace: fn(&Path, &[u8]),
}

impl Folder {
    fn new(replace: fn(&Path, &[u8])) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("shop")).unwrap();
        let provider = FileProvider::new(root.path(), Limits::default()).unwrap();
        let provider = Arc::new(provider);
        Self {
            root,
            provider,
            replace,
        }
    }
}

fn objects(text: &str) -> Parameters {
    Parameters::from([("objects".into(), text.into())])
}

#[async_trait]
impl Subject for Folder {
    fn provider(&self) -> Arc<dyn Provider> {
        self.provider.clone()
    }

    fn parameters(&self, names: &[&str]) -> Parameters {
        objects(
            &names
                .iter()
                .map(|name| format!("- {name}\n"))
                .collect::<String>(),
        )
    }

    fn bad_parameters(&self) -> Vec<(Parameters, &'static str)> {
        vec![
            (objects("first"), "parameters.objects"),
            (objects("[first, ../other/first]"), "parameters.objects[1]"),
            (
                objects("[{path: /etc/shadow}]"),
                "parameters.objects[0].path",
            ),
            (
                objects("[{path: first, key: a}]"),
                "parameters.objects[0].key",
            ),
        ]
    }

    fn caller(&self) -> Caller {
        caller("shop")
    }

    fn stranger(&self) -> Caller {
        caller("elsewhere")
    }

    async fn write(&self, name: &str, value: &[u8]) {
        (self.replace)(&self.root.path().join("shop").join(name), value);
    }
}

#[tokio::test]
async fn files_that_are_replaced_pass_the_conformance_suite() {
    let by_rename: fn(&Path, &[u8]) = |path, value| {
        let beside = path.with_file_name("..beside");
        fs::write(&beside, value).unwrap();
        fs::rename(&beside, path).unwrap();
    };
    conformance(&Folder::new(by_rename)).await;
}

#[tokio::test]
async fn files_that_are_written_in_place_pass_the_conformance_suite() {
    conformance(&Folder::new(|path, value| fs::write(path, value).unwrap())).await;
}
