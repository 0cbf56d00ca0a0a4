//! Data parallel training: several engines with the same parameters, each on a device and a thread of
//! its own, take turns at the batches of a step, and apply the sum of their gradients.
//!
//! A step of `ranks` devices is that of one device with `ranks` times the accumulation: the same batches
//! in the same order, each with its own pass' dropout, the mean over all targets, the norm of the whole
//! gradient. What differs is the order in which gradients are added up.
//!
//! | file | what is in it |
//! |---|---|
//! | `share.rs` | which rank does which batch |
//! | `worker.rs` | a rank's thread |
//! | `cpu.rs` | in tests: ranks on the CPU, and their sum |
//!
//! A step has two halves, so that no rank waits for one that failed: what may fail on a rank alone
//! ([`Rank::prepare`]) is done by all before any begins what they do together
//! ([`Rank::submit_together`]). If one fails there all the same, as a GPU may, the others are let go
//! ([`Connection::abort`]), and these ranks are used no more.

#[cfg(test)]
mod cpu;
mod share;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use candle_core::Tensor;

use super::batch::Batch;
use super::engine::{DeviceMemory, Engine, Step, StepResult, Ticket};
use super::layout::{Buffer, Slot};
use crate::error::{Error, Result};
use crate::ops::linear_cross_entropy::LossSum;
use share::shares;
use worker::{Work, Worker};

pub(crate) use share::Share;

/// An engine that is one of several.
pub(crate) trait Rank: Engine {
    /// Does of its share of a step what may fail on this rank alone. It changes no parameter, and waits
    /// for no other rank.
    fn prepare(&mut self, share: &Share) -> Result<()>;

    /// Does the rest, after all ranks have prepared theirs, and while all others do it too: the sum of
    /// gradients and losses over all ranks, and the update. Of the result that is waited for, loss and
    /// norm are those of all ranks, and tokens its own.
    fn submit_together(&mut self, share: &Share) -> Result<Ticket>;
}

/// What the ranks add up their gradients over.
pub(crate) trait Connection: Debug + Send + Sync {
    /// Lets go every rank that waits for another, now and from now on: what it was doing is an error.
    fn abort(&self);
}

/// Engines that take turns, as one.
#[derive(Debug)]
pub(crate) struct Ranks {
    workers: Vec<Worker>,
    connection: Box<dyn Connection>,
    /// Whether they were let go.
    broken: AtomicBool,
    /// Each rank's ticket of a step that is on its way.
    pending: BTreeMap<Ticket, Vec<Ticket>>,
    submitted: usize,
}

impl Ranks {
    /// Of engines with the same parameters, each with its device's name, that are connected.
    pub(crate) fn new(
        ranks: impl IntoIterator<Item = (String, Box<dyn Rank>)>,
        connection: Box<dyn Connection>,
    ) -> Result<Self> {
        let workers =
            ranks.into_iter().map(|(device, rank)| Worker::new(device, rank)).collect::<Result<_>>()?;
        let broken = AtomicBool::new(false);
        Ok(Self { workers, connection, broken, pending: BTreeMap::new(), submitted: 0 })
    }

    /// What each rank, by its number, was told to do, all at the same time.
    fn each<R: Send + 'static>(&self, work: impl FnMut(usize) -> Work<R>) -> Result<Vec<R>> {
        self.usable()?;
        self.gathered(self.tell(work, |_| ()))
    }

    /// The same, of work in which ranks wait for each other: if it fails on one, all are let go.
    fn together<R: Send + 'static>(&self, work: impl FnMut(usize) -> Work<R>) -> Result<Vec<R>> {
        self.usable()?;
        let results = self.tell(work, |result| {
            if matches!(result, Err(Error::Device { .. })) {
                self.abort();
            }
        });
        // Ranks that judge the same numbers say the same; one that differs is no longer what the others are.
        if results.iter().any(Result::is_err) && results.iter().any(Result::is_ok) {
            self.abort();
        }
        self.gathered(results)
    }

    fn tell<R: Send + 'static>(
        &self,
        mut work: impl FnMut(usize) -> Work<R>,
        mut heard: impl FnMut(&Result<R>),
    ) -> Vec<Result<R>> {
        let (to, from) = channel();
        for (number, worker) in self.workers.iter().enumerate() {
            worker.tell(number, to.clone(), work(number));
        }
        drop(to);
        let mut results: Vec<Option<Result<R>>> = self.workers.iter().map(|_| None).collect();
        for (number, result) in from {
            // As it comes: who fails first is not the one who is asked first.
            heard(&result);
            results[number] = Some(result);
        }
        let gone = |(worker, result): (&Worker, Option<Result<R>>)| {
            let fault =
                || Error::device(&worker.device, "its thread has ended", "This is a fault of emoji_lab");
            result.unwrap_or_else(|| Err(fault()))
        };
        self.workers.iter().zip(results).map(gone).collect()
    }

    /// All results, or the error to be told: of a device before that of ranks that were let go because of it.
    fn gathered<R>(&self, results: Vec<Result<R>>) -> Result<Vec<R>> {
        let failed = results.iter().filter(|result| result.is_err()).count();
        let everywhere = failed == results.len();
        let mut told: Option<Error> = None;
        let mut all = Vec::with_capacity(results.len());
        for (worker, result) in self.workers.iter().zip(results) {
            match result {
                Ok(result) => all.push(result),
                Err(error) => {
                    let is_better = |told: &Error| was_let_go(told) && !was_let_go(&error);
                    if told.as_ref().is_none_or(is_better) {
                        told = Some(if everywhere { error } else { on(&worker.device, error) });
                    }
                }
            }
        }
        told.map_or(Ok(all), Err)
    }

    fn abort(&self) {
        if !self.broken.swap(true, Ordering::Relaxed) {
            self.connection.abort();
        }
    }

    fn let_go(&self) -> Error {
        let devices: Vec<&str> = self.workers.iter().map(|worker| worker.device.as_str()).collect();
        Error::device(
            devices.join(", "),
            "one of them has failed, and the others were let go",
            "Make a new SftTrainer, in a new kernel if that fails too: its resume() goes on from the run's last checkpoint",
        )
    }

    /// The first rank's answer; all have the same.
    fn first<R: Send + 'static>(&self, work: Work<R>) -> Result<R> {
        self.usable()?;
        let worker = &self.workers[0];
        let (to, from) = channel();
        worker.tell(0, to, work);
        let gone = || Error::device(&worker.device, "its thread has ended", "This is a fault of emoji_lab");
        from.recv().map_err(|_| gone())?.1
    }
}

