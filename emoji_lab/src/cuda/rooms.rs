//! Room on the host for what a checkpoint copies from the GPU, made while steps run: the copy, for which the GPU waits,
//! would otherwise wait for the system to hand out gigabytes of fresh pages.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::memory;

/// Room is made ahead where the host has so many times as much memory to give.
const PLENTY: usize = 4;

/// Rooms that are ready, and who makes more.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    ready: Arc<Mutex<Vec<Vec<f32>>>>,
    maker: Mutex<Option<JoinHandle<()>>>,
}

impl Rooms {
    /// Begins to make rooms for so many values each, on a thread of its own: those that are not ready. One that makes some
    /// is left to it.
    pub(crate) fn make(&self, mut lens: Vec<usize>) {
        let mut maker = self.maker.lock().unwrap_or_else(PoisonError::into_inner);
        if maker.as_ref().is_some_and(|maker| !maker.is_finished()) {
            return;
        }
        for room in self.ready.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(at) = lens.iter().position(|len| *len == room.capacity()) {
                lens.swap_remove(at);
            }
        }
        let bytes = lens.iter().sum::<usize>() * size_of::<f32>();
        if bytes == 0 || available().is_none_or(|available| available / PLENTY < bytes) {
            return;
        }
        let ready = self.ready.clone();
        *maker = Some(std::thread::spawn(move || {
            for len in lens {
                let mut room = memory::room(len);
                // Written once, its pages are there.
                room.resize(len, 0.0);
                room.clear();
                ready.lock().unwrap_or_else(PoisonError::into_inner).push(room);
            }
        }));
    }

    /// Room for `len` values, of which there are none yet.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        match ready.iter().position(|room| room.capacity() == len) {
            Some(at) => ready.swap_remove(at),
            None => memory::room(len),
        }
    }
}

/// Bytes that the system has to give, or this process' control group. `None` where it does not say.
fn available() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let of_system = kilobytes_available(&read("/proc/meminfo")?)? << 10;
    let number = |path: &str| read(path)?.trim().parse::<usize>().ok();
    // "max", where there is no limit, is not a number.
    let limit = number("/sys/fs/cgroup/memory.max");
    let of_group = limit.zip(number("/sys/fs/cgroup/memory.current"));
    Some(of_group.map_or(of_system, |(limit, used)| of_system.min(limit.saturating_sub(used))))
}

/// `MemAvailable` of Linux' `/proc/meminfo`.
fn kilobytes_available(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_that_is_ready_is_taken_once() {
        let rooms = Rooms::default();
        let mut made = memory::room(1000);
        made.resize(1000, 1.0);
        made.clear();
        let at = made.as_ptr();
        rooms.ready.lock().unwrap().push(made);
        let other = rooms.take(999);
        assert!(other.is_empty() && other.capacity() >= 999 && other.as_ptr() != at);
        let taken = rooms.take(1000);
        assert!(taken.is_empty() && taken.as_ptr() == at);
        assert!(rooms.ready.lock().unwrap().is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn rooms_that_nobody_took_are_not_made_again() {
        let rooms = Rooms::default();
        let made = || {
            rooms.make(vec![1000, 2000, 2000]);
            if let Some(maker) = rooms.maker.lock().unwrap().take() {
                maker.join().unwrap();
            }
            let mut lens: Vec<usize> = rooms.ready.lock().unwrap().iter().map(Vec::capacity).collect();
            lens.sort_unstable();
            lens
        };
        assert_eq!(made(), [1000, 2000, 2000]);
        assert_eq!(made(), [1000, 2000, 2000]);
        rooms.take(2000);
        assert_eq!(made(), [1000, 2000, 2000]);
    }

    #[test]
    fn what_the_system_has_is_read() {
        let meminfo =
            "MemTotal:       24596748 kB\nMemFree:        23000000 kB\nMemAvailable:   23890456 kB\n";
        assert_eq!(kilobytes_available(meminfo), Some(23_890_456));
        assert_eq!(kilobytes_available("MemTotal: 5 kB\n"), None);
    }
}
