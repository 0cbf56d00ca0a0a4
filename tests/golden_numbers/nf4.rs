//! `nf4.safetensors`: bytes, scales and values of bitsandbytes' NF4.

use std::path::Path;

use emoji_lab::Result;
use emoji_lab::quant::{Nf4Tensor, nf4};

use crate::files::Tensors;
use crate::report::Report;

pub fn check(dir: &Path, report: &mut Report) -> Result<()> {
    let path = dir.join("nf4.safetensors");
    if !path.is_file() {
        report.skip("nf4", "no nf4.safetensors");
        return Ok(());
    }
    let golden = Tensors::open(&path)?;
    let model = dir.join("model/model.safetensors");
    let model = if model.is_file() { Some(Tensors::open(&model)?) } else { None };
    let names: Vec<&str> = golden.names().into_iter().filter_map(|n| n.strip_suffix(".packed")).collect();
    for name in names {
        report.guard(&format!("nf4: {name}"), |report| {
            // A weight that is not in the file is the model's.
            let own = format!("{name}.weight");
            let weight = match (&model, golden.has(&own)) {
                (_, true) => golden.get(&own)?,
                (Some(model), false) => model.get(name)?,
                (None, false) => {
                    report
                        .skip(&format!("nf4: {name}"), "no weight for it: neither in the file nor in model/");
                    return Ok(());
                }
            };
            let absmax = golden.floats(&format!("{name}.absmax"))?;
            let ours = Nf4Tensor::quantize(&weight, nf4::BLOCK_SIZE)?;
            let packed: Vec<u8> = golden.get(&format!("{name}.packed"))?.flatten_all()?.to_vec1()?;
            let values = ours.dequantize()?.flatten_all()?.to_vec1::<f32>()?;
            let dequant = golden.floats(&format!("{name}.dequant"))?;
            report.equal(
                &format!("nf4: {name}: packed bytes"),
                unequal(ours.packed(), &packed),
                packed.len(),
            );
            report.equal(&format!("nf4: {name}: absmax"), unequal(ours.absmax(), &absmax), absmax.len());
            report.equal(&format!("nf4: {name}: dequant"), unequal(&values, &dequant), dequant.len());
            Ok(())
        });
    }
    Ok(())
}

fn unequal<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.len().abs_diff(b.len()) + a.iter().zip(b).filter(|(a, b)| a != b).count()
}
