//! What the driver's and cuBLAS' codes mean for somebody in front of a notebook, in sentences.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::{cublas, driver};

use crate::error::{Error, Result};

/// The oldest driver whose functions these bindings find: CUDA 12.0.
pub(crate) const OLDEST_DRIVER: i32 = 12_000;
/// From here on the driver has `cuEventElapsedTime_v2`, which the bindings ask for by this name.
pub(crate) const TELLS_TIME: i32 = 12_080;
/// CUDA of the compiler that made the kernels, as 13000, or 0: from `build.rs`.
pub(crate) const KERNELS: &str = env!("EMOJI_LAB_KERNELS_CUDA");

const CPU: &str = "or compute on the CPU: Device::Cpu";

/// The driver's functions that are called. cudarc looks each up when it is first called, and panics
/// where it is not there.
const DRIVER_FUNCTIONS: [&str; 39] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// cuBLAS' functions that are called.
const CUBLAS_FUNCTIONS: [&str; 5] =
    ["cublasCreate_v2", "cublasDestroy_v2", "cublasGemmEx", "cublasSetStream_v2", "cublasSetWorkspace_v2"];

/// Where something went wrong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts<'a> {
    /// The newest CUDA that the driver serves, as 13000; 0 if it does not say.
    pub driver: i32,
    /// The CUDA that compiled the kernels.
    pub kernels: i32,
    /// The GPU's name and compute capability, where they are known.
    pub gpu: Option<(&'a str, (i32, i32))>,
    /// `CUDA_VISIBLE_DEVICES`, where it is set.
    pub visible: Option<&'a str>,
}

/// 13000 as `13.0`.
pub fn version(number: i32) -> String {
    match number {
        0 => "an unknown version".into(),
        _ => format!("{}.{}", number / 1000, number % 1000 / 10),
    }
}

/// What is wrong and what to do, for the driver's codes that have a reason outside this program.
pub(crate) fn of_driver(code: u32, facts: Facts<'_>) -> Option<(String, String)> {
    let gpu = facts.gpu.map_or_else(
        || "this GPU".to_string(),
        |(name, (major, minor))| format!("{name} (compute capability {major}.{minor})"),
    );
    let (driver, kernels) = (version(facts.driver), version(facts.kernels));
    let (problem, help) = match code {
        2 => (
            "it has no memory left".into(),
            "Close what else is on the GPU (nvidia-smi), drop(trainer) of an earlier run of the cell".into(),
        ),
        34 => (
            "libcuda.so.1 is the toolkit's stub, not a driver".into(),
            "Take the toolkit's stubs folder out of LD_LIBRARY_PATH".to_string(),
        ),
        35 | 36 => (
            format!("the driver serves CUDA {driver}, and that is too old"),
            "Update the NVIDIA driver".into(),
        ),
        46 => (
            "another process has it for itself (exclusive-process mode), or it is not usable now".into(),
            "End the other process (nvidia-smi), or have the mode changed: nvidia-smi --compute-mode=DEFAULT".into(),
        ),
        100 | 101 => match facts.visible {
            Some(visible) => (
                format!("the driver shows no such GPU: CUDA_VISIBLE_DEVICES is {visible:?}"),
                "Unset it, or name GPUs that nvidia-smi lists, counted from 0, and restart the kernel".into(),
            ),
            None if code == 100 => (
                "the driver shows no GPU".into(),
                "Look at nvidia-smi; in a container start it with --gpus all, and see that /dev/nvidia* may be read and written".into(),
            ),
            None => (
                "the driver shows no GPU of this number".into(),
                "Look at nvidia-smi: GPUs are counted from 0".into(),
            ),
        },
        200 | 209 => (
            format!("the kernels of this build (CUDA {kernels}) have no machine code that the driver (CUDA {driver}) takes for {gpu}"),
            "Update the driver, or build with this machine's nvcc (NVCC=/path/to/nvcc)".into(),
        ),
        218 | 222 => (
            format!("the kernels were compiled by CUDA {kernels}, and the driver serves CUDA {driver}, too old to translate them for {gpu}"),
            "Update the driver, or build with this machine's nvcc (NVCC=/path/to/nvcc)".into(),
        ),
        221 | 223 => (
            format!("the driver cannot translate the kernels for {gpu}: its compiler (libnvidia-ptxjitcompiler) is missing or switched off"),
            "Unset CUDA_DISABLE_PTX_JIT, install the driver as a whole".into(),
        ),
        214 => (
            "its memory has an error that it cannot correct (ECC)".into(),
            "Restart the kernel; if it comes again have the GPU reset (nvidia-smi -q -d ECC)".into(),
        ),
        304 => (
            "the system did not let the driver in".into(),
            "See that /dev/nvidia* may be read and written, in a container with the NVIDIA container toolkit".into(),
        ),
        800 => (
            "using it is not permitted".into(),
            "See that /dev/nvidia* may be read and written, in a container with the NVIDIA container toolkit".into(),
        ),
        802 => (
            "the system is still starting its GPUs (the fabric manager, where there is NVLink)".into(),
            "Wait, and see that nvidia-fabricmanager runs".into(),
        ),
        803 => (
            "the driver's library and its kernel module are of different versions".into(),
            "Restart the machine after the driver's update; in a container, restart the container".into(),
        ),
        804 => (
            format!("{gpu} does not work with the forward-compatibility package (cuda-compat) that is in LD_LIBRARY_PATH"),
            "Take the compat folder out of LD_LIBRARY_PATH, and update the driver".into(),
        ),
        999 => (
            "the driver gives no reason (CUDA_ERROR_UNKNOWN)".into(),
            "Look at nvidia-smi: after sleep or an update the machine wants a restart; in a container see that /dev/nvidia-uvm is there".into(),
        ),
        _ => return None,
    };
    Some((problem, help))
}

