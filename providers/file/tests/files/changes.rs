//! Files that change while they are read, and changes that are told.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::thread;
use std::time::{Duration, Instant};

use coffer_provider::{ErrorKind, Secret};
use coffer_provider_file::FileProvider;
use futures_util::StreamExt;

use crate::harness::{
    Root, SEVERAL_BURSTS, changes, fetch, fetch_shop, fetch_whole_shop, files, not_told, told,
};

/// A file is trusted once it has rested for two ticks of the kernel's clock, so the writer sleeps for
/// longer than that between two writes: otherwise nothing could be read, and no read be disturbed.
const REST: Duration = Duration::from_millis(30);
const WRITES: u8 = 40;

/// Reads what `write` keeps writing, and checks each answer; then once more at rest.
async fn read_while_written(
    provider: &FileProvider,
    object: Option<&str>,
    mut write: impl FnMut(u8) + Send + 'static,
    check: impl Fn(&Secret) -> u8,
) {
    let writer = thread::spawn(move || {
        for number in 1..=WRITES {
            thread::sleep(REST);
            write(number);
        }
    });
    while !writer.is_finished() {
        match fetch(provider, "shop", object).await.remove(0) {
            Ok(secret) => assert!(check(&secret) <= WRITES),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    writer.join().unwrap();
    let at_rest = fetch(provider, "shop", object).await.remove(0);
    assert_eq!(check(&at_rest.ok().unwrap()), WRITES);
}

#[tokio::test]
async fn rule_p10_a_file_written_in_place_is_read_whole_or_not_at_all() {
    const PIECE: usize = 16 << 10;
    const PIECES: usize = 256;
    let root = Root::new();
    root.write("shop/key", &vec![0; PIECE * PIECES]);
    let provider = root.provider();
    let file = fs::File::options()
        .write(true)
        .open(root.path("shop/key"))
        .unwrap();
    let write = move |number| {
        // From the end, so that it meets a reader instead of running behind it.
        for piece in (0..PIECES).rev() {
            file.write_all_at(&[number; PIECE], (piece * PIECE) as u64)
                .unwrap();
        }
    };
    let check = |secret: &Secret| {
        let bytes = secret.files[0].bytes.expose();
        assert_eq!(bytes.len(), PIECE * PIECES);
        assert!(
            bytes.iter().all(|&byte| byte == bytes[0]),
            "two contents at once"
        );
        bytes[0]
    };
    read_while_written(&provider, Some("[key]"), write, check).await;
}

#[tokio::test]
async fn rule_p10_a_folder_is_one_generation() {
    let root = Root::new();
    let names = ["a", "b", "c", "d"];
    let data = root.path("shop");
    fs::create_dir(&data).unwrap();
    for name in names {
        root.link(&format!("shop/{name}"), format!("..data/{name}"));
    }
    let write = move |number: u8| {
        let generation = data.join(format!("..{number}"));
        fs::create_dir(&generation).unwrap();
        for name in names {
            fs::write(generation.join(name), [number]).unwrap();
        }
        let beside = data.join("..data_tmp");
        symlink(generation.file_name().unwrap(), &beside).unwrap();
        let old = fs::read_link(data.join("..data"));
        fs::rename(beside, data.join("..data")).unwrap();
        if let Ok(old) = old {
            fs::remove_dir_all(data.join(old)).unwrap();
        }
    };
    write.clone()(0);
    let check = |secret: &Secret| {
        let files = files(secret);
        let generation = files[0].1;
        assert!(files.iter().map(|&(name, _)| name).eq(names), "{files:?}");
        assert!(
            files.iter().all(|&(_, content)| content == generation),
            "{files:?}"
        );
        generation[0]
    };
    read_while_written(&root.provider(), None, write, check).await;
}

#[tokio::test]
async fn only_changes_of_its_own_namespace_are_told() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    let (mut shop, mut other) = (changes(&provider, "shop"), changes(&provider, "other"));

    root.write("other/db.json", b"new");
    told(&mut other, "a write").await;
    not_told(&mut shop, "a write of another Namespace").await;

    for (change, below) in [("a new file", "shop/new"), ("a new folder", "shop/x/y/z")] {
        root.write(below, b"new");
        told(&mut shop, change).await;
    }
    root.write("shop/x/y/z", b"newer");
    told(&mut shop, "a write in a new folder").await;
    fs::rename(root.path("shop/x"), root.path("shop/w")).unwrap();
    told(&mut shop, "a folder that moved").await;
    root.write("shop/w/y/z", b"newest");
    told(&mut shop, "a write in a folder that moved").await;
    fs::remove_file(root.path("shop/db.json")).unwrap();
    told(&mut shop, "a file that went").await;
    fs::remove_dir_all(root.path("shop")).unwrap();
    told(&mut shop, "a folder that went").await;
    root.write("shop/db.json", b"back");
    told(&mut shop, "a folder that came back").await;
    not_told(&mut other, "what changed in the shop").await;
}

#[tokio::test]
async fn a_read_tells_nobody() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    let (mut shop, mut other) = (changes(&provider, "shop"), changes(&provider, "other"));
    assert!(fetch_whole_shop(&provider).await.is_ok());
    root.write("other/db.json", b"new");
    told(&mut other, "a write").await;
    not_told(&mut shop, "a read").await;
}

