//! Who is asking: the token, whose it is, and whether it can write.

use std::fmt;
use std::io::{BufRead, Write};

use serde_json::Value;

use super::client::{HubClient, host};
use super::env::{HubEnv, remember};
use super::errors::endpoint_error;
use super::repo::address;
use super::request::Request;
use super::request_error::RequestError;
use super::runtime::outside_runtime;
use super::token::{FoundToken, Token, TokenSource};
use crate::display::{escape_html, plain, show_both};
use crate::error::Result;

/// What a token allows, as far as the Hub tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing, everywhere the user may.
    Write,
    /// A fine-grained token: it can write to the repositories of these users and organisations.
    WriteTo(Vec<String>),
    /// The Hub does not say; a push will show it.
    Unknown,
}

/// The outcome of [`login`].
#[derive(Debug, Clone)]
pub struct Login {
    pub(crate) env: HubEnv,
    pub(crate) found: Option<FoundToken>,
    pub(crate) user: Option<User>,
}

/// Whose token it is.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub name: String,
    pub organisations: Vec<String>,
    pub access: Access,
}

/// Logs in to the Hugging Face Hub for the rest of this process.
///
/// The token is looked for in this order: the argument, an earlier login, `HF_TOKEN`,
/// `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, `$HF_HOME/token` (where Python's
/// `hf auth login` keeps it). No token is no error: the [`Login`] says what works without.
/// With `HF_HUB_OFFLINE=1` nothing is asked.
///
/// The token is kept in memory, and written nowhere.
///
/// # Errors
/// [`Error::Hub`](crate::Error::Hub) if the Hub does not accept the token or does not answer.
pub fn login(token: Option<&str>) -> Result<Login> {
    let login = login_with(&HubEnv::from_env(), token)?;
    if let Some(found) = &login.found {
        remember(&found.token);
    }
    Ok(login)
}

/// [`login`] with settings of one's own; later steps do not learn of it.
pub fn login_with(env: &HubEnv, token: Option<&str>) -> Result<Login> {
    let found = env.find_token(token)?;
    outside_runtime(|| log_in(env, found))
}

/// [`login`], asking for the token in the notebook if none is found.
///
/// The prompt hides what is typed. Without a Jupyter front end that can answer, it is as [`login`].
pub fn login_interactive() -> Result<Login> {
    let env = HubEnv::from_env();
    let in_notebook = std::env::var_os("EVCXR_IS_RUNTIME").is_some();
    if env.offline || !in_notebook || env.find_token(None)?.is_some() {
        return login(None);
    }
    let typed = prompt(&mut std::io::stdout(), &mut std::io::stdin().lock());
    let found = typed.map(|token| FoundToken { token, source: TokenSource::Prompt });
    let login = outside_runtime(|| log_in(&env, found))?;
    if let Some(found) = &login.found {
        remember(&found.token);
    }
    Ok(login)
}

/// Asks evcxr's kernel for a hidden line. With no front end it answers an empty one at once.
fn prompt(out: &mut dyn Write, input: &mut dyn BufRead) -> Option<Token> {
    // The kernel cuts the prompt at a second colon, so no address stands in it.
    writeln!(out, "EVCXR_INPUT_REQUEST_PASSWORD:Hugging Face token?").ok()?;
    out.flush().ok()?;
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    Token::new(&line)
}

fn log_in(env: &HubEnv, found: Option<FoundToken>) -> Result<Login> {
    let user = match &found {
        Some(found) if !env.offline => Some(who_am_i(env, found)?),
        _ => None,
    };
    Ok(Login { env: env.clone(), found, user })
}

fn who_am_i(env: &HubEnv, found: &FoundToken) -> Result<User> {
    let client = HubClient::new(env, Some(found.clone()))?;
    let url = address(&client.endpoint, ["api", "whoami-v2"].into_iter());
    let fail = |error| endpoint_error(&client, "login", "asking whose the token is", error);
    let answer = client.json(&Request::get(url.clone())).map_err(fail)?;
    user(&answer).ok_or_else(|| {
        fail(RequestError::InvalidResponse { host: host(&url), why: "the answer names no user".to_string() })
    })
}

fn user(answer: &Value) -> Option<User> {
    let name = answer.get("name")?.as_str()?.to_string();
    let organisations = items(answer.get("orgs")).filter_map(|org| text(org, "name")).collect();
    let token = answer.get("auth").and_then(|auth| auth.get("accessToken"));
    let access = match token.and_then(|token| text(token, "role")).as_deref() {
        Some("write") => Access::Write,
        Some("read") => Access::Read,
        Some("fineGrained") => fine_grained(token.and_then(|token| token.get("fineGrained"))),
        _ => Access::Unknown,
    };
    Some(User { name, organisations, access })
}

/// A fine-grained token names for each user, organisation or repository what it allows there.
fn fine_grained(rights: Option<&Value>) -> Access {
    let Some(rights) = rights else { return Access::Unknown };
    let mut places = Vec::new();
    for scope in items(rights.get("scoped")) {
        let writes = items(scope.get("permissions")).any(|right| right.as_str() == Some("repo.write"));
        if let Some(name) = scope.get("entity").and_then(|entity| text(entity, "name")).filter(|_| writes) {
            places.push(name);
        }
    }
    if places.is_empty() { Access::Read } else { Access::WriteTo(places) }
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_string)
}

