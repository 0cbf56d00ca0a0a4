//! Compiles the CUDA kernels, where the `cuda` feature asks for them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Machine code for these, and PTX of the last one for GPUs to come: T4; A100, A10, L4; H100.
const CAPABILITIES: [u32; 3] = [75, 80, 90];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let ops = Path::new("src/ops");
    watch(ops);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let Some(nvcc) = find_nvcc() else {
        fail(
            "nvcc is not found. Install the CUDA toolkit and name it in CUDA_HOME, or run \
             tools/install-cuda-toolkit.sh, which needs no GPU and no root",
        );
    };
    println!("cargo::rustc-env=EMOJI_LAB_KERNELS_CUDA={}", cuda_version(&nvcc));
    let mut command = Command::new(&nvcc);
    command
        .args(["-fatbin", "-O3", "-std=c++17", "--threads", "0", "-o"])
        .arg(&out)
        .arg(ops.join("kernels.cu"));
    for capability in CAPABILITIES {
        command.arg(format!("-gencode=arch=compute_{capability},code=sm_{capability}"));
    }
    let last = CAPABILITIES[CAPABILITIES.len() - 1];
    command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            fail(&format!("{} failed:\n{}", nvcc.display(), String::from_utf8_lossy(&output.stderr)));
        }
        Err(e) => fail(&format!("{} does not start: {e}", nvcc.display())),
    }
}

/// The compiler's CUDA, as 13000 for 13.0, or 0: errors name it where a driver is too old for the kernels.
fn cuda_version(nvcc: &Path) -> u32 {
    let said = Command::new(nvcc).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let mut numbers = said
        .split_once("release ")
        .into_iter()
        .flat_map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()))
        .map(|number| number.parse().unwrap_or(0));
    numbers.next().unwrap_or(0) * 1000 + numbers.next().unwrap_or(0) * 10
}

/// `NVCC`, then the toolkit in `CUDA_HOME` or `CUDA_PATH`, then the one of our own script, then the
/// `PATH`.
fn find_nvcc() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(nvcc) = set("NVCC") {
        return Some(nvcc);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let ours = cache.map(|dir| dir.join("emoji_lab/cuda/nvidia/cu13"));
    let homes = [set("CUDA_HOME"), set("CUDA_PATH"), ours, Some("/usr/local/cuda".into())];
    let in_homes = homes.into_iter().flatten().map(|home| home.join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = env::split_paths(&path).map(|dir| dir.join("nvcc")).collect();
    in_homes.chain(in_path).find(|nvcc| nvcc.is_file())
}

fn watch(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            watch(&path);
        } else if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={}", message.replace('\n', " | "));
    std::process::exit(1)
}