/// What is wrong where cuBLAS does not start, and what to do. `version` is its major one.
pub(crate) fn of_cublas(status: u32, version: Option<i32>) -> (String, String) {
    let which = version.map_or_else(String::new, |major| format!(" {major}"));
    match status {
        1 => (
            format!(
                "cuBLAS{which} does not start (CUBLAS_STATUS_NOT_INITIALIZED): the driver is too old for it, or no memory is left"
            ),
            format!(
                "Close what else is on the GPU (nvidia-smi), or install the cuBLAS of the driver's CUDA (`pip install nvidia-cublas-cu12` for 12), {CPU}"
            ),
        ),
        3 => (
            format!("cuBLAS{which} finds no memory (CUBLAS_STATUS_ALLOC_FAILED)"),
            format!(
                "Close what else is on the GPU (nvidia-smi), drop(trainer) of an earlier run of the cell, {CPU}"
            ),
        ),
        8 | 15 => (
            format!("cuBLAS{which} is not made for this GPU (status {status})"),
            format!("Install the cuBLAS of the driver's CUDA (`pip install nvidia-cublas`), {CPU}"),
        ),
        _ => (
            format!("cuBLAS{which} does not start (status {status})"),
            "Compute on the CPU: Device::Cpu".into(),
        ),
    }
}

/// The first of `names` that a library lacks.
fn missing<'a>(names: &[&'a str], has: impl Fn(&str) -> bool) -> Option<&'a str> {
    names.iter().find(|name| !has(name)).copied()
}

/// Whether driver and cuBLAS are there and have all that is called, without a call that could panic.
/// Returns what is wrong and what to do.
pub fn libraries() -> std::result::Result<(), (String, String)> {
    // SAFETY: only asks whether the library is there.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err((
            "there is no NVIDIA driver (libcuda.so.1)".into(),
            "Install the driver, in a container with the NVIDIA container toolkit".into(),
        ));
    }
    // SAFETY: the library is there; symbols are looked for, and not called.
    let has = |name: &str| unsafe { driver::sys::culib().get::<*const ()>(name.as_bytes()).is_ok() };
    if let Some(name) = missing(&DRIVER_FUNCTIONS, has) {
        return Err((
            format!(
                "the NVIDIA driver (libcuda.so.1) has no {name}: it is older than CUDA {}",
                version(OLDEST_DRIVER)
            ),
            "Update the NVIDIA driver".into(),
        ));
    }
    // SAFETY: only asks whether the library is there.
    if !unsafe { cublas::sys::is_culib_present() } {
        return Err((
            "cuBLAS (libcublas.so.13 or .12) is not found".into(),
            "Install CUDA's libraries (`pip install nvidia-cublas`) and name their folder in LD_LIBRARY_PATH"
                .into(),
        ));
    }
    if let Some(name) = missing(&CUBLAS_FUNCTIONS, has_cublas) {
        return Err((
            format!("the cuBLAS that is found has no {name}: it is too old"),
            "Install CUDA's libraries (`pip install nvidia-cublas`) and name their folder first in LD_LIBRARY_PATH"
                .into(),
        ));
    }
    Ok(())
}

fn has_cublas(name: &str) -> bool {
    // SAFETY: called where the library is there; the symbol is looked for, and not called.
    unsafe { cublas::sys::culib().get::<*const ()>(name.as_bytes()).is_ok() }
}

