//! The Hugging Face Hub: log in, download a model or a dataset, push a model with its card.
//!
//! | step | what it does |
//! |---|---|
//! | [`login`] | finds the token, asks the Hub whose it is and whether it can write |
//! | [`download_model`](crate::model::download_model) | a model's snapshot folder in the shared Hugging Face cache |
//! | [`download_dataset`] | the files (csv, tsv, jsonl, json, parquet) of a dataset's training split |
//! | [`push_to_hub`] | creates the repository, uploads the folder and the card as one commit |
//!
//! Settings are those of Python's `huggingface_hub`, read from the same variables and files (see
//! [`HubEnv`]), and the cache is laid out as it lays it out: what one side has downloaded the other
//! finds. A [`Token`] never prints itself, goes only to the endpoint's own origin, and is taken out of
//! every text that a server sends back.
//!
//! # How much of hf-hub this uses
//! The upload of large files through Xet storage is hf-hub's. The rest goes over the HTTP client that
//! hf-hub brings (reqwest), because hf-hub 1.0.0
//! - takes a token from the environment where none was given, so a request without one cannot be made;
//! - does not look at the status of the answer that it stores (a 500's body becomes a cached blob),
//!   compares neither size nor hash, and starts a broken download from the beginning;
//! - does not wait as long as `Retry-After` says;
//! - puts a large file into the body of the commit if the server does not choose Xet.

mod builder_args;
mod cache;
mod client;
mod commit;
mod configs;
mod dataset;
mod dataset_files;
mod download;
mod dry_run;
mod env;
mod errors;
mod fetch;
mod hash;
mod lfs;
mod listing;
mod login;
mod model_files;
mod progress;
mod push;
mod push_report;
mod repo;
mod request;
mod request_error;
mod retry_after;
mod runtime;
mod shards;
mod token;
mod upload;

pub(crate) use client::HubClient;
pub(crate) use dataset::{HF_DATASETS, SplitFiles, dataset_tables, folder_tables};
pub use dataset::{download_dataset, download_dataset_with};
pub(crate) use download::{SnapshotCheck, model_snapshot};
pub use env::{HubEnv, RetryPolicy};
pub use login::{Access, Login, login, login_interactive, login_with};
pub use push::{PushConfig, PushKind, RepositoryCard, push_to_hub};
pub use push_report::PushReport;
pub(crate) use repo::is_repository_id;
pub(crate) use request::Request;
pub(crate) use request_error::RequestError;
pub(crate) use runtime::outside_runtime;
pub use token::{FoundToken, Token, TokenSource};
pub use upload::{FileState, PushedFile};

/// Finds the training split of a dataset whose card is `text`, for the fuzzers.
pub(crate) fn fuzz_card(text: &str) {
    let page = r#"[{"type":"file","path":"data/train-0.csv","size":1,"oid":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]"#;
    if let Ok(repo) = repo::Repo::new(repo::RepoKind::Dataset, "a/b", None) {
        let files = listing::files_of_page(&repo, page);
        let _ = dataset_files::split_files(&repo, &files, Some(text), dataset_files::SplitQuery::TRAIN);
    }
}

/// Chooses tables and weights among the files that the Hub lists as `text`, for the fuzzers.
pub(crate) fn fuzz_listing(text: &str) {
    if let Ok(repo) = repo::Repo::new(repo::RepoKind::Dataset, "a/b", None) {
        let files = listing::files_of_page(&repo, text);
        assert!(files.iter().all(|file| listing::is_inside(&file.path)), "a path leads out");
        let _ = dataset_files::split_files(&repo, &files, None, dataset_files::SplitQuery::TRAIN);
        let _ = model_files::side_files(&repo, &files);
        let _ = model_files::weight_files(&repo, &files, None);
    }
}
