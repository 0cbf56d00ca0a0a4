//! A model's files from the Hub, judged before the large ones are asked for.

use std::path::PathBuf;

use super::Tokenizer;
use super::pretrained::read_config;
use crate::error::Result;
use crate::hub::{HubEnv, SnapshotCheck, model_snapshot};

/// Downloads a model into the shared Hugging Face cache and gives its snapshot folder: `config.json`,
/// the safetensors weights (one file, or the shards that the index names), the tokenizer's files, the
/// chat template and `generation_config.json`.
///
/// `config.json` is judged before anything large is asked for, the tokenizer before the weights: of
/// a model that cannot be loaded here only the small files are downloaded.
///
/// `revision` is a branch, tag or commit; `main` if `None`. The settings come from the environment:
/// see [`HubEnv`]. What is in the cache is not downloaded again; with `HF_HUB_OFFLINE=1`, or without a
/// network, what is in the cache is used.
///
/// # Errors
/// [`Error::Hub`](crate::Error::Hub) with what to do: no such repository or revision, a gated one, a token that is not
/// accepted, no network, a file that does not have the hash that the Hub names. The cache never holds
/// a wrong file. [`Error::Model`](crate::Error::Model) if it is not a Gemma 3 that can be loaded, with what it is.
pub fn download_model(repo_id: &str, revision: Option<&str>) -> Result<PathBuf> {
    download_model_with(&HubEnv::from_env(), repo_id, revision)
}

/// [`download_model`] with settings of one's own.
pub fn download_model_with(env: &HubEnv, repo_id: &str, revision: Option<&str>) -> Result<PathBuf> {
    let check = SnapshotCheck {
        config: &|folder| read_config(folder).map(drop),
        side_files: &|folder| Tokenizer::from_dir(folder).map(drop),
    };
    model_snapshot(env, repo_id, revision, &check)
}
