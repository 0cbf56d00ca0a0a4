//! Uploads: what is large, where it goes, and the commit that names it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::api::Target;
use super::http::{Answer, Request};
use super::store::{Blob, Store, git_id, is_large, pointer, sha256};
use super::{State, Uploads, locked, xet};

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub fn preupload(store: &Store, target: &Target, request: &Request) -> Answer {
    let body = request.json();
    let head = store.repos.get(&target.key).and_then(|repo| repo.at("main"));
    let files: Vec<Value> = items(&body, "files")
        .map(|file| {
            let (path, size) = (text(file, "path"), file.get("size").and_then(Value::as_u64).unwrap_or(0));
            let mode = if is_large(path, size as usize) { "lfs" } else { "regular" };
            let oid = head.and_then(|head| head.files.get(path)).map(|blob| match blob {
                Blob::Regular(bytes) => git_id(bytes),
                Blob::Large(id, size) => git_id(pointer(id, *size).as_bytes()),
            });
            json!({ "path": path, "uploadMode": mode, "shouldIgnore": false, "oid": oid })
        })
        .collect();
    Answer::json(json!({ "files": files }))
}

/// Git LFS's batch: for each object, nothing if it is here, else where to send it.
pub fn batch(state: &State, store: &Store, request: &Request) -> Answer {
    let (body, how) = (request.json(), *locked(&state.uploads));
    let knows_xet = items(&body, "transfers").any(|way| way.as_str() == Some("xet"));
    if how == Uploads::Xet && knows_xet {
        return Answer::json(json!({ "transfer": "xet", "objects": [] }));
    }
    let (hub, storage) = (state.endpoint(), state.storage());
    let objects: Vec<Value> = items(&body, "objects")
        .map(|object| {
            let (id, size) = (text(object, "oid"), object.get("size").and_then(Value::as_u64).unwrap_or(0));
            if store.objects.contains_key(id) {
                return json!({ "oid": id, "size": size });
            }
            let verify = json!({ "href": format!("{hub}/lfs/verify"), "header": {} });
            let upload = match how {
                Uploads::Multipart(part) => {
                    let mut header = serde_json::Map::from_iter([("chunk_size".to_string(), json!(part.to_string()))]);
                    for number in 1..=size.div_ceil(part as u64) {
                        header.insert(format!("{number:05}"), json!(format!("{storage}/parts/{id}/{number}?signature=abc")));
                    }
                    json!({ "href": format!("{hub}/lfs/complete/{id}"), "header": header })
                }
                _ => json!({ "href": format!("{storage}/objects/{id}?signature=abc") }),
            };
            json!({ "oid": id, "size": size, "authenticated": true, "actions": { "upload": upload, "verify": verify } })
        })
        .collect();
    let transfer = if matches!(how, Uploads::Multipart(_)) { "multipart" } else { "basic" };
    Answer::json(json!({ "transfer": transfer, "objects": objects }))
}

/// Puts the parts of a large object together.
pub fn complete(store: &mut Store, id: &str, request: &Request) -> Answer {
    let body = request.json();
    let mut bytes = Vec::new();
    for part in items(&body, "parts") {
        let number = part.get("partNumber").and_then(Value::as_u64).unwrap_or(0);
        match store.parts.remove(&(id.to_string(), number)) {
            Some(part_bytes) if text(part, "etag").trim_matches('"') == sha256(&part_bytes) => {
                bytes.extend(part_bytes)
            }
            _ => return Answer::error(400, "", "a part is missing or has another ETag"),
        }
    }
    if sha256(&bytes) != id {
        return Answer::error(400, "", "the parts do not make the object");
    }
    store.objects.insert(id.to_string(), bytes);
    Answer::json(json!({}))
}

pub fn verify(store: &Store, request: &Request) -> Answer {
    let body = request.json();
    let size = store.objects.get(text(&body, "oid")).map(|bytes| bytes.len() as u64);
    match size.is_some() && size == body.get("size").and_then(Value::as_u64) {
        true => Answer::json(json!({})),
        false => Answer::error(404, "", "the object is not here"),
    }
}

/// A commit from lines of JSON. Nothing changes unless every line can be taken.
pub fn commit(store: &mut Store, target: &Target, request: &Request, endpoint: &str) -> Answer {
    let Some(head) = store.repos.get(&target.key).and_then(|repo| repo.at("main")).cloned() else {
        return Answer::error(404, "RepoNotFound", "Repository not found");
    };
    let (mut files, mut message) = (head.files, String::new());
    for line in request.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        let value = line.get("value").cloned().unwrap_or_default();
        let path = text(&value, "path").to_string();
        match text(&line, "key") {
            "header" => {
                message = text(&value, "summary").to_string();
                if let Some(parent) =
                    value.get("parentCommit").and_then(Value::as_str).filter(|id| *id != head.id)
                {
                    return Answer::error(
                        412,
                        "",
                        &format!("A commit has happened since {parent}. Please refresh and try again."),
                    );
                }
            }
            "file" => match BASE64.decode(text(&value, "content")) {
                Ok(bytes) => drop(files.insert(path, Blob::Regular(bytes))),
                Err(_) => return Answer::error(400, "", "the content is not base64"),
            },
            "lfsFile" => {
                let id = text(&value, "oid").to_string();
                let Some(bytes) = store.objects.get(&id) else {
                    return Answer::error(400, "", &format!("{path}: the object {id} was not uploaded"));
                };
                files.insert(path, Blob::Large(id, bytes.len() as u64));
            }
            "deletedFile" => drop(files.remove(&path)),
            other => return Answer::error(400, "", &format!("unknown operation {other}")),
        }
    }
    let Some(repo) = store.repos.get_mut(&target.key) else { return Answer::new(404) };
    let id = repo.commit(&message, files);
    Answer::json(json!({
        "success": true, "commitOid": id, "commitUrl": format!("{endpoint}/{}/commit/{id}", target.id), "hookOutput": "",
    }))
}

/// The storage server: objects and parts by plain PUT and GET, and Xet. It knows no accounts: its
/// addresses are signed, and a Hub token that reaches it is a leak.
pub fn storage(state: &State, request: &Request) -> Answer {
    let mut store = locked(&state.store);
    if let Some(answer) = xet::answer(&mut store, request) {
        return answer;
    }
    let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET" | "HEAD", ["objects", id]) => match store.objects.get(*id) {
            Some(bytes) => Answer::file(request, bytes).with("etag", format!("\"{id}\"")),
            None => Answer::new(404),
        },
        ("PUT", ["objects", id]) if sha256(&request.body) == *id => {
            store.objects.insert(id.to_string(), request.body.clone());
            Answer::new(200)
        }
        ("PUT", ["parts", id, number]) => {
            let etag = format!("\"{}\"", sha256(&request.body));
            store.parts.insert((id.to_string(), number.parse().unwrap_or(0)), request.body.clone());
            Answer::new(200).with("etag", etag)
        }
        _ => Answer::error(400, "", "Bad Request"),
    }
}
