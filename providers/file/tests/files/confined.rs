//! Nothing outside the folder of a pod's Namespace can be reached, and nothing can make a read wait.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use coffer_provider::testing::caller;
use coffer_provider::{ErrorKind, ObjectRef};
use coffer_provider_file::{FileProvider, Limits};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::harness::{Root, fetch, fetch_shop, fetch_whole_shop, files, refusal, source};

/// It must be refused in words that name the object and neither the node's paths nor what lies there.
fn assert_confined(what: &str, object: &str, (kind, text): (ErrorKind, String)) {
    assert_eq!(kind, ErrorKind::PermissionDenied, "{what}: {text}");
    assert!(text.contains(object), "{what}: {text}");
    assert!(
        !text.contains("/tmp") && !text.contains("canary"),
        "{what}: {text}"
    );
}

#[tokio::test]
async fn rule_p8_links_do_not_lead_out() {
    let root = Root::with_two_namespaces();
    let inside = root.path("shop/db.json");
    for (what, link, target, object) in [
        ("an absolute link", "a", Path::new("/etc/hostname"), "a"),
        ("an absolute link to the inside", "b", &inside, "b"),
        (
            "too many ..",
            "c",
            Path::new("../../../../../../../etc/hostname"),
            "c",
        ),
        ("a folder, then ..", "d", Path::new(".."), "d/other/db.json"),
        ("a folder that is a link", "e", Path::new(".."), "e"),
        ("/proc", "f", Path::new("/proc/self/environ"), "f"),
        (
            "a descriptor in /proc",
            "g",
            Path::new("/proc/self/fd/0"),
            "g",
        ),
        ("a circle", "h", Path::new("h"), "h"),
    ] {
        root.link(&format!("shop/{link}"), target);
        let provider = root.provider();
        let refused = refusal(fetch_shop(&provider, object).await);
        assert_confined(what, object, refused);
        let refused = refusal(fetch_whole_shop(&provider).await);
        assert_confined(&format!("{what} in a folder"), link, refused);
        fs::remove_file(root.path(&format!("shop/{link}"))).unwrap();
    }
    let provider = root.provider();
    assert!(
        fetch_whole_shop(&provider).await.is_ok(),
        "and without them all is well"
    );
}

#[tokio::test]
async fn rule_p8_links_that_stay_inside_are_followed() {
    let root = Root::with_two_namespaces();
    root.write("shop/a/b/c", b"deep");
    root.link("shop/direct", "a/b/c");
    root.link("shop/a/b/up", "../../db.json");
    root.link("shop/again", "a/../again2");
    root.link("shop/again2", "direct");
    root.link("shop/folder", "a/b");
    let provider = root.provider();
    for (object, content) in [
        ("direct", &b"deep"[..]),
        ("a/b/up", b"the shop's"),
        ("again", b"deep"),
        ("folder/c", b"deep"),
    ] {
        let secret = fetch_shop(&provider, object).await.ok().unwrap();
        assert_eq!(files(&secret), [(object, content)]);
    }
}

/// The check of a class forbids these; the kernel does so too.
#[tokio::test]
async fn rule_p8_a_request_that_no_class_can_make_does_not_lead_out_either() {
    let root = Root::with_two_namespaces();
    let provider = root.provider();
    for request in [
        "..",
        "../other",
        "../other/db.json",
        "/etc/hostname",
        "/proc/self/environ",
    ] {
        let (name, request) = (request.to_owned(), request.to_owned());
        let object = ObjectRef { name, request };
        let source = source(&provider, None);
        let mut answers = source
            .fetch(&caller("shop"), std::slice::from_ref(&object))
            .await;
        assert_confined(&object.name, &object.name, refusal(answers.remove(0)));
    }
}

#[tokio::test]
async fn rule_p8_magic_links_are_not_followed() {
    // Where the kernel itself has made some: a folder of descriptors.
    let open = fs::File::open("/etc/hostname").unwrap();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&open);
    let task = fs::canonicalize("/proc/thread-self").unwrap();
    let provider = FileProvider::new(&task, Limits::default()).unwrap();
    let object = format!("['{descriptor}']");
    let answer = fetch(&provider, "fd", Some(&object)).await.remove(0);
    assert_confined("a descriptor", &descriptor.to_string(), refusal(answer));
    let answer = fetch(&provider, "cwd", Some("[src]")).await.remove(0);
    assert_confined("a working directory", "src", refusal(answer));
    let answer = fetch(&provider, "fdinfo", Some(&object)).await.remove(0);
    let (kind, text) = refusal(answer);
    assert_eq!(
        kind,
        ErrorKind::Unavailable,
        "what is longer than its size is no file to trust: {text}"
    );
}

