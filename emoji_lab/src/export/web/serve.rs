//! An exported page, handed out to the browsers of this machine for as long as the process runs.
//!
//! A notebook cannot show the page by itself: Jupyter hands files out with a policy under which a page may load
//! nothing that lies beside it. So the process does it, on a port of its own. It knows the page's files by their
//! names and gives out nothing else, to this machine alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::report::WebReport;
use crate::display::escape_html;
use crate::error::{Error, Result};

/// Longer requests are no browser's.
const LONGEST_REQUEST: u64 = 16 << 10;
/// Whoever says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// A page that is handed out; [`serve_page`] makes one. It stays there until the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedPage {
    /// Where a browser on this machine finds it, as `http://127.0.0.1:40123/`.
    pub url: String,
    /// The folder it comes from.
    pub dir: PathBuf,
    port: u16,
}

impl ServedPage {
    /// Where it is, and how to reach it from elsewhere.
    pub fn to_text(&self) -> String {
        let Self { url, port, .. } = self;
        format!(
            "The page is at {url} while this kernel runs. If that is on another machine, first: \
             ssh -L {port}:127.0.0.1:{port} MACHINE"
        )
    }

    /// [`to_text`](Self::to_text) with a link, and the page itself where one opens it.
    pub fn to_html(&self) -> String {
        let Self { url, port, .. } = self;
        let title = escape_html(&self.dir.display().to_string());
        format!(
            "<p>The page is at <a href=\"{url}\" target=\"_blank\" rel=\"noopener\">{url}</a> while this kernel \
             runs. If that is on another machine, first: <code>ssh -L {port}:127.0.0.1:{port} MACHINE</code></p>\
             <details><summary>Open it here</summary><iframe src=\"{url}\" title=\"{title}\" loading=\"lazy\" \
             allow=\"clipboard-write\" style=\"width: 100%; height: 40em; border: 1px solid #8884\"></iframe>\
             </details>"
        )
    }
}

crate::display::notebook_view!(ServedPage);

/// Hands the page's files out at an address of this machine, so that a browser can open it; at the end of a
/// cell the page is shown there.
///
/// # Errors
/// [`Error::Io`] if no port can be had, or the folder is gone.
pub fn serve_page(page: &WebReport) -> Result<ServedPage> {
    let failed = |e: io::Error| Error::io(&page.dir, "handing out", e);
    // The working directory may change while the page is there.
    let dir = page.dir.canonicalize().map_err(failed)?;
    let names = page.files.iter().map(|file| file.name.as_str());
    let paths: BTreeMap<String, PathBuf> = names
        .map(|name| (format!("/{name}"), dir.join(name)))
        .chain([("/".into(), dir.join(super::INDEX))])
        .collect();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let shared = Arc::new(Shared { paths, port });
    thread::Builder::new().name("page".into()).spawn(move || accept(&listener, &shared)).map_err(failed)?;
    Ok(ServedPage { url: format!("http://127.0.0.1:{port}/"), dir: page.dir.clone(), port })
}

struct Shared {
    /// The files by the paths at which they are asked for.
    paths: BTreeMap<String, PathBuf>,
    port: u16,
}

/// A thread for each browser's connection: a model is long on its way.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        let shared = Arc::clone(shared);
        // Who hangs up in the middle is nobody's fault.
        let answer = move || drop(shared.answer(&stream));
        // Without a thread to be had this one goes unanswered.
        let _ = thread::Builder::new().name("page".into()).spawn(answer);
    }
}

/// The first line of a request and the host that it is for.
struct Request {
    method: String,
    path: String,
    host: String,
}

impl Request {
    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut lines = BufReader::new(stream.take(LONGEST_REQUEST)).lines();
        let mut next = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
        let first = next()?;
        let mut words = first.split(' ').map(str::to_string);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut host = String::new();
        loop {
            let line = next()?;
            match line.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("host") => host = value.trim().to_string(),
                Some(_) => {}
                None => return Ok(Self { method, path, host }),
            }
        }
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = Request::read(stream)?;
        // Another site whose name is made to lead here must not read the page's files.
        let hosts = [format!("127.0.0.1:{}", self.port), format!("localhost:{}", self.port)];
        if !hosts.contains(&request.host) {
            return refuse(stream, "403 Forbidden");
        }
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return refuse(stream, "405 Method Not Allowed");
        }
        let path = request.path.split(['?', '#']).next().unwrap_or_default();
        let Some(path) = self.paths.get(path) else { return refuse(stream, "404 Not Found") };
        let Ok(mut file) = File::open(path) else { return refuse(stream, "404 Not Found") };
        let length = file.metadata()?.len();
        head(stream, "200 OK", kind_of(path), length)?;
        if request.method == "GET" {
            io::copy(&mut Read::by_ref(&mut file).take(length), &mut &*stream)?;
        }
        Ok(())
    }
}

