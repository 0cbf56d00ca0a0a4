//! Packages from npm's registry: the address as npm's own settings say, the archive by its hash.

use std::io::Read;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use reqwest::Url;
use sha2::{Digest, Sha512};

use super::library::{Found, Package};
use crate::error::{Error, Result};
use crate::hub::{HubClient, HubEnv, Request, RequestError, RetryPolicy, outside_runtime};

const REGISTRY: &str = "https://registry.npmjs.org/";
/// No archive of the library is larger.
const MOST: usize = 64 << 20;

/// The registry of a package: `npm_config_registry` in whatever case, `registry=` of the user's `.npmrc`
/// (`@scope:registry=` before it), npm's own.
///
/// # Errors
/// [`Error::Setting`] for what is no http(s) address, or one that holds a password.
pub(super) fn registry(package: &Package) -> Result<String> {
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    registry_of(package.name, &variables, &|path| std::fs::read_to_string(path).ok())
}

fn registry_of(
    package: &str,
    variables: &[(String, String)],
    read: &dyn Fn(&str) -> Option<String>,
) -> Result<String> {
    let set = |wanted: &str| {
        let found =
            variables.iter().find(|(name, value)| name.eq_ignore_ascii_case(wanted) && !value.is_empty());
        found.map(|(_, value)| value.clone())
    };
    let file = || {
        let path = set("npm_config_userconfig").or_else(|| Some(format!("{}/.npmrc", set("HOME")?)))?;
        let text = read(&path)?;
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .rfind(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().trim_matches(['"', '\'']).to_string())
        };
        let scope = package.split_once('/').map(|(scope, _)| format!("{scope}:registry"));
        scope.and_then(|key| value(&key)).or_else(|| value("registry"))
    };
    let text = set("npm_config_registry").or_else(file).unwrap_or_else(|| REGISTRY.to_string());
    let bad = |shown: &str, help: &str| {
        Error::setting(
            "npm_config_registry",
            shown,
            format!("{help}. Set it as npm takes it, as in {REGISTRY}"),
        )
    };
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(url) = url else {
        return Err(bad(if text.contains('@') { "(hidden)" } else { &text }, "this is no http(s) address"));
    };
    if url.password().is_some() || !url.username().is_empty() {
        return Err(bad("(hidden)", "it holds a user name or password, which are not sent"));
    }
    Ok(format!("{}/", url.as_str().trim_end_matches('/')))
}

/// The files of `packages`, each from its registry.
///
/// # Errors
/// [`Error::Setting`] that says what is missing and why, and the ways round it.
pub(super) fn fetch(packages: &'static [Package], registries: &[String]) -> Result<Vec<Found>> {
    outside_runtime(|| {
        let mut found = vec![];
        for (package, registry) in packages.iter().zip(registries) {
            let archive = download(package, registry).map_err(|why| missing(package, &why))?;
            found.extend(unpack(package, &archive).map_err(|why| missing(package, &why))?);
        }
        Ok(found)
    })
}

fn missing(package: &Package, why: &str) -> Error {
    let help = format!(
        "{} is missing: {why}. Give a folder that has it (Library::Folder), or have the page link to it \
         (Library::Link)",
        package.spec()
    );
    Error::setting("library", "Library::Npm", help)
}

/// The archive, once its hash is what it should be.
fn download(package: &Package, registry: &str) -> Result<Vec<u8>, String> {
    let base = package.name.rsplit('/').next().unwrap_or(package.name);
    let url = format!("{registry}{}/-/{base}-{}.tgz", package.name, package.version);
    let url = Url::parse(&url).map_err(|e| e.to_string())?;
    let host = url.host_str().unwrap_or_default().to_string();
    // The Hub's client, without any of the Hub's settings: no token goes along.
    let env = HubEnv {
        endpoint: registry.to_string(),
        retry_policy: RetryPolicy {
            max_attempts: 3,
            max_retry_after: Duration::from_secs(10),
            ..RetryPolicy::default()
        },
        ..HubEnv::from_variables(&|_| None)
    };
    let client = HubClient::new(&env, None).map_err(|e| e.to_string())?;
    let mut bytes = vec![];
    let mut response = client.send(&Request::get(url)).map_err(describe)?;
    while let Some(chunk) = client.chunk(&mut response).map_err(describe)? {
        bytes.extend_from_slice(chunk.as_ref());
        if bytes.len() > MOST {
            return Err(format!("{host} sends more than any of its archives has"));
        }
    }
    let integrity = format!("sha512-{}", STANDARD.encode(Sha512::digest(&bytes)));
    if integrity != package.integrity {
        return Err(format!("what {host} gave has another hash than this release, and is not used"));
    }
    Ok(bytes)
}

