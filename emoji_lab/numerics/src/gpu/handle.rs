//! The GPU: opened, described, its dtype chosen.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::DType;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};

use super::driver_errors::{self, Facts, OLDEST_DRIVER, TELLS_TIME};
use super::gemm::Blas;
use super::shared::UNASKED;
use crate::error::{Error, Result};

/// What a GPU has.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// As errors name it.
    pub device: &'a str,
    /// As the driver names it.
    pub name: &'a str,
    /// Bytes of shared memory that a block may ask for.
    pub shared_bytes: usize,
}

/// All kernels, for the compute capabilities that `build.rs` names.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The oldest GPUs the kernels are compiled for: Turing (T4).
const OLDEST: (i32, i32) = (7, 5);
/// From here on there is bf16 arithmetic: Ampere.
const BF16: (i32, i32) = (8, 0);

/// From here on a kernel can begin before the one in front of it has ended, and graphs can say so:
/// Hopper, and the driver of CUDA 12.3.
const OVERLAPS: ((i32, i32), i32) = ((9, 0), 12_030);

/// The newest CUDA that the driver serves, as 13000 for 13.0; 0 if it does not say. The driver must be
/// there.
fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: it writes one number.
    match unsafe { sys::cuDriverGetVersion(&mut version) } {
        sys::CUresult::CUDA_SUCCESS => version,
        _ => 0,
    }
}

/// An NVIDIA GPU, its kernels, and streams to send work on. Clones share them.
#[derive(Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
    streams: Arc<Streams>,
    dtype: DType,
    /// Whether work goes to the side stream.
    on_side: bool,
    /// GPUs that share its work, each alone.
    pub(super) others: Arc<[Gpu]>,
}

struct Shared {
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    functions: Mutex<HashMap<String, Function>>,
    /// `cuda:0`.
    device: String,
    name: String,
    capability: (i32, i32),
    overlaps: bool,
    /// CUDA that the driver serves, as 13000.
    driver: i32,
    /// Bytes of shared memory that a block may ask for.
    shared_bytes: usize,
    ordinal: usize,
    /// Bytes of this process' buffers.
    held: AtomicUsize,
}

/// Two streams and a cuBLAS handle. Each trainer and each generator has its own, so that two
/// threads do not get into each other's graphs.
struct Streams {
    main: Arc<CudaStream>,
    side: Arc<CudaStream>,
    blas: Blas,
}

// SAFETY: as for `Shared`.
unsafe impl Send for Streams {}
// SAFETY: one thread at a time sends work on them: their owner is behind a `&mut` or a lock.
unsafe impl Sync for Streams {}

impl Streams {
    fn new(context: &Arc<CudaContext>, device: &str) -> Result<Self> {
        let failed = |e: cudarc::driver::DriverError| Error::device(device, describe(e.0), "See nvidia-smi");
        // What is beside is wanted later: its blocks let those of the main stream go first.
        let (least, greatest) = result::stream::get_priority_range().map_err(failed)?;
        let stream = |priority| context.new_stream_with_priority(priority).map_err(failed);
        let (main, side) = (stream(greatest)?, stream(least)?);
        Ok(Self { blas: Blas::new(&main, device)?, main, side })
    }
}

impl Drop for Streams {
    /// cuBLAS gives back what it has on the GPU that is the thread's: with several it may be another by now.
    fn drop(&mut self) {
        let _ = self.main.context().bind_to_thread();
    }
}

#[derive(Clone, Copy)]
pub struct Function(pub sys::CUfunction);

// SAFETY: handles of the driver are plain references that any thread may use; the context is made
// current before each call (`Gpu::bind`).
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Function {}

