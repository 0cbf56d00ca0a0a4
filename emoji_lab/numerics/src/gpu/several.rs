//! Several GPUs of one host as one device.

use std::time::Instant;

use candle_core::DType;

use super::memory::Memory;
use super::{Gpu, nccl};
use crate::error::{Error, Result};

/// Sums that are timed as one: threads do not begin at the same moment.
const IN_A_ROW: usize = 10;

impl Gpu {
    /// The GPUs of these numbers, to share work. What one of them does alone, the first does. They compute in
    /// bf16 if all of them can, else in f32.
    ///
    /// # Errors
    /// [`Error::Setting`] if none is named, or one twice; [`Error::Device`] as [`Self::open`], and if there
    /// is no NCCL to connect several.
    pub fn open_several(ordinals: &[usize]) -> Result<Self> {
        let twice = (1..ordinals.len()).find(|i| ordinals[..*i].contains(&ordinals[*i]));
        if ordinals.is_empty() || twice.is_some() {
            let named: Vec<String> = ordinals.iter().map(usize::to_string).collect();
            let value = format!("cuda:{}", named.join(","));
            return Err(Error::setting("device", value, "name one or more GPUs, each once, as cuda:0,1"));
        }
        let gpus = ordinals.iter().map(|ordinal| Self::open(*ordinal)).collect::<Result<Vec<_>>>()?;
        let (first, others) = (&gpus[0], &gpus[1..]);
        if !others.is_empty() {
            let names: Vec<String> = gpus.iter().map(Self::short_name).collect();
            nccl::check(&names.join(", "))?;
        }
        let first = first.sharing_with(others);
        match gpus.iter().all(Self::bf16) {
            true => Ok(first),
            false => first.with_dtype(DType::F32),
        }
    }

    /// Each of them by itself, the first first.
    pub fn each(&self) -> Vec<Self> {
        let alone = self.sharing_with(&[]);
        std::iter::once(alone).chain(self.others.iter().cloned()).collect()
    }

    /// How long they take to add up so many bytes of gradients, in seconds: the median of `rounds`, by the
    /// first one's clock. What a benchmark puts beside a step.
    ///
    /// # Errors
    /// [`Error::Device`] if one of them fails.
    pub fn time_to_add_up(&self, bytes: usize, rounds: usize) -> Result<f64> {
        let gpus = self.each().iter().map(Self::with_own_streams).collect::<Result<Vec<_>>>()?;
        let connected = nccl::Communicator::connect(&gpus)?;
        let times = |gpu: &Self, own: &nccl::Communicator| -> Result<Vec<f64>> {
            let numbers = Memory::<f32>::zeros(gpu, bytes / 4, "gradients to add up")?;
            let mut times = vec![];
            // The first connects.
            for _ in 0..=rounds {
                gpu.synchronize()?;
                let started = Instant::now();
                for _ in 0..IN_A_ROW {
                    // SAFETY: as many numbers on every GPU.
                    unsafe { own.sum(gpu, nccl::Numbers::f32(numbers.ptr(), bytes / 4))? };
                }
                gpu.synchronize()?;
                times.push(started.elapsed().as_secs_f64() / IN_A_ROW as f64);
            }
            Ok(times)
        };
        let all: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                gpus.iter().zip(&connected).map(|(gpu, own)| scope.spawn(move || times(gpu, own))).collect();
            let fault =
                || Error::device(self.short_name(), "a thread has ended", "This is a fault of emoji_lab");
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(fault()))).collect()
        });
        let mut first = all.into_iter().collect::<Result<Vec<_>>>()?.swap_remove(0);
        first.remove(0);
        first.sort_by(f64::total_cmp);
        Ok(first.get(first.len() / 2).copied().unwrap_or(f64::NAN))
    }

    /// How many they are.
    pub fn devices(&self) -> usize {
        1 + self.others.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_and_one_twice_are_refused() {
        for (ordinals, named) in [(&[][..], "cuda:"), (&[1, 0, 1], "cuda:1,0,1")] {
            let said = Gpu::open_several(ordinals).unwrap_err().to_string();
            assert!(said.starts_with(&format!("setting device = {named}: name one")), "{said}");
        }
    }
}
