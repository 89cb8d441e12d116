//! The folder of things that were built or fetched: outside the checkout, so that a fresh clone finds them.
//!
//! An entry is whole or absent: it is made beside its place and then renamed into it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// `$XDG_CACHE_HOME/coffer`, or `~/.cache/coffer`.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn open() -> Result<Self> {
        let home = env::var_os("XDG_CACHE_HOME")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cache")))
            .context(
                "neither XDG_CACHE_HOME nor HOME is set: no place for what is built and fetched",
            )?;
        let root = home.join("coffer");
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root })
    }

    /// The folder called `name`, made by `make` the first time that anybody asks.
    ///
    /// `name` holds everything the content depends on. A `make` that fails leaves no entry.
    pub(crate) fn entry(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let entry = self.root.join(name);
        if entry.exists() {
            return Ok(entry);
        }
        // Two runs at once would build the same thing twice; the second waits and finds it done.
        let lock = self.root.join(format!(".{name}.lock"));
        let lock =
            File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock the cache entry {name}"))?;
        if entry.exists() {
            return Ok(entry);
        }

        let unfinished = self.root.join(format!(".{name}.unfinished"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir(&unfinished)?;
        make(&unfinished).with_context(|| format!("cannot make the cache entry {name}"))?;
        fs::rename(&unfinished, &entry)?;
        Ok(entry)
    }
}

/// The start of the files' common SHA-256: long enough for a name, and for nobody to meet another by chance.
pub(crate) fn fingerprint(files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(hex(&hash.finalize())[..12].to_owned())
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