impl Gpu {
    /// The GPU number `ordinal`.
    ///
    /// # Errors
    /// [`Error::Device`] if driver, cuBLAS or the GPU are missing or too old.
    pub fn open(ordinal: usize) -> Result<Self> {
        // Cells each call this: one context, one stream and one set of statics for all of them.
        static OPEN: Mutex<Option<HashMap<usize, Gpu>>> = Mutex::new(None);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = driver_errors::caught(&format!("cuda:{ordinal}"), || Self::start(ordinal))?;
        open.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    /// How many GPUs the driver shows; 0 without a driver.
    pub fn count() -> usize {
        // A driver too old for what is asked of it counts as none: opening a GPU says why.
        if driver_errors::libraries().is_err() {
            return 0;
        }
        let count = driver_errors::caught("cuda", || Ok(CudaContext::device_count()));
        count.ok().and_then(|n| n.ok()).and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    }

    fn start(ordinal: usize) -> Result<Self> {
        let device = format!("cuda:{ordinal}");
        let fail = |problem: String, help: &str| {
            Err(Error::device(&device, problem, format!("{help}, or compute on the CPU: Device::Cpu")))
        };
        // cudarc panics where a library or one of its functions is missing.
        if let Err((problem, help)) = driver_errors::libraries() {
            return fail(problem, &help);
        }
        let driver = driver_version();
        if driver != 0 && driver < OLDEST_DRIVER {
            return fail(
                format!(
                    "the driver serves CUDA {}, and {} is the oldest that is enough",
                    driver_errors::version(driver),
                    driver_errors::version(OLDEST_DRIVER)
                ),
                "Update the NVIDIA driver",
            );
        }
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let kernels = driver_errors::KERNELS.parse().unwrap_or(0);
        let facts = Facts { driver, kernels, gpu: None, visible: visible.as_deref() };
        let context = match CudaContext::new(ordinal) {
            Ok(context) => context,
            Err(e) => {
                let (problem, help) = driver_errors::of_driver(e.0 as u32, facts).unwrap_or_else(|| {
                    (format!("the driver does not open it: {}", describe(e.0)), "Look at nvidia-smi".into())
                });
                return fail(problem, &help);
            }
        };
        let driver_error =
            |e: cudarc::driver::DriverError| Error::device(&device, describe(e.0), "See nvidia-smi");
        let name = context.name().map_err(driver_error)?;
        let capability = context.compute_capability().map_err(driver_error)?;
        if capability < OLDEST {
            return fail(
                format!(
                    "{name} has compute capability {}.{}, and the kernels begin with {}.{} (T4)",
                    capability.0, capability.1, OLDEST.0, OLDEST.1
                ),
                "Use a newer GPU",
            );
        }
        // Who waits for what is said where it happens (`fork`, `record_event`, `wait_for`): cudarc need not track it.
        // SAFETY: the two streams of a pair wait for each other; pairs share nothing that is written.
        unsafe { context.disable_event_tracking() };
        // SAFETY: the image is a whole fatbin, made by nvcc.
        let module = match unsafe { result::module::load_data(KERNELS.as_ptr().cast()) } {
            Ok(module) => module,
            Err(e) => {
                let facts = Facts { gpu: Some((&name, capability)), ..facts };
                let (problem, help) = driver_errors::of_driver(e.0 as u32, facts).unwrap_or_else(|| {
                    (
                        format!("the driver does not take the kernels: {}", describe(e.0)),
                        "Update the driver, or build with this machine's nvcc (NVCC=/path/to/nvcc)".into(),
                    )
                });
                return fail(problem, &help);
            }
        };
        let shared_bytes = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_or(UNASKED, |bytes| usize::try_from(bytes).unwrap_or(0).max(UNASKED));
        let streams = Arc::new(Streams::new(&context, &device)?);
        let dtype = if capability >= BF16 { DType::BF16 } else { DType::F32 };
        let functions = Mutex::new(HashMap::new());
        let overlaps = capability >= OVERLAPS.0 && driver >= OVERLAPS.1;
        let shared = Shared {
            context,
            module,
            functions,
            device,
            name,
            capability,
            overlaps,
            driver,
            shared_bytes,
            ordinal,
            held: AtomicUsize::new(0),
        };
        Ok(Self { shared: Arc::new(shared), streams, dtype, on_side: false, others: [].into() })
    }

    /// The same GPU computing in `dtype`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a type it cannot compute in.
    pub fn with_dtype(&self, dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => {}
            DType::BF16 if self.shared.capability >= BF16 => {}
            _ => {
                let (major, minor) = self.shared.capability;
                let help = format!(
                    "{} (compute capability {major}.{minor}) has {}",
                    self.shared.name,
                    if self.shared.capability >= BF16 {
                        "F32 and BF16"
                    } else {
                        "F32 alone: BF16 begins with 8.0"
                    }
                );
                return Err(Error::setting("dtype", dtype.as_str(), help));
            }
        }
        let others = self.others.iter().map(|gpu| gpu.with_dtype(dtype)).collect::<Result<_>>()?;
        Ok(Self { dtype, others, ..self.clone() })
    }

