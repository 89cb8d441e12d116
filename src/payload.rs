//! The files about to be written: put together from what the sources gave, and checked as a whole.

use std::collections::{BTreeMap, BTreeSet};

use coffer_provider::{ErrorKind, SecretBytes, SecretFile};

use crate::cache::Given;
use crate::class::{Item, Mode};
use crate::error::PublishError;
use crate::spec::VolumeSpec;
use crate::volume_path::VolumePath;

/// What one volume may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of all files together.
    pub bytes: usize,
    /// Most files.
    pub files: usize,
}

impl Limits {
    /// Most files and folders, which bounds the inodes of a volume: some folders for each file.
    #[must_use]
    pub fn entries(&self) -> usize {
        4 * self.files
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            files: 256,
        }
    }
}

/// A complete set of files: every path stays in the volume, none is in the way of another, and all
/// of it is within the limits.
pub struct Payload {
    files: BTreeMap<VolumePath, PayloadFile>,
    group: Option<u32>,
}

/// One file of a payload.
pub struct PayloadFile {
    /// The content.
    pub bytes: SecretBytes,
    /// Its permission bits, as they will be.
    pub mode: Mode,
}

impl Payload {
    /// Lays out what was read as the volume wants it: the listed items, or without any all there is.
    /// `read` has, for each source of the volume, the objects that it gave. Without a file it is an empty
    /// volume, if the class takes that.
    ///
    /// With a `group` (the pod's fsGroup) files are readable by that group, as the kubelet makes them
    /// for a read-only Secret volume.
    ///
    /// # Errors
    /// What cannot be laid out, with the item or the file that is to blame.
    pub fn project(
        spec: &VolumeSpec,
        read: &[Vec<Given>],
        group: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, PublishError> {
        let mut files = Vec::new();
        if spec.items().is_empty() {
            for file in read.iter().flat_map(|objects| files_of(objects)) {
                let path = VolumePath::new(file.name.clone()).map_err(PublishError::Path)?;
                let mode = store_mode(file)?.unwrap_or(spec.default_mode());
                files.push((path, file.bytes.clone(), mode));
            }
            if files.is_empty() && !spec.optional() {
                return Err(PublishError::NothingToMount);
            }
        }
        for (index, item) in spec.items().iter().enumerate() {
            match item_bytes(index, item, spec, read) {
                Ok(bytes) => {
                    let mode = item.mode.unwrap_or(spec.default_mode());
                    files.push((item.path.clone(), bytes, mode));
                }
                Err(PublishError::Item { kind, .. })
                    if kind == ErrorKind::NotFound && (item.optional || spec.optional()) => {}
                Err(error) => return Err(error),
            }
        }
        Self::new(files, group, limits)
    }

    /// A payload of these files, of a pod with this fsGroup.
    ///
    /// # Errors
    /// Two files that cannot both be there, or more than the limits.
    pub fn new(
        files: impl IntoIterator<Item = (VolumePath, SecretBytes, Mode)>,
        group: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, PublishError> {
        let mut payload = Self {
            files: BTreeMap::new(),
            group,
        };
        for (path, bytes, mode) in files {
            payload.add(path, bytes, mode)?;
        }
        payload.check(limits)?;
        Ok(payload)
    }

    fn add(
        &mut self,
        path: VolumePath,
        bytes: SecretBytes,
        mode: Mode,
    ) -> Result<(), PublishError> {
        let mode = match self.group {
            // kubernetes-and-csi: files of a read-only volume get g+r and u+r.
            Some(_) => mode.with_group_read(),
            None => mode,
        };
        match self.files.insert(path.clone(), PayloadFile { bytes, mode }) {
            None => Ok(()),
            Some(_) => Err(PublishError::PathTwice { path }),
        }
    }

    fn check(&self, limits: &Limits) -> Result<(), PublishError> {
        let bytes: usize = self.files.values().map(|file| file.bytes.len()).sum();
        let folders = self.folders();
        if let Some(path) = self
            .files
            .keys()
            .find(|path| folders.contains(path.as_str()))
        {
            return Err(PublishError::PathIsFolder { path: path.clone() });
        }
        for (what, size, limit) in [
            ("bytes", bytes, limits.bytes),
            ("files", self.files.len(), limits.files),
            (
                "files and folders",
                self.files.len() + folders.len(),
                limits.entries(),
            ),
        ] {
            if size > limit {
                return Err(PublishError::TooLarge { what, size, limit });
            }
        }
        Ok(())
    }

    /// The files, sorted by path.
    pub fn files(&self) -> &BTreeMap<VolumePath, PayloadFile> {
        &self.files
    }

    /// Every folder that a file needs, parents first.
    #[must_use]
    pub fn folders(&self) -> BTreeSet<&str> {
        self.files.keys().flat_map(VolumePath::folders).collect()
    }

    /// The names in the root of the volume.
    #[must_use]
    pub fn first_names(&self) -> BTreeSet<&str> {
        self.files.keys().map(VolumePath::first_name).collect()
    }

    /// The group that owns files and folders, where it is not root's.
    #[must_use]
    pub fn group(&self) -> Option<u32> {
        self.group
    }
}

/// The mode that a store wants for a file; a plugin that has no opinion leaves it 0.
fn store_mode(file: &SecretFile) -> Result<Option<Mode>, PublishError> {
    match file.mode {
        None | Some(0) => Ok(None),
        Some(bits) => match Mode::try_from(i64::from(bits)) {
            Ok(mode) => Ok(Some(mode)),
            Err(error) => Err(PublishError::StoreMode {
                file: coffer_provider::clean_text(&file.name, 80),
                problem: error,
            }),
        },
    }
}

fn item_bytes(
    index: usize,
    item: &Item,
    spec: &VolumeSpec,
    read: &[Vec<Given>],
) -> Result<SecretBytes, PublishError> {
    let fail = |kind, message: String| PublishError::Item {
        index,
        kind,
        message,
    };
    let mut found = read
        .iter()
        .zip(spec.sources())
        .filter(|(_, source)| item.source.as_ref().is_none_or(|name| *name == source.name))
        .flat_map(|(objects, _)| files_of(objects))
        .filter(|file| file.name == item.object);
    let Some(file) = found.next() else {
        let message = format!("there is no object {:?}", item.object);
        return Err(fail(ErrorKind::NotFound, message));
    };
    if found.next().is_some() {
        let message = format!(
            "more than one source has {:?}: name the source",
            item.object
        );
        return Err(fail(ErrorKind::InvalidParameters, message));
    }
    let bytes = match &item.key {
        None => file.bytes.clone(),
        Some(key) => file
            .member(key)
            .map_err(|error| fail(error.kind(), format!("object {:?}: {error}", item.object)))?,
    };
    let Some(encoding) = item.encoding else {
        return Ok(bytes);
    };
    encoding.decode(&bytes).map_err(|error| {
        let message = format!("the value for the path {} {error}", item.path);
        fail(ErrorKind::InvalidAnswer, message)
    })
}

/// What the objects of one source consist of.
fn files_of(objects: &[Given]) -> impl Iterator<Item = &SecretFile> {
    objects.iter().flatten().flat_map(|secret| &secret.files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_p6_a_payload_may_reach_each_limit_and_pass_none() {
        let limits = Limits {
            bytes: 1000,
            files: 4,
        };
        type Files = Vec<(String, usize)>;
        type OfSize = fn(usize) -> Files;
        let cases: [(&str, usize, OfSize); 3] = [
            ("bytes", 1000, |bytes| {
                vec![
                    ("half".into(), bytes / 2),
                    ("rest".into(), bytes - bytes / 2),
                ]
            }),
            ("files", 4, |files| {
                (0..files).map(|file| (file.to_string(), 0)).collect()
            }),
            ("files and folders", 16, |entries| {
                vec![(vec!["x"; entries].join("/"), 0)]
            }),
        ];
        for (what, limit, of_size) in cases {
            let payload = |size| {
                let files = of_size(size).into_iter().map(|(path, bytes)| {
                    let path = VolumePath::new(path).expect("good");
                    (path, SecretBytes::new(vec![b'x'; bytes]), Mode::DEFAULT)
                });
                Payload::new(files, None, &limits)
            };
            assert!(payload(limit - 1).is_ok(), "{what}");
            assert!(payload(limit).is_ok(), "{what}");
            let error = payload(limit + 1).err().expect(what).to_string();
            let size = limit + 1;
            assert_eq!(
                error,
                format!("the volume would have {size} {what}, {limit} are allowed")
            );
        }
    }
}