/// cuBLAS' major version, where it tells.
pub(crate) fn cublas_version() -> Option<i32> {
    let mut major = 0;
    if !has_cublas("cublasGetProperty") {
        return None;
    }
    // SAFETY: it writes one number.
    let status = unsafe {
        cublas::sys::cublasGetProperty(cublas::sys::libraryPropertyType::MAJOR_VERSION, &mut major)
    };
    (status == cublas::sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(major)
}

/// Runs `f`, and makes an error of a panic: the last net under cudarc, which panics where a library
/// lacks a function.
pub fn caught<R>(device: &str, f: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        Err(Error::device(
            device,
            said(&*panic),
            format!("Update the NVIDIA driver and CUDA's libraries, {CPU}"),
        ))
    })
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the bindings gave up");
    text.lines().next().unwrap_or_default().trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sentences() {
        let facts = Facts { driver: 12_020, kernels: 13_000, gpu: Some(("Tesla T4", (7, 5))), visible: None };
        for (code, problem, help) in [
            (2, "no memory left", "drop(trainer)"),
            (34, "stub", "LD_LIBRARY_PATH"),
            (35, "CUDA 12.2", "Update"),
            (36, "CUDA 12.2", "Update"),
            (46, "exclusive-process", "nvidia-smi"),
            (100, "shows no GPU", "/dev/nvidia*"),
            (101, "no GPU of this number", "counted from 0"),
            (200, "Tesla T4 (compute capability 7.5)", "NVCC="),
            (209, "driver (CUDA 12.2) takes for Tesla T4 (compute capability 7.5)", "NVCC="),
            (218, "compiled by CUDA 13.0", "Update the driver"),
            (222, "driver serves CUDA 12.2", "NVCC="),
            (221, "libnvidia-ptxjitcompiler", "driver"),
            (223, "switched off", "CUDA_DISABLE_PTX_JIT"),
            (214, "ECC", "Restart the kernel"),
            (304, "did not let", "/dev/nvidia*"),
            (800, "not permitted", "/dev/nvidia*"),
            (802, "fabric manager", "nvidia-fabricmanager"),
            (803, "different versions", "Restart the machine"),
            (804, "cuda-compat", "LD_LIBRARY_PATH"),
            (999, "CUDA_ERROR_UNKNOWN", "nvidia-smi"),
        ] {
            let (said, todo) = of_driver(code, facts).unwrap();
            assert!(said.contains(problem), "{code}: {said}");
            assert!(todo.contains(help), "{code}: {todo}");
            assert!(
                !format!("{said}{todo}").contains('\n') && !todo.ends_with('.'),
                "{code}: {said}. {todo}"
            );
        }
        // A fault of ours, or of the moment: the caller says what it was doing.
        for code in [0, 1, 700, 719, 12_345] {
            assert_eq!(of_driver(code, facts), None);
        }
    }

    #[test]
    fn hidden_gpus_are_named() {
        for visible in ["", "7", "GPU-12345678", "-1"] {
            let facts = Facts { visible: Some(visible), ..Facts::default() };
            for code in [100, 101] {
                let (said, _) = of_driver(code, facts).unwrap();
                assert!(said.contains(&format!("CUDA_VISIBLE_DEVICES is {visible:?}")), "{said}");
            }
        }
    }

    #[test]
    fn cublas_is_told_by_its_version() {
        let (said, todo) = of_cublas(1, Some(13));
        assert!(
            said.starts_with("cuBLAS 13 does not start") && todo.contains("nvidia-cublas-cu12"),
            "{said}. {todo}"
        );
        for status in [1, 3, 8, 15, 7] {
            assert!(of_cublas(status, None).1.contains("Device::Cpu"));
        }
    }

    #[test]
    fn versions() {
        assert_eq!(version(13_000), "13.0");
        assert_eq!(version(12_080), "12.8");
        assert_eq!(version(0), "an unknown version");
        assert!(KERNELS.parse::<i32>().is_ok_and(|n| n >= 11_000), "{KERNELS}");
    }

    #[test]
    fn what_a_library_lacks() {
        assert_eq!(missing(&CUBLAS_FUNCTIONS, |_| true), None);
        assert_eq!(missing(&CUBLAS_FUNCTIONS, |name| name != "cublasGemmEx"), Some("cublasGemmEx"));
        assert_eq!(missing(&DRIVER_FUNCTIONS, |name| !name.ends_with("Ex")), Some("cuLaunchKernelEx"));
    }

    /// Also without a GPU: never a panic.
    #[test]
    fn libraries_are_looked_at() {
        if let Err((problem, help)) = libraries() {
            assert!(!problem.is_empty() && !help.is_empty());
            println!("here: {problem}. {help}");
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = caught::<()>("cuda:0", || panic!("Missing symbol {}: not there", "cuNew")).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("device cuda:0: Missing symbol cuNew: not there. Update"), "{text}");
        assert!(caught("cuda:0", || Ok(3)).is_ok_and(|n| n == 3));
    }
}
