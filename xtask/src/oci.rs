//! Container images without a container engine: one layer each, as an OCI image layout in a tar archive
//! (image-spec 1.1), which containerd, podman and skopeo read.
//!
//! Equal content gives equal bytes: entries come in the order of their names, belong to root and date from 1970.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::cluster::cache::hex;

/// An image that is to be written.
pub(crate) struct Image<'a> {
    /// What it is known by, each with its tag.
    pub(crate) names: &'a [&'a str],
    /// What a container of it runs: members of `config` in the image's configuration, as JSON.
    pub(crate) run: &'a str,
    /// Its files.
    pub(crate) layer: Vec<u8>,
}

/// An image as one file.
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
    /// Of the image's manifest: what a registry knows it by, as in `sha256:…`.
    pub(crate) digest: String,
}

impl Image<'_> {
    /// Puts it into an archive.
    pub(crate) fn archive(&self) -> Result<Archive> {
        let layer = Blob::of(&self.layer);
        let config = format!(
            r#"{{"created":"1970-01-01T00:00:00Z",{PLATFORM},"config":{{{}}},"rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":[{{"created":"1970-01-01T00:00:00Z"}}]}}"#,
            self.run, layer.digest
        );
        let config = Blob::of(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{{}}},"layers":[{{{}}}]}}"#,
            config.descriptor("application/vnd.oci.image.config.v1+json"),
            layer.descriptor("application/vnd.oci.image.layer.v1.tar")
        );
        let manifest = Blob::of(manifest.as_bytes());
        // containerd reads the whole name; podman and skopeo read the tag, under the specification's own key.
        let named = self.names.iter().map(|name| {
            let tag = name.rsplit(':').next().unwrap_or_default();
            format!(
                r#"{{{},"platform":{{{PLATFORM}}},"annotations":{{"io.containerd.image.name":"{name}","org.opencontainers.image.ref.name":"{tag}"}}}}"#,
                manifest.descriptor(MANIFEST)
            )
        });
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
            named.collect::<Vec<_>>().join(",")
        );

        let mut tar = Tar::default();
        tar.folder("blobs/", 0o755)?;
        tar.folder("blobs/sha256/", 0o755)?;
        let blobs = [&layer, &config, &manifest].map(|blob| (&blob.digest, blob.content));
        for (digest, content) in BTreeMap::from(blobs) {
            let name = digest.replace("sha256:", "blobs/sha256/");
            tar.file(&name, 0o644, content)?;
        }
        tar.file("index.json", 0o644, index.as_bytes())?;
        tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Archive {
            bytes: tar.finish(),
            digest: manifest.digest,
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Programs are built for the machine that builds them.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    r#""architecture":"arm64","os":"linux""#
} else {
    r#""architecture":"amd64","os":"linux""#
};

struct Blob<'a> {
    content: &'a [u8],
    digest: String,
}

impl<'a> Blob<'a> {
    fn of(content: &'a [u8]) -> Self {
        let digest = format!("sha256:{}", hex(&Sha256::digest(content)));
        Self { content, digest }
    }

    fn descriptor(&self, media_type: &str) -> String {
        format!(
            r#""mediaType":"{media_type}","digest":"{}","size":{}"#,
            self.digest,
            self.content.len()
        )
    }
}

/// Just enough of the ustar format, owned by root and dated 1970.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    const BLOCK: usize = 512;

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.header(name, mode, b'0', content.len(), "")?;
        self.bytes.extend(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(Self::BLOCK), 0);
        Ok(())
    }

    pub(crate) fn folder(&mut self, name: &str, mode: u32) -> Result<()> {
        self.header(name, mode, b'5', 0, "")
    }

    pub(crate) fn link(&mut self, name: &str, target: &str) -> Result<()> {
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

    pub(crate) fn finish(mut self) -> Vec<u8> {
        // Two empty blocks end it.
        self.bytes.resize(self.bytes.len() + 2 * Self::BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn image() -> Archive {
        let mut layer = Tar::default();
        layer.file("program", 0o755, &[7; 1000]).expect("short");
        let image = Image {
            names: &["a.test/b/program:1", "a.test/b/program:latest"],
            run: r#""Entrypoint":["/program"]"#,
            layer: layer.finish(),
        };
        image.archive().expect("short names")
    }

    /// The names and contents of an archive, in its order.
    fn entries(mut archive: &[u8]) -> Vec<(String, &[u8])> {
        let text = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).expect("text");
            text.trim_end_matches('\0').to_owned()
        };
        let mut entries = Vec::new();
        while archive[0] != 0 {
            let (header, rest) = archive.split_at(Tar::BLOCK);
            let size = usize::from_str_radix(&text(&header[124..136]), 8).expect("octal");
            entries.push((text(&header[..100]), &rest[..size]));
            archive = &rest[size.next_multiple_of(Tar::BLOCK)..];
        }
        assert!(archive.len() == 2 * Tar::BLOCK && archive.iter().all(|byte| *byte == 0));
        entries
    }

    #[test]
    fn an_image_written_twice_is_the_same_byte_for_byte() {
        let (one, other) = (image(), image());
        assert!(one.bytes == other.bytes);
        assert_eq!(one.digest, other.digest);
    }

    #[test]
    fn entries_come_in_order() {
        let archive = image();
        let names: Vec<_> = entries(&archive.bytes)
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn from_the_index_every_blob_is_found_by_its_digest_and_size() {
        let archive = image();
        let entries: BTreeMap<_, _> = entries(&archive.bytes).into_iter().collect();
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let content = entries[&digest.replace("sha256:", "blobs/sha256/")];
            assert_eq!(digest, format!("sha256:{}", hex(&Sha256::digest(content))));
            assert_eq!(descriptor["size"], content.len());
            content
        };
        assert_eq!(json(entries["oci-layout"])["imageLayoutVersion"], "1.0.0");

        let index = json(entries["index.json"]);
        let [one, latest] = index["manifests"].as_array().expect("a list").as_slice() else {
            panic!("one manifest for each name: {index}");
        };
        for (named, name, tag) in [
            (one, "a.test/b/program:1", "1"),
            (latest, "a.test/b/program:latest", "latest"),
        ] {
            assert_eq!(named["annotations"]["io.containerd.image.name"], name);
            assert_eq!(
                named["annotations"]["org.opencontainers.image.ref.name"],
                tag
            );
            assert_eq!(named["digest"], archive.digest);
        }
        let manifest = json(blob(one));
        let config = json(blob(&manifest["config"]));
        let layer = &manifest["layers"][0];
        assert_eq!(
            self::entries(blob(layer))[0],
            ("program".into(), &[7; 1000][..])
        );
        assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);
        assert_eq!(config["config"]["Entrypoint"][0], "/program");
        // Nothing that nobody points at.
        assert_eq!(entries.len(), 2 + 3 + 2);
    }

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
