//! A GPU that fails while another waits for it, where there are two; without them it is said.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::data::{format_chat, load_dataset};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::nccl::{Communicator, Numbers};
use crate::lora::LoraConfig;
use crate::model::load_model;
use crate::quant::QuantConfig;
use crate::task::EmojiFilter;
use crate::train::{SftConfig, SftTrainer, Strategy};

/// The step, counted from 1, that cuda:1 fails at; 0 for none.
static FAILS_AT: AtomicUsize = AtomicUsize::new(0);

/// An error in the step that was named, on the second GPU.
pub(super) fn rehearse(device: &str, step: usize) -> Result<()> {
    match device == "cuda:1" && FAILS_AT.load(Ordering::Relaxed) == step {
        true => Err(Error::device(device, "a rehearsed failure", "Look at nvidia-smi")),
        false => Ok(()),
    }
}

fn trainer(dir: &Path) -> SftTrainer {
    let base = load_model("embedded", &Device::cuda_list(&[0, 1]).unwrap()).unwrap();
    let rows = format_chat(&load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap()).take(64);
    let args = SftConfig {
        output_dir: dir.to_path_buf(),
        max_steps: Some(12),
        learning_rate: 1e-3,
        logging_strategy: Strategy::Steps(1),
        eval_strategy: Strategy::No,
        save_strategy: Strategy::Steps(4),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    };
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    SftTrainer::new(&base, &rows, None, &quant, Some(&lora), &args).unwrap()
}

#[test]
fn a_gpu_that_fails_ends_the_run_and_lets_the_other_go() {
    if Gpu::count() < 2 {
        return println!("skipped: there are {} GPUs", Gpu::count());
    }
    let dir = tempfile::tempdir().unwrap();
    let [whole, broken] = ["whole", "broken"].map(|name| dir.path().join(name));
    let mut run = trainer(&whole);
    run.train().unwrap();
    let expected: Vec<Option<f64>> = run.log_history().iter().map(|entry| entry.loss).collect();
    drop(run);
    FAILS_AT.store(7, Ordering::Relaxed);
    let started = Instant::now();
    let mut run = trainer(&broken);
    let said = run.train().unwrap_err().to_string();
    println!("after {:.2} s: {said}", started.elapsed().as_secs_f64());
    assert!(said.starts_with("device cuda:1: a rehearsed failure. "), "{said}");
    let last = format!("The last whole checkpoint is {}", broken.join("checkpoint-4").display());
    assert!(said.ends_with(&last), "{said}");
    let said = run.train().unwrap_err().to_string();
    assert!(said.starts_with("device cuda:0, cuda:1: one of them has failed"), "{said}");
    drop(run);
    println!("given back after {:.2} s", started.elapsed().as_secs_f64());
    FAILS_AT.store(0, Ordering::Relaxed);
    let mut run = trainer(&broken);
    run.resume().unwrap();
    let losses: Vec<Option<f64>> = run.log_history().iter().map(|entry| entry.loss).collect();
    assert_eq!(losses, expected, "the same bits, in the same process");
}

/// What NCCL takes of each GPU's memory beside what is told.
#[test]
fn memory_of_a_connection() {
    if Gpu::count() < 2 {
        return println!("skipped: there are {} GPUs", Gpu::count());
    }
    let gpus = [0, 1].map(|ordinal| Gpu::open(ordinal).unwrap().with_own_streams().unwrap());
    let memory = [0, 1].map(|i| Memory::<f32>::zeros(&gpus[i], 100_000_000, "a test's numbers").unwrap());
    let free = || gpus.each_ref().map(|gpu| gpu.memory().unwrap().0);
    let before = free();
    let connected = Communicator::connect(&gpus).unwrap();
    std::thread::scope(|scope| {
        for (i, own) in connected.iter().enumerate() {
            let (gpu, memory) = (&gpus[i], &memory[i]);
            scope.spawn(move || {
                for len in [1, 1000, 6_000_000, 100_000_000] {
                    // SAFETY: as many numbers on both.
                    unsafe { own.sum(gpu, Numbers::f32(memory.ptr(), len)) }.unwrap();
                    gpu.synchronize().unwrap();
                }
            });
        }
    });
    let taken = before.iter().zip(free()).map(|(before, after)| before.saturating_sub(after));
    let taken: Vec<usize> = taken.collect();
    println!("NCCL takes {:.0?} MB", taken.iter().map(|bytes| *bytes as f64 / 1e6).collect::<Vec<_>>());
    assert!(taken.iter().all(|bytes| *bytes < 2_000_000_000), "{taken:?}");
}
