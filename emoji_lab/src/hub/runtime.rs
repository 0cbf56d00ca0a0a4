//! Async clients, called from code that may itself run inside of a runtime.

/// Runs `step` where a runtime may be started: on a thread of its own if one is running here.
pub(crate) fn outside_runtime<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    if tokio::runtime::Handle::try_current().is_err() {
        return step();
    }
    std::thread::scope(|scope| match scope.spawn(step).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

#[cfg(test)]
mod tests {
    use super::super::client::HubClient;
    use super::super::env::HubEnv;
    use super::*;

    #[test]
    fn a_step_runs_inside_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let env = HubEnv::from_variables(&|_| None);
        let fine = runtime.block_on(async { outside_runtime(|| HubClient::new(&env, None).is_ok()) });
        assert!(fine);
    }
}
