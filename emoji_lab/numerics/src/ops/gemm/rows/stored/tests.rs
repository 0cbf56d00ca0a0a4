use super::*;
use crate::ops::columns::Columns;
use crate::ops::gemm::rows::tests::{kernels, random};
use crate::ops::gemm::rows::{Rows, Target};
use crate::ops::gemm::{Matrix, products, products_of_some};
use crate::rng::Philox;

pub(in super::super) const KINDS: [Kind; 11] = [
    Kind::F32,
    Kind::F16,
    Kind::BF16,
    Kind::Q4_0,
    Kind::Q4_1,
    Kind::Q5_0,
    Kind::Q5_1,
    Kind::Q8_0,
    Kind::Q4_K,
    Kind::Q5_K,
    Kind::Q6_K,
];

/// Random blocks, their scales of a size that occurs: any bits would be numbers that are none, too.
pub(in super::super) fn stored(kind: Kind, outs: usize, ins: usize) -> Stored {
    let mut random = Philox::new(7, kind.id().into());
    let mut bytes: Vec<u8> =
        (0..outs * ins / kind.block_values() * kind.block_bytes()).map(|_| random.below(256) as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let scale = (random.next_f32() - 0.5) * 0.2;
        match kind {
            Kind::F32 => block.copy_from_slice(&scale.to_le_bytes()),
            Kind::F16 => block.copy_from_slice(&half::f16::from_f32(scale).to_le_bytes()),
            Kind::BF16 => block.copy_from_slice(&half::bf16::from_f32(scale).to_le_bytes()),
            _ => {}
        }
        for at in scales(kind) {
            block[*at..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    from_bytes(kind, &bytes, (outs, ins)).unwrap()
}

fn from_bytes(kind: Kind, bytes: &[u8], dims: (usize, usize)) -> Option<Stored> {
    let mut memory = Memory::zeroed(bytes.len()).unwrap();
    memory.copy_from_slice(bytes);
    Stored::new(kind, Arc::new(memory), 0..bytes.len(), dims)
}

fn bits(values: &[f32]) -> Vec<u32> {
    // Zeros of both signs are one value: a sum never tells them apart.
    values.iter().map(|value| (value + 0.0).to_bits()).collect()
}

/// All values as a kernel takes them, each row in two parts; in plain Rust, by parts of rows.
fn unpacked(w: &Stored, kernels: Kernels) -> Vec<f32> {
    let (outs, ins) = w.dims();
    let mut out = vec![f32::NAN; outs * ins];
    #[cfg(target_arch = "x86_64")]
    if kernels != Kernels::Portable {
        let first = 256.min(ins - 256);
        for part in [0..first, first..ins] {
            // Three rows at a time, further apart than they are long.
            let stride = part.len() + 5;
            for start in (0..outs).step_by(3) {
                let rows = start..outs.min(start + 3);
                let mut room = vec![f32::NAN; rows.len() * stride];
                w.unpack_part(kernels, rows.clone(), part.clone(), &mut room, stride);
                for (row, values) in rows.zip(room.chunks(stride)) {
                    out[row * ins..][part.clone()].copy_from_slice(&values[..part.len()]);
                }
            }
        }
        return out;
    }
    let _ = kernels;
    w.in_f32(0..outs, |first, some| out[first * ins..][..some.len()].copy_from_slice(some));
    out
}

#[test]
fn unpacked_values_are_the_files() {
    for kind in KINDS {
        let w = stored(kind, 7, 768);
        let exact = kind.dequantize(w.bytes());
        for kernels in kernels() {
            assert_eq!(bits(&unpacked(&w, kernels)), bits(&exact), "{kind:?} {kernels:?}");
        }
    }
}

#[test]
fn every_bit_pattern_of_a_block_is_unpacked_alike() {
    // Scales too, the smallest and those below zero among them.
    for kind in KINDS {
        let mut random = Philox::new(11, kind.id().into());
        let mut bytes: Vec<u8> = (0..256 * kind.block_bytes() * 256 / kind.block_values())
            .map(|_| random.below(256) as u8)
            .collect();
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            scales(kind).iter().for_each(|at| block[at + 1] &= 0xbf);
        }
        let w = from_bytes(kind, &bytes, (256, 256)).unwrap();
        let exact = kind.dequantize(w.bytes());
        for kernels in kernels() {
            let out = unpacked(&w, kernels);
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            assert!(out.iter().zip(&exact).all(same), "{kind:?} {kernels:?}");
        }
    }
}

#[test]
fn products_are_those_of_the_unpacked_weight_to_the_bit() {
    for kind in KINDS {
        for (outs, ins) in [(1, 256), (13, 768), (50, 1024), (7, 2048)] {
            let w = stored(kind, outs, ins);
            let dense = kind.dequantize(w.bytes());
            for rows in [1, 2, 5, 70] {
                let x = random(rows * ins, 1);
                // (Those with whole numbers are no products of f32: see their own tests.)
                for kernels in kernels().into_iter().filter(|kernels| !w.takes_whole_numbers(*kernels)) {
                    let mut wanted = vec![f32::NAN; rows * outs];
                    let target = |out: &mut Vec<f32>| Target {
                        start: out.as_mut_ptr(),
                        stride: outs,
                        accumulate: false,
                        alpha: 1.0,
                    };
                    let xs = Rows::new(&x, ins, ins);
                    // SAFETY: all of x, w and the target, which nobody else has.
                    unsafe { kernels.block(xs, Matrix::Dense(&dense), 0..outs, &target(&mut wanted)) };
                    let mut ours = vec![f32::NAN; rows * outs];
                    // SAFETY: as above.
                    unsafe { kernels.block(xs, Matrix::Stored(&w), 0..outs, &target(&mut ours)) };
                    assert_eq!(bits(&ours), bits(&wanted), "{kind:?} {kernels:?} {rows} × {outs} × {ins}");
                    let mut first = vec![f32::NAN; outs];
                    let x = Rows::new(&x[..ins], ins, ins);
                    // SAFETY: as above.
                    unsafe { kernels.block(x, Matrix::Stored(&w), 0..outs, &target(&mut first)) };
                    assert_eq!(bits(&first), bits(&wanted[..outs]), "{kind:?} {kernels:?} alone");
                }
            }
        }
    }
}

#[test]
fn all_cores_give_the_same() {
    for kind in KINDS {
        let (outs, ins) = (700, 512);
        let w = stored(kind, outs, ins);
        if w.takes_whole_numbers(Kernels::of_this_machine()) {
            let x = random(67 * ins, 2);
            let (mut wanted, mut ours) = (vec![1.0; 67 * outs], vec![1.0; 67 * outs]);
            for (x, wanted) in x.chunks(ins).zip(wanted.chunks_mut(outs)) {
                products(wanted, true, 0.5, x, Matrix::Stored(&w), ins);
            }
            products(&mut ours, true, 0.5, &x, Matrix::Stored(&w), ins);
            assert_eq!(bits(&ours), bits(&wanted), "{kind:?}");
            continue;
        }
        let dense = kind.dequantize(w.bytes());
        for rows in [1, 3, 67] {
            let x = random(rows * ins, 2);
            let (mut wanted, mut ours) = (vec![1.0; rows * outs], vec![1.0; rows * outs]);
            products(&mut wanted, true, 0.5, &x, Matrix::Dense(&dense), ins);
            products(&mut ours, true, 0.5, &x, Matrix::Stored(&w), ins);
            assert_eq!(bits(&ours), bits(&wanted), "{kind:?} {rows}");
        }
        let x = random(ins, 3);
        let (mut wanted, mut ours) = (vec![0.0; 300], vec![0.0; 300]);
        let x = Rows::new(&x, ins, ins);
        products_of_some(x, Matrix::Dense(&dense), 99, Columns::of(&mut wanted, 300));
        products_of_some(x, Matrix::Stored(&w), 99, Columns::of(&mut ours, 300));
        assert_eq!(bits(&ours), bits(&wanted), "{kind:?}");
    }
}

#[test]
fn bf16_is_kept_only_if_it_is_exact() {
    let mut values: Vec<f32> =
        random(64 * 3, 4).into_iter().map(|v| half::bf16::from_f32(v).to_f32()).collect();
    let w = Stored::bf16(&values, (3, 64)).unwrap();
    assert_eq!((w.kind, w.bytes().len(), w.dims()), (Kind::BF16, 2 * values.len(), (3, 64)));
    assert_eq!(Kind::BF16.dequantize(w.bytes()), values);
    values[100] = 0.1;
    assert!(Stored::bf16(&values, (3, 64)).is_none());
}

#[test]
fn what_is_not_whole_rows_of_blocks_or_not_finite_is_refused() {
    assert!(from_bytes(Kind::Q8_0, &[0x7c; 34], (1, 32)).is_none());
    assert!(from_bytes(Kind::Q8_0, &[0; 34], (1, 32)).is_some());
    for (bytes, dims) in [(34, (2, 16)), (34, (1, 64)), (33, (1, 32)), (0, (1, 0)), (34, (usize::MAX, 32))] {
        assert!(from_bytes(Kind::Q8_0, &vec![0; bytes], dims).is_none(), "{bytes} {dims:?}");
    }
}
