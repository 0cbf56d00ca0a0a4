//! The Hub's API: accounts, repositories, rights.

use serde_json::{Value, json};

use super::http::{Answer, Request};
use super::store::{Account, Blob, Files, Repo, Store};
use super::{State, files, locked, upload};

/// Who asks: nobody, someone, or a token that is none.
pub enum Caller {
    Anonymous,
    Known(Account),
    Unknown,
}

pub fn caller(store: &Store, request: &Request) -> Caller {
    match request.header("authorization").and_then(|text| text.strip_prefix("Bearer ")) {
        None => Caller::Anonymous,
        Some(token) => store.accounts.get(token).cloned().map_or(Caller::Unknown, Caller::Known),
    }
}

/// A path that names a repository: its key, and what follows.
pub struct Target<'a> {
    pub key: String,
    pub id: String,
    pub rest: Vec<&'a str>,
}

pub fn answer(state: &State, request: &Request) -> Answer {
    let mut store = locked(&state.store);
    let who = caller(&store, request);
    if matches!(who, Caller::Unknown) {
        return Answer::error(401, "", "Invalid credentials in Authorization header");
    }
    let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["api", "whoami-v2"]) => whoami(&who),
        ("POST", ["api", "repos", "create"]) => create(&mut store, &who, request, &state.endpoint()),
        ("POST", ["api", "validate-yaml"]) => validate(request),
        ("GET", ["api", "agent-harnesses"]) => Answer::json(json!({})),
        (_, ["api", kind @ ("models" | "datasets" | "spaces"), owner, name, rest @ ..]) => {
            let target = target(kind, owner, name, rest);
            match may_see(&store, &target, &who) {
                Ok(()) => repo_api(state, &mut store, &who, &target, request),
                Err(no) => no,
            }
        }
        ("POST", [front @ .., owner, git, "info", "lfs", "objects", "batch"]) => {
            let kind = front.first().copied().unwrap_or("models");
            let target = target(kind, owner, git.trim_end_matches(".git"), &[]);
            match may_write(&store, &target, &who) {
                Ok(()) => upload::batch(state, &store, request),
                Err(no) => no,
            }
        }
        (_, [kind @ ("datasets" | "spaces"), owner, name, "resolve", rest @ ..]) => {
            files::resolve(state, &store, &who, &target(kind, owner, name, rest), request)
        }
        (_, [owner, name, "resolve", rest @ ..]) => {
            files::resolve(state, &store, &who, &target("models", owner, name, rest), request)
        }
        ("POST", ["lfs", "complete", id]) => upload::complete(&mut store, id, request),
        ("POST", ["lfs", "verify"]) => upload::verify(&store, request),
        _ => Answer::error(404, "", "Sorry, we can't find the page you are looking for."),
    }
}

fn target<'a>(kind: &str, owner: &str, name: &str, rest: &[&'a str]) -> Target<'a> {
    Target { key: format!("{kind}/{owner}/{name}"), id: format!("{owner}/{name}"), rest: rest.to_vec() }
}

fn repo_api(state: &State, store: &mut Store, who: &Caller, target: &Target, request: &Request) -> Answer {
    let text = |part: &&str| part.replace("%2F", "/");
    match (request.method.as_str(), target.rest.as_slice()) {
        ("GET", []) => info(store, target, "main"),
        ("GET", ["revision", revision]) => info(store, target, &text(revision)),
        ("GET", ["tree", revision, ..]) => files::tree(state, store, target, &text(revision), request),
        ("GET", ["xet-write-token", ..]) => match may_write(store, target, who) {
            Ok(()) => Answer::json(
                json!({ "accessToken": "xet-token", "exp": 4_102_444_800_u64, "casUrl": state.storage() }),
            ),
            Err(no) => no,
        },
        ("POST", ["preupload", _]) => {
            may_write(store, target, who).err().unwrap_or_else(|| upload::preupload(store, target, request))
        }
        ("POST", ["commit", revision]) if *revision == "main" => may_write(store, target, who)
            .err()
            .unwrap_or_else(|| upload::commit(store, target, request, &state.endpoint())),
        _ => Answer::error(404, "", "Sorry, we can't find the page you are looking for."),
    }
}

fn whoami(who: &Caller) -> Answer {
    let Caller::Known(account) = who else { return Answer::error(401, "", "Invalid username or password.") };
    Answer::json(json!({
        "type": "user", "id": "1", "name": account.name, "fullname": account.name, "email": "someone@example.org",
        "orgs": [{ "type": "org", "name": "lab", "roleInOrg": "write" }],
        "auth": { "type": "access_token", "accessToken": { "displayName": "t", "role": account.role } },
    }))
}

