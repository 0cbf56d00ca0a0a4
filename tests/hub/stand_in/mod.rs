//! A stand-in for the Hugging Face Hub on the loopback.
//!
//! It answers what huggingface_hub (Python), hf-hub (Rust) and emoji_lab ask: who am I, repository
//! state and files, downloads with ranges and redirects to a storage server, uploads through Git LFS
//! (basic and multipart) and Xet, commits. [`StandIn::fault`] spoils chosen answers.

mod api;
mod files;
mod http;
mod store;
mod upload;
mod xet;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use emoji_lab::hub::{HubEnv, RetryPolicy};

pub use http::{Answer, Intake, Request};
pub use store::{Account, Blob, Store, sha256};

/// How large files are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Uploads {
    /// One PUT a file.
    Basic,
    /// PUTs of parts of so many bytes.
    Multipart(usize),
    /// Xet storage, for clients that know it.
    Xet,
}

/// What a request looked like, for assertions.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `hub` or `storage`.
    pub server: &'static str,
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

type Spoil = Arc<dyn Fn(&Request, Answer) -> Answer + Send + Sync>;

/// An answer to spoil.
struct Fault {
    method: String,
    part_of_path: String,
    times: usize,
    spoil: Spoil,
}

/// The stand-in's state, shared by its servers.
pub struct State {
    pub store: Mutex<Store>,
    pub seen: Mutex<Vec<Seen>>,
    faults: Mutex<Vec<Fault>>,
    uploads: Mutex<Uploads>,
    /// Of the storage server.
    intake: Arc<Mutex<Intake>>,
    /// Addresses of the Hub and of its storage.
    addresses: Mutex<(String, String)>,
}

/// A running stand-in.
#[derive(Clone)]
pub struct StandIn {
    pub state: Arc<State>,
    pub endpoint: String,
    pub storage: String,
}

impl StandIn {
    /// Starts one on free ports.
    pub fn start() -> Self {
        let state = Arc::new(State {
            store: Mutex::default(),
            seen: Mutex::default(),
            faults: Mutex::default(),
            uploads: Mutex::new(Uploads::Basic),
            intake: Arc::default(),
            addresses: Mutex::default(),
        });
        let (hub, store) = (state.clone(), state.clone());
        let endpoint = http::serve(Arc::default(), Arc::new(move |request| hub.handle("hub", request)));
        let storage =
            http::serve(state.intake.clone(), Arc::new(move |request| store.handle("storage", request)));
        *locked(&state.addresses) = (endpoint.clone(), storage.clone());
        Self { state, endpoint, storage }
    }

    pub fn uploads(&self, how: Uploads) {
        *locked(&self.state.uploads) = how;
    }

    /// How the storage server takes in uploads from now on.
    pub fn intake(&self, intake: Intake) {
        *locked(&self.state.intake) = intake;
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        locked(&self.state.store)
    }

    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.state.seen).clone()
    }

    /// Adds an account.
    pub fn account(&self, name: &str, token: &str, role: &str) {
        self.store().accounts.insert(token.into(), Account { name: name.into(), role: role.into() });
    }

    /// Adds a repository (`models/owner/name`) of one commit; gives the commit.
    pub fn repo(&self, key: &str, files: &[(&str, &[u8])]) -> String {
        let mut store = self.store();
        let files = files.iter().map(|(name, bytes)| (name.to_string(), store.blob(name, bytes))).collect();
        store.repos.entry(key.into()).or_default().commit("initial commit", files)
    }

    /// A file's content at the head of a repository.
    pub fn content(&self, key: &str, path: &str) -> Option<Vec<u8>> {
        let store = self.store();
        match store.repos.get(key)?.at("main")?.files.get(path)? {
            Blob::Regular(bytes) => Some(bytes.clone()),
            Blob::Large(id, _) => store.objects.get(id).cloned(),
        }
    }

    /// Spoils the next `times` answers to `method` on a path that contains `part_of_path`.
    pub fn fault(
        &self,
        method: &str,
        part_of_path: &str,
        times: usize,
        spoil: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static,
    ) {
        locked(&self.state.faults).push(Fault {
            method: method.into(),
            part_of_path: part_of_path.into(),
            times,
            spoil: Arc::new(spoil),
        });
    }

    /// Spoils no more answers.
    pub fn clear_faults(&self) {
        locked(&self.state.faults).clear();
    }

    /// How many requests of a method were made to paths that contain a text.
    pub fn count(&self, method: &str, part_of_path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.contains(part_of_path)).count()
    }

    /// Settings for a step against this Hub, with a cache in `home` and short waits.
    pub fn env(&self, home: &Path) -> HubEnv {
        let base = HubEnv::from_variables(&|_| None);
        HubEnv {
            endpoint: self.endpoint.clone(),
            cache_dir: home.join("hub"),
            token_path: home.join("token"),
            retry_policy: short_waits(),
            ..base
        }
    }
}

/// Waits of milliseconds, so that tests of retries are quick.
pub fn short_waits() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 4,
        base_wait: Duration::from_millis(2),
        max_retry_after: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_millis(500),
    }
}

impl State {
    fn handle(&self, server: &'static str, request: Request) -> Answer {
        locked(&self.seen).push(Seen {
            server,
            method: request.method.clone(),
            path: request.path.clone(),
            authorization: request.header("authorization").map(str::to_string),
            range: request.header("range").map(str::to_string),
        });
        let answer = match server {
            "hub" => api::answer(self, &request),
            _ => upload::storage(self, &request),
        };
        match self.fault_for(&request) {
            Some(spoil) => spoil(&request, answer),
            None => answer,
        }
    }

    /// The first fault that fits, used up by one. Its work is done without the lock: it may add others.
    fn fault_for(&self, request: &Request) -> Option<Spoil> {
        let mut faults = locked(&self.faults);
        let fault = faults.iter_mut().find(|fault| {
            fault.times > 0 && fault.method == request.method && request.path.contains(&fault.part_of_path)
        })?;
        fault.times -= 1;
        Some(fault.spoil.clone())
    }

    fn endpoint(&self) -> String {
        locked(&self.addresses).0.clone()
    }

    fn storage(&self) -> String {
        locked(&self.addresses).1.clone()
    }
}

/// A lock that a failed test's panic does not poison for the others.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
