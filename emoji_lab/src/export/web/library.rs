//! The library that runs the model in the browser: where its files come from, and whether these are they.
//!
//! The files are npm's. None of them is in this repository; each is known by its hash, wherever it comes
//! from.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha384};

use super::npm;
use crate::error::{Error, Result};

/// Where a page that links to the library finds it.
pub(super) const CDN: &str = "https://cdn.jsdelivr.net/npm/";

/// Where the page's library comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Library {
    /// The npm registry, once, when the page is exported: the files lie beside the page, and it asks no
    /// one else for anything. `npm_config_registry`, or `registry=` in the user's `.npmrc`, names a
    /// mirror; `HTTPS_PROXY` a proxy. Files that an earlier export left in the folder are used again.
    #[default]
    Npm,
    /// A folder that has the files: a `node_modules`, the folder around it, or an exported page.
    Folder(PathBuf),
    /// None beside the page: it links to the files at cdn.jsdelivr.net, by version and hash. Whoever
    /// opens the page asks that server for them.
    Link,
}

/// A library, as it was released.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// What its licence is called.
    pub(super) licence: &'static str,
    /// Whose work it is, in words, with what their licences ask to be handed on.
    pub(super) notice: &'static str,
    /// The licence's file is the first that the page does not load.
    pub(super) packages: &'static [Package],
}

/// A package of npm.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// The hash of its archive, as npm's registry and lock files have it.
    pub(super) integrity: &'static str,
    pub(super) parts: &'static [Part],
}

/// A file of a package.
#[derive(Debug)]
pub(super) struct Part {
    /// What `page.json` calls it; empty for what the page itself does not load.
    pub(super) key: &'static str,
    /// Its name beside the page.
    pub(super) file: &'static str,
    /// Its place in the package.
    pub(super) inside: &'static str,
    pub(super) bytes: u64,
    pub(super) integrity: &'static str,
}

impl Release {
    /// All its files, each with its package.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static Package, &'static Part)> {
        self.packages.iter().flat_map(|package| package.parts.iter().map(move |part| (package, part)))
    }
}

impl Package {
    /// Its name and release.
    pub(super) fn spec(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Where the page links to a file of it.
    pub(super) fn link(&self, part: &Part) -> String {
        format!("{CDN}{}/{}", self.spec(), part.inside)
    }
}

impl Part {
    /// Whether these bytes are this file.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.bytes
            && self.integrity == format!("sha384-{}", STANDARD.encode(Sha384::digest(bytes)))
    }
}

/// A file of the library, to be written beside the page.
pub(super) struct Found {
    pub(super) file: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// The library's files for a page in `dir`, and where they came from, in words. `registry` says which one
/// has a package.
pub(super) fn find(
    library: &Library,
    release: &Release,
    dir: &Path,
    registry: impl Fn(&Package) -> Result<String>,
) -> Result<(Vec<Found>, String)> {
    match library {
        Library::Link => Ok((vec![], format!("linked from {CDN}"))),
        Library::Folder(folder) => {
            Ok((in_folder(release.packages, folder)?, format!("from {}", folder.display())))
        }
        Library::Npm => match left_by_an_export(release, dir) {
            Some(found) => Ok((found, "already there".to_string())),
            None => {
                let mut from = release.packages.iter().map(registry).collect::<Result<Vec<_>>>()?;
                let found = npm::fetch(release.packages, &from)?;
                from.dedup();
                Ok((found, format!("fetched from {}", from.join(" and "))))
            }
        },
    }
}

/// All files, if `dir` has them all.
fn left_by_an_export(release: &Release, dir: &Path) -> Option<Vec<Found>> {
    release
        .parts()
        .map(|(_, part)| {
            let bytes = read(&dir.join(part.file), part.bytes).ok()??;
            part.is(&bytes).then_some(Found { file: part.file, bytes })
        })
        .collect()
}

/// The files in a folder of a person's: each is looked for where npm and where an export puts it.
fn in_folder(packages: &'static [Package], folder: &Path) -> Result<Vec<Found>> {
    let refused = |what: String| {
        let help = format!(
            "{what}. Give the node_modules of `npm install {}`, or the folder of an exported page",
            packages.iter().map(Package::spec).collect::<Vec<_>>().join(" ")
        );
        Error::setting("library", folder.display(), help)
    };
    let mut found = vec![];
    for package in packages {
        for part in package.parts {
            let places = [
                folder.join(package.name).join(part.inside),
                folder.join("node_modules").join(package.name).join(part.inside),
                folder.join(part.file),
            ];
            let Some(path) = places.iter().find(|path| path.is_file()) else {
                return Err(refused(format!("it has no {} of {}", part.inside, package.spec())));
            };
            let bytes = read(path, part.bytes).map_err(|e| Error::io(path, "reading the library", e))?;
            let Some(bytes) = bytes.filter(|bytes| part.is(bytes)) else {
                let what =
                    format!("{} is not the one of {} (its hash differs)", path.display(), package.spec());
                return Err(refused(what));
            };
            found.push(Found { file: part.file, bytes });
        }
    }
    Ok(found)
}

/// The file at `path` if it has so many bytes; another one is not read.
fn read(path: &Path, bytes: u64) -> std::io::Result<Option<Vec<u8>>> {
    if fs::metadata(path)?.len() != bytes {
        return Ok(None);
    }
    let mut all = Vec::with_capacity(bytes as usize);
    File::open(path)?.take(bytes + 1).read_to_end(&mut all)?;
    Ok(Some(all))
}
