//! The images that the cluster starts with, as archives that containerd imports: no registry is needed.
//!
//! Debian's static busybox is what every test pod runs, and the sandbox image too. The other one is the
//! registrar that goes beside a driver.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::command::output;
use crate::oci::{Image, Tar};

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
    let image = Image {
        names: &[BUSYBOX, PAUSE],
        run: &format!(r#""Env":["PATH=/bin"],"Cmd":["/bin/sh","-c","{SLEEP}"]"#),
        layer: busybox_layer(busybox)?,
    };
    write(archive, &image)
}

/// Writes the archive of the registrar.
pub(crate) fn write_registrar(registrar: &Path, archive: &Path) -> Result<()> {
    let mut tar = Tar::default();
    // The name that it has in the official image.
    tar.file("csi-node-driver-registrar", 0o755, &fs::read(registrar)?)?;
    let image = Image {
        names: &[REGISTRAR],
        run: r#""Entrypoint":["/csi-node-driver-registrar"]"#,
        layer: tar.finish(),
    };
    write(archive, &image)
}

fn write(archive: &Path, image: &Image<'_>) -> Result<()> {
    let bytes = image.archive()?.bytes;
    fs::write(archive, bytes).with_context(|| format!("cannot write {}", archive.display()))
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
