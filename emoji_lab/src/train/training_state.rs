//! What a checkpoint holds beyond the adapter: optimizer moments, and where the run stands.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::write_bytes_atomic;
use crate::model::{read_safetensors, write_safetensors};

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const POSITION_FILE: &str = "training_state.json";

/// Grows when what the files mean changes, so that an old checkpoint is refused, not misread.
const FORMAT: u32 = 2;

/// The part of a checkpoint that only resuming needs. `P` is the trainer's own account of where
/// it stands: random streams, place in the data, sums that are being kept.
///
/// Bit for bit what was saved: tensors keep their bits, and so do `P`'s finite floats.
#[derive(Debug, Clone)]
pub struct TrainingState<P> {
    /// Optimizer steps done.
    pub global_step: usize,
    /// The optimizer's tensors by name, as `exp_avg.model.layers.0.…`; f32.
    pub tensors: BTreeMap<String, Tensor>,
    /// Where the run stands.
    pub position: P,
}

#[derive(Serialize, Deserialize)]
struct PositionFile<P> {
    format: u32,
    global_step: usize,
    position: P,
}

impl<P> TrainingState<P> {
    /// Takes the tensor `name` out, which must have the shape `dims`.
    ///
    /// # Errors
    /// [`Error::Training`] if it is missing or of another shape: the run's settings have changed.
    pub fn take(&mut self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let help = "Resume with the settings the run was started with, or start anew";
        let tensor = self.tensors.remove(name).ok_or_else(|| {
            Error::training(format!("the checkpoint's optimizer state has no tensor {name}"), help)
        })?;
        if tensor.dims() != dims {
            let problem = format!(
                "the checkpoint's optimizer tensor {name} has shape {:?}, not {dims:?}",
                tensor.dims()
            );
            return Err(Error::training(problem, help));
        }
        Ok(tensor)
    }
}

impl<P: Serialize> TrainingState<P> {
    /// Writes `optimizer.safetensors` and `training_state.json` into the checkpoint folder `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let file = PositionFile { format: FORMAT, global_step: self.global_step, position: &self.position };
        let text = serde_json::to_string_pretty(&file).map_err(|e| {
            Error::training(
                format!("where the run stands cannot be written: {e}"),
                "This is a fault of emoji_lab",
            )
        })?;
        write_safetensors(&dir.join(OPTIMIZER_FILE), &self.tensors, None)?;
        write_bytes_atomic(&dir.join(POSITION_FILE), text.as_bytes())
    }
}

impl<P: DeserializeOwned> TrainingState<P> {
    /// Reads them back, tensors on the CPU.
    ///
    /// # Errors
    /// [`Error::Training`] or [`Error::Model`] that names the file which is missing, damaged or
    /// of another version.
    pub fn load(dir: &Path) -> Result<Self> {
        needed(dir, OPTIMIZER_FILE)?;
        let file = Self::read(dir)?;
        let tensors = read_safetensors(&dir.join(OPTIMIZER_FILE))?;
        Ok(Self { global_step: file.global_step, tensors, position: file.position })
    }

    /// Reads only where the run stands, without the optimizer's tensors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn position(dir: &Path) -> Result<P> {
        Ok(Self::read(dir)?.position)
    }

    fn read(dir: &Path) -> Result<PositionFile<P>> {
        needed(dir, POSITION_FILE)?;
        let path = dir.join(POSITION_FILE);
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "reading the checkpoint", e))?;
        let damaged = |e: serde_json::Error| {
            let help =
                "The file is cut short, damaged, or of another version of emoji_lab: take another checkpoint";
            Error::training(format!("{} is not readable: {e}", path.display()), help)
        };
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_str(&text).map_err(damaged)?;
        if version.format != FORMAT {
            let problem = format!("{} has format {}, this is {FORMAT}", path.display(), version.format);
            return Err(Error::training(problem, "Resume with the version of emoji_lab that wrote it"));
        }
        serde_json::from_str(&text).map_err(damaged)
    }
}

fn needed(dir: &Path, file: &str) -> Result<()> {
    if dir.join(file).is_file() {
        return Ok(());
    }
    let help = "Only checkpoints that this trainer wrote can be resumed; those of Python can be merged";
    Err(Error::training(format!("{} holds no {file}", dir.display()), help))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Position {
        seed: u64,
        row: usize,
        loss_sum: f64,
    }

    fn state() -> TrainingState<Position> {
        let odd = [f32::MIN_POSITIVE / 8.0, -0.0, 0.1, f32::MAX];
        let tensor = |dims: &[usize]| Tensor::from_slice(&odd, dims, &Device::Cpu).unwrap();
        TrainingState {
            global_step: 7,
            tensors: [("exp_avg.b", tensor(&[4])), ("exp_avg.a", tensor(&[2, 2]))]
                .map(|(name, tensor)| (name.to_string(), tensor))
                .into(),
            position: Position { seed: u64::MAX - 1, row: 3, loss_sum: 6.255_003_452_301_025 + 1e-15 },
        }
    }

    #[test]
    fn every_bit_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        state().save(dir.path()).unwrap();
        let mut back = TrainingState::<Position>::load(dir.path()).unwrap();
        assert_eq!((back.global_step, &back.position), (7, &state().position));
        assert_eq!(back.position.loss_sum.to_bits(), state().position.loss_sum.to_bits());
        let bits = |t: &Tensor| -> Vec<u32> {
            let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        for (name, tensor) in &state().tensors {
            assert_eq!(bits(tensor), bits(&back.take(name, tensor.dims()).unwrap()), "{name}");
        }
        assert!(back.tensors.is_empty());
        // The same state makes the same bytes.
        let again = tempfile::tempdir().unwrap();
        state().save(again.path()).unwrap();
        for file in [OPTIMIZER_FILE, POSITION_FILE] {
            let read = |dir: &Path| fs::read(dir.join(file)).unwrap();
            assert_eq!(read(dir.path()), read(again.path()));
        }
    }

    #[test]
    fn changed_settings_and_damage_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let says = |part: &str| {
            let error = TrainingState::<Position>::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error} should say {part}");
        };
        says("holds no optimizer.safetensors");
        state().save(dir.path()).unwrap();
        let mut loaded = TrainingState::<Position>::load(dir.path()).unwrap();
        let error = loaded.take("exp_avg.a", &[4, 1]).unwrap_err().to_string();
        assert!(error.contains("has shape [2, 2], not [4, 1]"), "{error}");
        assert!(loaded.take("exp_avg.c", &[1]).unwrap_err().to_string().contains("no tensor exp_avg.c"));

        let position = dir.path().join(POSITION_FILE);
        let text = fs::read_to_string(&position).unwrap();
        fs::write(&position, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
        says("has format 1, this is 2");
        fs::write(&position, &text[..text.len() / 2]).unwrap();
        says("training_state.json is not readable");
        fs::write(&position, text.replace("\"row\"", "\"place\"")).unwrap();
        says("missing field `row`");
        fs::write(&position, text).unwrap();
        let optimizer = dir.path().join(OPTIMIZER_FILE);
        fs::write(&optimizer, &fs::read(&optimizer).unwrap()[..40]).unwrap();
        says("optimizer.safetensors: damaged or cut short");
    }
}
