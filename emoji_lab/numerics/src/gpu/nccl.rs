//! Sums over the GPUs of one host, by NCCL. It is opened at run time, as the driver and cuBLAS are, when
//! several GPUs are asked for.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::Library;

use super::Gpu;
use super::pointer::{Compute, DevicePtr};
use crate::error::{Error, Result};

/// `ncclComm_t`.
type Comm = *mut c_void;
/// `ncclResult_t`, of which 0 is success.
type Code = c_int;

/// The oldest NCCL that is enough: its bf16 sums.
const OLDEST: c_int = 21_000;
/// `ncclSum`.
const SUM: c_int = 0;

/// What numbers on a GPU are, by NCCL's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Kind {
    I32 = 2,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
}

/// Numbers on a GPU that travel.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    start: u64,
    len: usize,
    kind: Kind,
}

impl Numbers {
    /// `len` numbers from `start` on.
    pub fn i32(start: DevicePtr<i32>, len: usize) -> Self {
        Self { start: start.address(), len, kind: Kind::I32 }
    }

    /// `len` numbers from `start` on.
    pub fn f32(start: DevicePtr<f32>, len: usize) -> Self {
        Self { start: start.address(), len, kind: Kind::F32 }
    }

    /// `len` numbers from `start` on.
    pub fn f64(start: DevicePtr<f64>, len: usize) -> Self {
        Self { start: start.address(), len, kind: Kind::F64 }
    }

    /// `len` numbers from `start` on, of the GPU's compute type.
    pub fn compute(gpu: &Gpu, start: DevicePtr<Compute>, len: usize) -> Self {
        let kind = if gpu.bf16() { Kind::Bf16 } else { Kind::F32 };
        Self { start: start.address(), len, kind }
    }
}

/// NCCL's functions.
struct Nccl {
    comm_init_all: unsafe extern "C" fn(*mut Comm, c_int, *const c_int) -> Code,
    comm_destroy: unsafe extern "C" fn(Comm) -> Code,
    comm_abort: unsafe extern "C" fn(Comm) -> Code,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Code,
    all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, *mut c_void) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    /// What was opened: it stays open as long as the program runs.
    _library: Library,
}

/// What is wrong, and what to do.
type Wrong = (String, String);

const INSTALL: &str = "Install it (`pip install nvidia-nccl-cu13`, or -cu12 with CUDA 12) and name its folder in \
                       LD_LIBRARY_PATH, or take one GPU: Device::cuda(0)";

impl Nccl {
    fn open() -> std::result::Result<Self, Wrong> {
        // NVLink multicast can put the GPUs of a shared host out of service, and two of them gain nothing by it.
        // SAFETY: done once, before NCCL is there to read it; the crate changes no other variable.
        unsafe { std::env::set_var("NCCL_NVLS_ENABLE", "0") };
        // SAFETY: NCCL does nothing when it is loaded.
        let library =
            ["libnccl.so.2", "libnccl.so"].into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let Some(library) = library else {
            return Err(("NCCL (libnccl.so.2) is not found".into(), INSTALL.into()));
        };
        // SAFETY: the function writes one number.
        unsafe {
            let version = find::<unsafe extern "C" fn(*mut c_int) -> Code>(&library, "ncclGetVersion")?;
            let mut number = 0;
            if version(&mut number) != 0 || number < OLDEST {
                let said = version_of_nccl(number);
                return Err((
                    format!("NCCL {said} is too old: 2.10 is the oldest that is enough"),
                    INSTALL.into(),
                ));
            }
        }
        // SAFETY: each has the type that NCCL 2 declares for its name.
        unsafe {
            Ok(Self {
                comm_init_all: find(&library, "ncclCommInitAll")?,
                comm_destroy: find(&library, "ncclCommDestroy")?,
                comm_abort: find(&library, "ncclCommAbort")?,
                all_reduce: find(&library, "ncclAllReduce")?,
                all_gather: find(&library, "ncclAllGather")?,
                group_start: find(&library, "ncclGroupStart")?,
                group_end: find(&library, "ncclGroupEnd")?,
                error_string: find(&library, "ncclGetErrorString")?,
                _library: library,
            })
        }
    }

    fn get() -> std::result::Result<&'static Self, &'static Wrong> {
        static OPEN: OnceLock<std::result::Result<Nccl, Wrong>> = OnceLock::new();
        OPEN.get_or_init(Self::open).as_ref()
    }

