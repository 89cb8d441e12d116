//! One below each limit, at it, and one above.

use std::fs::File;

use coffer_provider::ErrorKind;
use coffer_provider_file::{FileProvider, Limits};

use crate::harness::{Root, fetch, fetch_shop, fetch_whole_shop, refusal};

const LIMITS: Limits = Limits {
    bytes: 1000,
    files: 4,
    depth: 3,
};

fn provider(root: &Root) -> FileProvider {
    FileProvider::new(&root.path(""), LIMITS).unwrap()
}

#[tokio::test]
async fn a_file_may_have_as_many_bytes_as_the_limit() {
    let root = Root::new();
    for (bytes, fits) in [(999, true), (1000, true), (1001, false)] {
        root.write("shop/a", &vec![b'x'; bytes]);
        let answer = fetch_shop(&provider(&root), "a").await;
        assert_eq!(answer.is_ok(), fits, "{bytes}");
        if !fits {
            let expected = "a has 1001 bytes, and the limit is 1000".to_owned();
            assert_eq!(refusal(answer), (ErrorKind::TooLarge, expected));
        }
    }
}

#[tokio::test]
async fn the_files_of_a_folder_may_have_as_many_bytes_together() {
    let root = Root::new();
    root.write("shop/a", &[b'x'; 600]);
    for (bytes, fits) in [(399, true), (400, true), (401, false)] {
        root.write("shop/b", &vec![b'x'; bytes]);
        let answer = fetch_whole_shop(&provider(&root)).await;
        assert_eq!(answer.is_ok(), fits, "{bytes}");
        if !fits {
            let expected = "the folder of Namespace shop has 1001 bytes, and the limit is 1000";
            assert_eq!(refusal(answer), (ErrorKind::TooLarge, expected.to_owned()));
        }
    }
}

#[tokio::test]
async fn the_objects_of_a_read_may_have_as_many_bytes_together() {
    let root = Root::new();
    root.write("shop/a", &[b'x'; 600]);
    for (bytes, fits) in [(399, true), (400, true), (401, false)] {
        root.write("shop/b", &vec![b'x'; bytes]);
        let mut answers = fetch(&provider(&root), "shop", Some("[a, b]")).await;
        assert!(answers[0].is_ok());
        assert_eq!(answers[1].is_ok(), fits, "{bytes}");
        if !fits {
            let expected =
                "b has 1001 bytes together with the objects before it, and the limit is 1000";
            let refused = refusal(answers.remove(1));
            assert_eq!(refused, (ErrorKind::TooLarge, expected.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_folder_may_have_as_many_files_as_the_limit() {
    let root = Root::new();
    root.write("shop/a", b"");
    root.write("shop/x/b", b"");
    for (name, fits) in [("c", true), ("d", true), ("e", false)] {
        root.write(&format!("shop/{name}"), b"");
        let answer = fetch_whole_shop(&provider(&root)).await;
        assert_eq!(answer.is_ok(), fits, "{name}");
        if !fits {
            let expected = "the folder of Namespace shop has more than 4 files";
            assert_eq!(refusal(answer), (ErrorKind::TooLarge, expected.to_owned()));
        }
    }
}

#[tokio::test]
async fn a_file_may_lie_as_deep_as_the_limit() {
    let root = Root::new();
    for (below, fits) in [("a/b", true), ("a/c/d", true), ("a/c/e/f", false)] {
        root.write(&format!("shop/tls/{below}"), b"");
        let answer = fetch_shop(&provider(&root), "tls").await;
        assert_eq!(answer.is_ok(), fits, "{below}");
        if !fits {
            let expected = (
                ErrorKind::TooLarge,
                "tls is deeper than 3 levels".to_owned(),
            );
            assert_eq!(refusal(answer), expected);
        }
    }
}

#[tokio::test]
async fn folders_without_files_and_links_in_circles_come_to_an_end() {
    let root = Root::new();
    for folder in 0..64 {
        std::fs::create_dir_all(root.path(&format!("shop/many/{folder}"))).unwrap();
    }
    root.write("shop/circle/a", b"");
    root.link("shop/circle/b", ".");
    root.link("shop/circle/c", ".");
    let provider = provider(&root);
    for (object, expected) in [
        ("many", "many holds no files"),
        ("circle", "circle is deeper than 3 levels"),
    ] {
        assert_eq!(refusal(fetch_shop(&provider, object).await).1, expected);
    }
    std::fs::create_dir(root.path("shop/many/64")).unwrap();
    let expected = (
        ErrorKind::TooLarge,
        "many has more than 64 entries".to_owned(),
    );
    assert_eq!(refusal(fetch_shop(&provider, "many").await), expected);
}

#[tokio::test]
async fn by_default_a_read_is_4_mib() {
    let root = Root::new();
    root.write("shop/a", b"");
    let provider = root.provider();
    for (bytes, fits) in [
        ((4 << 20) - 1, true),
        (4 << 20, true),
        ((4 << 20) + 1, false),
        (1 << 40, false),
    ] {
        let file = File::options()
            .write(true)
            .open(root.path("shop/a"))
            .unwrap();
        file.set_len(bytes).unwrap();
        let answer = fetch_shop(&provider, "a").await;
        assert_eq!(answer.is_ok(), fits, "{bytes}");
    }
}
