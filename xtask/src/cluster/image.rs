//! The images that the cluster starts with, as archives that containerd imports: no registry is needed.
//!
//! Debian's static busybox is what every test pod runs, and the sandbox image too. The other one is the
//! registrar that goes beside a driver.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::cache::hex;
use super::command::output;

/// What test pods name as their image, with `imagePullPolicy: Never`.
pub(crate) const BUSYBOX: &str = "local.test/busybox:1";
/// The sandbox image.
pub(crate) const PAUSE: &str = "local.test/pause:1";
/// In the place of the official node-driver-registrar.
pub(crate) const REGISTRAR: &str = "local.test/node-driver-registrar:1";

/// Sleeps until it is asked to end. As the first process it would not hear SIGTERM without the trap.
const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// Writes the archive of busybox.
pub(crate) fn write_busybox(busybox: &Path, archive: &Path) -> Result<()> {
    let run = format!(r#""Env":["PATH=/bin"],"Cmd":["/bin/sh","-c","{SLEEP}"]"#);
    write(
        archive,
        &format!(r#""{BUSYBOX}","{PAUSE}""#),
        &run,
        &busybox_layer(busybox)?,
    )
}

/// Writes the archive of the registrar.
pub(crate) fn write_registrar(registrar: &Path, archive: &Path) -> Result<()> {
    let mut tar = Tar::default();
    // The name that it has in the official image.
    tar.file("csi-node-driver-registrar", 0o755, &fs::read(registrar)?)?;
    let run = r#""Entrypoint":["/csi-node-driver-registrar"]"#;
    write(archive, &format!(r#""{REGISTRAR}""#), run, &tar.finish())
}

/// Writes an image of one layer in the form of `docker save`.
fn write(archive: &Path, names: &str, run: &str, layer: &[u8]) -> Result<()> {
    let digest = hex(&Sha256::digest(layer));
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{{run}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    let manifest =
        format!(r#"[{{"Config":"config.json","RepoTags":[{names}],"Layers":["layer.tar"]}}]"#);

    let mut tar = Tar::default();
    tar.file("layer.tar", 0o644, layer)?;
    tar.file("config.json", 0o644, config.as_bytes())?;
    tar.file("manifest.json", 0o644, manifest.as_bytes())?;
    fs::write(archive, tar.finish()).with_context(|| format!("cannot write {}", archive.display()))
}

fn busybox_layer(busybox: &Path) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    tar.folder("bin/", 0o755)?;
    tar.file("bin/busybox", 0o755, &fs::read(busybox)?)?;
    for applet in output(Command::new(busybox).arg("--list"))?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        tar.link(&format!("bin/{applet}"), "busybox")?;
    }
    tar.folder("etc/", 0o755)?;
    tar.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    tar.file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n")?;
    tar.folder("tmp/", 0o1777)?;
    Ok(tar.finish())
}

/// Just enough of the ustar format, owned by root and dated 1970, so that equal content gives equal bytes.
#[derive(Default)]
struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    const BLOCK: usize = 512;

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.header(name, mode, b'0', content.len(), "")?;
        self.bytes.extend(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(Self::BLOCK), 0);
        Ok(())
    }

    fn folder(&mut self, name: &str, mode: u32) -> Result<()> {
        self.header(name, mode, b'5', 0, "")
    }

    fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.header(name, 0o777, b'2', 0, target)
    }

    fn header(&mut self, name: &str, mode: u32, kind: u8, size: usize, target: &str) -> Result<()> {
        let mut block = [0; Self::BLOCK];
        let mut put = |at: usize, room: usize, text: &str| -> Result<()> {
            let field = block[at..at + room]
                .get_mut(..text.len())
                .context("too long for a tar header")?;
            field.copy_from_slice(text.as_bytes());
            Ok(())
        };
        put(0, 100, name)?;
        put(100, 8, &format!("{mode:07o}"))?;
        put(108, 8, "0000000")?;
        put(116, 8, "0000000")?;
        put(124, 12, &format!("{size:011o}"))?;
        put(136, 12, "00000000000")?;
        // The checksum counts its own field as blanks.
        put(148, 8, "        ")?;
        put(156, 1, std::str::from_utf8(&[kind])?)?;
        put(157, 100, target)?;
        put(257, 8, "ustar\x0000")?;
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(block);
        Ok(())
    }

    fn finish(mut self) -> Vec<u8> {
        // Two empty blocks end it.
        self.bytes.resize(self.bytes.len() + 2 * Self::BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::Tar;

    #[test]
    fn a_header_holds_its_checksum_where_tar_looks_for_it() {
        let mut tar = Tar::default();
        tar.file("a", 0o644, b"x").expect("a short name fits");
        let bytes = tar.finish();
        assert_eq!(bytes.len(), 4 * Tar::BLOCK);
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..512])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        assert_eq!(&bytes[148..154], format!("{sum:06o}").as_bytes());
    }
}
