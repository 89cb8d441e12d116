//! `cargo xtask image`: the driver's image, from cargo and a C compiler alone.
//!
//! One static binary and the two files that it reads, each the same byte for byte whoever builds it with the same
//! toolchain and wherever the checkout lies.

use std::env;
use std::env::consts::ARCH;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::cluster::command::output;
use crate::oci::{Archive, Image, Tar};
use crate::workspace;

/// The chart's default. No registry serves this name, so a node that does not have the image asks nobody for it.
const REPOSITORY: &str = "localhost/coffer";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds the image and tells where it is.
pub(crate) fn run(profile: &str) -> Result<()> {
    let (file, archive) = build(profile, &[])?;
    println!("name    {REPOSITORY}:{VERSION}");
    println!("digest  {}", archive.digest);
    println!("file    {} ({})", file.display(), mib(archive.bytes.len()));
    Ok(())
}

/// The archive and where it was written, its binary having run once where there is nothing else. The image has
/// `more_tags` besides its version.
pub(crate) fn build(profile: &str, more_tags: &[&str]) -> Result<(PathBuf, Archive)> {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let target = std::path::absolute(target.join("image"))?;
    let folder = compile(profile, &target)?;
    let binary = fs::read(folder.join("coffer"))?;
    println!("binary  {}, static", mib(binary.len()));
    let files = files(binary);
    ensure_it_runs(&files, &target.join("root"))?;

    let tags = [&[VERSION], more_tags].concat();
    let names: Vec<_> = tags
        .iter()
        .map(|tag| format!("{REPOSITORY}:{tag}"))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let image = Image {
        names: &names,
        run: &format!(
            r#""Entrypoint":["/coffer"],"Labels":{{"org.opencontainers.image.title":"coffer","org.opencontainers.image.version":"{VERSION}","org.opencontainers.image.licenses":"Apache-2.0"}}"#
        ),
        layer: layer(&files)?,
    };
    let archive = image.archive()?;
    let file = folder.join("coffer.tar");
    fs::write(&file, &archive.bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok((file, archive))
}

/// Builds the driver and gives the folder it is in.
fn compile(profile: &str, target: &Path) -> Result<PathBuf> {
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(
        || env::home_dir().unwrap_or_default().join(".cargo"),
        PathBuf::from,
    );
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    // Paths end up in panic messages. Of two that fit, rustc takes the later one.
    for (place, name) in [
        (&*workspace(), "/coffer"),
        (&cargo_home, "/cargo"),
        (target, "/target"),
    ] {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(place);
        flags.push("=");
        flags.push(name);
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace())
        .args([
            "build",
            "--locked",
            "--package",
            "coffer",
            "--bin",
            "coffer",
        ])
        .args(["--profile", profile])
        // Named, the flags below are not for build scripts, which then would be static too.
        .args(["--target", &triple])
        // Not the person's own build, which other flags would throw away.
        .arg("--target-dir")
        .arg(target)
        // Of all the places for flags the one that wins, so nothing of the machine's own comes in.
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    let status = cargo.stdin(Stdio::null()).status();
    ensure!(
        status.context("cannot start cargo")?.success(),
        "the driver does not build"
    );
    // Alone among the profiles, `dev` has a folder of another name.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(triple).join(folder))
}

/// A file of the image.
struct ImageFile {
    path: &'static str,
    mode: u32,
    content: Vec<u8>,
}

/// All there is in the image, in the order of the paths.
fn files(binary: Vec<u8>) -> [ImageFile; 3] {
    let file = |path, mode, content| ImageFile {
        path,
        mode,
        content,
    };
    [
        file("coffer", 0o755, binary),
        // Without it, glibc would ask DNS before it looks into the /etc/hosts that the kubelet writes.
        file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n".into()),
        file("etc/ssl/certs/ca-certificates.crt", 0o644, roots().into()),
    ]
}

/// Mozilla's roots, of the version in Cargo.lock.
fn roots() -> String {
    // Parsers of PEM pass over what is between two certificates, and before the first.
    let mut pem = String::from(
        "# CA roots of Mozilla's programme. Licence: CDLA-Permissive-2.0, https://cdla.dev/permissive-2-0\n",
    );
    for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let text = BASE64.encode(root);
        pem += "-----BEGIN CERTIFICATE-----\n";
        for at in (0..text.len()).step_by(64) {
            pem += &text[at..text.len().min(at + 64)];
            pem += "\n";
        }
        pem += "-----END CERTIFICATE-----\n";
    }
    pem
}

fn layer(files: &[ImageFile]) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    let mut folders = Vec::new();
    for ImageFile {
        path,
        mode,
        content,
    } in files
    {
        for (end, _) in path.match_indices('/') {
            let folder = &path[..=end];
            if !folders.contains(&folder) {
                folders.push(folder);
                tar.folder(folder, 0o755)?;
            }
        }
        tar.file(path, *mode, content)?;
    }
    Ok(tar.finish())
}

/// Starts the driver in a root that holds the image's files and nothing else: no library, no loader.
fn ensure_it_runs(files: &[ImageFile], root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    for ImageFile {
        path,
        mode,
        content,
    } in files
    {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    let mut unshare = Command::new("unshare");
    if fs::metadata("/proc/self")?.uid() != 0 {
        unshare.args(["--user", "--map-root-user"]);
    }
    let said = output(
        unshare
            .arg("--root")
            .arg(root)
            .args(["/coffer", "--version"]),
    )
    .context("the binary does not run with nothing beside it")?;
    ensure!(
        said == format!("coffer {VERSION}\n"),
        "it calls itself {said:?}"
    );
    fs::remove_dir_all(root)?;
    Ok(())
}

fn mib(bytes: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let bytes = bytes as f64;
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_files_and_once() {
        let layer = layer(&files(b"binary".into())).expect("short names");
        let names: Vec<_> = layer
            .chunks(512)
            .filter(|block| block[257..262] == *b"ustar")
            .map(|block| {
                String::from_utf8_lossy(&block[..100])
                    .trim_end_matches('\0')
                    .to_owned()
            })
            .collect();
        assert_eq!(
            names,
            [
                "coffer",
                "etc/",
                "etc/nsswitch.conf",
                "etc/ssl/",
                "etc/ssl/certs/",
                "etc/ssl/certs/ca-certificates.crt"
            ]
        );
    }

    #[test]
    fn every_root_comes_back_out_of_its_pem() {
        let pem = roots();
        let mut read = pem.split("-----BEGIN CERTIFICATE-----\n").skip(1);
        for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            let body = read
                .next()
                .and_then(|one| one.strip_suffix("-----END CERTIFICATE-----\n"));
            let body = body.expect("one more");
            assert!(body.lines().all(|line| line.len() <= 64));
            assert_eq!(
                BASE64.decode(body.replace('\n', "")).expect("base64"),
                root.as_ref()
            );
        }
        assert_eq!(read.next(), None);
    }
}
