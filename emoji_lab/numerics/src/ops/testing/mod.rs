//! What the tests of the ops' kernels share: every GPU there is in every type it computes in, cases
//! of random sizes, memory with guard zones, and a comparison that says how far and where.
//!
//! A matrix on the GPU lies in a larger buffer of NaN bytes, at a start of its own, with rows further
//! apart than they are wide. What is read back must be written through, and all around it untouched.

pub(crate) mod adapters;
mod guarded;

use candle_core::{DType, Shape, Tensor};

use crate::gpu::Gpu;
pub(crate) use crate::gpu::gemm::matrix;
use crate::gpu::gemm::{self, Matrix, Out};
use crate::gpu::memory::Memory;
use crate::gpu::pointer::{Compute, DevicePtr, Number};
use crate::host;
use crate::ops::step::{Step, StepResult};
use crate::rng::Philox;
pub(crate) use guarded::{Guarded, Kind, Value};

/// How far a value may be off: a share of itself, and a share of the largest in its matrix (or of
/// `at_least`, where sums may cancel).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bar {
    of_value: f64,
    of_largest: f64,
    at_least: f64,
}

impl Bar {
    /// Every bit equal.
    pub(crate) const EXACT: Self = Self { of_value: 0.0, of_largest: 0.0, at_least: 0.0 };

    /// For values of `kind` that were computed in f32: 1e-5 of the largest, for sums go in another
    /// order; and in bf16 2^-8 of the value itself, half a unit in the last of 8 bits, for what they
    /// are compared with is not rounded.
    pub(crate) fn of(kind: Kind) -> Self {
        let of_value = if kind == Kind::Bf16 { 1.0 / 256.0 } else { 0.0 };
        Self { of_value, of_largest: 1e-5, at_least: 0.0 }
    }

    /// The largest value is taken to be no less than this: what the terms of a sum amount to.
    pub(crate) fn at_least(self, scale: f64) -> Self {
        Self { at_least: scale, ..self }
    }

    /// `n` times the share of the value itself.
    pub(crate) fn times(self, n: f64) -> Self {
        Self { of_value: self.of_value * n, ..self }
    }

    /// With `share` of the largest value.
    pub(crate) fn of_largest(self, share: f64) -> Self {
        Self { of_largest: share, ..self }
    }
}

/// The worst value of one name.
struct Worst {
    name: &'static str,
    /// Error as a share of what is allowed, and of the largest value.
    share: f64,
    error: f64,
    at: String,
}

/// One GPU in one type, at work on one case after the other.
pub(crate) struct OnGpu {
    pub(crate) gpu: Gpu,
    pub(crate) random: Philox,
    case: u64,
    sizes: String,
    worst: Vec<Worst>,
    failures: Vec<String>,
}

/// Runs `body` for `cases` cases on every GPU, in f32 and in bf16. All cases run before the test
/// fails, so that one run tells what is wrong where.
pub(crate) fn on_every_gpu(test: &str, cases: u64, body: impl Fn(&mut OnGpu)) {
    let mut failures = vec![];
    for ordinal in 0..Gpu::count().max(1) {
        let gpu = match Gpu::open(ordinal) {
            Ok(gpu) => gpu.with_own_streams().unwrap(),
            Err(error) => {
                println!("{test}: skipped: no GPU: {error}");
                continue;
            }
        };
        for dtype in [DType::F32, DType::BF16] {
            let gpu = match gpu.with_dtype(dtype) {
                Ok(gpu) => gpu,
                Err(error) => {
                    println!("{test}: skipped on {gpu}: {error}");
                    continue;
                }
            };
            gpu.bind().unwrap();
            let random = Philox::new(0, 0);
            let (sizes, worst) = (String::new(), vec![]);
            let mut t = OnGpu { gpu, random, case: 0, sizes, worst, failures: vec![] };
            let began = std::time::Instant::now();
            for case in 0..cases {
                t.case = case;
                t.random = Philox::new(20_261_124, case);
                t.sizes.clear();
                body(&mut t);
            }
            let seconds = began.elapsed().as_secs_f64();
            println!("{test}: {} in {dtype:?}: {cases} cases, {seconds:.2} s", t.gpu);
            for w in &t.worst {
                println!(
                    "    {:<14} off by {:.1e} of the largest, {:.0} % of what is allowed, {}",
                    w.name,
                    w.error,
                    w.share * 100.0,
                    w.at
                );
            }
            failures.append(&mut t.failures);
        }
    }
    let first: Vec<&str> = failures.iter().take(12).map(String::as_str).collect();
    assert!(failures.is_empty(), "{test}: {} failures\n{}", failures.len(), first.join("\n"));
}

impl OnGpu {
    /// Says what the case is about, for messages.
    pub(crate) fn sizes(&mut self, sizes: impl std::fmt::Debug) {
        self.sizes = format!("{sizes:?}");
    }