#[tokio::test]
async fn a_namespace_that_is_a_link_hears_of_changes_where_it_leads() {
    let root = Root::with_two_namespaces();
    root.write("teams/red/db.json", b"red");
    root.link("red", "teams/red");
    let provider = root.provider();
    let (mut shop, mut red) = (changes(&provider, "shop"), changes(&provider, "red"));
    root.write("teams/red/db.json", b"redder");
    told(&mut red, "a write behind a link").await;
    not_told(&mut shop, "a write elsewhere").await;
}

#[tokio::test]
async fn a_swap_of_the_root_is_told_to_everybody_and_read_whole() {
    let root = Root::new();
    for (generation, content) in [("..1", b"one"), ("..2", b"two")] {
        root.write(&format!("{generation}/shop/a"), content);
        root.write(&format!("{generation}/shop/b"), content);
        root.write(&format!("{generation}/other/c"), content);
    }
    root.link("..data", "..1");
    root.link("shop", "..data/shop");
    root.link("other", "..data/other");
    let provider = root.provider();
    let mut watchers = ["shop", "other"].map(|namespace| changes(&provider, namespace));
    let secret = fetch_whole_shop(&provider).await.ok().unwrap();
    assert_eq!(files(&secret), [("a", &b"one"[..]), ("b", b"one")]);

    root.link("..data_tmp", "..2");
    fs::rename(root.path("..data_tmp"), root.path("..data")).unwrap();
    fs::remove_dir_all(root.path("..1")).unwrap();
    for watcher in &mut watchers {
        told(watcher, "a swap").await;
    }
    let secret = fetch_whole_shop(&provider).await.ok().unwrap();
    assert_eq!(files(&secret), [("a", &b"two"[..]), ("b", b"two")]);
    let secret = fetch_shop(&provider, "b").await.ok().unwrap();
    assert_eq!(files(&secret), [("b", &b"two"[..])]);
}

#[tokio::test]
async fn a_burst_is_told_as_few_items() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    let mut shop = changes(&provider, "shop");
    let writer = thread::spawn(move || {
        let start = Instant::now();
        for number in 0..100 {
            root.write(&format!("shop/{}", number % 10), &[number]);
        }
        (root, start.elapsed())
    });
    let mut items = 0;
    told(&mut shop, "the burst").await;
    while tokio::time::timeout(SEVERAL_BURSTS, shop.next())
        .await
        .is_ok()
    {
        items += 1;
    }
    let (_root, took) = writer.join().unwrap();
    // One item for each 100 ms that the writes took, where that is long.
    let most = (took.as_millis() / 100 + 1).max(19);
    assert!(items <= most, "{items} more items in {took:?}");
}

#[tokio::test]
async fn the_stream_ends_with_the_provider() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    let mut shop = changes(&provider, "shop");
    drop(provider);
    let end = tokio::time::timeout(Duration::from_secs(10), shop.next()).await;
    assert_eq!(end, Ok(None));
}
