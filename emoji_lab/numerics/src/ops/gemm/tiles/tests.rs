use rayon::prelude::*;

use super::*;

/// Numbers that are not alike.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The product in f64.
fn expected(out: &[f32], accumulate: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
    let at = |m: &Mat<'_>, i: usize, j: usize| f64::from(m.data[i * m.row_stride + j * m.col_stride]);
    let mut wanted = vec![];
    for i in 0..a.rows {
        for j in 0..b.cols {
            let sum: f64 = (0..a.cols).map(|p| at(&a, i, p) * at(&b, p, j)).sum();
            let before = if accumulate { f64::from(out[i * b.cols + j]) } else { 0.0 };
            wanted.push(before + f64::from(alpha) * sum);
        }
    }
    wanted
}

/// `a` as `[m, k]` and `b` as `[k, n]`, each as it lies and turned.
fn forms<'a>(a: &'a [f32], b: &'a [f32], (m, k, n): (usize, usize, usize)) -> [(Mat<'a>, Mat<'a>); 4] {
    [
        (Mat::new(a, m, k), Mat::new(b, k, n)),
        (Mat::new(a, k, m).t(), Mat::new(b, k, n)),
        (Mat::new(a, m, k), Mat::new(b, n, k).t()),
        (Mat::new(a, k, m).t(), Mat::new(b, n, k).t()),
    ]
}

fn all_kernels() -> Vec<Kernels> {
    match Kernels::of_this_machine() {
        Some(Kernels::Avx512) => vec![Kernels::Avx512, Kernels::Avx2],
        Some(Kernels::Avx2) => vec![Kernels::Avx2],
        None => vec![],
    }
}

#[test]
fn every_form_and_size_is_the_product() {
    let sizes = [
        (1, 1, 1),
        (3, 5, 7),
        (8, 192, 48),
        (9, 193, 49),
        (17, 16, 20),
        (116, 640, 100),
        (97, 400, 130),
        (1300, 20, 33),
        (5, 1, 2000),
        (2, 3000, 3),
    ];
    for kernels in all_kernels() {
        for (m, k, n) in sizes {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            for (form, (a, b)) in forms(&a, &b, (m, k, n)).into_iter().enumerate() {
                for (accumulate, alpha) in [(false, 1.0), (true, 1.0), (true, 0.5), (false, -2.0)] {
                    let mut out = numbers(m * n, 3);
                    let wanted = expected(&out, accumulate, alpha, a, b);
                    let target = Target { start: out.as_mut_ptr(), stride: n, accumulate, alpha };
                    multiply(kernels, &target, a, b);
                    let error = |(got, wanted): (&f32, &f64)| (f64::from(*got) - wanted).abs();
                    let worst = out.iter().zip(&wanted).map(error).fold(0.0, f64::max);
                    let bound = 1e-6 * (k as f64).sqrt() * 4.0;
                    assert!(worst < bound, "{kernels:?} {m} {k} {n}, form {form}: {worst}");
                }
            }
        }
    }
}

/// The same of operands that are rounded to bf16, for which f32 has the product of two without rounding.
#[test]
fn in_bf16_it_is_the_product_of_what_is_rounded() {
    if !bf16::is_there() {
        eprintln!("skipped: no AVX512-BF16");
        return;
    }
    for (m, k, n) in
        [(1, 1, 1), (3, 5, 7), (8, 256, 48), (9, 257, 49), (116, 641, 100), (1300, 20, 33), (5, 900, 4000)]
    {
        let rounded = |mut numbers: Vec<f32>| {
            crate::quant::blocks::round_to_bf16(&mut numbers);
            numbers
        };
        let (raw_a, raw_b) = (numbers(m * k, 1), numbers(k * n, 2));
        let (a, b) = (rounded(raw_a.clone()), rounded(raw_b.clone()));
        let sizes = (m, k, n);
        for (form, (raw, rounded)) in
            forms(&raw_a, &raw_b, sizes).into_iter().zip(forms(&a, &b, sizes)).enumerate()
        {
            for (accumulate, alpha) in [(false, 1.0), (true, 0.5), (false, -2.0)] {
                let mut out = numbers(m * n, 3);
                let wanted = expected(&out, accumulate, alpha, rounded.0, rounded.1);
                bf16::within(|| crate::ops::gemm::matmul(&mut out, accumulate, alpha, raw.0, raw.1));
                let error = |(got, wanted): (&f32, &f64)| (f64::from(*got) - wanted).abs();
                let worst = out.iter().zip(&wanted).map(error).fold(0.0, f64::max);
                assert!(worst < 1e-6 * (k as f64).sqrt() * 4.0, "{m} {k} {n}, form {form}: {worst}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_has_no_say() {
    let (a, b) = (numbers(130 * 500, 1), numbers(500 * 700, 2));
    for (a, b) in [
        (Mat::new(&a, 130, 500), Mat::new(&b, 500, 700)),
        (Mat::new(&a, 130, 500), Mat::new(&b, 700, 500).t()),
        (Mat::new(&b, 500, 700).t(), Mat::new(&a, 500, 130)),
    ] {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; a.rows * b.cols];
            pool.install(|| crate::ops::gemm::matmul(&mut out, false, 1.0, a, b));
            let mut in_bf16 = vec![0.0; a.rows * b.cols];
            let product = || crate::ops::gemm::matmul(&mut in_bf16, false, 1.0, a, b);
            bf16::pool(threads).unwrap().install(product);
            (out, in_bf16)
        };
        let one = on(1);
        assert!([2, 3, 7].into_iter().all(|threads| on(threads) == one));
    }
}

/// A thread that waits for its part of a product in bf16 takes up other work meanwhile, which is in f32.
#[test]
fn what_is_computed_beside_bf16_stays_f32() {
    let (a, b) = (numbers(130 * 500, 1), numbers(500 * 700, 2));
    let product = || {
        let mut out = vec![0.0; 130 * 700];
        crate::ops::gemm::matmul(&mut out, false, 1.0, Mat::new(&a, 130, 500), Mat::new(&b, 500, 700));
        out
    };
    let (in_f32, in_bf16) = (product(), bf16::within(product));
    assert!(in_f32 != in_bf16 || !bf16::is_there());
    (0..64).into_par_iter().for_each(|i| match i % 2 {
        0 => assert!(bf16::within(product) == in_bf16),
        _ => assert!(product() == in_f32),
    });
}