    /// Puts down that something is not as it must be.
    pub(crate) fn fail(&mut self, problem: impl std::fmt::Display) {
        let line = format!("{:?}, case {}, sizes {}: {problem}", self.gpu.dtype(), self.case, self.sizes);
        self.failures.push(line);
    }

    /// What the kernels' typed values are.
    pub(crate) fn kind(&self) -> Kind {
        Compute::kind(&self.gpu)
    }

    /// A random size from `low` to `high`.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.random.below((high - low + 1) as u64) as usize
    }

    /// One in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.random.below(n) == 0
    }

    /// One of `options`.
    pub(crate) fn pick<V: Copy>(&mut self, options: &[V]) -> V {
        options[self.between(0, options.len() - 1)]
    }

    /// f32 values within ±`spread`.
    pub(crate) fn values(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count).map(|_| (self.random.next_f32() * 2.0 - 1.0) * spread).collect()
    }

    /// The same, rounded to the compute type.
    pub(crate) fn rounded(&mut self, count: usize, spread: f32) -> Vec<f32> {
        let values = self.values(count, spread);
        self.round(values)
    }

    /// As the compute type holds them.
    pub(crate) fn round(&self, values: Vec<f32>) -> Vec<f32> {
        match self.gpu.bf16() {
            true => values.into_iter().map(|v| half::bf16::from_f32(v).to_f32()).collect(),
            false => values,
        }
    }

    /// A start within a guarded buffer: any multiple of 16 bytes, which rows are aligned to.
    fn start(&mut self) -> usize {
        self.between(1, 24) * 16
    }

    /// A row distance for rows of `width`: at times larger, rows being aligned to 16 bytes.
    pub(crate) fn ld(&mut self, width: usize) -> usize {
        if self.one_in(3) { width } else { width.next_multiple_of(8) + 8 * self.between(1, 5) }
    }

    /// `values` in rows of `width`, `ld` apart, NaN around them.
    pub(crate) fn put<T: Value>(&mut self, values: &[f32], width: usize, ld: usize) -> Guarded<T> {
        let start = self.start();
        Guarded::with_values(&self.gpu, start, values, (values.len() / width.max(1), width, ld))
    }

    /// `values` without gaps.
    pub(crate) fn put_f32(&mut self, values: &[f32]) -> Guarded<f32> {
        self.put(values, values.len(), values.len())
    }

    /// `values` without gaps, in the compute type.
    pub(crate) fn put_typed(&mut self, values: &[f32]) -> Guarded<Compute> {
        self.put(values, values.len(), values.len())
    }

    /// `rows` of `width`, `ld` apart, nothing but NaN.
    pub(crate) fn room<T: Value>(&mut self, rows: usize, width: usize, ld: usize) -> Guarded<T> {
        let start = self.start();
        Guarded::poisoned(&self.gpu, start, (rows, width, ld))
    }

    /// Numbers that are only read, of any plain type.
    pub(crate) fn plain<V: crate::gpu::pointer::Plain>(&self, values: &[V]) -> Plain<V> {
        Plain(Memory::from_slice(&self.gpu, values, "a test's input").unwrap())
    }

    /// Token ids or positions.
    pub(crate) fn tokens(&self, values: &[u32]) -> Plain<i32> {
        self.plain(&values.iter().map(|value| *value as i32).collect::<Vec<_>>())
    }

    /// What changes from step to step.
    pub(crate) fn step(&self, seed: u64, pass: u64, loss_factor: f32, first_micro: bool) -> Plain<Step> {
        self.step_with(seed, pass, loss_factor, first_micro, 0.0)
    }

    /// The same with a bar for the gradients' norm.
    pub(crate) fn step_with(
        &self,
        seed: u64,
        pass: u64,
        loss_factor: f32,
        first_micro: bool,
        max_grad_norm: f32,
    ) -> Plain<Step> {
        let first_micro = i32::from(first_micro);
        let last_pass = pass;
        self.plain(&[Step {
            seed,
            pass,
            last_pass,
            loss_factor,
            max_grad_norm,
            first_micro,
            ..Step::default()
        }])
    }

    /// `result` of `finish_norm`: (loss, norm, factor, finite).
    pub(crate) fn step_result(&self, result: &Plain<StepResult>) -> (f64, f64, f32, bool) {
        let mut read = [StepResult::default()];
        result.0.read(0, &mut read).unwrap();
        (read[0].loss, read[0].grad_norm, read[0].gradient_scale, read[0].finite == 1)
    }

    /// A `StepResult`, not yet written.
    pub(crate) fn room_for_result(&self) -> Plain<StepResult> {
        Plain(Memory::poisoned(&self.gpu, 1, "a test's result").unwrap())
    }

    /// What a kernel wrote, f32: all of it must be written, and nothing around it.
    pub(crate) fn read<T: Value>(&mut self, name: &str, from: &Guarded<T>) -> Vec<f32> {
        let bytes = self.read_bytes(name, from);
        let (values, unwritten) = from.kind().decode(&bytes);
        if let Some(at) = unwritten {
            let (row, column) = from.place(at);
            self.fail(format!("{name}[{row}, {column}] was not written"));
        }
        values
    }

    /// The same as bytes, without asking whether they were written.
    pub(crate) fn read_bytes<T: Value>(&mut self, name: &str, from: &Guarded<T>) -> Vec<u8> {
        let (bytes, outside) = from.read();
        if let Some(problem) = outside {
            self.fail(format!("{name}: written outside: {problem}"));
        }
        bytes
    }

    /// Nothing of it, nor around it, may be written.
    pub(crate) fn untouched<T: Value>(&mut self, name: &str, buffer: &Guarded<T>) {
        if self.read_bytes(name, buffer).iter().any(|byte| *byte != 0xff) {
            self.fail(format!("{name} is written, and should not be"));
        }
    }

    /// Compares rows of `width` with what the CPU made.
    pub(crate) fn check(&mut self, name: &'static str, ours: &[f32], theirs: &[f32], width: usize, bar: Bar) {
        if ours.len() != theirs.len() {
            return self.fail(format!("{name}: {} values, not {}", ours.len(), theirs.len()));
        }
        let largest = theirs.iter().fold(bar.at_least, |top, v| top.max(f64::from(v.abs())));
        let allowed = |v: f32| bar.of_value * f64::from(v.abs()) + bar.of_largest * largest;
        let mut worst = (0.0, 0.0, 0);
        for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let error = (f64::from(*a) - f64::from(*b)).abs();
            let share = if error == 0.0 { 0.0 } else { error / allowed(*b) };
            // NaN is worse than anything.
            if share > worst.0 || share.is_nan() {
                worst = (if share.is_nan() { f64::INFINITY } else { share }, error / largest, i);
            }
            if share.is_nan() {
                break;
            }
        }
        let (share, error, i) = worst;
        let (row, column) = (i / width.max(1), i % width.max(1));
        if share > 1.0 {
            self.fail(format!(
                "{name}[{row}, {column}] is {:e}, not {:e}: off by {error:.1e} of the largest, {share:.1} times what \
                 is allowed",
                ours[i], theirs[i]
            ));
        }
        let at = format!("[{row}, {column}] of case {} {}", self.case, self.sizes);
        match self.worst.iter_mut().find(|w| w.name == name) {
            Some(w) if w.share >= share => {}
            Some(w) => *w = Worst { name, share, error, at },
            None => self.worst.push(Worst { name, share, error, at }),
        }
    }

    /// One of the products a linear layer is made of, as the passes call cuBLAS.
    ///
    /// # Safety
    /// As `gemm`.
    pub(crate) unsafe fn product(&self, shape: (usize, usize, usize), product: Product) {
        // SAFETY: the caller's.
        let done = unsafe {
            match product {
                Product::Forward { x, w, y } => {
                    gemm::gemm(&self.gpu, shape, x, w.transposed(), Out::Compute(y))
                }
                Product::Back { dy, w, dx } => gemm::gemm(&self.gpu, shape, dy, w, Out::F32(dx)),
                Product::Weight { dy, x, dw, add } => {
                    let out = if add { Out::AddCompute(dw) } else { Out::Compute(dw) };
                    gemm::gemm(&self.gpu, shape, dy.transposed(), x, out)
                }
            }
        };
        done.unwrap();
    }
}