/// The Hub says the same of what is private and what is not there.
pub fn may_see(store: &Store, target: &Target, who: &Caller) -> Result<(), Answer> {
    let owner = target.id.split('/').next().unwrap_or_default();
    let own = matches!(who, Caller::Known(account) if account.name == owner || owner == "lab");
    match store.repos.get(&target.key) {
        Some(repo) if !repo.private || own => Ok(()),
        _ if matches!(who, Caller::Anonymous) => {
            Err(Answer::error(401, "RepoNotFound", "Invalid username or password."))
        }
        _ => Err(Answer::error(404, "RepoNotFound", "Repository not found")),
    }
}

fn may_write(store: &Store, target: &Target, who: &Caller) -> Result<(), Answer> {
    may_see(store, target, who)?;
    let owner = target.id.split('/').next().unwrap_or_default();
    match who {
        Caller::Known(account) if account.role == "write" && (account.name == owner || owner == "lab") => {
            Ok(())
        }
        _ => {
            Err(Answer::error(403, "", "You don't have the required permissions to write to this repository"))
        }
    }
}

fn info(store: &Store, target: &Target, revision: &str) -> Answer {
    let Some(repo) = store.repos.get(&target.key) else {
        return Answer::error(404, "RepoNotFound", "Repository not found");
    };
    let Some(commit) = repo.at(revision) else {
        return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    };
    let siblings: Vec<Value> = commit.files.keys().map(|path| json!({ "rfilename": path })).collect();
    let gated = if repo.gated { json!("manual") } else { json!(false) };
    Answer::json(json!({
        "_id": "1", "id": target.id, "modelId": target.id, "sha": commit.id, "private": repo.private, "gated": gated,
        "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "disabled": false,
        "createdAt": "2025-01-01T00:00:00.000Z", "lastModified": "2025-01-01T00:00:00.000Z",
    }))
}

fn create(store: &mut Store, who: &Caller, request: &Request, endpoint: &str) -> Answer {
    let Caller::Known(account) = who else { return Answer::error(401, "", "Invalid username or password.") };
    let body = request.json();
    let text = |key: &str| body.get(key).and_then(Value::as_str);
    let owner = text("organization").unwrap_or(&account.name);
    if account.role != "write" || (owner != account.name && owner != "lab") {
        return Answer::error(
            403,
            "",
            &format!("You don't have the rights to create a model under the namespace \"{owner}\""),
        );
    }
    let kind = match text("type") {
        Some("dataset") => "datasets",
        Some("space") => "spaces",
        _ => "models",
    };
    if kind == "spaces" && !["static", "gradio", "docker"].contains(&text("sdk").unwrap_or_default()) {
        return Answer::error(400, "", "A space needs an sdk");
    }
    let id = format!("{owner}/{}", text("name").unwrap_or_default());
    let key = format!("{kind}/{id}");
    let url = if kind == "models" { format!("{endpoint}/{id}") } else { format!("{endpoint}/{key}") };
    if store.repos.contains_key(&key) {
        return Answer {
            status: 409,
            ..Answer::json(json!({ "error": "You already created this model repo", "url": url }))
        };
    }
    // Older clients send `private`, newer ones `visibility`.
    let private =
        body.get("private").and_then(Value::as_bool).unwrap_or(text("visibility") == Some("private"));
    let mut repo = Repo { private, ..Default::default() };
    let attributes = Blob::Regular(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n".to_vec());
    repo.commit("initial commit", Files::from([(".gitattributes".to_string(), attributes)]));
    store.repos.insert(key, repo);
    Answer::json(json!({ "url": url, "name": id, "id": "1" }))
}

/// The Hub refuses a card whose front matter lacks its fences or names no licence it knows.
fn validate(request: &Request) -> Answer {
    let body = request.json();
    let content = body.get("content").and_then(Value::as_str).unwrap_or_default();
    let fenced = content.starts_with("---\n") && content.matches("\n---\n").count() >= 1;
    let errors = if fenced { json!([]) } else { json!([{ "message": "the metadata is not fenced" }]) };
    let answer = Answer::json(json!({ "errors": errors, "warnings": [] }));
    if fenced { answer } else { Answer { status: 400, ..answer } }
}
