//! Reads objects so that what comes back was on the node at one moment (P10), and names their versions.

use std::fmt::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use coffer_provider::{
    Format, Life, ObjectRef, ProviderError, Secret, SecretFile, Sharing, Version,
};
use sha2::{Digest, Sha256};

use crate::Limits;
use crate::error::{Trouble, Wanted};
use crate::parameters::WHOLE_FOLDER;
use crate::tree::{FoundFile, Listing, Look};

/// The kernel stamps files by a clock that ticks every 1 to 10 ms (finer since Linux 6.13): two
/// writes within a tick look like one. After two ticks of rest, the next write cannot.
const REST: Duration = Duration::from_millis(20);

/// How long the objects of one call together may wait for somebody to finish writing.
const PATIENCE: Duration = Duration::from_millis(500);

/// The administrator's folder and what may be read of it.
pub(crate) struct Store {
    pub(crate) root: PathBuf,
    pub(crate) limits: Limits,
}

impl Store {
    /// Reads `objects` one after the other; blocks for up to [`PATIENCE`] and the reads themselves.
    pub(crate) fn read(
        &self,
        namespace: &str,
        objects: &[ObjectRef],
    ) -> Vec<Result<Secret, ProviderError>> {
        let until = Instant::now() + PATIENCE;
        let mut bytes = 0;
        let mut read = |object| {
            let wanted = Wanted { namespace, object };
            self.read_at_rest(wanted, &mut bytes, until)
        };
        objects.iter().map(&mut read).collect()
    }

    /// The versions of `objects`, without opening a file.
    pub(crate) fn versions(&self, namespace: &str, objects: &[ObjectRef]) -> Vec<Option<Version>> {
        let version = |object| {
            let wanted = Wanted { namespace, object };
            let look = Look::new(&self.root, &self.limits, wanted).ok()?;
            Some(version(&look.list().ok()?))
        };
        objects.iter().map(version).collect()
    }

    fn read_at_rest(
        &self,
        wanted: Wanted<'_>,
        bytes: &mut u64,
        until: Instant,
    ) -> Result<Secret, ProviderError> {
        let mut missed = false;
        loop {
            match self.read_once(wanted, bytes) {
                Ok(secret) => return Ok(secret),
                Err(Trouble::Missing(_)) if !missed => missed = true,
                Err(Trouble::Passing(_)) if Instant::now() < until => {
                    missed = false;
                    thread::sleep(REST);
                }
                Err(trouble) => return Err(trouble.into_error()),
            }
        }
    }

    /// Reads an object between two looks that have to agree.
    fn read_once(&self, wanted: Wanted<'_>, bytes: &mut u64) -> Result<Secret, Trouble> {
        let look = Look::new(&self.root, &self.limits, wanted)?;
        let listing = look.list()?;
        let now = SystemTime::now();
        if let Some(fresh) = listing
            .files
            .iter()
            .find(|f| !f.stamp.is_settled(now, REST))
        {
            return Err(wanted.being_written(&fresh.path));
        }
        // One class may name the same large file thousands of times.
        let together = *bytes + listing.size();
        let unit = "bytes together with the objects before it";
        look.fits(together, unit)?;
        let mut files = Vec::with_capacity(listing.files.len());
        for found in &listing.files {
            let content = look.read(found).map_err(Trouble::in_a_folder)?;
            files.push(SecretFile {
                name: name(wanted.object, &listing, found),
                bytes: content,
                format: format(&found.path),
                mode: None,
            });
        }
        if Look::new(&self.root, &self.limits, wanted)?.list()? != listing {
            return Err(wanted.being_written(&wanted.object.request));
        }
        *bytes = together;
        Ok(Secret {
            files,
            version: version(&listing),
            life: Life::Static,
            sharing: Sharing::ServiceAccount,
        })
    }
}

/// A file of a folder keeps its path in that folder, below the name of the object.
fn name(object: &ObjectRef, listing: &Listing, found: &FoundFile) -> String {
    let ObjectRef { name, request } = object;
    if !listing.is_folder {
        return name.clone();
    }
    let inside = match request.as_str() {
        WHOLE_FOLDER => &found.path,
        request => &found.path[request.len() + 1..],
    };
    if name.is_empty() {
        inside.to_owned()
    } else {
        format!("{name}/{inside}")
    }
}

fn format(path: &str) -> Format {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => Format::Json,
        Some("yaml" | "yml") => Format::Yaml,
        _ => Format::Opaque,
    }
}

/// A version is shown, so no content goes into it.
fn version(listing: &Listing) -> Version {
    let mut hash = Sha256::new();
    for FoundFile { path, stamp } in &listing.files {
        hash.update(path);
        hash.update([0]);
        for number in [stamp.device, stamp.inode, stamp.size] {
            hash.update(number.to_le_bytes());
        }
        for number in [stamp.modified, stamp.changed] {
            hash.update(number.to_le_bytes());
        }
    }
    let mut version = String::from("f-");
    for byte in &hash.finalize()[..8] {
        write!(version, "{byte:02x}").expect("a String takes everything");
    }
    Version::new(version).expect("it is short and printable")
}
