//! Lookup and its gradient against the CPU's, ids repeated and rows of odd widths.

use half::bf16;

use super::cuda::{Lookup, LookupGradient, PutRows, Table, TableGradient, by_id};
use crate::ops::adamw::cuda::split;
use crate::ops::testing::{Bar, OnGpu, on_every_gpu, tensor, values};

/// tokens, width, rows of the table, ids: of few rows or of many, at times all the same.
fn case(t: &mut OnGpu) -> (usize, usize, usize, Vec<u32>) {
    let (most, widest) = if t.one_in(10) { (20_000, 20) } else { (300, 200) };
    let (tokens, width) = (t.between(1, most), t.between(1, widest));
    let rows = if t.one_in(3) { t.between(1, 8) } else { t.between(9, 900) };
    let same = t.one_in(8);
    let ids = (0..tokens).map(|_| if same { rows - 1 } else { t.between(0, rows - 1) } as u32).collect();
    t.sizes((tokens, width, rows, same));
    (tokens, width, rows, ids)
}

#[test]
fn lookup() {
    on_every_gpu("embedding lookup", 40, |t| {
        let (tokens, width, rows, ids) = case(t);
        let scale = t.pick(&[1.0f32, 25.298_22, 8.0]);
        let table = t.rounded(rows * width, 1.0);
        let (at, ids_at) = (t.put_typed(&table), t.tokens(&ids));
        let x = t.room::<f32>(tokens, width, width);
        let lookup =
            Lookup { table: Table::Compute(at.ptr()), ids: ids_at.ptr(), x: x.ptr(), width, scale, apart: 1 };
        // SAFETY: all buffers have the sizes they are given with, and ids are rows of the table.
        unsafe { lookup.launch(&t.gpu, tokens).unwrap() };
        let expected = super::forward(&ids, &tensor(&table, (rows, width)), scale.into()).unwrap();
        let ours = t.read("x", &x);
        // One product each: there is nothing to be off.
        t.check("x", &ours, &values(&expected), width, Bar::EXACT);
    });
}

/// A table in halves, as the trained head is kept in bf16.
#[test]
fn lookup_in_halves() {
    on_every_gpu("embedding lookup in halves", 30, |t| {
        let (tokens, width, rows, ids) = case(t);
        let table = t.values(rows * width, 1.0);
        let halves = table.iter().map(|v| split(*v)).map(|(high, low)| (bf16::from_bits(high), low as i16));
        let (high, low): (Vec<_>, Vec<_>) = halves.unzip();
        let (high, low, ids_at) = (t.plain(&high), t.plain(&low), t.tokens(&ids));
        let x = t.room::<f32>(tokens, width, width);
        let scale = 25.298_22f32;
        let halves = Table::Halves { high: high.ptr(), low: low.ptr() };
        let lookup = Lookup { table: halves, ids: ids_at.ptr(), x: x.ptr(), width, scale, apart: 1 };
        // SAFETY: all buffers have the sizes they are given with, and ids are rows of the table.
        unsafe { lookup.launch(&t.gpu, tokens).unwrap() };
        let expected = super::forward(&ids, &tensor(&table, (rows, width)), scale.into()).unwrap();
        let ours = t.read("x", &x);
        t.check("x", &ours, &values(&expected), width, Bar::EXACT);
    });
}

/// Rows that are trained apart from their table stand in it afterwards, and no other row is touched.
#[test]
fn rows_put_in() {
    on_every_gpu("rows put into a table", 30, |t| {
        let (rows, width) = (t.between(1, 300), t.between(1, 200));
        let ids: Vec<u32> = (0..rows as u32).filter(|_| t.one_in(2)).collect();
        if ids.is_empty() {
            return;
        }
        t.sizes((rows, ids.len(), width));
        let (table, trained) = (t.rounded(rows * width, 1.0), t.rounded(ids.len() * width, 1.0));
        let (table_at, trained_at, ids_at) = (t.put_typed(&table), t.put_f32(&trained), t.tokens(&ids));
        let width_of = width as i32;
        let put =
            PutRows { rows: trained_at.ptr(), ids: ids_at.ptr(), table: table_at.ptr(), width: width_of };
        // SAFETY: all buffers have the sizes they are given with, and ids are rows of the table.
        unsafe { put.launch(&t.gpu, ids.len()).unwrap() };
        let mut expected = table;
        for (id, row) in ids.iter().zip(trained.chunks(width)) {
            expected[*id as usize * width..][..width].copy_from_slice(row);
        }
        let ours = t.read("table", &table_at);
        t.check("table", &ours, &expected, width, Bar::EXACT);
    });
}

