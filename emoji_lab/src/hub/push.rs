//! Push a folder and its model card to the Hub, as one commit.

use std::path::{Path, PathBuf};

use reqwest::Url;
use serde_json::json;

use super::client::HubClient;
use super::commit::{CommitOutcome, commit};
use super::dry_run::write_dry_run;
use super::errors::repo_error;
use super::listing::{RepoState, list_files, repo_state};
use super::login::Login;
use super::progress::bytes;
use super::push_report::PushReport;
use super::repo::{Repo, RepoKind, address};
use super::request::{Request, Retry};
use super::request_error::RequestError;
use super::runtime::outside_runtime;
use super::upload::{FileState, PushedFile, Upload, changed, listing, plan_uploads};
use crate::error::{Error, Result};

/// What is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PushKind {
    /// A model's files.
    #[default]
    Model,
    /// A web page, as [`export_web`](crate::export::export_web) writes it: a static Space, which shows it.
    Space,
}

/// The settings of [`push_to_hub`].
#[derive(Debug, Clone)]
pub struct PushConfig {
    /// What is pushed, and so the kind of repository.
    pub kind: PushKind,
    /// `name`, or `owner/name` for an organisation's repository. The owner is the user if not named.
    pub repo_name: String,
    /// Whether a repository that is made now is private. Pushing to one that is there and public is
    /// refused if this is set.
    pub private: bool,
    /// A folder to write the card and the list of files to, instead of sending anything: a new or
    /// empty one, or that of an earlier dry run.
    pub dry_run: Option<PathBuf>,
    /// The commit's message.
    pub commit_message: String,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            kind: PushKind::Model,
            repo_name: "myemoji-gemma-3-270m-it".to_string(),
            private: true,
            dry_run: None,
            commit_message: "Upload model".to_string(),
        }
    }
}

/// What a repository says of itself.
pub trait RepositoryCard: Sync {
    /// The text of `README.md` in the repository `repo_id`: YAML front matter, then Markdown.
    fn readme(&self, repo_id: &str) -> String;

