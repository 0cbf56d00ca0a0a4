//! The Hub's file addresses: the tree of a commit, and the files themselves.

use serde_json::{Value, json};

use super::State;
use super::api::{Caller, Target, may_see};
use super::http::{Answer, Request};
use super::store::{Blob, Store, git_id, pointer};

/// Entries of one page of a listing: few, so that following pages is needed.
const PAGE: usize = 5;

pub fn tree(state: &State, store: &Store, target: &Target, revision: &str, request: &Request) -> Answer {
    let Some(commit) = store.repos.get(&target.key).and_then(|repo| repo.at(revision)) else {
        return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    };
    let entries: Vec<Value> = commit.files.iter().map(|(path, blob)| entry(path, blob)).collect();
    let start =
        request.query.split('&').find_map(|pair| pair.strip_prefix("cursor=")?.parse().ok()).unwrap_or(0);
    let page: Vec<Value> = entries.iter().skip(start).take(PAGE).cloned().collect();
    let answer = Answer::json(Value::Array(page));
    if start + PAGE >= entries.len() {
        return answer;
    }
    let next = format!("{}{}?recursive=true&cursor={}", state.endpoint(), request.path, start + PAGE);
    answer.with("link", format!("<{next}>; rel=\"next\""))
}

fn entry(path: &str, blob: &Blob) -> Value {
    match blob {
        Blob::Regular(bytes) => {
            json!({ "type": "file", "oid": git_id(bytes), "size": bytes.len(), "path": path })
        }
        Blob::Large(id, size) => {
            let text = pointer(id, *size);
            json!({
                "type": "file", "oid": git_id(text.as_bytes()), "size": size, "path": path,
                "lfs": { "oid": id, "size": size, "pointerSize": text.len() },
            })
        }
    }
}

/// `/owner/name/resolve/REVISION/PATH`: small files at once, large ones from the storage server.
pub fn resolve(state: &State, store: &Store, who: &Caller, target: &Target, request: &Request) -> Answer {
    if let Err(no) = may_see(store, target, who) {
        return no;
    }
    let Some(repo) = store.repos.get(&target.key) else { return Answer::new(404) };
    let gate = |status, text: &str| Answer::error(status, "GatedRepo", text);
    match who {
        Caller::Anonymous if repo.gated => {
            let text = format!(
                "Access to model {} is restricted. You must have access to it and be authenticated",
                target.id
            );
            return gate(401, &text);
        }
        Caller::Known(account) if repo.gated && !repo.accepted.contains(&account.name) => {
            let text = format!(
                "Access to model {} is restricted and you are not in the authorized list.",
                target.id
            );
            return gate(403, &text);
        }
        _ => {}
    }
    let (revision, path) = match target.rest.as_slice() {
        [revision, path @ ..] => (revision.replace("%2F", "/"), path.join("/")),
        [] => return Answer::error(404, "EntryNotFound", "Entry not found"),
    };
    let Some(commit) = repo.at(&revision) else {
        return Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"));
    };
    let answer = match commit.files.get(&path) {
        None => Answer::error(404, "EntryNotFound", "Entry not found"),
        Some(Blob::Regular(bytes)) => {
            Answer::file(request, bytes).with("etag", format!("\"{}\"", git_id(bytes)))
        }
        Some(Blob::Large(id, size)) => Answer::new(302)
            .with("location", format!("{}/objects/{id}?signature=abc", state.storage()))
            .with("x-linked-etag", format!("\"{id}\""))
            .with("x-linked-size", size)
            .with("etag", format!("\"{}\"", git_id(pointer(id, *size).as_bytes()))),
    };
    answer.with("x-repo-commit", &commit.id)
}
