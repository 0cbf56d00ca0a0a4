//! A few threads that stay awake between short pieces of work.
//!
//! A token of one stream is some ninety pieces of work one after the other, most of them of 20 to 100 µs. A pool that
//! puts its threads to sleep in between, and wakes them, takes as long as the work.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::columns::Columns;

/// Turns of waiting before a thread gives its core away: some 50 µs, longer than what one thread does alone
/// between two pieces.
const SPINS: usize = 2000;

/// Threads beyond these gain nothing: fewer read memory as fast as it gives.
const MOST: usize = 16;

/// Work in parts, of which each thread takes the next.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// The number of the piece of work (32 bits), how many parts it has (16), and which is next (16): in one word, so
    /// that who takes a part knows that it is of the work that is there.
    state: AtomicU64,
    /// Written while no part is taken.
    work: UnsafeCell<Option<*const Work<'static>>>,
    /// Parts that are done.
    done: AtomicUsize,
    failed: AtomicBool,
    closed: AtomicBool,
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `work` is written by the leader alone, when all parts of what was there are done; a helper reads it
// after it has taken a part, which is not done then.
unsafe impl Sync for Shared {}

/// Threads that work on what their leader, who owns this, hands out.
pub struct Team<'a> {
    shared: &'a Shared,
    helpers: usize,
}

/// Lets the helpers go, whichever way the leader leaves.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.wake_all();
    }
}

