//! Where long work runs.

/// Runs `work` on a thread of rayon's pool.
///
/// A parallel loop that is started from outside the pool hands its work over and sleeps, and is
/// woken when it is done. A training step has hundreds of such loops, most of them short, and on a
/// small model the sleeping costs more than the work. From inside the pool a loop starts at once.
pub fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}
