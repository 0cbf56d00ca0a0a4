//! What the fuzzers begin with, and all that they found: every reader takes or refuses it, within its
//! memory, without a panic.

#[path = "fuzz/memory.rs"]
mod memory;
#[path = "fuzz/targets.rs"]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: memory::Counted = memory::Counted;

// One test: the count of memory is the process'.
#[test]
fn every_seed_is_taken_or_refused_within_its_memory() {
    let greedy = |_: &[u8]| drop(std::hint::black_box(vec![1u8; 64 << 20]));
    assert!(std::panic::catch_unwind(|| memory::within_bounds(b"", greedy)).is_err(), "too much is noticed");
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in targets::TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(seeds.join(name))
            .unwrap_or_else(|e| panic!("{name} has no seeds: {e}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let started = Instant::now();
            memory::within_bounds(&bytes, *target);
            // Not a measurement: what hangs takes for ever, on a busy machine too.
            assert!(started.elapsed() < Duration::from_secs(60), "{} hangs", file.display());
        }
        println!("{name}: ok");
    }
    targets::clean_up();
}