/// The products a linear layer is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Product {
    /// y = x Wᵀ.
    Forward { x: Matrix<Compute>, w: Matrix<Compute>, y: Matrix<Compute> },
    /// dx = dy W.
    Back { dy: Matrix<Compute>, w: Matrix<Compute>, dx: Matrix<f32> },
    /// dW = dyᵀ x, or dW += dyᵀ x.
    Weight { dy: Matrix<Compute>, x: Matrix<Compute>, dw: Matrix<Compute>, add: bool },
}

/// Values on the GPU that are only read, or looked at as a whole.
pub(crate) struct Plain<V>(Memory<V>);

impl<V> Plain<V> {
    /// Where they begin.
    pub(crate) fn ptr(&self) -> DevicePtr<V> {
        self.0.ptr()
    }

    /// The first of them.
    pub(crate) fn first(&self) -> V
    where
        V: Number + Default,
    {
        self.firsts(1)[0]
    }

    /// The first `count` of them.
    pub(crate) fn firsts(&self, count: usize) -> Vec<V>
    where
        V: Number + Default,
    {
        let mut values = vec![V::default(); count];
        self.0.read(0, &mut values).unwrap();
        values
    }
}

/// A tensor on the CPU.
pub(crate) fn tensor(values: &[f32], shape: impl Into<Shape>) -> Tensor {
    host::tensor(values.to_vec(), shape).unwrap()
}

/// A tensor's values.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    host::read(&tensor.contiguous().unwrap(), |v| Ok(v.to_vec())).unwrap()
}