/// Runs of one batch beside ids of another, as a graph's trial run finds them: tokens of no row write
/// nothing, neither in the table nor before it.
#[test]
fn tokens_of_no_row_write_nothing() {
    on_every_gpu("embedding gradient of no row", 20, |t| {
        let (tokens, width, rows, ids) = case(t);
        let (before, dx) = (t.rounded(rows * width, 1.0), t.values(tokens * width, 1.0));
        let (d_table, dx_at) = (t.put_typed(&before), t.put_f32(&dx));
        let (order, runs) = by_id(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
        let (order, runs, ids_at) = (t.plain(&order), t.plain(&runs), t.plain(&vec![-1i32; tokens]));
        let gradient = LookupGradient {
            d_table: TableGradient::Compute(d_table.ptr()),
            ids: ids_at.ptr(),
            order: order.ptr(),
            runs: runs.ptr(),
            dx: dx_at.ptr(),
            width,
            scale: 1.0,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { gradient.launch(&t.gpu, tokens).unwrap() };
        let ours = t.read("d_table", &d_table);
        t.check("d_table", &ours, &before, width, Bar::EXACT);
    });
}

#[test]
fn gradient() {
    on_every_gpu("embedding gradient", 40, |t| {
        let (tokens, width, rows, ids) = case(t);
        let (kind, scale) = (t.kind(), t.pick(&[1.0f32, 25.298_22, 8.0]));
        let (before, dx) = (t.rounded(rows * width, 1.0), t.values(tokens * width, 1.0));
        let (d_table, ids_at, dx_at) = (t.put_typed(&before), t.tokens(&ids), t.put_f32(&dx));
        let (order, runs) = by_id(&ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
        let (order, runs) = (t.plain(&order), t.plain(&runs));
        let gradient = LookupGradient {
            d_table: TableGradient::Compute(d_table.ptr()),
            ids: ids_at.ptr(),
            order: order.ptr(),
            runs: runs.ptr(),
            dx: dx_at.ptr(),
            width,
            scale,
        };
        // SAFETY: all buffers have the sizes they are given with, and ids are rows of the table.
        unsafe { gradient.launch(&t.gpu, tokens).unwrap() };
        let expected = tensor(&before, (rows, width));
        super::backward(&ids, &tensor(&dx, (tokens, width)), scale.into(), &expected).unwrap();
        let (ours, expected) = (t.read("d_table", &d_table), values(&expected));
        t.check("d_table", &ours, &expected, width, Bar::of(kind));
        // Rows that were not looked up stay as they were, bit by bit.
        let others: Vec<usize> = (0..rows).filter(|row| !ids.contains(&(*row as u32))).collect();
        let of = |v: &[f32]| others.iter().flat_map(|r| v[r * width..][..width].to_vec()).collect::<Vec<_>>();
        t.check("other rows", &of(&ours), &of(&before), width, Bar::EXACT);
    });
}

#[test]
fn tokens_by_id() {
    assert_eq!(by_id(&[]), (vec![], vec![]));
    assert_eq!(by_id(&[7]), (vec![0], vec![1]));
    assert_eq!(by_id(&[5, 2, 5, 9, 2, 5]), (vec![1, 4, 0, 2, 5, 3], vec![2, 0, 3, 0, 0, 1]));
    // What has no row has no run.
    assert_eq!(by_id(&[-1, 2, -1, 2]), (vec![0, 2, 1, 3], vec![0, 0, 2, 0]));
    let ids: Vec<i32> = (0..20_000).map(|t| t * 7919 % 311).collect();
    let (order, runs) = by_id(&ids);
    let mut seen = vec![];
    for (first, run) in runs.iter().enumerate().filter(|(_, run)| **run > 0) {
        let run = &order[first..first + *run as usize];
        assert!(run.is_sorted_by(|a, b| a < b), "not in order: {run:?}");
        let id = ids[run[0] as usize];
        let all: Vec<i32> = (0..20_000).filter(|t| ids[*t as usize] == id).collect();
        assert_eq!(run, all, "id {id}");
        seen.push(id);
    }
    assert_eq!(seen, (0..311).collect::<Vec<_>>());
}
