//! HTTP as the Hub's steps need it: retries, `Retry-After`, and a token that stays where it belongs.

use std::fmt;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde_json::Value;

use super::env::{HubEnv, RetryPolicy, without_credentials};
use super::request::{Activity, Request, RequestBody, Retry, stream_bytes, stream_file};
use super::request_error::{ErrorResponse, RequestError};
use super::retry_after::retry_after;
use super::token::{FoundToken, Token, TokenSource};
use crate::error::{Error, Result};

/// More redirects than this are a loop.
const MAX_REDIRECTS: usize = 10;
/// The longest error text read from a server.
const MAX_ERROR_BODY: usize = 16 * 1024;

/// The HTTP client of one step, with a runtime of its own: notebook cells have none running.
pub(crate) struct HubClient {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    pub endpoint: Url,
    token: Option<FoundToken>,
    retry_policy: RetryPolicy,
}

impl fmt::Debug for HubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubClient").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

impl HubClient {
    /// Opens nothing yet. Fails on an endpoint that is not an http(s) address.
    pub fn new(env: &HubEnv, token: Option<FoundToken>) -> Result<Self> {
        let bad = |shown: &str, help: &str| Error::setting("HF_ENDPOINT", shown, help);
        let endpoint = Url::parse(&env.endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let endpoint = endpoint.ok_or_else(|| {
            bad(
                &without_credentials(&env.endpoint),
                "this is no http(s) address. Unset it, or name the Hub as in https://huggingface.co",
            )
        })?;
        if endpoint.password().is_some() || !endpoint.username().is_empty() {
            return Err(bad("(hidden)", "it holds a user name or password. Use HF_TOKEN for access"));
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("emoji_lab/", env!("CARGO_PKG_VERSION")))
            // Followed by hand: reqwest would take the token along within a host, and to http.
            .redirect(reqwest::redirect::Policy::none())
            // Silence is timed by `with_idle_timeout`: reqwest's read_timeout counts the time in which a
            // body is sent as silence, and would break off every upload that takes longer.
            .connect_timeout(env.retry_policy.connect_timeout)
            .build()
            .map_err(|e| {
                Error::hub(
                    "HTTP client",
                    cause(&e.without_url()),
                    "Are the system's CA certificates installed?",
                )
            })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
            Error::hub("HTTP client", e, "The system gives no more threads or files: close some programs")
        })?;
        if token.is_some() && is_unencrypted(&endpoint) {
            crate::say!("The token goes to {endpoint} without encryption: anyone on the way can read it.");
        }
        Ok(Self { runtime, http, endpoint, token, retry_policy: env.retry_policy })
    }

    /// Where the token that is sent came from; `None` if none is sent.
    pub fn token_source(&self) -> Option<&TokenSource> {
        self.token.as_ref().map(|found| &found.source)
    }

    /// The token that is sent.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref().map(|found| &found.token)
    }

    /// How long it waits and how often it tries.
    pub fn retry_policy(&self) -> RetryPolicy {
        self.retry_policy
    }

    /// Sends, following redirects and repeating what may be repeated; gives a successful answer.
    pub fn send(&self, request: &Request) -> Result<Response, RequestError> {
        let mut wait = self.retry_policy.base_wait;
        let mut attempt = 1;
        loop {
            let error = match self.runtime.block_on(self.send_once(request)) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let asked = match &error {
                RequestError::Status(response) => response.retry_after,
                _ => None,
            };
            let not_taken = match &error {
                RequestError::NoConnection { .. } => true,
                RequestError::Status(response) => matches!(response.status.as_u16(), 429 | 503),
                _ => false,
            };
            let again = match request.retry {
                Retry::Transient => error.is_transient(),
                Retry::NotAccepted => not_taken,
                Retry::Never => false,
            };
            let pause = asked.unwrap_or(wait);
            if !again
                || attempt >= self.retry_policy.max_attempts
                || pause > self.retry_policy.max_retry_after
            {
                return Err(error);
            }
            if pause >= Duration::from_secs(5) {
                crate::say!("  the Hub asks to wait {} s", pause.as_secs());
            }
            std::thread::sleep(pause);
            wait = wait.saturating_mul(2);
            attempt += 1;
        }
    }

    /// Sends and reads a JSON answer.
    pub fn json(&self, request: &Request) -> Result<Value, RequestError> {
        let (_, body) = self.text(request)?;
        serde_json::from_str(&body).map_err(|e| RequestError::InvalidResponse {
            host: host(&request.url),
            why: format!("the answer is not JSON ({e})"),
        })
    }

    /// Sends and reads a text answer with its headers; a body that breaks off is asked for again.
    pub fn text(&self, request: &Request) -> Result<(HeaderMap, String), RequestError> {
        let mut attempt = 1;
        loop {
            let response = self.send(request)?;
            let headers = response.headers().clone();
            match self.runtime.block_on(self.body(response)) {
                Ok(bytes) => return Ok((headers, String::from_utf8_lossy(&bytes).into_owned())),
                Err(error)
                    if attempt >= self.retry_policy.max_attempts || request.retry != Retry::Transient =>
                {
                    return Err(error);
                }
                Err(_) => {
                    std::thread::sleep(self.retry_policy.base_wait.saturating_mul(1 << attempt.min(10)))
                }
            }
            attempt += 1;
        }
    }

    /// The next chunk of a body; `None` at its end.
    pub fn chunk(&self, response: &mut Response) -> Result<Option<impl AsRef<[u8]> + use<>>, RequestError> {
        self.runtime.block_on(self.next_chunk(response))
    }

    async fn next_chunk(
        &self,
        response: &mut Response,
    ) -> Result<Option<impl AsRef<[u8]> + use<>>, RequestError> {
        let url = response.url().clone();
        let chunk = tokio::time::timeout(self.retry_policy.idle_timeout, response.chunk()).await;
        chunk
            .map_err(|_| self.timed_out(&url, self.retry_policy.idle_timeout))?
            .map_err(|e| self.transport_error(&url, e))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, RequestError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.next_chunk(&mut response).await? {
            body.extend_from_slice(chunk.as_ref());
        }
        Ok(body)
    }

    async fn send_once(&self, request: &Request) -> Result<Response, RequestError> {
        let mut url = request.url.clone();
        for _ in 0..MAX_REDIRECTS {
            let response = self.send_to(request, &url).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| status.is_redirection()) {
                Some(location) => url = self.redirected(request, &url, status, location)?,
                None => return Err(RequestError::Status(self.error_response(&url, response).await)),
            }
        }
        Err(RequestError::InvalidResponse { host: host(&url), why: "it redirects in a circle".to_string() })
    }

    async fn send_to(&self, request: &Request, url: &Url) -> Result<Response, RequestError> {
        let mut builder = self.http.request(request.method.clone(), url.clone());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        // Addresses of large files carry their own signature: the token goes to the Hub alone.
        if let Some(found) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
            let mut bearer =
                HeaderValue::from_str(&format!("Bearer {}", found.token.secret())).map_err(|_| {
                    RequestError::Local("the access token has characters that no token has".to_string())
                })?;
            bearer.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, bearer);
        }
        let activity = Activity::new();
        // A body's last bytes lie in the system's buffers while a slow line takes them.
        let mut idle_timeout = self.retry_policy.idle_timeout.saturating_mul(4);
        builder = match &request.content {
            RequestBody::Empty => {
                idle_timeout = self.retry_policy.idle_timeout;
                builder
            }
            RequestBody::Json(value) => builder.json(value),
            // Storage servers want the length first, and a stream alone has none.
            RequestBody::Bytes(bytes, kind) => {
                let typed = if kind.is_empty() { builder } else { builder.header(CONTENT_TYPE, *kind) };
                let chunks = stream_bytes(bytes.clone(), activity.clone());
                typed.header(CONTENT_LENGTH, bytes.len()).body(Body::wrap_stream(chunks))
            }
            RequestBody::File(part) => {
                let local = |e: std::io::Error| RequestError::Local(format!("{}: {e}", part.path.display()));
                let chunks = stream_file(part.clone(), activity.clone()).await.map_err(local)?;
                builder.header(CONTENT_LENGTH, part.size).body(Body::wrap_stream(chunks))
            }
        };
        self.with_idle_timeout(url, &activity, idle_timeout, builder.send()).await
    }

    /// The answer to a request, unless no byte of it moves for as long as `idle_timeout`.
    async fn with_idle_timeout(
        &self,
        url: &Url,
        activity: &Activity,
        idle_timeout: Duration,
        answer: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, RequestError> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let until = activity.last() + idle_timeout;
            match tokio::time::timeout_at(until.into(), answer.as_mut()).await {
                Ok(answer) => return answer.map_err(|e| self.transport_error(url, e)),
                Err(_) if activity.last() + idle_timeout > Instant::now() => {}
                Err(_) => return Err(self.timed_out(url, idle_timeout)),
            }
        }
    }

    /// Where a redirect leads, if it may be followed.
    fn redirected(
        &self,
        request: &Request,
        from: &Url,
        status: StatusCode,
        location: &str,
    ) -> Result<Url, RequestError> {
        let invalid = |why: &str| RequestError::InvalidResponse { host: host(from), why: why.to_string() };
        let to = from.join(location).map_err(|_| invalid("it redirects to something that is no address"))?;
        if !matches!(to.scheme(), "http" | "https") || (from.scheme() == "https" && to.scheme() == "http") {
            return Err(invalid("it redirects to an address without encryption"));
        }
        let reads = request.method == Method::GET || request.method == Method::HEAD;
        let keeps_method = matches!(status.as_u16(), 307 | 308);
        // A body may hold a private model: it does not follow to another host.
        let stays = keeps_method && to.origin() == from.origin();
        if !(reads || stays) {
            return Err(invalid("the repository has moved; use its new name"));
        }
        Ok(to)
    }

    async fn error_response(&self, url: &Url, mut response: Response) -> ErrorResponse {
        let header = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string()
        };
        let (code, in_header) = (header("x-error-code"), header("x-error-message"));
        let retry_after = retry_after(response.headers());
        let status = response.status();
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = self.next_chunk(&mut response).await {
            body.extend_from_slice(chunk.as_ref());
            if body.len() >= MAX_ERROR_BODY {
                break;
            }
        }
        let in_body =
            serde_json::from_slice::<Value>(&body).map(|value| message_of(&value)).unwrap_or_default();
        let message = if in_header.is_empty() { &in_body } else { &in_header };
        ErrorResponse { host: host(url), status, code, message: self.one_line(message), retry_after }
    }

    fn timed_out(&self, url: &Url, idle_timeout: Duration) -> RequestError {
        RequestError::Interrupted {
            host: host(url),
            why: format!("nothing came for {} s", idle_timeout.as_secs_f64()),
        }
    }

    fn transport_error(&self, url: &Url, e: reqwest::Error) -> RequestError {
        let (host, connect, why) = (host(url), e.is_connect(), self.one_line(&cause(&e.without_url())));
        if connect {
            RequestError::NoConnection { host, why }
        } else {
            RequestError::Interrupted { host, why }
        }
    }

    /// Someone else's text, fit for an error: one short line without the token.
    pub fn one_line(&self, text: &str) -> String {
        let text = match self.token() {
            Some(token) => token.scrub(text),
            None => text.to_string(),
        };
        let words: Vec<&str> =
            text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
        let line = words.join(" ");
        if line.chars().count() <= 300 { line } else { line.chars().take(299).chain(['…']).collect() }
    }
}

