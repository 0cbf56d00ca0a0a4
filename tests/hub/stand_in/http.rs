//! As much of an HTTP/1.1 server as the stand-in needs: one thread a connection, one request each.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request, its body read to the end.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    /// Percent-decoded, with a slash that was encoded kept as `%2F`.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The first byte that a `Range: bytes=N-` asks for.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()))
    }
}

/// An answer, with the ways to spoil it.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Wait before answering.
    pub delay: Duration,
    /// Send the body in pieces of so many bytes, with a pause between them.
    pub trickle: Option<(usize, Duration)>,
    /// Name no length: the end of the connection is the end of the body.
    pub no_length: bool,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self { status, ..Default::default() }
    }

    pub fn json(value: serde_json::Value) -> Self {
        Self::new(200).with("content-type", "application/json").body(value.to_string().into_bytes())
    }

    /// As the Hub says no: in headers and in the body.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let answer = Self::new(status).with("content-type", "application/json");
        let answer = if code.is_empty() { answer } else { answer.with("x-error-code", code) };
        answer
            .with("x-error-message", message)
            .body(serde_json::json!({ "error": message }).to_string().into_bytes())
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }

    /// `bytes` with the part that the request asks for.
    pub fn file(request: &Request, bytes: &[u8]) -> Self {
        match request.range() {
            Some((from, _)) if from >= bytes.len() => {
                Self::new(416).with("content-range", format!("bytes */{}", bytes.len()))
            }
            Some((from, to)) => {
                let end = to.map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
                Self::new(206)
                    .with("content-range", format!("bytes {from}-{}/{}", end - 1, bytes.len()))
                    .body(bytes[from..end].to_vec())
            }
            None => Self::new(200).with("accept-ranges", "bytes").body(bytes.to_vec()),
        }
    }
}

/// How a server takes in the bodies of requests.
#[derive(Debug, Clone, Default)]
pub struct Intake {
    /// Read so many bytes at a time, with a pause after each piece.
    pub pace: Option<(usize, Duration)>,
    /// Close the connection after so many bytes of the next body that is longer; used up by it.
    pub hang_up: Option<usize>,
}

type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// Serves `handler` on a free port of the loopback until the process ends; gives the address.
pub fn serve(intake: Arc<Mutex<Intake>>, handler: Handler) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback");
    let address = format!("http://{}", listener.local_addr().expect("the port just bound"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (handler, intake) = (handler.clone(), intake.clone());
            // A client that goes away is no trouble of the server's.
            thread::spawn(move || drop(answer_one(stream, &intake, &*handler)));
        }
    });
    address
}

fn answer_one(
    stream: TcpStream,
    intake: &Mutex<Intake>,
    handler: &dyn Fn(Request) -> Answer,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(request) = read_request(&mut reader, intake)? else { return Ok(()) };
    let head_only = request.method == "HEAD";
    let answer = handler(request);
    thread::sleep(answer.delay);
    let mut out = stream;
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !answer.no_length && !answer.headers.iter().any(|(name, _)| name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    head.push_str("\r\n");
    out.write_all(head.as_bytes())?;
    if head_only {
        return out.flush();
    }
    let end = answer.cut.unwrap_or(usize::MAX).min(answer.body.len());
    let (piece, pause) = answer.trickle.unwrap_or((usize::MAX, Duration::ZERO));
    for bytes in answer.body[..end].chunks(piece.max(1)) {
        out.write_all(bytes)?;
        out.flush()?;
        thread::sleep(pause);
    }
    out.shutdown(std::net::Shutdown::Write)?;
    // Leave the reading end open until the client is done, or its kernel drops what it has not read.
    let _ = reader.read_to_end(&mut Vec::new());
    Ok(())
}

fn read_request(reader: &mut impl BufRead, intake: &Mutex<Intake>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request =
        Request { method: method.into(), path: decode(path), query: query.into(), ..Default::default() };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.insert(name.to_lowercase(), value.trim().to_string());
    }
    if request.header("transfer-encoding") == Some("chunked") {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            request.body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = request.header("content-length").and_then(|text| text.parse().ok()) {
        request.body = vec![0; length];
        if !take_in(reader, intake, &mut request.body)? {
            return Ok(None);
        }
    }
    Ok(Some(request))
}

/// Reads a body as `intake` says; `false` if the connection is to be closed instead.
fn take_in(reader: &mut impl BufRead, intake: &Mutex<Intake>, body: &mut [u8]) -> std::io::Result<bool> {
    let (pace, stop) = {
        let mut intake = super::locked(intake);
        let stop = intake.hang_up.filter(|after| *after < body.len());
        if stop.is_some() {
            intake.hang_up = None;
        }
        (intake.pace, stop)
    };
    let end = stop.unwrap_or(body.len());
    let (piece, pause) = pace.unwrap_or((usize::MAX, Duration::ZERO));
    for part in body[..end].chunks_mut(piece.max(1)) {
        reader.read_exact(part)?;
        thread::sleep(pause);
    }
    Ok(stop.is_none())
}

fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let hex = path.get(i + 1..i + 3).filter(|_| bytes[i] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(b'/') => (out.extend(b"%2F"), i += 3).1,
            Some(byte) => (out.push(byte), i += 3).1,
            None => (out.push(bytes[i]), i += 1).1,
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
