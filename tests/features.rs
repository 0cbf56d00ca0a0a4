//! What is said where a feature was left out; `tests/run plain` builds it so.
#![cfg(not(feature = "cuda"))]

use emoji_lab::prelude::*;

#[test]
fn a_gpu_without_its_feature_is_told_with_what_to_do() {
    for (name, told) in
        [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cuda:0,1", "cuda:0"), ("cuda:all", "cuda:0")]
    {
        let said = Device::by_name(name).unwrap_err().to_string();
        for part in [told, "has no CUDA", "`cuda` feature", "notebooks/run --cuda"] {
            assert!(said.contains(part), "{name}: {said}");
        }
    }
    // Nobody who did not ask for one meets an error.
    assert!(matches!(Device::by_name("auto").unwrap(), Device::Cpu));
}