/// The message in the JSON of a response: `error`, or the messages of `errors`.
fn message_of(body: &Value) -> String {
    let errors = body.get("errors").and_then(Value::as_array).into_iter().flatten();
    let listed: Vec<&str> = errors.filter_map(|error| error.get("message")?.as_str()).collect();
    body.get("error").and_then(Value::as_str).map_or_else(|| listed.join("; "), str::to_string)
}

/// The host, with the port where it is not the scheme's own.
pub(crate) fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or("(no host)");
    url.port().map_or_else(|| name.to_string(), |port| format!("{name}:{port}"))
}

/// The innermost cause of an error: the ones around it only name the layers it came through.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

/// Whether what is sent to `endpoint` leaves this machine unencrypted.
fn is_unencrypted(endpoint: &Url) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    let here = host == "localhost"
        || host.ends_with(".localhost")
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    endpoint.scheme() == "http" && !here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_without_encryption_is_said_unless_it_stays_on_this_machine() {
        for open in ["http://mirror.example", "http://10.0.0.1:8080"] {
            assert!(is_unencrypted(&Url::parse(open).unwrap()), "{open}");
        }
        for safe in ["https://mirror.example", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"] {
            assert!(!is_unencrypted(&Url::parse(safe).unwrap()), "{safe}");
        }
    }

    #[test]
    fn endpoints_are_checked() {
        let env = |endpoint: &str| HubEnv { endpoint: endpoint.into(), ..HubEnv::from_variables(&|_| None) };
        for bad in ["", "huggingface.co", "ftp://x", "file:///etc/passwd"] {
            assert!(
                HubClient::new(&env(bad), None).unwrap_err().to_string().contains("HF_ENDPOINT"),
                "{bad}"
            );
        }
        let error = HubClient::new(&env("https://ann:geheim@mirror.example"), None).unwrap_err().to_string();
        assert!(!error.contains("geheim"), "{error}");
        assert!(HubClient::new(&env("http://127.0.0.1:1"), None).is_ok());
    }
}
