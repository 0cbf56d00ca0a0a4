//! The Hub's settings: endpoint, cache, token sources, offline mode.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::token::{FoundToken, Token, TokenSource};
use crate::error::{Error, Result};

/// The Hub itself, unless `HF_ENDPOINT` names a mirror.
const ENDPOINT: &str = "https://huggingface.co";

/// The token of the last successful `login` of this process. It stays in memory: Python's `login`
/// writes it to `$HF_HOME/token`, which a notebook on a shared machine should not do unasked.
static SESSION: Mutex<Option<Token>> = Mutex::new(None);

/// The settings of every step that talks to the Hub.
///
/// [`HubEnv::from_env`] reads them as Python's `huggingface_hub` does:
///
/// | field | variables, in order |
/// |---|---|
/// | `endpoint` | `HF_ENDPOINT`, `https://huggingface.co` |
/// | `cache_dir` | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub` |
/// | `token` | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` |
/// | `token_path` | `HF_TOKEN_PATH`, `$HF_HOME/token` |
/// | `offline` | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` (1, on, yes or true) |
/// | `implicit_token` | off if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is on |
///
/// `HF_HOME` is `$XDG_CACHE_HOME/huggingface` or `~/.cache/huggingface` if not set.
#[derive(Debug, Clone)]
pub struct HubEnv {
    /// Base address of the Hub, without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--…` and `datasets--…`.
    pub cache_dir: PathBuf,
    /// The token from an environment variable, with the variable's name.
    pub token: Option<(Token, &'static str)>,
    /// The token of an earlier `login` of this process.
    pub session_token: Option<Token>,
    /// The file that Python's `hf auth login` writes the token to.
    pub token_path: PathBuf,
    /// Whether no step may use the network.
    pub offline: bool,
    /// Whether downloads send the token that was found, not only one that was given.
    pub implicit_token: bool,
    /// How long to wait and how often to try.
    pub retry_policy: RetryPolicy,
}

/// How long a request waits and how often it is tried.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Tries of one request in all, and tries in a row without a new byte of one download.
    pub max_attempts: u32,
    /// Wait before the second try; it doubles from try to try.
    pub base_wait: Duration,
    /// The longest `Retry-After` that is waited for.
    pub max_retry_after: Duration,
    /// Time to get a connection.
    pub connect_timeout: Duration,
    /// Time without a byte after which a connection counts as cut; four times as long while a body
    /// is sent.
    pub idle_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            base_wait: Duration::from_secs(1),
            max_retry_after: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

impl HubEnv {
    /// Reads the settings from the environment and the token of an earlier [`login`](super::login).
    pub fn from_env() -> Self {
        let mut env = Self::from_variables(&|name| std::env::var(name).ok());
        env.session_token = SESSION.lock().ok().and_then(|session| session.clone());
        env
    }

    /// [`HubEnv::from_env`] on any source of variables.
    pub fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_else(|| ".".to_string());
        let path = |text: String| expand(&text, &home, &set);
        let hf_home = set("HF_HOME").map(path).unwrap_or_else(|| {
            let caches = set("XDG_CACHE_HOME").map(path).unwrap_or_else(|| Path::new(&home).join(".cache"));
            caches.join("huggingface")
        });
        let cache_dir = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| hf_home.join("hub"), path);
        let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .into_iter()
            .find_map(|name| Some((Token::new(&set(name)?)?, name)));
        Self {
            endpoint: without_credentials(
                set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string()).trim_end_matches('/'),
            ),
            cache_dir,
            token,
            session_token: None,
            token_path: set("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), path),
            offline: is_true(set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE"))),
            implicit_token: !is_true(set("HF_HUB_DISABLE_IMPLICIT_TOKEN")),
            retry_policy: RetryPolicy::default(),
        }
    }

    /// The token: the argument, this process's login, the variables, the file.
    ///
    /// A missing file is no token; one that cannot be read is an error.
    pub fn find_token(&self, argument: Option<&str>) -> Result<Option<FoundToken>> {
        let found = |token, source| Ok(Some(FoundToken { token, source }));
        if let Some(token) = argument.and_then(Token::new) {
            return checked(found(token, TokenSource::Argument));
        }
        if let Some(token) = &self.session_token {
            return checked(found(token.clone(), TokenSource::Session));
        }
        if let Some((token, name)) = &self.token {
            return checked(found(token.clone(), TokenSource::Variable(name)));
        }
        match std::fs::read(&self.token_path) {
            Ok(bytes) => match Token::new(&String::from_utf8_lossy(&bytes)) {
                Some(token) => checked(found(token, TokenSource::File(self.token_path.clone()))),
                None => Ok(None),
            },
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(e) => Err(Error::io(&self.token_path, "reading the access token", e)),
        }
    }

    /// The token for a download, which takes none as an argument.
    pub(crate) fn download_token(&self) -> Result<Option<FoundToken>> {
        if self.implicit_token { self.find_token(None) } else { Ok(None) }
    }
}

/// Lets later steps of this process use `token`.
pub(crate) fn remember(token: &Token) {
    if let Ok(mut session) = SESSION.lock() {
        *session = Some(token.clone());
    }
}

fn checked(found: Result<Option<FoundToken>>) -> Result<Option<FoundToken>> {
    if let Ok(Some(FoundToken { token, source })) = &found
        && !token.is_plain()
    {
        return Err(Error::hub(
            "access token",
            format!("the one from {source} has spaces, line breaks or other characters that no token has"),
            "Copy it again from https://huggingface.co/settings/tokens",
        ));
    }
    found
}