impl Login {
    /// The user's name, if logged in.
    pub fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|user| user.name.as_str())
    }

    /// What the token allows; `None` if not logged in.
    pub fn access(&self) -> Option<&Access> {
        self.user.as_ref().map(|user| &user.access)
    }

    /// Whether the token may write to repositories of `owner`, as far as the Hub tells: an unknown
    /// right counts as one.
    pub fn can_write_to(&self, owner: &str) -> bool {
        let Some(user) = &self.user else { return false };
        match &user.access {
            Access::Read => false,
            Access::Write | Access::Unknown => true,
            Access::WriteTo(places) => places.iter().any(|place| place.split('/').next() == Some(owner)),
        }
    }

    fn lines(&self) -> Vec<String> {
        let tokens = format!("{}/settings/tokens", self.env.endpoint);
        match (&self.found, &self.user) {
            (None, _) => vec![
                "Not logged in: no token was found (argument, HF_TOKEN, HF_TOKEN_PATH, the token file of `hf auth login`)."
                    .to_string(),
                "The embedded model and public repositories need none.".to_string(),
                format!(
                    "To use google/gemma-3-270m-it, accept its licence at {}/google/gemma-3-270m-it; to push a model, too: \
                     make a token with write access at {tokens} and set HF_TOKEN before Jupyter starts.",
                    self.env.endpoint
                ),
            ],
            (Some(found), None) => vec![
                format!("Not asked who you are: HF_HUB_OFFLINE is set (there is a token, from {}).", found.source),
                "Models and data come from the cache, and nothing can be pushed.".to_string(),
            ],
            (Some(found), Some(user)) => {
                let mut lines = vec![format!("Logged in as {} (token from {}).", user.name, found.source)];
                lines.push(match &user.access {
                    Access::Write => "The token can write: the model can be pushed.".to_string(),
                    Access::WriteTo(places) => format!("The token can write to {}.", places.join(", ")),
                    Access::Read => format!(
                        "The token can only read: downloads work, the push at the end will not. Make one with write access at {tokens}."
                    ),
                    Access::Unknown => "The Hub does not say whether the token can write.".to_string(),
                });
                if !user.organisations.is_empty() {
                    lines.push(format!("Organisations: {}.", user.organisations.join(", ")));
                }
                lines
            }
        }
    }

    /// Shows itself in a notebook: HTML, and the same as plain text.
    pub fn evcxr_display(&self) {
        let html: String =
            self.lines().iter().map(|line| format!("<div>{}</div>", escape_html(line))).collect();
        show_both(&html, &self.to_string());
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.lines().join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn access(token: Value) -> Access {
        user(&json!({"name": "ann", "auth": {"type": "access_token", "accessToken": token}})).unwrap().access
    }

    #[test]
    fn rights_are_read() {
        assert_eq!(access(json!({"role": "write"})), Access::Write);
        assert_eq!(access(json!({"role": "read"})), Access::Read);
        assert_eq!(access(json!({})), Access::Unknown);
        let scoped = json!({"role": "fineGrained", "fineGrained": {"canReadGatedRepos": true, "global": [], "scoped": [
            {"entity": {"type": "user", "name": "ann"}, "permissions": ["repo.content.read", "repo.write"]},
            {"entity": {"type": "org", "name": "lab"}, "permissions": ["repo.content.read"]}]}});
        assert_eq!(access(scoped), Access::WriteTo(vec!["ann".into()]));
        assert_eq!(access(json!({"role": "fineGrained", "fineGrained": {"scoped": []}})), Access::Read);
        assert!(user(&json!({"error": "x"})).is_none());
    }

    #[test]
    fn without_a_token_it_says_what_works() {
        let dir = tempfile::tempdir().unwrap();
        let env = HubEnv { token_path: dir.path().join("token"), ..HubEnv::from_variables(&|_| None) };
        let login = login_with(&env, None).unwrap();
        let text = login.to_string();
        assert!(text.starts_with("Not logged in") && text.contains("google/gemma-3-270m-it"), "{text}");
        assert_eq!(login.user(), None);
        assert!(!login.can_write_to("ann"));
    }

    #[test]
    fn offline_asks_nothing() {
        // Nothing listens on this port: an attempt to ask would be an error.
        let env = HubEnv {
            endpoint: "http://127.0.0.1:9".into(),
            offline: true,
            ..HubEnv::from_variables(&|_| None)
        };
        let text = login_with(&env, Some("hf_secretsecret")).unwrap().to_string();
        assert!(text.contains("HF_HUB_OFFLINE") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn the_prompt_is_evcxrs() {
        let mut out = Vec::new();
        assert_eq!(prompt(&mut out, &mut " hf_typed \n".as_bytes()), Token::new("hf_typed"));
        assert!(String::from_utf8(out).unwrap().starts_with("EVCXR_INPUT_REQUEST_PASSWORD:"));
        assert_eq!(prompt(&mut Vec::new(), &mut "\n".as_bytes()), None);
        assert_eq!(prompt(&mut Vec::new(), &mut "".as_bytes()), None);
    }
}
