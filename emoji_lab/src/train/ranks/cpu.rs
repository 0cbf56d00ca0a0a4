//! Ranks on the CPU: the reference for those on GPUs. Each waits for the others, and adds up what they
//! brought, in the ranks' order.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use super::{Connection, Rank, Ranks, Share, was_aborted};
use crate::error::Result;
use crate::host;
use crate::ops::linear_cross_entropy::LossSum;
use crate::ops::pool::on_pool;
use crate::train::cpu::CpuEngine;
use crate::train::engine::{DeviceMemory, Engine, Settings, Step, StepResult, Ticket};
use crate::train::layout::{Buffer, Layout, Slot};
use crate::train::{Batch, Finetune, SftTrainer};

/// Where ranks meet to add up.
#[derive(Default)]
pub(super) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What each rank brought to the sum that is being made.
    brought: Vec<Option<Arc<[f64]>>>,
    /// Ranks that have taken all of it.
    taken: usize,
    aborted: bool,
}

impl Meeting {
    pub(super) fn of(ranks: usize) -> Arc<Self> {
        let state = State { brought: vec![None; ranks], ..State::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        rank: usize,
        until: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'a, State>> {
        let wait = |state: &mut State| !until(state) && !state.aborted;
        let state = self.changed.wait_while(state, wait).unwrap_or_else(PoisonError::into_inner);
        if state.aborted { Err(was_aborted(&name(rank))) } else { Ok(state) }
    }

    /// The sums over all ranks, the same bits for each. Every rank must bring as many numbers.
    pub(super) fn sum(&self, rank: usize, numbers: &[f64]) -> Result<Vec<f64>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The others may still be taking what was brought last.
        let mut state = self.wait(state, rank, |state| state.brought[rank].is_none())?;
        state.brought[rank] = Some(numbers.into());
        self.changed.notify_all();
        let mut state = self.wait(state, rank, |state| state.brought.iter().all(Option::is_some))?;
        let all: Vec<Arc<[f64]>> = state.brought.iter().flatten().cloned().collect();
        state.taken += 1;
        if state.taken == all.len() {
            state.taken = 0;
            state.brought.fill(None);
            self.changed.notify_all();
        }
        drop(state);
        Ok((0..numbers.len()).map(|i| all.iter().map(|one| one[i]).sum()).collect())
    }
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meeting")
    }
}

impl Connection for Arc<Meeting> {
    fn abort(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).aborted = true;
        self.changed.notify_all();
    }
}

fn name(rank: usize) -> String {
    format!("cpu:{rank}")
}

/// What a rank is told to fail at, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fails {
    /// Before it meets the others, with an error.
    Alone,
    /// Where it meets them.
    Together,
    /// The same, with a panic.
    Panics,
}

/// One of several engines on the CPU.
#[derive(Debug)]
pub(super) struct CpuRank {
    engine: CpuEngine,
    rank: usize,
    meeting: Arc<Meeting>,
    loss_sum: f64,
    /// At which step of the run.
    pub(super) fails: Option<(usize, Fails)>,
}

impl CpuRank {
    fn fails(&mut self, step: usize, at: &[Fails]) -> Result<()> {
        match self.fails.take_if(|(number, fails)| *number == step && at.contains(fails)) {
            Some((_, Fails::Panics)) => panic!("a rehearsed panic"),
            Some((_, Fails::Alone)) => Err(crate::Error::training("a rehearsed failure", "Try again")),
            Some(_) => Err(crate::Error::device(name(self.rank), "a rehearsed failure", "Try again")),
            None => Ok(()),
        }
    }
}

impl Rank for CpuRank {
    fn prepare(&mut self, share: &Share) -> Result<()> {
        self.fails(share.step.number, &[Fails::Alone])?;
        let batches: Vec<Batch> = share.batches.iter().filter(|batch| batch.rows > 0).cloned().collect();
        self.loss_sum = on_pool(|| self.engine.gradients_of(&batches, &share.step, None))?;
        Ok(())
    }

    /// It meets the others outside of the pool: there it could be one of the pool's threads that
    /// another rank waits for.
    fn submit_together(&mut self, share: &Share) -> Result<Ticket> {
        self.fails(share.step.number, &[Fails::Together, Fails::Panics])?;
        let gradients = self.engine.gradients.to_vec1::<f32>()?;
        let own: Vec<f64> = gradients.iter().map(|g| f64::from(*g)).chain([self.loss_sum]).collect();
        let sums = self.meeting.sum(self.rank, &own)?;
        let (loss_sum, sums) = sums.split_last().expect("the loss");
        let sums: Vec<f32> = sums.iter().map(|g| *g as f32).collect();
        let sums = host::tensor(sums, gradients.len())?;
        self.engine.gradients.slice_set(&sums, 0, 0)?;
        let result = on_pool(|| self.engine.update(*loss_sum, share.tokens(), &share.step, None))?;
        Ok(self.engine.keep(result))
    }
}

impl Engine for CpuRank {
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.engine.reserve(tokens)
    }

    fn submit(&mut self, _batches: &[Batch], _step: &Step) -> Result<Ticket> {
        unreachable!("a rank's steps are the others' too")
    }

    fn has_room(&self) -> bool {
        self.engine.has_room()
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepResult> {
        self.engine.wait(ticket)
    }

    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        self.engine.losses(batches)
    }

    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.engine.read(buffer, slot)
    }

    fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        self.engine.peek(buffer, slot)
    }

    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()> {
        self.engine.write(buffer, slot, values)
    }

    fn gradient_squares(&self) -> Result<Vec<f64>> {
        self.engine.gradient_squares()
    }

    fn memory(&self) -> Vec<DeviceMemory> {
        vec![DeviceMemory { device: name(self.rank), parts: vec![("activations", 1 << self.rank)] }]
    }
}

/// As many ranks as `fails` says, with what each is to fail at.
pub(super) fn ranks(
    model: &crate::model::Gemma3,
    layout: &Layout,
    settings: Settings,
    fails: &[Option<(usize, Fails)>],
) -> Result<Ranks> {
    let meeting = Meeting::of(fails.len());
    let mut ranks: Vec<(String, Box<dyn Rank>)> = vec![];
    for (rank, fails) in fails.iter().enumerate() {
        let engine = CpuEngine::new(model, layout, settings)?;
        let rank = CpuRank { engine, rank, meeting: meeting.clone(), loss_sum: 0.0, fails: *fails };
        ranks.push((name(rank.rank), Box::new(rank)));
    }
    Ranks::new(ranks, Box::new(meeting))
}

impl Finetune {
    /// The same training, from its start, on several ranks.
    pub(super) fn on_cpus(mut self, settings: Settings, fails: &[Option<(usize, Fails)>]) -> Result<Self> {
        self.engine = Box::new(ranks(&self.model()?, &self.layout, settings, fails)?);
        Ok(self)
    }
}

impl SftTrainer {
    /// The same run, from its start, on several ranks.
    pub(super) fn on_cpus(mut self, fails: &[Option<(usize, Fails)>]) -> Result<Self> {
        let args = &self.args;
        let settings =
            Settings { optimizer: args.optimizer(), max_grad_norm: args.max_grad_norm, seed: args.seed };
        let engine = ranks(&self.finetune.model()?, &self.finetune.layout, settings, fails)?;
        self.finetune.engine = Box::new(engine);
        self.take_sizes()?;
        Ok(self)
    }
}
