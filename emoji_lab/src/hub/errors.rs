//! Errors of requests to the Hub, in sentences that say what to do.

use super::client::{HubClient, host};
use super::repo::Repo;
use super::request_error::{ErrorResponse, RequestError};
use crate::error::Error;

/// What to try when nothing answers.
const NO_NETWORK: &str = "Check the network (and HTTPS_PROXY, where there is a proxy). HF_HUB_OFFLINE=1 uses what is in \
                          the cache; the embedded model and data need no network";

/// What a request about `repo` that failed with `error` tells the user.
///
/// `doing` completes "… failed while": a file's name, or what was asked.
pub(crate) fn repo_error(client: &HubClient, repo: &Repo, doing: &str, error: RequestError) -> Error {
    let subject = repo.subject();
    let RequestError::Status(response) = error else { return transport_error(&subject, doing, error) };
    let endpoint = client.endpoint.as_str().trim_end_matches('/');
    let page = repo.page(endpoint);
    let tokens = format!("{endpoint}/settings/tokens");
    if let Some(source) = client.token_source()
        && response.host == host(&client.endpoint)
        && is_bad_token(&response)
    {
        return bad_token(&subject, source, &tokens);
    }
    match (response.status.as_u16(), client.token_source()) {
        (403, _) if is_disabled(&response) => Error::hub(
            subject,
            "it is disabled: the Hub or its owner gives it to nobody",
            format!("What is said about it stands at {page}; take another one"),
        ),
        (401 | 403, None) if is_gated(&response) => Error::hub(
            subject,
            "it is gated: its licence must be accepted, and a token shows who accepted it",
            format!(
                "Accept the licence at {page}, make a token at {tokens}, set HF_TOKEN to it (or pass it to login) and try again"
            ),
        ),
        (401 | 403, Some(source)) if is_gated(&response) => Error::hub(
            subject,
            format!("it is gated, and the account of the token (from {source}) has no access to it"),
            format!(
                "Accept the licence at {page} with that account, then try again; a fine-grained token also needs \
                 \"read access to public gated repos\" at {tokens}"
            ),
        ),
        (_, _) if response.code == "RevisionNotFound" => Error::hub(
            repo.id.clone(),
            format!("it has no revision \"{}\"", repo.revision),
            format!("Its branches and tags are listed at {page}/tree/main"),
        ),
        (_, _) if response.code == "EntryNotFound" => Error::hub(
            subject,
            format!("it has no file {doing}"),
            format!("Its files are listed at {page}/tree/{}", repo.revision),
        ),
        // To someone without a token the Hub says 401 for what does not exist, too.
        (401 | 404, None) => Error::hub(
            subject,
            format!("there is no such public {} (HTTP {})", repo.kind.word(), response.status.as_u16()),
            format!(
                "Check the spelling at {page}; if it is private, log in first: set HF_TOKEN to a token from {tokens}"
            ),
        ),
        (404, Some(source)) => Error::hub(
            subject,
            format!("there is no such {}, or the token (from {source}) may not see it", repo.kind.word()),
            format!("Check the spelling at {page}, and the token's rights at {tokens}"),
        ),
        _ => status_error(&subject, doing, &response, &tokens),
    }
}

/// The error for a question that is not about a repository.
pub(crate) fn endpoint_error(client: &HubClient, subject: &str, doing: &str, error: RequestError) -> Error {
    let RequestError::Status(response) = error else { return transport_error(subject, doing, error) };
    let tokens = format!("{}/settings/tokens", client.endpoint.as_str().trim_end_matches('/'));
    match client.token_source() {
        Some(source) if response.status.as_u16() == 401 => bad_token(subject, source, &tokens),
        _ => status_error(subject, doing, &response, &tokens),
    }
}

/// Whether the server says that the token itself is wrong, not what it may do.
fn is_bad_token(response: &ErrorResponse) -> bool {
    let message = response.message.to_lowercase();
    response.status.as_u16() == 401
        && response.code != "RepoNotFound"
        && !is_gated(response)
        && (message.contains("invalid credentials")
            || message.contains("invalid username or password")
            || message.contains("expired"))
}

fn is_gated(response: &ErrorResponse) -> bool {
    let message = response.message.to_lowercase();
    response.code == "GatedRepo" || message.contains("gated repo") || message.contains("authorized list")
}

/// Whether the Hub has switched the repository off. It says so in words alone.
fn is_disabled(response: &ErrorResponse) -> bool {
    response.message.to_lowercase().contains("resource is disabled")
}

fn bad_token(subject: &str, source: &super::token::TokenSource, tokens: &str) -> Error {
    Error::hub(
        subject,
        format!("the Hub does not accept the token from {source}: it is mistyped, expired or revoked"),
        format!(
            "Make a new one with write access at {tokens} and put it there; public repositories need none"
        ),
    )
}

fn status_error(subject: &str, doing: &str, response: &ErrorResponse, tokens: &str) -> Error {
    let status = response.status.as_u16();
    let said = if response.message.is_empty() { String::new() } else { format!(": {}", response.message) };
    let (problem, help) = match status {
        // Storage servers get signed addresses and no token: trying again brings a new signature.
        401 | 403 if !tokens.contains(&response.host) => (
            format!("{doing}: the storage {} refuses (HTTP {status}{said})", response.host),
            "Run the step again; if it stays so, a proxy or firewall stands in the way".to_string(),
        ),
        401 => (
            format!("{doing}: this needs a login (HTTP 401{said})"),
            format!("Set HF_TOKEN to a token from {tokens}"),
        ),
        403 => (
            format!("{doing}: the token does not allow this (HTTP 403{said})"),
            format!("Give it the right at {tokens}: write access for a push"),
        ),
        429 => (
            format!("{doing}: too many requests (HTTP 429{said})"),
            match response.retry_after {
                Some(wait) => format!("The Hub asks to wait {} s: try again then", wait.as_secs()),
                None => "Wait a few minutes and try again; logged-in users may ask more often".to_string(),
            },
        ),
        500.. => (
            format!("{doing}: {} failed (HTTP {status}{said}), and trying again did not help", response.host),
            "Try later; HF_HUB_OFFLINE=1 uses what is in the cache".to_string(),
        ),
        _ => (
            format!("{doing}: {} answers HTTP {status}{said}", response.host),
            "Check what was asked for; if it looks right, the Hub's protocol may have changed".to_string(),
        ),
    };
    Error::hub(subject, problem, help)
}

fn transport_error(subject: &str, doing: &str, error: RequestError) -> Error {
    match error {
        RequestError::NoConnection { host, why } => {
            let help = if why.to_lowercase().contains("certificate") {
                "Are the system's CA certificates installed (Debian: ca-certificates), and is its clock right?"
            } else {
                NO_NETWORK
            };
            Error::hub(subject, format!("{doing}: no connection to {host} ({why})"), help)
        }
        RequestError::Interrupted { host, why } => Error::hub(
            subject,
            format!("{doing}: the connection to {host} broke again and again ({why})"),
            format!("What has arrived is kept: run the step again to go on. {NO_NETWORK}"),
        ),
        RequestError::InvalidResponse { host, why } => Error::hub(
            subject,
            format!("{doing}: {host} does not answer as the Hub does ({why})"),
            "Is HF_ENDPOINT right? A proxy's or a hotel's login page can stand in the way, too",
        ),
        RequestError::Local(why) => {
            Error::hub(subject, format!("{doing}: {why}"), "Check the file, its rights and the disk's space")
        }
        RequestError::Status(response) => {
            status_error(subject, doing, &response, "https://huggingface.co/settings/tokens")
        }
    }
}