    /// Names and contents (SVG) of the pictures that lie beside it.
    fn pictures(&self) -> Vec<(&'static str, String)>;
}

/// Pushes `folder` and `card` (as `README.md`, with the loss curve beside it) to a model repository
/// on the Hub, or to a Space, as one commit. The repository is made if it is missing. Files that it has already are
/// not sent again, so pushing twice is safe; files that the folder does not have stay.
///
/// With [`PushConfig::dry_run`] nothing is sent and no login is needed: the card and the list of files
/// are written to that folder.
///
/// # Errors
/// [`Error::Hub`] without a login or with a token that can only read, if a file holds an access token,
/// if a private push meets a public repository, and if the upload fails. The last says what state the
/// repository is in: nothing of a push is seen there before its one commit.
pub fn push_to_hub(
    login: &Login,
    folder: impl AsRef<Path>,
    config: &PushConfig,
    card: &dyn RepositoryCard,
) -> Result<PushReport> {
    let folder = folder.as_ref();
    outside_runtime(|| push(login, folder, config, card))
}

fn push(login: &Login, folder: &Path, config: &PushConfig, card: &dyn RepositoryCard) -> Result<PushReport> {
    let name = config.repo_name.trim();
    let id = match (name.contains('/'), login.user()) {
        (true, _) => name.to_string(),
        (false, Some(user)) => format!("{user}/{name}"),
        (false, None) => format!("your-name/{name}"),
    };
    let kind = match config.kind {
        PushKind::Model => RepoKind::Model,
        PushKind::Space => RepoKind::Space,
    };
    let repo = Repo::new(kind, &id, None)?;
    let token = login.found.as_ref().map(|found| &found.token);
    let files = plan_uploads(folder, card, &id, token)?;
    let mut report = PushReport {
        url: repo.page(&login.env.endpoint),
        private: config.private,
        commit: None,
        files: files.iter().map(|file| pushed(file, FileState::Planned)).collect(),
        others: Vec::new(),
        card: card.readme(&id),
        dry_run: None,
        repo_id: id,
    };
    if let Some(dir) = &config.dry_run {
        write_dry_run(dir, &report, &files)?;
        report.dry_run = Some(dir.clone());
        return Ok(report);
    }
    may_push(login, &repo)?;
    send(login, &repo, config, files, report)
}

fn pushed(file: &Upload, state: FileState) -> PushedFile {
    PushedFile { path: file.path.clone(), size: file.size, state }
}

/// Refuses what cannot work before anything is made on the Hub.
fn may_push(login: &Login, repo: &Repo) -> Result<()> {
    let tokens = format!("{}/settings/tokens", login.env.endpoint);
    let dry = "or set dry_run to a folder to see what would be sent";
    let owner = repo.id.split('/').next().unwrap_or_default();
    let refuse = |problem: &str, help: String| Err(Error::hub(&repo.id, problem, help));
    if login.env.offline {
        return refuse("a push needs the network, and HF_HUB_OFFLINE is set", format!("Unset it, {dry}"));
    }
    match login.user() {
        None => refuse(
            "a push needs a login",
            format!(
                "Make a token with write access at {tokens}, set HF_TOKEN to it and run login again, {dry}"
            ),
        ),
        Some(_) if !login.can_write_to(owner) => refuse(
            &format!("the token cannot write to repositories of {owner}"),
            format!(
                "Make a token with write access at {tokens}, set HF_TOKEN to it and run login again, {dry}"
            ),
        ),
        Some(_) => Ok(()),
    }
}

fn send(
    login: &Login,
    repo: &Repo,
    config: &PushConfig,
    files: Vec<Upload>,
    mut report: PushReport,
) -> Result<PushReport> {
    let client = HubClient::new(&login.env, login.found.clone())?;
    let total: u64 = files.iter().map(|file| file.size).sum();
    let visible = if config.private { "private" } else { "public" };
    crate::say!("pushing to {} ({visible}): {} files, {}", repo.id, files.len(), bytes(total));
    crate::say!("{}", listing(&report.files));
    check_card(&client, repo, &report.card)?;
    let (state, made) = find_or_create(&client, repo, config, login)?;
    if config.private && !state.private {
        return Err(Error::hub(
            repo.subject(),
            "the repository is there, and it is public; nothing was sent",
            "Take another repo_name, make it private on its settings page, or set private: false",
        ));
    }
    report.private = state.private;
    let attempt = list_files(&client, repo, &state.commit).and_then(|remote| {
        report.others = remote
            .iter()
            .map(|there| there.path.clone())
            .filter(|path| path != ".gitattributes" && !files.iter().any(|file| file.path == *path))
            .collect();
        let (send, same) = changed(files, &remote)?;
        let sent: Vec<Upload> = send.iter().map(|(file, _)| file.clone()).collect();
        let commit = if send.is_empty() {
            CommitOutcome::Committed(state.commit.clone())
        } else {
            commit(&client, &login.env, repo, &state, send, &config.commit_message)?
        };
        report.files = sent.iter().map(|file| pushed(file, FileState::Sent)).collect();
        report.files.extend(same.iter().map(|file| pushed(file, FileState::Unchanged)));
        report.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(commit)
    });
    match attempt {
        Ok(CommitOutcome::Committed(commit)) => {
            report.commit = Some(commit);
            Ok(report)
        }
        Ok(CommitOutcome::Unknown(error)) => Err(with_state(
            error,
            &format!("whether the commit arrived could not be seen: look at {}/commits/main", report.url),
        )),
        Err(error) => {
            let empty = if made { ", which this push made and which is still empty" } else { "" };
            Err(with_state(error, &format!("nothing of this push is in {}{empty}", report.url)))
        }
    }
}

/// Adds to an error what state the repository is in.
fn with_state(error: Error, state: &str) -> Error {
    let again = "Pushing again is safe, and does not send twice what has arrived";
    match error {
        Error::Hub { subject, problem, help } => {
            Error::Hub { subject, problem: format!("{problem}; {state}"), help: format!("{help}. {again}") }
        }
        other => other,
    }
}

/// Lets the Hub check the card's front matter: it would refuse the commit after the upload.
fn check_card(client: &HubClient, repo: &Repo, card: &str) -> Result<()> {
    let url = address(&client.endpoint, ["api", "validate-yaml"].into_iter());
    let body = json!({ "content": card, "repoType": repo.kind.word() });
    match client.text(&Request::post(url, body, Retry::Transient)) {
        Err(RequestError::Status(response)) if response.status.as_u16() == 400 => Err(Error::hub(
            repo.subject(),
            format!(
                "the Hub does not take the {} card: {}; nothing was sent",
                repo.kind.word(),
                response.message
            ),
            "Correct the fields at the head of its README.md (license, language, base_model, datasets, tags)",
        )),
        // Mirrors need not know this question, and the commit itself is checked as well.
        Ok(_) | Err(RequestError::Status(_)) => Ok(()),
        Err(error) => Err(repo_error(client, repo, "checking the card", error)),
    }
}

/// The repository's state, and whether it was made just now.
fn find_or_create(
    client: &HubClient,
    repo: &Repo,
    config: &PushConfig,
    login: &Login,
) -> Result<(RepoState, bool)> {
    let missing = |error: &RequestError| matches!(error, RequestError::Status(response) if response.status.as_u16() == 404);
    let fail = |error| repo_error(client, repo, "asking for it", error);
    match repo_state(client, repo, Retry::Transient) {
        Ok(state) => return Ok((state, false)),
        Err(error) if missing(&error) => {}
        Err(error) => return Err(fail(error)),
    }
    let made = create_repo(client, repo, config, login)?;
    // A repository that was just made is not known everywhere at once.
    let mut wait = client.retry_policy().base_wait;
    for _ in 1..client.retry_policy().max_attempts {
        match repo_state(client, repo, Retry::Transient) {
            Ok(state) => return Ok((state, made)),
            Err(error) if missing(&error) => std::thread::sleep(wait),
            Err(error) => return Err(fail(error)),
        }
        wait = wait.saturating_mul(2);
    }
    repo_state(client, repo, Retry::Transient).map(|state| (state, made)).map_err(fail)
}

/// Makes the repository; `false` if someone else just did.
fn create_repo(client: &HubClient, repo: &Repo, config: &PushConfig, login: &Login) -> Result<bool> {
    let (owner, name) = repo.id.split_once('/').unwrap_or(("", repo.id.as_str()));
    let mut body = json!({ "name": name, "type": repo.kind.word(), "private": config.private });
    if login.user() != Some(owner) {
        body["organization"] = json!(owner);
    }
    if repo.kind == RepoKind::Space {
        body["sdk"] = json!("static");
    }
    let url: Url = address(&client.endpoint, ["api", "repos", "create"].into_iter());
    let request = Request::post(url, body, Retry::NotAccepted);
    for _ in 1..client.retry_policy().max_attempts {
        match client.text(&request) {
            Ok(_) => return Ok(true),
            Err(RequestError::Status(response)) if response.status.as_u16() == 409 => {
                // The Hub makes one repository of a user at a time.
                if !response.message.contains("conflicting operation") {
                    return Ok(false);
                }
                std::thread::sleep(client.retry_policy().base_wait);
            }
            Err(error) => return Err(repo_error(client, repo, "making the repository", error)),
        }
    }
    client
        .text(&request)
        .map(|_| true)
        .map_err(|error| repo_error(client, repo, "making the repository", error))
}
