//! A rank's thread, which owns its engine and does what it is told, in order.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use super::Rank;
use crate::error::{Error, Result};

/// What a rank is told to do.
pub(super) type Work<R> = Box<dyn FnOnce(&mut dyn Rank) -> Result<R> + Send>;

type Job = Box<dyn FnOnce(&mut dyn Rank) + Send>;

/// A thread with a rank's engine, until it is dropped.
pub(super) struct Worker {
    /// The rank's device, as `cuda:1`.
    pub(super) device: String,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn new(device: String, mut rank: Box<dyn Rank>) -> Result<Self> {
        let (jobs, told) = channel::<Job>();
        let work = move || {
            for job in told {
                job(rank.as_mut());
            }
        };
        let thread =
            std::thread::Builder::new().name(format!("emoji_lab {device}")).spawn(work).map_err(|e| {
                Error::device(&device, format!("its thread does not start: {e}"), "Close programs")
            })?;
        Ok(Self { device, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Tells the rank to do `work`. What comes of it goes to `to`, with `number`.
    pub(super) fn tell<R: Send + 'static>(
        &self,
        number: usize,
        to: Sender<(usize, Result<R>)>,
        work: Work<R>,
    ) {
        let device = self.device.clone();
        let job: Job = Box::new(move |rank| {
            let done = catch_unwind(AssertUnwindSafe(|| work(rank)));
            // Nobody is there any more to hear it only where the caller's thread has panicked.
            let _ = to.send((number, done.unwrap_or_else(|panic| Err(fault(&device, &*panic)))));
        });
        if let Some(jobs) = &self.jobs {
            // A thread that has ended drops `to` unused, which its receiver notices.
            let _ = jobs.send(job);
        }
    }

    /// Lets the thread end when it has done what it was told.
    pub(super) fn dismiss(&mut self) {
        self.jobs = None;
    }
}

fn fault(device: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave up");
    let problem = text.lines().next().unwrap_or_default().trim_end_matches('.').to_string();
    Error::device(device, problem, "This is a fault of emoji_lab")
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.dismiss();
        if let Some(thread) = self.thread.take() {
            // It catches what its jobs panic with.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({})", self.device)
    }
}
