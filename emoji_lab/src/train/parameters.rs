//! What NF4, LoRA and the trained embeddings each cost.

use candle_core::DType;

use super::finetune::Finetune;
use super::layout::Slot;
use crate::display::{ParameterReport, ParameterRow};
use crate::model::Parameter;
use crate::ops::lora_linear::Weight;

const F32: u64 = 4;

pub(super) fn report(finetune: &Finetune) -> ParameterReport {
    let model = finetune.start();
    let is_trained = |p: Parameter| finetune.slots().iter().any(|slot| slot.parameter == p);
    let row = |name: &str| ParameterRow { name: name.into(), ..ParameterRow::default() };
    let mut quantised = row("Linear layers, NF4");
    for linear in model.linears() {
        if let Weight::Nf4(weight) = &linear.weight {
            quantised.parameters += weight.dims().iter().product::<usize>() as u64;
            quantised.weight_bytes += weight.bytes() as u64;
        }
    }
    let [mut dense, mut norms, mut embeddings] =
        ["Linear layers", "Norms", "Embedding and head, frozen"].map(row);
    // Every frozen parameter, by what it is. Visiting fails only where the visitor does, and this one does not.
    let _ = model.clone().visit_parameters(&mut |parameter| {
        let row = match parameter.parameter {
            p if is_trained(p) => return Ok(()),
            p if p.is_embedding() => &mut embeddings,
            p if p.is_norm() => &mut norms,
            _ => &mut dense,
        };
        let parameters = parameter.value.elem_count() as u64;
        row.parameters += parameters;
        row.weight_bytes += parameters * F32;
        Ok(())
    });
    // On a GPU the gradients of head and matrices are of the compute type, unless several are added up.
    let of_gradient = if finetune.adds_up() { F32 } else { model.device().dtype().size_in_bytes() as u64 };
    let head = model.head_parameter();
    let gradient_bytes = |slot: &Slot| {
        let of_products = slot.parameter == head || matches!(slot.parameter, Parameter::Linear(..));
        slot.len() as u64 * if of_products { of_gradient } else { F32 }
    };
    // The CPU keeps moments in f32 tensors, however they are rounded.
    let small = model.device().is_cuda() && finetune.optimizer().state_dtype == DType::BF16;
    let state_bytes = if small { 2 } else { F32 };
    let trained = |name: &str, pick: &dyn Fn(&Slot) -> bool| {
        let slots: Vec<_> = finetune.slots().iter().filter(|slot| pick(slot)).collect();
        let parameters: u64 = slots.iter().map(|slot| slot.len() as u64).sum();
        ParameterRow {
            name: name.into(),
            parameters,
            trainable: true,
            weight_bytes: parameters * F32,
            gradient_bytes: slots.iter().map(|slot| gradient_bytes(slot)).sum(),
            optimizer_bytes: 2 * parameters * state_bytes,
        }
    };
    let tied =
        if model.lm_head.is_none() { "Embedding and head, one tied tensor" } else { "Embedding and head" };
    let is_rows = |slot: &Slot| slot.parameter.is_token_rows();
    let rows_of =
        if model.lm_head.is_none() { "Rows of embedding and head, tied" } else { "Rows of the embedding" };
    let rows = vec![
        quantised,
        dense,
        norms,
        embeddings,
        trained("LoRA adapters", &Slot::is_adapter),
        trained(tied, &|slot| slot.is_embedding() && !is_rows(slot)),
        trained(rows_of, &is_rows),
        trained("Other trained weights", &|slot| !slot.is_adapter() && !slot.is_embedding()),
    ];
    let mut notes = vec!["Activations, which grow with the batch, come on top.".to_string()];
    let on_gpus: Vec<String> = finetune
        .device_memory()
        .iter()
        .map(|memory| format!("{:.2} GB on {}", memory.bytes() as f64 / 1e9, memory.device))
        .collect();
    if !on_gpus.is_empty() {
        notes.push(format!("With activations and working copies: {}.", on_gpus.join(", ")));
    }
    ParameterReport { rows: rows.into_iter().filter(|row| row.parameters > 0).collect(), notes }
}
