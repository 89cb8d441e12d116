//! What comes back of files and folders, and what is said where there is nothing.

use std::fs;
use std::io;
use std::path::Path;

use coffer_provider::testing::caller;
use coffer_provider::{ErrorKind, Format, Life, Sharing};
use coffer_provider_file::{FileProvider, Limits};

use crate::harness::{Root, fetch, fetch_shop, fetch_whole_shop, files, refusal, source};

#[tokio::test]
async fn a_file_is_one_file_of_the_objects_name() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    let objects = "[db.json, {path: db.json, name: etc/db}]";
    let answers = fetch(&provider, "shop", Some(objects)).await;
    for (answer, name) in answers.iter().zip(["db.json", "etc/db"]) {
        let secret = answer.as_ref().ok().unwrap();
        assert_eq!(files(secret), [(name, &b"the shop's"[..])]);
        assert_eq!(secret.files[0].format, Format::Json, "by the path");
        assert_eq!(secret.files[0].mode, None);
        assert!(matches!(secret.life, Life::Static));
        assert_eq!(secret.sharing, Sharing::ServiceAccount);
    }
}

#[tokio::test]
async fn a_folder_is_all_of_its_files() {
    let root = Root::with_two_namespaces();
    root.write("shop/tls/tls.key", b"key");
    root.write("shop/tls/old/2024/tls.key", b"old key");
    root.write("shop/tls/.hidden", b"");
    root.write("shop/tls/..data/tls.key", b"a generation");
    root.write("shop/tls/..2024/x/tls.key", b"another");
    root.link("shop/tls/latest.yaml", "../latest.yaml");
    root.link("shop/tls/new", "..2024/x");
    root.write("shop/latest.yaml", b"a: b");
    let provider = root.provider();

    let tls: [(&str, &[u8]); 5] = [
        (".hidden", b""),
        ("latest.yaml", b"a: b"),
        ("new/tls.key", b"another"),
        ("old/2024/tls.key", b"old key"),
        ("tls.key", b"key"),
    ];
    let secret = fetch_shop(&provider, "tls").await.ok().unwrap();
    let below = |folder| tls.map(|(name, content)| (format!("{folder}{name}"), content));
    let expected = below("tls/");
    assert_eq!(
        files(&secret),
        expected.each_ref().map(|(n, c)| (n.as_str(), *c))
    );
    let formats = secret.files.iter().map(|file| file.format);
    assert!(formats.eq([
        Format::Opaque,
        Format::Yaml,
        Format::Opaque,
        Format::Opaque,
        Format::Opaque
    ]));

    let answers = fetch(&provider, "shop", Some("[{path: tls, name: web/tls}]")).await;
    let expected = below("web/tls/");
    let secret = answers[0].as_ref().ok().unwrap();
    assert_eq!(
        files(secret),
        expected.each_ref().map(|(n, c)| (n.as_str(), *c))
    );

    let whole = fetch_whole_shop(&provider).await.ok().unwrap();
    let mut names: Vec<_> = whole.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names.len(), 7);
    names.retain(|name| !name.starts_with("tls/"));
    assert_eq!(names, ["db.json", "latest.yaml"]);
}

#[tokio::test]
async fn rule_p7_empty_and_binary_files_are_exact() {
    let root = Root::new();
    let every_byte: Vec<u8> = (0..=255).collect();
    root.write("shop/empty", b"");
    root.write("shop/binary", &every_byte);
    let whole = fetch_whole_shop(&root.provider()).await.ok().unwrap();
    assert_eq!(files(&whole), [("binary", &every_byte[..]), ("empty", b"")]);
}

#[tokio::test]
async fn versions_are_told_without_a_read_and_change_with_content_of_the_same_length() {
    let root = Root::with_two_namespaces();
    root.write("shop/tls/tls.key", b"AAAA");
    let provider = root.provider();
    let source = source(&provider, Some("[db.json, tls, missing]"));
    let shop = caller("shop");
    let fetched = async || {
        let answers = source.fetch(&shop, source.objects()).await;
        let versions = answers
            .into_iter()
            .map(|answer| answer.ok().map(|secret| secret.version));
        versions.collect::<Vec<_>>()
    };
    let before = fetched().await;
    assert_eq!(source.versions(&shop, source.objects()).await, before);
    root.write("shop/tls/tls.key", b"BBBB");
    let told = source.versions(&shop, source.objects()).await;
    assert_eq!(told, fetched().await);
    assert_eq!(told[0], before[0]);
    assert_ne!(told[1], before[1]);
    assert_eq!(told[2], None);
    let version = told[1].as_ref().unwrap().as_str();
    assert!(
        version.starts_with("f-") && version.len() == 18,
        "{version}"
    );
}

#[tokio::test]
async fn what_is_not_there_is_said_in_words_that_stay_the_same() {
    let root = Root::with_two_namespaces();
    fs::create_dir(root.path("shop/empty")).unwrap();
    root.write("shop/tls/tls.key", b"key");
    root.link("shop/tls/ca.pem", "gone.pem");
    root.write("file", b"not a folder");
    let provider = root.provider();
    for (namespace, objects, expected) in [
        (
            "shop",
            "[a/b]",
            "a/b does not exist in the folder of Namespace shop",
        ),
        (
            "shop",
            "[db.json/x]",
            "db.json/x does not exist in the folder of Namespace shop",
        ),
        (
            "shop",
            "[{path: a, name: b}]",
            "b: a does not exist in the folder of Namespace shop",
        ),
        ("shop", "[empty]", "empty holds no files"),
        (
            "shop",
            "[tls]",
            "tls/ca.pem does not exist in the folder of Namespace shop",
        ),
        (
            "nobody",
            "[a]",
            "a is not there: Namespace nobody has no folder",
        ),
        (
            "file",
            "[a]",
            "a is not there: Namespace file has no folder",
        ),
    ] {
        for _ in 0..2 {
            let answer = fetch(&provider, namespace, Some(objects)).await.remove(0);
            let expected = (ErrorKind::NotFound, expected.to_owned());
            assert_eq!(refusal(answer), expected, "{objects}");
        }
    }
}

#[tokio::test]
async fn a_root_that_goes_away_makes_the_store_unavailable() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    assert!(fetch_shop(&provider, "db.json").await.is_ok());
    let host_path = root.path("").display().to_string();
    drop(root);
    let (kind, text) = refusal(fetch_shop(&provider, "db.json").await);
    assert_eq!(kind, ErrorKind::Unavailable);
    assert_eq!(
        text,
        "db.json cannot be read: the root of the file provider cannot be opened"
    );
    assert!(!text.contains(&host_path));
}

#[test]
fn a_root_has_to_be_the_absolute_path_of_a_folder() {
    let root = Root::with_two_namespaces();
    let file = root.path("shop/db.json");
    let missing = root.path("missing");
    for (path, kind) in [
        (Path::new("secrets"), io::ErrorKind::InvalidInput),
        (&missing, io::ErrorKind::NotFound),
        (&file, io::ErrorKind::NotADirectory),
    ] {
        let error = FileProvider::new(path, Limits::default()).err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}