/// Waits until all parts are done, whichever way the leader leaves: they borrow from it.
struct Waiting<'a>(&'a Shared, usize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut turns = 0;
        while self.0.done.load(Ordering::Acquire) < self.1 {
            turns += 1;
            // A helper whose core went to somebody else may take a while.
            if turns < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// A part that has been taken counts as done even if it panics.
struct Taken<'a>(&'a Shared);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
        self.0.done.fetch_add(1, Ordering::Release);
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    fn wake_all(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    /// Whether a part is there to be taken.
    fn is_any(state: u64) -> bool {
        (state & 0xffff) < (state >> 16 & 0xffff)
    }

    /// Does the next part, if there is one.
    fn do_one(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        while Self::is_any(state) {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let _taken = Taken(self);
                    // SAFETY: the part is taken and not done, so the leader waits: the work is there, and is
                    // that of which the part was taken.
                    if let Some(work) = unsafe { *self.work.get() } {
                        // SAFETY: as above.
                        unsafe { (*work)((state & 0xffff) as usize) };
                    }
                    return true;
                }
                Err(now) => state = now,
            }
        }
        false
    }

    /// What a helper does until it is let go.
    fn help(&self) {
        let mut turns = 0;
        while !self.closed.load(Ordering::Acquire) {
            if self.do_one() {
                turns = 0;
            } else if turns < SPINS {
                turns += 1;
                std::hint::spin_loop();
            } else {
                self.fall_asleep();
                turns = 0;
            }
        }
    }

    fn fall_asleep(&self) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !self.closed.load(Ordering::SeqCst) && !Self::is_any(self.state.load(Ordering::SeqCst)) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Team<'_> {
    /// Calls `f` with a team of as many threads as rayon's pool has, which are the cores that the process may
    /// use, or `RAYON_NUM_THREADS`; the caller is one of them.
    pub fn with<R>(f: impl FnOnce(&mut Team<'_>) -> R) -> R {
        Self::of(rayon::current_num_threads().min(MOST), f)
    }

    /// [`Self::with`] a number of threads.
    fn of<R>(threads: usize, f: impl FnOnce(&mut Team<'_>) -> R) -> R {
        let shared = Shared::new();
        std::thread::scope(|scope| {
            let _closing = Closing(&shared);
            // A thread that cannot be had is done without.
            let spawn = |_: &usize| std::thread::Builder::new().spawn_scoped(scope, || shared.help()).is_ok();
            let helpers = (1..threads).filter(spawn).count();
            f(&mut Team { shared: &shared, helpers })
        })
    }

    /// Calls `work` with each number below `parts`, in any order, on all threads.
    ///
    /// # Panics
    /// If `work` does.
    pub fn each(&mut self, parts: usize, work: &Work<'_>) {
        if self.helpers == 0 || !(2..=0xffff).contains(&parts) {
            return (0..parts).for_each(work);
        }
        let shared = self.shared;
        // SAFETY: the work is called for parts that are taken alone, and `Waiting` stays until all are done: so not after this
        // function is left, which is what the lifetime is shortened to.
        let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        // SAFETY: all parts of the last work are done, and no part is there to be taken: nobody reads it.
        unsafe { *shared.work.get() = Some(work) };
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.store(number << 32 | (parts as u64) << 16, Ordering::SeqCst);
        shared.wake_all();
        let waiting = Waiting(shared, parts);
        while shared.do_one() {}
        drop(waiting);
        assert!(!shared.failed.load(Ordering::Relaxed), "a thread of the team panicked");
    }

    /// Calls `work` with each part of `out` of `size` elements (the last may have fewer), its number, and its
    /// own of `notes`, of which there is one a part.
    pub fn each_part<T: Send, N: Send>(
        &mut self,
        out: &mut [T],
        size: usize,
        notes: &mut [N],
        work: impl Fn(usize, &mut [T], &mut N) + Sync,
    ) {
        struct Start<T>(*mut T);
        // SAFETY: the threads take parts that do not overlap, of what can be sent to them.
        unsafe impl<T: Send> Sync for Start<T> {}
        impl<T> Start<T> {
            fn get(&self) -> *mut T {
                self.0
            }
        }
        let (len, size) = (out.len(), size.max(1));
        let parts = len.div_ceil(size);
        assert!(notes.len() >= parts, "a note for each part");
        let (out, notes) = (Start(out.as_mut_ptr()), Start(notes.as_mut_ptr()));
        self.each(parts, &|i| {
            let count = size.min(len - i * size);
            // SAFETY: each number is given once, so each part and each note has one user, inside of what
            // this function borrows.
            let (part, note) = unsafe {
                (std::slice::from_raw_parts_mut(out.get().add(i * size), count), &mut *notes.get().add(i))
            };
            work(i, part, note);
        });
    }

    /// Calls `work` with the first `width` columns of the row-major `out` in parts of `size` (the last may have
    /// fewer), and with the number of each part's first column. `out` has rows of `stride` numbers.
    pub fn each_columns(
        &mut self,
        out: &mut [f32],
        stride: usize,
        width: usize,
        size: usize,
        work: impl Fn(usize, Columns<'_>) + Sync,
    ) {
        let (all, size) = (Columns::of(out, stride), size.max(1));
        self.each(width.div_ceil(size), &|i| {
            let first = i * size;
            // SAFETY: each number is given once, so nobody else has these columns.
            work(first, unsafe { all.part(first..width.min(first + size)) });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once() {
        for threads in [1, 2, 5] {
            Team::of(threads, |team| {
                for round in 0..3000usize {
                    let parts = round % 37;
                    let mut out = vec![0; parts * 3 + round % 3];
                    let mut notes = vec![0; parts + 1];
                    team.each_part(&mut out, 3, &mut notes, |i, part, note| {
                        part.iter_mut().for_each(|x| *x += i + round);
                        *note += part.len();
                    });
                    assert!(out.iter().enumerate().all(|(at, x)| *x == at / 3 + round), "{threads} {round}");
                    assert_eq!(notes.iter().sum::<usize>(), out.len());
                    if round % 1000 == 0 {
                        // Long enough for the helpers to fall asleep.
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                }
            });
        }
    }

    #[test]
    fn every_column_is_done_once() {
        for threads in [1, 3] {
            Team::of(threads, |team| {
                for (rows, stride, width, size) in [(1, 7, 7, 2), (5, 40, 33, 8), (3, 4, 4, 9), (0, 3, 3, 1)]
                {
                    let mut out = vec![0.0; rows * stride];
                    team.each_columns(&mut out, stride, width, size, |first, mut columns| {
                        for row in 0..columns.rows() {
                            let places = columns.row(row).iter_mut().enumerate();
                            places.for_each(|(i, x)| *x += (row * 100 + first + i + 1) as f32);
                        }
                    });
                    for (at, x) in out.iter().enumerate() {
                        let (row, column) = (at / stride, at % stride);
                        let wanted = if column < width { row * 100 + column + 1 } else { 0 };
                        assert_eq!(*x, wanted as f32);
                    }
                }
            });
        }
    }

    #[test]
    fn a_panic_comes_back_to_the_leader() {
        for bad in [0, 7] {
            let run = || {
                Team::of(3, |team| {
                    team.each(8, &|i| assert!(i != bad));
                })
            };
            assert!(std::panic::catch_unwind(run).is_err());
        }
    }
}
