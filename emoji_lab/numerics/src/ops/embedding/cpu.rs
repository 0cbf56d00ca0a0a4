use crate::ops::replaced::place;

/// Puts those of `rows`, which are of the ids `places`, over what `out` has for them.
pub(super) fn replace(ids: &[u32], out: &mut [f32], places: &[u32], rows: &[f32], hidden: usize) {
    for (id, out) in ids.iter().zip(out.chunks_exact_mut(hidden)) {
        if let Some(at) = place(places, *id) {
            out.copy_from_slice(&rows[at * hidden..][..hidden]);
        }
    }
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
