//! Push a folder and its model card to the Hub, as one commit.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde_json::{Value, json};

use super::client::{HubClient, off_runtime};
use super::commit::{CommitOutcome, commit};
use super::errors::repo_error;
use super::listing::{RepoState, list_files, repo_state};
use super::login::Login;
use super::progress::bytes;
use super::repo::{Repo, RepoKind, address};
use super::request::{Request, Retry};
use super::request_error::RequestError;
use super::upload::{FileState, PushedFile, Upload, changed, listing, plan_uploads};
use crate::display::{Align, Table, escape_html, show_both, write_plain};
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};

/// The list of files that a push would send.
const LIST: &str = "files.txt";
/// Marks a folder that a dry run made: its first line, then the names of the files it wrote there.
const MARKER: &str = ".emoji_lab-dry-run";
const MARKER_LINE: &str = "Made by a dry run of emoji_lab's push_to_hub, which may write these files again:";

/// The settings of [`push_to_hub`].
#[derive(Debug, Clone)]
pub struct PushConfig {
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
            repo_name: "myemoji-gemma-3-270m-it".to_string(),
            private: true,
            dry_run: None,
            commit_message: "Upload model".to_string(),
        }
    }
}

/// What [`push_to_hub`] did, or would do.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// `owner/name`.
    pub repo_id: String,
    /// The repository's page.
    pub url: String,
    /// Whether the repository is private.
    pub private: bool,
    /// The commit that holds the files; `None` after a dry run.
    pub commit: Option<String>,
    /// The files.
    pub files: Vec<PushedFile>,
    /// Files that the repository has and the folder does not; they stay.
    pub others: Vec<String>,
    /// The card, as it is in `README.md`.
    pub card: String,
    /// The folder that a dry run wrote.
    pub dry_run: Option<PathBuf>,
}

/// What a repository says of itself.
pub trait RepositoryCard: Sync {
    /// The text of `README.md` in the repository `repo_id`: YAML front matter, then Markdown.
    fn readme(&self, repo_id: &str) -> String;

    /// Names and contents (SVG) of the pictures that lie beside it.
    fn pictures(&self) -> Vec<(&'static str, String)>;
}

/// Pushes `folder` and `card` (as `README.md`, with the loss curve beside it) to a model repository
/// on the Hub, as one commit. The repository is made if it is missing. Files that it has already are
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
    off_runtime(|| push(login, folder, config, card))
}