/// What a rank says whose wait for another was ended.
pub(crate) fn was_aborted(device: &str) -> Error {
    Error::device(device, ABORTED, "Look at the others")
}

const ABORTED: &str = "another device has failed";

fn was_let_go(error: &Error) -> bool {
    matches!(error, Error::Device { problem, .. } if problem == ABORTED)
}

/// Says on which device something went wrong, where the error does not.
fn on(device: &str, error: Error) -> Error {
    match error {
        Error::Training { problem, help } => {
            Error::Training { problem: format!("{device}: {problem}"), help }
        }
        Error::Candle(error) => {
            Error::device(device, error, "This is a fault of emoji_lab, or of the device")
        }
        other => other,
    }
}

impl Engine for Ranks {
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.each(|_| Box::new(move |rank| rank.reserve(tokens)))?;
        Ok(())
    }

    fn reserve_sums(&mut self) -> Result<()> {
        self.each(|_| Box::new(|rank| rank.reserve_sums()))?;
        Ok(())
    }

    fn submit(&mut self, batches: &[Batch], step: &Step) -> Result<Ticket> {
        let mut shares: Vec<std::sync::Arc<Share>> =
            shares(batches, step, self.workers.len()).into_iter().map(Into::into).collect();
        self.each(|number| {
            let share = shares[number].clone();
            Box::new(move |rank| rank.prepare(&share))
        })?;
        let tickets = self.together(|_| {
            let share = shares.remove(0);
            Box::new(move |rank| rank.submit_together(&share))
        })?;
        let ticket = Ticket(self.submitted);
        self.submitted += 1;
        self.pending.insert(ticket, tickets);
        Ok(ticket)
    }

    fn has_room(&self) -> bool {
        // Where its thread has ended there is none, and the next call says so.
        self.first(Box::new(|rank| Ok(rank.has_room()))).unwrap_or(false)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepResult> {
        let Some(tickets) = self.pending.remove(&ticket) else {
            return Err(Error::training(
                "a step of another trainer, or waited for twice",
                "Wait for every step once",
            ));
        };
        let results = self.together(|number| {
            let ticket = tickets[number];
            Box::new(move |rank| rank.wait(ticket))
        })?;
        let first = results[0];
        Ok(StepResult {
            tokens: results.iter().map(|result| result.tokens).sum(),
            device_ms: results.iter().filter_map(|result| result.device_ms).reduce(f64::max),
            ..first
        })
    }

    /// Each rank's batches are every so manieth.
    fn losses(&self, batches: &[Batch]) -> Result<Vec<LossSum>> {
        let ranks = self.workers.len();
        let parts = self.each(|number| {
            let own: Vec<Batch> = batches.iter().skip(number).step_by(ranks).cloned().collect();
            Box::new(move |rank| rank.losses(&own))
        })?;
        let mut parts: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
        Ok((0..batches.len()).filter_map(|i| parts[i % ranks].next()).collect())
    }

    fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        let slot = slot.clone();
        self.first(Box::new(move |rank| rank.read(buffer, &slot)))
    }

    fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        let slot = slot.clone();
        self.first(Box::new(move |rank| rank.peek(buffer, &slot)))
    }

    fn peek_all(&self, buffer: Buffer, slots: &[Slot]) -> Result<Vec<Tensor>> {
        let slots = slots.to_vec();
        self.first(Box::new(move |rank| rank.peek_all(buffer, &slots)))
    }

    fn write(&mut self, buffer: Buffer, slot: &Slot, values: &Tensor) -> Result<()> {
        self.each(|_| {
            let (slot, values) = (slot.clone(), values.clone());
            Box::new(move |rank| rank.write(buffer, &slot, &values))
        })?;
        Ok(())
    }

    fn gradient_squares(&self) -> Result<Vec<f64>> {
        self.first(Box::new(|rank| rank.gradient_squares()))
    }

    fn memory(&self) -> Vec<DeviceMemory> {
        self.each(|_| Box::new(|rank| Ok(rank.memory()))).unwrap_or_default().concat()
    }

    fn usable(&self) -> Result<()> {
        if self.broken.load(Ordering::Relaxed) { Err(self.let_go()) } else { Ok(()) }
    }

    fn ranks(&self) -> usize {
        self.workers.len()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // All at once: a connection may be taken down by all ranks together.
        self.workers.iter_mut().for_each(Worker::dismiss);
    }
}