fn describe(error: RequestError) -> String {
    match error {
        RequestError::NoConnection { host, why } => format!("no connection to {host} ({why})"),
        RequestError::Interrupted { host, why } => format!("the connection to {host} broke ({why})"),
        RequestError::Status(response) => format!("{} says HTTP {}", response.host, response.status.as_u16()),
        RequestError::InvalidResponse { host, why } => format!("{host}: {why}"),
        RequestError::Local(why) => why,
    }
}

/// The files of an archive that npm made: a gzipped tar whose files lie in one folder, `package`.
fn unpack(package: &'static Package, archive: &[u8]) -> Result<Vec<Found>, String> {
    let damaged = |e: std::io::Error| format!("its archive cannot be unpacked ({e})");
    let mut found = vec![];
    let mut files = tar::Archive::new(GzDecoder::new(archive));
    for entry in files.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
        let inside = path.split_once('/').map(|(_, inside)| inside);
        let Some(part) = package.parts.iter().find(|part| Some(part.inside) == inside) else { continue };
        let mut bytes = vec![];
        entry.by_ref().take(part.bytes + 1).read_to_end(&mut bytes).map_err(damaged)?;
        if part.is(&bytes) {
            found.push(Found { file: part.file, bytes });
        }
    }
    let lacks = package.parts.iter().find(|part| !found.iter().any(|there| there.file == part.file));
    match lacks {
        None => Ok(found),
        Some(part) => Err(format!("its archive has no {} of this release", part.inside)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(variables: &[(&str, &str)], npmrc: &str) -> Result<String> {
        let variables: Vec<_> = variables.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        registry_of("@wllama/wllama", &variables, &|path| (path == "/h/.npmrc").then(|| npmrc.to_string()))
    }

    #[test]
    fn the_registry_is_npms() {
        let home = ("HOME", "/h");
        assert_eq!(registry(&[], "registry=http://no").unwrap(), REGISTRY);
        assert_eq!(registry(&[home], "").unwrap(), REGISTRY);
        assert_eq!(registry(&[home], "a=b\nregistry = \"http://m:1/npm\"\n").unwrap(), "http://m:1/npm/");
        let scoped = "registry=http://m\n@wllama:registry=https://w/\n";
        assert_eq!(registry(&[home], scoped).unwrap(), "https://w/");
        let plain = registry_of("onnxruntime-web", &[("HOME".into(), "/h".into())], &|_| Some(scoped.into()));
        assert_eq!(plain.unwrap(), "http://m/");
        for name in ["npm_config_registry", "NPM_CONFIG_REGISTRY"] {
            assert_eq!(registry(&[home, (name, "https://e")], scoped).unwrap(), "https://e/");
        }
        assert_eq!(
            registry(&[("npm_config_userconfig", "/h/.npmrc")], "registry=http://m").unwrap(),
            "http://m/"
        );
    }

    #[test]
    fn what_is_no_registry_is_said_without_its_password() {
        for bad in ["registry.npmjs.org", "file:///tmp", "https://ann:geheim@m/", "ann:geheim@m"] {
            let said = registry(&[("npm_config_registry", bad)], "").unwrap_err().to_string();
            assert!(said.starts_with("setting npm_config_registry = ") && !said.contains("geheim"), "{said}");
        }
    }
}
