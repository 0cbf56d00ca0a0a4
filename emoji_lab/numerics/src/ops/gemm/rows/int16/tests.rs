use super::super::stored::tests::{KINDS, stored};
use super::super::tests::random;
use super::super::{Kernels, Matrix, Rows, Stored, Target};
use super::*;

/// The products of rows of x with some rows of a weight, into what is there.
fn products(x: &[f32], w: &Stored, w_rows: Range<usize>, (accumulate, alpha): (bool, f32), out: &mut [f32]) {
    let (k, stride) = (w.dims().1, w_rows.len());
    let target = Target { start: out.as_mut_ptr(), stride, accumulate, alpha };
    // SAFETY: all of x and of the target, which nobody else has.
    unsafe { Kernels::Avx512Vnni.block(Rows::new(x, k, k), Matrix::Stored(w), w_rows, &target) };
}

/// x as it is rounded, in plain Rust.
fn rounded(x: &[f32]) -> Vec<f64> {
    let of_run = |run: &[f32]| {
        let scale = run.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 32_767.0;
        run.iter().map(|x| f64::from(scale) * (f64::from(*x) / f64::from(scale)).round_ties_even()).collect()
    };
    x.chunks(32).flat_map(|run| -> Vec<f64> { of_run(run) }).collect()
}

/// Kinds that are multiplied with whole numbers, where the machine does so.
fn kinds() -> Vec<(Stored, Vec<f32>)> {
    let weight = |kind| {
        let w = stored(kind, 41, 768);
        let values = w.values();
        (w, values)
    };
    let all = KINDS.map(weight).into_iter();
    all.filter(|(w, _)| is_there() && w.takes_whole_numbers(Kernels::Avx512Vnni)).collect()
}

#[test]
fn sums_are_those_of_the_rounded_rows() {
    let (k, rows) = (768, 19);
    let x = random(rows * k, 1);
    let near = rounded(&x);
    for (w, values) in kinds() {
        let mut out = vec![f32::NAN; rows * 41];
        products(&x, &w, 0..41, (false, 1.0), &mut out);
        for (at, out) in out.iter().enumerate() {
            let (row, w_row) = (at / 41 * k, at % 41 * k);
            let of = |x: &dyn Fn(usize) -> f64| {
                let terms = (0..k).map(|i| x(row + i) * f64::from(values[w_row + i]));
                terms.sum::<f64>()
            };
            let largest = values[w_row..][..k].iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
            let size: f64 = x[row..][..k].iter().map(|x| f64::from(x.abs() * largest)).sum();
            let (sum, exact) = (of(&|i| near[i]), of(&|i| f64::from(x[i])));
            let errors = [f64::from(*out) - sum, f64::from(*out) - exact].map(|error| error.abs() / size);
            assert!(errors[0] < 3e-7 && errors[1] < 4e-6, "{w:?} {at}: {errors:?}");
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_others() {
    let x = random(23 * 768, 3);
    for (w, _) in kinds() {
        let mut all = vec![f32::NAN; 23 * 41];
        products(&x, &w, 0..41, (false, 1.0), &mut all);
        for (rows, w_rows) in [(0..1, 0..41), (22..23, 5..6), (4..9, 16..41), (3..20, 40..41), (0..23, 7..30)]
        {
            let mut part = vec![f32::NAN; rows.len() * w_rows.len()];
            products(&x[rows.start * 768..rows.end * 768], &w, w_rows.clone(), (false, 1.0), &mut part);
            for (row, part) in rows.zip(part.chunks(w_rows.len())) {
                assert_eq!(part, &all[row * 41..][w_rows.clone()], "{w:?} row {row} of x, {w_rows:?} of w");
            }
        }
    }
}

#[test]
fn sums_are_scaled_and_added() {
    let x = random(3 * 768, 4);
    for (w, _) in kinds() {
        let (mut plain, mut added) = (vec![0.0; 3 * 20], vec![1.5; 3 * 20]);
        products(&x, &w, 20..40, (false, 1.0), &mut plain);
        products(&x, &w, 20..40, (true, 0.5), &mut added);
        let wanted: Vec<f32> = plain.iter().map(|sum| 1.5 + 0.5 * sum).collect();
        assert_eq!(added, wanted, "{w:?}");
    }
}

#[test]
fn zeros_give_zeros_and_what_is_no_number_stays_none() {
    for (w, _) in kinds() {
        let mut x = vec![0.0; 4 * 768];
        x[768..2 * 768].fill(1e-38);
        x[2 * 768 + 100] = f32::INFINITY;
        x[3 * 768 + 700] = f32::NAN;
        let mut out = vec![1.0; 4 * 41];
        products(&x, &w, 0..41, (false, 1.0), &mut out);
        assert!(out[..2 * 41].iter().all(|sum| sum.abs() < 1e-30), "{w:?}");
        assert!(out[2 * 41..].iter().all(|sum| sum.is_nan()), "{w:?}");
    }
}
