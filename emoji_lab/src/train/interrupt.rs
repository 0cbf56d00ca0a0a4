//! The interrupt button: a SIGINT during a long call asks it to stop at the next step.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// While it lives, SIGINT asks to stop instead of killing the process; a second one kills.
///
/// The kernel is started with SIGINT ignored (`notebooks/support/launch_kernel.py`), so that the
/// button does not take a notebook's variables with it; what was in force before comes back when
/// the guard goes.
#[derive(Debug)]
pub(super) struct InterruptGuard {
    #[cfg(unix)]
    before: libc::sighandler_t,
}

#[cfg(unix)]
extern "C" fn on_interrupt(_signal: libc::c_int) {
    if REQUESTED.swap(true, Ordering::SeqCst) {
        // SAFETY: _exit is async-signal-safe.
        unsafe { libc::_exit(130) }
    }
}

impl InterruptGuard {
    pub(super) fn install() -> Self {
        REQUESTED.store(false, Ordering::SeqCst);
        #[cfg(unix)]
        {
            let handler = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
            // SAFETY: the handler touches an atomic and calls _exit, nothing else.
            Self { before: unsafe { libc::signal(libc::SIGINT, handler) } }
        }
        #[cfg(not(unix))]
        Self {}
    }

    /// Whether an interrupt came since the guard was made.
    pub(super) fn requested(&self) -> bool {
        REQUESTED.load(Ordering::SeqCst)
    }
}

impl Drop for InterruptGuard {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: puts back what `signal` gave.
        unsafe {
            libc::signal(libc::SIGINT, self.before);
        }
    }
}