#[tokio::test]
#[ignore = "needs a mount namespace: cargo xtask test"]
async fn rule_p8_mounts_are_not_crossed() {
    let root = Root::with_two_namespaces();
    let other = root.path("other");
    let mounts = ["shop/bound", "shop/tmpfs", "bound"].map(|below| root.path(below));
    for path in &mounts {
        fs::create_dir(path).unwrap();
    }
    mount_bind(&other, &mounts[0]).unwrap();
    mount("tmpfs", &mounts[1], "tmpfs", MountFlags::empty(), None).unwrap();
    mount_bind(&other, &mounts[2]).unwrap();
    root.write("shop/tmpfs/db.json", b"canary");
    root.write("shop/file", b"");
    let file = root.path("shop/file");
    mount_bind(root.path("other/db.json"), &file).unwrap();

    let provider = root.provider();
    for object in ["bound", "bound/db.json", "tmpfs", "tmpfs/db.json", "file"] {
        assert_confined(
            "a mount",
            object,
            refusal(fetch_shop(&provider, object).await),
        );
    }
    assert_confined(
        "a mount in a folder",
        "bound",
        refusal(fetch_whole_shop(&provider).await),
    );
    let answer = fetch(&provider, "bound", Some("[db.json]")).await.remove(0);
    assert_confined("a mount for a Namespace", "db.json", refusal(answer));

    for path in mounts.iter().chain([&file]) {
        unmount(path, UnmountFlags::DETACH).unwrap();
    }
    assert!(
        fetch_shop(&provider, "file").await.is_ok(),
        "and without it all is well"
    );
}

#[tokio::test]
async fn rule_p9_what_is_no_file_is_refused_at_once() {
    let root = Root::with_two_namespaces();
    let make = |below: &str, kind, device| {
        mknodat(CWD, root.path(below), kind, Mode::RUSR | Mode::WUSR, device)
    };
    make("shop/pipe", FileType::Fifo, 0).unwrap();
    let _socket = UnixListener::bind(root.path("shop/socket")).unwrap();
    root.link("shop/link", "pipe");
    let mut objects = vec!["pipe", "socket", "link"];
    match make("shop/device", FileType::CharacterDevice, makedev(1, 3)) {
        Ok(()) => objects.push("device"),
        // Only root outside of a user namespace may make one: elsewhere there is none to refuse.
        Err(errno) => assert_eq!(errno, Errno::PERM),
    }
    fs::create_dir(root.path("shop/empty")).unwrap();
    let provider = root.provider();
    let at_once = Duration::from_secs(20);
    for object in objects {
        let fetch = tokio::time::timeout(at_once, fetch_shop(&provider, object));
        let (kind, text) = refusal(fetch.await.expect(object));
        assert_eq!(kind, ErrorKind::InvalidAnswer, "{text}");
        assert_eq!(text, format!("{object} is neither a file nor a folder"));
    }
    for (object, expected) in [
        ("empty", "empty holds no files"),
        (
            "db.json/x",
            "db.json/x does not exist in the folder of Namespace shop",
        ),
    ] {
        let fetch = tokio::time::timeout(at_once, fetch_shop(&provider, object));
        let refused = refusal(fetch.await.expect(object));
        assert_eq!(refused, (ErrorKind::NotFound, expected.to_owned()));
    }
    // In a folder only the files count.
    let whole = tokio::time::timeout(at_once, fetch_whole_shop(&provider)).await;
    let whole = whole.unwrap().ok().unwrap();
    assert_eq!(files(&whole), [("db.json", &b"the shop's"[..])]);
}

#[tokio::test]
async fn rule_p11_only_the_folder_of_the_pods_namespace_is_reached() {
    let root = Root::with_two_namespaces();
    root.link("shop/file", "../other/db.json");
    root.link("shop/folder", "../other");
    root.write("db.json", b"canary");
    root.write("Shop/db.json", b"canary");
    root.write("-/db.json", b"canary");
    let provider = root.provider();
    for object in ["file", "folder", "folder/db.json"] {
        assert_confined(
            "a sibling",
            object,
            refusal(fetch_shop(&provider, object).await),
        );
    }
    for namespace in [
        "",
        ".",
        "..",
        "/",
        "shop/../other",
        "shop/",
        "other\0",
        "Shop",
        "-",
        "a.",
    ] {
        let answer = fetch(&provider, namespace, Some("[db.json]"))
            .await
            .remove(0);
        let (kind, text) = refusal(answer);
        assert_eq!(kind, ErrorKind::PermissionDenied, "{namespace:?}: {text}");
        let source = source(&provider, None);
        let caller = caller(namespace);
        assert!(source.watch(&caller).is_none(), "{namespace:?}");
        assert_eq!(
            source.versions(&caller, source.objects()).await,
            [None],
            "{namespace:?}"
        );
    }
}

#[tokio::test]
async fn rule_p11_the_administrator_may_link_a_namespace_to_another_folder_of_the_root() {
    let root = Root::with_two_namespaces();
    root.link("team", "shop");
    root.link("out", "/etc");
    let provider = root.provider();
    let team = fetch(&provider, "team", Some("[db.json]")).await.remove(0);
    assert_eq!(
        files(&team.ok().unwrap()),
        [("db.json", &b"the shop's"[..])]
    );
    let out = fetch(&provider, "out", Some("[hostname]")).await.remove(0);
    assert_confined("a root is not left", "hostname", refusal(out));
}