    /// The same GPU, whose work these others share.
    pub(super) fn sharing_with(&self, others: &[Self]) -> Self {
        Self { others: others.into(), ..self.clone() }
    }

    /// The same GPU with streams of its own.
    pub fn with_own_streams(&self) -> Result<Self> {
        self.bind()?;
        Ok(Self {
            streams: Arc::new(Streams::new(&self.shared.context, &self.short_name())?),
            ..self.clone()
        })
    }

    /// The type it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The GPU's name, as nvidia-smi has it.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Compute capability, major and minor.
    pub fn compute_capability(&self) -> (i32, i32) {
        self.shared.capability
    }

    /// (free, total) memory in bytes.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver does not say.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        self.shared.context.mem_get_info().map_err(|e| self.error(e.0))
    }

    /// How many multiprocessors it has; an H100's number if the driver does not say.
    pub fn multiprocessors(&self) -> usize {
        let which = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        self.shared.context.attribute(which).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(132)
    }

    /// How many bytes this process' buffers take, counted where they are made and freed.
    pub fn held(&self) -> &AtomicUsize {
        &self.shared.held
    }

    /// Whether blocks of a cluster read each other's shared memory (Hopper).
    pub(crate) fn has_clusters(&self) -> bool {
        self.shared.capability >= OVERLAPS.0
    }

    pub(crate) fn overlaps_kernels(&self) -> bool {
        self.shared.overlaps
    }

    /// Whether the driver tells how long something took (CUDA 12.8: driver 570).
    pub fn tells_time(&self) -> bool {
        self.shared.driver >= TELLS_TIME
    }

    /// What a model is held against before anything of it is uploaded.
    pub fn limits(&self) -> Limits<'_> {
        Limits {
            device: &self.shared.device,
            name: &self.shared.name,
            shared_bytes: self.shared.shared_bytes,
        }
    }

    /// Lets a kernel have as much shared memory as the GPU gives a block, beside what it declares.
    pub(crate) fn allow_shared(&self, function: Function) -> Result<()> {
        use sys::CUfunction_attribute_enum::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        };
        let most = self.shared.shared_bytes as i32
            - self.attribute(function, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        // SAFETY: the function is the module's, which stays loaded.
        unsafe { sys::cuFuncSetAttribute(function.0, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most) }
            .result()
            .map_err(|e| self.error(e.0))
    }

    /// A function's attribute, as bytes of shared memory that it declares.
    pub fn attribute(&self, function: Function, which: sys::CUfunction_attribute_enum) -> Result<i32> {
        let mut value = 0;
        // SAFETY: it writes one number.
        unsafe { sys::cuFuncGetAttribute(&mut value, which, function.0) }
            .result()
            .map_err(|e| self.error(e.0))?;
        Ok(value)
    }

    /// Whether it computes in bf16, and not in f32.
    pub fn bf16(&self) -> bool {
        self.dtype == DType::BF16
    }

    /// Bytes of one value of the compute type.
    pub fn size(&self) -> usize {
        self.dtype.size_in_bytes()
    }

    /// The main stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.streams.main
    }

    /// The stream that this handle sends to.
    pub fn raw_stream(&self) -> sys::CUstream {
        if self.on_side { self.streams.side.cu_stream() } else { self.streams.main.cu_stream() }
    }

    /// The same GPU, sending to the side stream, which begins after all work submitted so far.
    /// cuBLAS stays on the main stream.
    pub fn fork(&self) -> Result<Self> {
        let now = self.streams.main.record_event(None).map_err(|e| self.error(e.0))?;
        self.streams.side.wait(&now).map_err(|e| self.error(e.0))?;
        Ok(Self { on_side: true, ..self.clone() })
    }

    /// An event after all work submitted to the side stream so far.
    pub fn record_event(&self) -> Result<CudaEvent> {
        self.streams.side.record_event(None).map_err(|e| self.error(e.0))
    }

    /// Has what follows on the main stream begin after `event`.
    pub fn wait_for(&self, event: &CudaEvent) -> Result<()> {
        self.streams.main.wait(event).map_err(|e| self.error(e.0))
    }

    /// cuBLAS, on the main stream.
    pub fn blas(&self) -> &Blas {
        &self.streams.blas
    }

    /// Makes the GPU's context the calling thread's: cells and pool threads come and go.
    pub fn bind(&self) -> Result<()> {
        self.shared.context.bind_to_thread().map_err(|e| self.error(e.0))
    }

    /// Waits until all submitted work is done.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        self.streams.main.synchronize().map_err(|e| self.error(e.0))
    }

    /// The kernel `name`, in the version of the compute type where `typed`.
    pub fn function(&self, name: &str, typed: bool) -> Result<Function> {
        let name = match (typed, self.bf16()) {
            (false, _) => name.to_string(),
            (true, false) => format!("{name}_f32"),
            (true, true) => format!("{name}_bf16"),
        };
        let mut functions = self.shared.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&name) {
            return Ok(*function);
        }
        let c_name = CString::new(name.as_str()).map_err(|_| self.fault(&name, "a name with a zero byte"))?;
        // SAFETY: the module stays loaded as long as `shared` lives.
        let function = unsafe { result::module::get_function(self.shared.module, c_name) }
            .map_err(|e| self.fault(&name, &describe(e.0)))?;
        functions.insert(name, Function(function));
        Ok(Function(function))
    }

    fn fault(&self, kernel: &str, problem: &str) -> Error {
        Error::device(
            self.short_name(),
            format!("kernel {kernel}: {problem}"),
            "This is a fault of emoji_lab",
        )
    }

    /// Its number.
    pub(super) fn ordinal(&self) -> usize {
        self.shared.ordinal
    }

    /// `cuda:0`.
    pub fn short_name(&self) -> String {
        self.shared.device.clone()
    }

    /// An error the driver gave while something ran.
    pub fn error(&self, code: sys::CUresult) -> Error {
        let gpu = Some((self.name(), self.compute_capability()));
        let facts = Facts { driver: self.shared.driver, gpu, ..Facts::default() };
        let (problem, first) = driver_errors::of_driver(code as u32, facts).map_or_else(
            || (describe(code), String::new()),
            |(problem, help)| (problem, format!("{help}. ")),
        );
        Error::device(
            self.short_name(),
            problem,
            format!(
                "{first}Restart the kernel; checkpoints written before are whole, and resume_from_checkpoint goes on from them"
            ),
        )
    }
}

/// The driver's own words for a code.
pub fn describe(code: sys::CUresult) -> String {
    cudarc::driver::DriverError(code)
        .error_string()
        .ok()
        .and_then(|text| text.to_str().ok())
        .map_or_else(|| format!("{code:?}"), |text| format!("{text} ({code:?})"))
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.shared.capability;
        write!(f, "cuda:{} ({}, compute capability {major}.{minor}", self.shared.ordinal, self.shared.name)?;
        if let Ok((_, total)) = self.memory() {
            write!(f, ", {:.0} GiB", total as f64 / f64::from(1 << 30))?;
        }
        write!(f, ")")?;
        self.others.iter().try_for_each(|gpu| write!(f, ", {gpu}"))
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {:?})", self.short_name(), self.dtype)
    }
}