/// The two headers of an isolated page give the engine all of the machine's cores.
fn head(mut stream: &TcpStream, status: &str, kind: &str, length: u64) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n\
         Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Embedder-Policy: require-corp\r\n\r\n"
    )
}

fn refuse(mut stream: &TcpStream, status: &str) -> io::Result<()> {
    head(stream, status, "text/plain", status.len() as u64)?;
    stream.write_all(status.as_bytes())
}

fn kind_of(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("wasm") => "application/wasm",
        Some("md" | "txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::WebFile;
    use super::*;

    fn served(dir: &Path) -> ServedPage {
        let names = ["index.html", "app.js", "onnx/model.onnx", "gone.js"];
        let files = names.iter().map(|name| WebFile { name: (*name).into(), bytes: 0 }).collect();
        let report = WebReport {
            dir: dir.to_path_buf(),
            files,
            library: String::new(),
            readme: String::new(),
            notes: vec![],
            seconds: 0.0,
        };
        std::fs::create_dir(dir.join("onnx")).unwrap();
        for (name, text) in
            [("index.html", "<p>page"), ("app.js", "1"), ("onnx/model.onnx", "model"), ("secret", "s")]
        {
            std::fs::write(dir.join(name), text).unwrap();
        }
        serve_page(&report).unwrap()
    }

    fn ask(page: &ServedPage, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", page.port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        // A refusal may come before all of a long request was read.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn get(page: &ServedPage, path: &str) -> String {
        ask(page, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", page.port))
    }

    #[test]
    fn the_pages_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let page = served(dir.path());
        let index = get(&page, "/");
        assert!(index.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html"), "{index}");
        assert!(
            index.contains("Cross-Origin-Embedder-Policy: require-corp") && index.ends_with("<p>page"),
            "{index}"
        );
        assert!(get(&page, "/app.js?v=1").contains("text/javascript"));
        assert!(get(&page, "/onnx/model.onnx").ends_with("\r\n\r\nmodel"));
        let paths = [
            "/secret",
            "/../secret",
            "/onnx/../secret",
            "/gone.js",
            "/onnx",
            "",
            "//",
            "/%2e%2e/secret",
            "secret",
        ];
        for path in paths {
            assert!(get(&page, path).starts_with("HTTP/1.1 404 "), "{path}");
        }
    }

    #[test]
    fn other_hosts_and_methods_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let page = served(dir.path());
        let port = page.port;
        assert!(ask(&page, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").starts_with("HTTP/1.1 403 "));
        assert!(ask(&page, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 403 "));
        let post = ask(&page, &format!("POST / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"));
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
        let head = ask(&page, &format!("HEAD / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n"));
        assert!(head.contains("Content-Length: 7\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        // Too long, or no request: the server stays.
        ask(&page, &format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000)));
        ask(&page, "\u{0}\u{1}\r\n\r\n");
        assert!(get(&page, "/").ends_with("<p>page"));
    }

    #[test]
    fn a_folder_that_is_gone_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let page = served(dir.path());
        assert!(
            page.to_html().contains(&format!("<iframe src=\"{}\"", page.url))
                && page.to_text().contains(&page.url)
        );
        let hostile = ServedPage { dir: PathBuf::from("\"><script>"), ..page };
        assert!(!hostile.to_html().contains("<script>"));
        let report = WebReport {
            dir: dir.path().join("none"),
            files: vec![],
            library: String::new(),
            readme: String::new(),
            notes: vec![],
            seconds: 0.0,
        };
        let said = serve_page(&report).unwrap_err().to_string();
        assert!(said.contains("none"), "{said}");
    }
}
