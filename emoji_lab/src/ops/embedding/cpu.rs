pub(super) fn forward(ids: &[u32], table: &[f32], hidden: usize, scale: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(ids.len() * hidden);
    for &id in ids {
        let row = &table[id as usize * hidden..][..hidden];
        out.extend(row.iter().map(|v| v * scale));
    }
    out
}

pub(super) fn backward(ids: &[u32], dy: &[f32], hidden: usize, scale: f32, dtable: &mut [f32]) {
    for (&id, dy) in ids.iter().zip(dy.chunks_exact(hidden)) {
        let row = &mut dtable[id as usize * hidden..][..hidden];
        for (d, g) in row.iter_mut().zip(dy) {
            *d += g * scale;
        }
    }
}