fn push(login: &Login, folder: &Path, config: &PushConfig, card: &dyn RepositoryCard) -> Result<PushReport> {
    let name = config.repo_name.trim();
    let id = match (name.contains('/'), login.user()) {
        (true, _) => name.to_string(),
        (false, Some(user)) => format!("{user}/{name}"),
        (false, None) => format!("your-name/{name}"),
    };
    let repo = Repo::new(RepoKind::Model, &id, None)?;
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
    let body = json!({ "content": card, "repoType": "model" });
    match client.text(&Request::post(url, body, Retry::Transient)) {
        Err(RequestError::Status(response)) if response.status.as_u16() == 400 => Err(Error::hub(
            repo.subject(),
            format!("the Hub does not take the model card: {}; nothing was sent", response.message),
            "Correct the card's fields (license, language, base_model, datasets, tags)",
        )),
        // Mirrors need not know this question, and the commit itself is checked as well.
        Ok(_) | Err(RequestError::Status(_)) => Ok(()),
        Err(error) => Err(repo_error(client, repo, "checking the model card", error)),
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
    let mut body = json!({ "name": name, "type": "model", "private": config.private });
    if let (true, Some(body)) = (login.user() != Some(owner), body.as_object_mut()) {
        body.insert("organization".to_string(), Value::from(owner));
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

fn write_dry_run(dir: &Path, report: &PushReport, files: &[Upload]) -> Result<()> {
    let list = format!("{}\n{}\n", report.headline(), listing(&report.files));
    let texts = files.iter().filter_map(|file| match &file.source {
        super::upload::Source::Text(text) => Some((file.path.as_str(), text.as_str())),
        super::upload::Source::File(_) => None,
    });
    let texts: Vec<(&str, &str)> = std::iter::once((LIST, list.as_str())).chain(texts).collect();
    let refuse = |why: String| Err(Error::setting("dry_run", dir.display(), why));
    if dir.is_file() {
        return refuse("this is a file. Name a folder that is new or empty".to_string());
    }
    match own_files(dir)? {
        // Only what an earlier dry run wrote is written again.
        Some(own) => {
            let others = |name: &&str| !own.iter().any(|mine| mine == name) && dir.join(name).exists();
            if let Some(name) = texts.iter().map(|(name, _)| *name).find(others) {
                return refuse(format!(
                    "its {name} was not written by a dry run, and would be replaced. Name a folder that is new or empty"
                ));
            }
        }
        None if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) => {
            return refuse(
                "this holds files that no dry run wrote. Name a folder that is new or empty".to_string(),
            );
        }
        None => {}
    }
    write_into_dir(dir, MARKER, |stage| {
        let mut mark = format!("{MARKER_LINE}\n");
        for (name, text) in &texts {
            write_bytes_atomic(stage.join(name), text.as_bytes())?;
            mark.push_str(name);
            mark.push('\n');
        }
        write_bytes_atomic(stage.join(MARKER), mark.as_bytes())
    })
}

/// The files that an earlier dry run wrote into `dir`; `None` if it bears no mark of one.
fn own_files(dir: &Path) -> Result<Option<Vec<String>>> {
    let path = dir.join(MARKER);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "reading the mark of a dry run", e)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    Ok((lines.next() == Some(MARKER_LINE)).then(|| lines.map(str::to_string).collect()))
}

impl PushReport {
    fn headline(&self) -> String {
        let visible = if self.private { "private" } else { "public" };
        let size = |state: Option<FileState>| {
            let chosen = self.files.iter().filter(|file| state.is_none_or(|state| file.state == state));
            let (count, total) = chosen.fold((0, 0), |(n, total), file| (n + 1, total + file.size));
            format!("{count} {}, {}", if count == 1 { "file" } else { "files" }, bytes(total))
        };
        match (&self.commit, &self.dry_run) {
            (Some(commit), _) if self.files.iter().any(|file| file.state == FileState::Sent) => format!(
                "CommitOutcome to {} ({visible}) as commit {}: {}.",
                self.url,
                commit.get(..8).unwrap_or(commit),
                size(Some(FileState::Sent))
            ),
            (Some(_), _) => format!("{} ({visible}) has all of it already: nothing was sent.", self.url),
            (None, _) => {
                format!(
                    "Dry run, nothing was sent. A push would send to {} ({visible}): {}.",
                    self.repo_id,
                    size(None)
                )
            }
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.others.is_empty() {
            notes.push(format!(
                "In the repository, and not in the folder (they stay): {}.",
                self.others.join(", ")
            ));
        }
        if let Some(dir) = &self.dry_run {
            notes.push(format!("The card and this list are in {}.", dir.display()));
        }
        notes
    }

    /// Shows itself in a notebook: HTML, and the same as plain text.
    pub fn evcxr_display(&self) {
        let mut table = Table::new(self.headline())
            .column("File", Align::Left)
            .column("Size", Align::Right)
            .column("", Align::Left);
        for file in &self.files {
            let state = match file.state {
                FileState::Planned => "would be sent",
                FileState::Sent => "sent",
                FileState::Unchanged => "unchanged",
            };
            table = table.row([file.path.clone(), bytes(file.size), state.to_string()]);
        }
        for note in self.notes() {
            table = table.note(note);
        }
        let html = format!(
            "{}<details><summary>Model card (README.md)</summary>\
             <pre dir=\"auto\" style=\"white-space:pre-wrap\">{}</pre></details>",
            table.to_html(),
            escape_html(&self.card)
        );
        show_both(&html, &self.to_string());
    }
}

impl fmt::Display for PushReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, |f| {
            writeln!(f, "{}\n{}", self.headline(), listing(&self.files))?;
            for note in self.notes() {
                writeln!(f, "{note}")?;
            }
            write!(f, "\nModel card (README.md):\n{}", self.card.trim_end())
        })
    }
}
