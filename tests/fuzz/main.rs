//! One fuzzer for all readers: `EMOJI_LAB_FUZZ` names the one of [`targets::TARGETS`] to feed.
//! `tests/fuzz/run` compiles and calls it.
#![no_main]

mod memory;
mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[global_allocator]
static MEMORY: memory::Counted = memory::Counted;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    // libfuzzer-sys ends the process at every panic, also at one that the crate catches and makes an
    // error of: those of the tokenizers crate.
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|at| at.file().contains("/tokenizers-")) {
            abort(panic);
        }
    }));
    let name = std::env::var("EMOJI_LAB_FUZZ").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
    match found {
        Some((_, target)) => *target,
        None => {
            let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("EMOJI_LAB_FUZZ is {name:?}, not one of {}", names.join(", "));
            std::process::exit(2);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(chosen);
    memory::within_bounds(bytes, *target);
});
