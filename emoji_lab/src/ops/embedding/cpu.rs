use crate::ops::replaced::place;

/// `replaced` are ids and the rows that are read for them in place of the table's.
pub(super) fn forward(
    ids: &[u32],
    table: &[f32],
    replaced: (&[u32], &[f32]),
    hidden: usize,
    scale: f32,
) -> Vec<f32> {
    let mut out = Vec::with_capacity(ids.len() * hidden);
    for &id in ids {
        let row = match place(replaced.0, id) {
            Some(at) => &replaced.1[at * hidden..][..hidden],
            None => &table[id as usize * hidden..][..hidden],
        };
        out.extend(row.iter().map(|v| v * scale));
    }
    out
}

/// The gradient of some rows alone, those of `rows`.
pub(super) fn backward_rows(
    ids: &[u32],
    dy: &[f32],
    rows: &[u32],
    hidden: usize,
    scale: f32,
    drows: &mut [f32],
) {
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(hidden)) {
        let Some(at) = place(rows, id) else { continue };
        for (d, g) in drows[at * hidden..][..hidden].iter_mut().zip(dy) {
            *d += g * scale;
        }
    }
}

pub(super) fn backward(ids: &[u32], dy: &[f32], hidden: usize, scale: f32, dtable: &mut [f32]) {
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(hidden)) {
        let row = &mut dtable[id as usize * hidden..][..hidden];
        for (d, g) in row.iter_mut().zip(dy) {
            *d += g * scale;
        }
    }
}
