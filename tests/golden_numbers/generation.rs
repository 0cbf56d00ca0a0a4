//! Greedy tokens of a GPU against the CPU's, prompts longer and shorter than the sliding window.

use emoji_lab::model::Gemma3;
use emoji_lab::{DType, Device, Result};

use crate::report::Report;

pub fn check(base: &Gemma3, report: &mut Report) -> Result<()> {
    if base.device().dtype() != DType::F32 {
        report.skip("generation against the CPU", "bf16 takes other turns where two tokens are close");
        return Ok(());
    }
    let cpu = base.to_device(&Device::Cpu);
    let vocab = base.config().vocab_size as u32;
    let lengths = [1, 2, 7, 8, 9, 20, 33];
    let mut wrong = 0;
    for length in lengths {
        let prompt: Vec<u32> = (0..length).map(|i| (i * 37 + length * 11) % vocab).collect();
        wrong += usize::from(base.greedy(&prompt, 40)? != cpu.greedy(&prompt, 40)?);
    }
    report.equal("generation against the CPU, 40 tokens each", wrong, lengths.len());
    Ok(())
}