    /// What a code means, in NCCL's words.
    fn said(&self, code: Code) -> String {
        // SAFETY: a text that is there as long as NCCL is.
        let text = unsafe { (self.error_string)(code) };
        if text.is_null() {
            return format!("NCCL's code {code}");
        }
        // SAFETY: as above, with a zero at its end.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// # Safety
/// `F` must be the type of the function that has this name.
unsafe fn find<F: Copy>(library: &Library, name: &str) -> std::result::Result<F, Wrong> {
    // SAFETY: the caller's.
    match unsafe { library.get::<F>(name) } {
        Ok(function) => Ok(*function),
        Err(_) => Err((format!("the NCCL that is found has no {name}: it is too old"), INSTALL.into())),
    }
}

/// 22809 as `2.28.9`; up to 2.8 there was a digit less.
fn version_of_nccl(number: c_int) -> String {
    match number {
        ..=0 => "of an unknown version".into(),
        1..10_000 => format!("{}.{}.{}", number / 1000, number % 1000 / 100, number % 100),
        _ => format!("{}.{}.{}", number / 10_000, number % 10_000 / 100, number % 100),
    }
}

/// That NCCL is there and new enough for `devices`.
pub fn check(devices: &str) -> Result<()> {
    match Nccl::get() {
        Ok(_) => Ok(()),
        Err((problem, help)) => Err(Error::device(devices, problem, help)),
    }
}

/// One GPU's connection to the others.
pub struct Communicator {
    nccl: &'static Nccl,
    comm: Comm,
    device: String,
    aborted: AtomicBool,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time; its owner is one rank's thread, and
// `ncclCommAbort` is made to be called beside it.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl Communicator {
    /// Connects GPUs, each with all others: what all have is in this order.
    pub fn connect(gpus: &[Gpu]) -> Result<Vec<Self>> {
        let names: Vec<String> = gpus.iter().map(Gpu::short_name).collect();
        check(&names.join(", "))?;
        let nccl = Nccl::get().map_err(|(problem, help)| Error::device(&names[0], problem, help))?;
        let ordinals: Vec<c_int> = gpus.iter().map(|gpu| gpu.ordinal() as c_int).collect();
        let mut comms: Vec<Comm> = vec![null_mut(); gpus.len()];
        // SAFETY: as many communicators as there are GPUs.
        let code =
            unsafe { (nccl.comm_init_all)(comms.as_mut_ptr(), gpus.len() as c_int, ordinals.as_ptr()) };
        if code != 0 {
            return Err(Error::device(
                names.join(", "),
                format!("NCCL does not connect them: {}", nccl.said(code)),
                "Look at what else uses them (nvidia-smi), start the kernel with NCCL_DEBUG=WARN for NCCL's own \
                 words, or take one GPU: Device::cuda(0)",
            ));
        }
        let own = |(comm, device)| Self { nccl, comm, device, aborted: AtomicBool::new(false) };
        Ok(comms.into_iter().zip(names).map(own).collect())
    }

    /// Puts sums over all GPUs in the place of `numbers`, when what was sent to `gpu`'s stream before is
    /// done. All GPUs get the same bits, in every run.
    ///
    /// # Safety
    /// They must be this GPU's, and all GPUs be asked for the same, in the same order.
    pub unsafe fn sum(&self, gpu: &Gpu, numbers: Numbers) -> Result<()> {
        self.usable()?;
        let Numbers { start, len, kind } = numbers;
        if len == 0 {
            return Ok(());
        }
        let (stream, start) = (gpu.raw_stream().cast(), start as *mut c_void);
        // SAFETY: the caller's.
        let code =
            unsafe { (self.nccl.all_reduce)(start, start, len, kind as c_int, SUM, self.comm, stream) };
        self.check(code)
    }

    /// Puts every GPU's numbers one after the other, from `to` on.
    ///
    /// # Safety
    /// As [`Self::sum`], with room for all of them.
    pub unsafe fn gather(&self, gpu: &Gpu, own: Numbers, to: Numbers) -> Result<()> {
        self.usable()?;
        let (stream, start) = (gpu.raw_stream().cast(), own.start as *const c_void);
        let (to, kind) = (to.start as *mut c_void, own.kind as c_int);
        // SAFETY: the caller's.
        let code = unsafe { (self.nccl.all_gather)(start, to, own.len, kind, self.comm, stream) };
        self.check(code)
    }

    /// Sends what `enqueue` asks for as one.
    pub fn grouped(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: it is ended below, whatever comes between.
        self.check(unsafe { (self.nccl.group_start)() })?;
        let enqueued = enqueue();
        // SAFETY: it was begun above, on this thread.
        let ended = self.check(unsafe { (self.nccl.group_end)() });
        enqueued.and(ended)
    }

    /// Ends what waits for other GPUs, from any thread. Nothing can be asked for afterwards.
    pub fn abort(&self) {
        if !self.aborted.swap(true, Ordering::SeqCst) {
            // SAFETY: once, and the communicator is not used after it.
            unsafe { (self.nccl.comm_abort)(self.comm) };
        }
    }

    /// Whether it was ended.
    pub fn was_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// That NCCL still knows it.
    fn usable(&self) -> Result<()> {
        match self.was_aborted() {
            false => Ok(()),
            true => Err(Error::device(&self.device, "it was let go by NCCL", "Look at the other GPUs")),
        }
    }

    fn check(&self, code: Code) -> Result<()> {
        match code {
            0 => Ok(()),
            _ => Err(Error::device(
                &self.device,
                format!("NCCL: {}", self.nccl.said(code)),
                "Look at nvidia-smi, and restart the kernel; resume() goes on from the last checkpoint",
            )),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.was_aborted() {
            // SAFETY: once, by its last owner.
            unsafe { (self.nccl.comm_destroy)(self.comm) };
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator({})", self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    /// With and without NCCL: never a panic, and a sentence that says what to do.
    #[test]
    fn nccl_is_looked_for() {
        match check("cuda:0, cuda:1") {
            Ok(()) => assert_eq!(std::env::var("NCCL_NVLS_ENABLE").as_deref(), Ok("0")),
            Err(error) => {
                let said = error.to_string();
                assert!(
                    said.starts_with("device cuda:0, cuda:1: ") && said.contains("nvidia-nccl"),
                    "{said}"
                );
                assert_eq!(said.lines().count(), 1);
            }
        }
    }

    /// Two GPUs add up; and one that waits for the other in vain is let go.
    #[test]
    fn sums_of_two_and_a_wait_that_is_ended() {
        if Gpu::count() < 2 {
            return println!("skipped: there are {} GPUs", Gpu::count());
        }
        let gpus = [0, 1].map(|ordinal| Gpu::open(ordinal).unwrap().with_own_streams().unwrap());
        let connected = Communicator::connect(&gpus).unwrap();
        let numbers = |gpu: &Gpu, first: f32| {
            let values: Vec<f32> = (0..1000).map(|i| first + i as f32).collect();
            Memory::from_slice(gpu, &values, "a test's numbers").unwrap()
        };
        let memory = [numbers(&gpus[0], 1.0), numbers(&gpus[1], 100.0)];
        let sum = |which: usize| {
            // SAFETY: as many numbers on both.
            unsafe { connected[which].sum(&gpus[which], Numbers::f32(memory[which].ptr(), 1000)) }.unwrap();
            gpus[which].synchronize()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| sum(1));
            sum(0).unwrap();
            other.join().unwrap().unwrap();
        });
        for memory in &memory {
            let mut values = vec![0f32; 1000];
            memory.read(0, &mut values).unwrap();
            assert!(values.iter().enumerate().all(|(i, value)| *value == 101.0 + 2.0 * i as f32));
        }
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sum(0));
            std::thread::sleep(std::time::Duration::from_millis(300));
            assert!(!waiting.is_finished(), "a sum of one");
            connected.iter().for_each(Communicator::abort);
            // Whatever the driver says of it: it ends.
            println!("let go: {:?}", waiting.join().unwrap());
        });
        let said = sum_of_none(&connected[0], &gpus[0]).unwrap_err().to_string();
        assert!(said.contains("let go"), "{said}");
    }

    fn sum_of_none(own: &Communicator, gpu: &Gpu) -> Result<()> {
        // SAFETY: no numbers.
        unsafe { own.sum(gpu, Numbers::f32(DevicePtr::nowhere(), 0)) }
    }

    /// The C library has none of NCCL's functions.
    #[test]
    fn a_library_that_lacks_a_function_is_too_old() {
        // SAFETY: the C library is there already.
        let library = unsafe { Library::new("libc.so.6") }.unwrap();
        // SAFETY: it is not called.
        let (problem, _) =
            unsafe { find::<unsafe extern "C" fn() -> Code>(&library, "ncclGroupStart") }.unwrap_err();
        assert_eq!(problem, "the NCCL that is found has no ncclGroupStart: it is too old");
    }

    #[test]
    fn versions_are_told_as_nccl_tells_them() {
        assert_eq!(version_of_nccl(22_809), "2.28.9");
        assert_eq!(version_of_nccl(2_708), "2.7.8");
        assert_eq!(version_of_nccl(0), "of an unknown version");
    }
}