/// `https://user:password@host` as `https://(hidden)@host`. The address is printed, in lines and in
/// errors; one with credentials is refused where it is used, and they are nobody's business until then.
pub(super) fn without_credentials(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
    // At the last @: a password may hold one, or a slash.
    match (rest.rsplit_once('@'), scheme) {
        (None, _) => endpoint.to_string(),
        (Some((_, host)), "") => format!("(hidden)@{host}"),
        (Some((_, host)), scheme) => format!("{scheme}://(hidden)@{host}"),
    }
}

fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// `~` and `$NAME` / `${NAME}` as Python's expanduser and expandvars replace them.
fn expand(text: &str, home: &str, variable: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let text = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => text.to_string(),
    };
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, tail) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(pair) => pair,
            None => after.split_at(
                after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()),
            ),
        };
        match variable(name) {
            Some(value) => out.push_str(&value),
            // Python leaves an unknown variable as it is written.
            None => {
                out.push('$');
                out.push_str(after.strip_suffix(tail).unwrap_or_default());
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &[(&str, &str)]) -> HubEnv {
        let owned: Vec<(String, String)> =
            variables.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        HubEnv::from_variables(&move |name| owned.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn credentials_in_the_endpoint_are_never_shown() {
        for (given, shown) in [
            ("https://ann:hunter2@mirror.example/", "https://(hidden)@mirror.example"),
            ("ftp://ann:hun@ter/2@mirror.example", "ftp://(hidden)@mirror.example"),
            ("ann:hunter2@mirror.example", "(hidden)@mirror.example"),
            ("https://mirror.example/hf", "https://mirror.example/hf"),
        ] {
            let env = env(&[("HF_ENDPOINT", given)]);
            assert_eq!(env.endpoint, shown);
            // The field may be set without `from_variables`.
            for env in [HubEnv { endpoint: given.to_string(), ..env.clone() }, env] {
                let refused = super::super::client::HubClient::new(&env, None);
                assert_eq!(refused.is_err(), given.contains('@'), "{given}");
                assert!(!refused.err().map(|e| e.to_string()).unwrap_or_default().contains("hun"));
            }
        }
    }

    #[test]
    fn paths_follow_huggingface_hub() {
        let bare = env(&[("HOME", "/home/ann")]);
        assert_eq!(bare.endpoint, "https://huggingface.co");
        assert_eq!(bare.cache_dir, Path::new("/home/ann/.cache/huggingface/hub"));
        assert_eq!(bare.token_path, Path::new("/home/ann/.cache/huggingface/token"));
        assert!(!bare.offline && bare.implicit_token);

        let xdg = env(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]);
        assert_eq!(xdg.cache_dir, Path::new("/x/huggingface/hub"));
        let moved = env(&[("HOME", "/h"), ("HF_HOME", "~/hf"), ("HF_ENDPOINT", "http://mirror:80/")]);
        assert_eq!(moved.cache_dir, Path::new("/h/hf/hub"));
        assert_eq!(moved.token_path, Path::new("/h/hf/token"));
        assert_eq!(moved.endpoint, "http://mirror:80");
        let vars = env(&[
            ("HOME", "/h"),
            ("DISK", "/d"),
            ("HF_HUB_CACHE", "${DISK}/$NOPE/c"),
            ("HF_TOKEN_PATH", "$DISK/t"),
        ]);
        assert_eq!(vars.cache_dir, Path::new("/d/$NOPE/c"));
        assert_eq!(vars.token_path, Path::new("/d/t"));
        assert!(env(&[("HF_HUB_OFFLINE", "yes")]).offline && env(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(!env(&[("HF_HUB_OFFLINE", "0")]).offline);
    }

    #[test]
    fn tokens_are_looked_for_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "hf_file\n").unwrap();
        let path = file.to_str().unwrap();
        let all =
            env(&[("HF_TOKEN", " hf_var\n"), ("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN_PATH", path)]);
        let source = |env: &HubEnv, argument| {
            env.find_token(argument).unwrap().map(|f| (f.token.secret().to_string(), f.source))
        };
        assert_eq!(source(&all, Some("hf_arg")), Some(("hf_arg".into(), TokenSource::Argument)));
        assert_eq!(source(&all, Some("  ")), Some(("hf_var".into(), TokenSource::Variable("HF_TOKEN"))));
        let old = env(&[("HF_TOKEN", " "), ("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN_PATH", path)]);
        assert_eq!(
            source(&old, None),
            Some(("hf_old".into(), TokenSource::Variable("HUGGING_FACE_HUB_TOKEN")))
        );
        let only_file = env(&[("HF_TOKEN_PATH", path)]);
        assert_eq!(source(&only_file, None), Some(("hf_file".into(), TokenSource::File(file.clone()))));
        let session = HubEnv { session_token: Token::new("hf_session"), ..all };
        assert_eq!(source(&session, None), Some(("hf_session".into(), TokenSource::Session)));
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(source(&only_file, None), None);
        assert_eq!(source(&env(&[("HOME", "/nowhere")]), None), None);
    }

    #[test]
    fn a_broken_token_is_refused_without_being_shown() {
        let error = env(&[]).find_token(Some("hf_secret\nsecond")).unwrap_err().to_string();
        assert!(error.contains("the argument") && !error.contains("secret"), "{error}");
    }
}
