//! The file of weights beside a graph: what lies where in it, and how it is written, one matrix at a time.

use std::io::{self, Write};

use super::blocks::{BLOCK, Blocks, eight_bits, four_bits};
use super::proto::{self, Kind};
use crate::error::Result;
use crate::export::source::{Source, no_numbers};
use crate::model::gguf;
use crate::protobuf::Message;
use crate::quant::quantize::{largest, write_values};

/// Tensors begin at multiples of this, so that a runtime can map them into memory.
const ALIGNMENT: u64 = 4096;
/// Values that are turned into blocks before they are written, about.
const PIECE: usize = 4 << 20;

/// How a matrix `[rows, columns]` is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// f32, row by row.
    AsIs,
    /// f32, `[columns, rows]`.
    Transposed,
    /// Blocks of a row in eight bits.
    Blocks8,
    /// Blocks of a row in four bits.
    Blocks4,
}

/// A tensor in the file.
struct Part {
    name: String,
    kind: Kind,
    dims: Vec<usize>,
    offset: u64,
    bytes: u64,
}

enum Content<'a> {
    Matrix(Source<'a>, Form),
    Floats(Vec<f32>),
}

/// What is written together: a matrix with its scales and zero points, or a table.
struct Entry<'a> {
    name: String,
    content: Content<'a>,
    parts: Vec<Part>,
}

/// The file as it is planned.
#[derive(Default)]
pub(super) struct Weights<'a> {
    entries: Vec<Entry<'a>>,
    /// How long it is so far.
    end: u64,
}

impl<'a> Weights<'a> {
    /// Adds a matrix; returns its tensors' names, as an operator takes them: values, scales, zero points.
    pub(super) fn matrix(&mut self, name: &str, source: Source<'a>, form: Form) -> Vec<String> {
        let (rows, columns) = match source.dims() {
            [rows, columns] => (*rows, *columns),
            // Every matrix of a model has two; its loader has seen to that.
            other => (1, other.iter().product()),
        };
        let blocks = columns.div_ceil(BLOCK);
        let in_blocks = |bytes: usize| {
            vec![("q", Kind::Uint8, vec![rows, blocks, bytes]), ("scales", Kind::Float, vec![rows, blocks])]
        };
        let parts = match form {
            Form::AsIs => vec![("", Kind::Float, vec![rows, columns])],
            Form::Transposed => vec![("", Kind::Float, vec![columns, rows])],
            Form::Blocks8 => in_blocks(BLOCK),
            Form::Blocks4 => {
                let mut parts = in_blocks(BLOCK / 2);
                parts.push(("zeros", Kind::Uint8, vec![rows, blocks.div_ceil(2)]));
                parts
            }
        };
        self.add(name, Content::Matrix(source, form), parts)
    }

    /// Adds a table of f32 values; returns its name.
    pub(super) fn floats(&mut self, name: &str, dims: [usize; 2], values: Vec<f32>) -> String {
        self.add(name, Content::Floats(values), vec![("", Kind::Float, dims.to_vec())]).remove(0)
    }

    fn add(&mut self, name: &str, content: Content<'a>, parts: Vec<(&str, Kind, Vec<usize>)>) -> Vec<String> {
        let parts: Vec<Part> = parts
            .into_iter()
            .map(|(suffix, kind, dims)| {
                let width = if kind == Kind::Uint8 { 1 } else { 4 };
                let bytes = dims.iter().map(|dim| *dim as u64).product::<u64>() * width;
                let offset = self.end.next_multiple_of(ALIGNMENT);
                self.end = offset + bytes;
                let name = if suffix.is_empty() { name.to_string() } else { format!("{name}.{suffix}") };
                Part { name, kind, dims, offset, bytes }
            })
            .collect();
        let names = parts.iter().map(|part| part.name.clone()).collect();
        self.entries.push(Entry { name: name.to_string(), content, parts });
        names
    }

    /// The file's size.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    /// What the graph says of the tensors, in the file called `file`.
    pub(super) fn messages(&self, file: &str) -> Vec<Message> {
        let parts = self.entries.iter().flat_map(|entry| &entry.parts);
        parts.map(|p| proto::outside(&p.name, p.kind, &p.dims, file, p.offset, p.bytes)).collect()
    }

    /// Writes the file. `origin` names the model in errors.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) in the inner result if a value is no number, the system's in
    /// the outer.
    pub(super) fn write(&self, out: &mut dyn Write, origin: &str) -> io::Result<Result<()>> {
        let mut at = 0;
        for entry in &self.entries {
            let mut places = entry.parts.iter();
            let mut begin = |out: &mut dyn Write| {
                let Some(part) = places.next() else { return Ok(()) };
                out.write_all(&vec![0; (part.offset - at) as usize])?;
                at = part.offset + part.bytes;
                Ok(())
            };
            let written = match &entry.content {
                Content::Floats(values) => {
                    begin(out).and_then(|()| write_values(out, values, gguf::Kind::F32)).map(Ok)
                }
                Content::Matrix(source, form) => {
                    let columns = source.dims().last().copied().unwrap_or(1);
                    let read = source.read(|values| match largest(values).is_finite() {
                        true => write_matrix(out, values, columns, *form, &mut begin).map(Ok),
                        false => Ok(Err(no_numbers(origin, &entry.name))),
                    });
                    read.unwrap_or_else(|error| Ok(Err(error)))
                }
            };
            match written? {
                Ok(()) => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

/// Writes a matrix's parts; `begin` is called before each.
fn write_matrix(
    out: &mut dyn Write,
    values: &[f32],
    columns: usize,
    form: Form,
    begin: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    begin(out)?;
    let encode = match form {
        Form::AsIs => return write_values(out, values, gguf::Kind::F32),
        Form::Transposed => return write_values(out, &transposed(values, columns), gguf::Kind::F32),
        Form::Blocks8 => eight_bits,
        Form::Blocks4 => four_bits,
    };
    let (mut scales, mut zeros) = (vec![], vec![]);
    for piece in values.chunks((PIECE / columns).max(1) * columns) {
        let blocks: Blocks = encode(piece, columns);
        out.write_all(&blocks.packed)?;
        scales.extend(blocks.scales);
        zeros.extend(blocks.zeros);
    }
    begin(out)?;
    write_values(out, &scales, gguf::Kind::F32)?;
    begin(out)?;
    out.write_all(&zeros)
}

/// Rows become columns.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    use rayon::prelude::*;
    /// Columns that a thread takes at a time: what it reads of a row is a line of the cache.
    const AT_ONCE: usize = 16;
    let rows = values.len() / columns;
    let mut turned = vec![0.0; values.len()];
    turned.par_chunks_mut(rows * AT_ONCE).enumerate().for_each(|(group, turned)| {
        for (row, from) in values.chunks_exact(columns).enumerate() {
            let from = &from[group * AT_ONCE..columns.min((group + 1) * AT_ONCE)];
            for (column, value) in from.iter().enumerate() {
                turned[column * rows + row] = *value;
            }
        }
    });
    turned
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::lazy::LazyTensor;

    #[test]
    fn a_matrix_is_turned() {
        for (rows, columns) in [(1, 1), (3, 5), (40, 33), (16, 64)] {
            let values: Vec<f32> = (0..rows * columns).map(|n| n as f32).collect();
            let turned = transposed(&values, columns);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(turned[column * rows + row], values[row * columns + column]);
                }
            }
        }
    }

    #[test]
    fn tensors_lie_where_the_graph_says() {
        let values: Vec<f32> = (0..6 * 96).map(|n| (n as f32).sin()).collect();
        let tensor = LazyTensor::from(Tensor::from_vec(values.clone(), (6, 96), &Device::Cpu).unwrap());
        let mut weights = Weights::default();
        let source = Source::Dense(&tensor);
        assert_eq!(weights.matrix("a", source, Form::Blocks4), ["a.q", "a.scales", "a.zeros"]);
        assert_eq!(weights.floats("b", [1, 3], vec![1.0, 2.0, 3.0]), "b");
        assert_eq!(weights.matrix("c", source, Form::Blocks8), ["c.q", "c.scales"]);
        assert_eq!(weights.matrix("d", source, Form::Transposed), ["d"]);
        let mut file = vec![];
        weights.write(&mut file, "test").unwrap().unwrap();
        assert_eq!(file.len() as u64, weights.bytes());
        let part = |name: &str| {
            let mut all = weights.entries.iter().flat_map(|entry| &entry.parts);
            let part = all.find(|part| part.name == name).unwrap();
            assert!(part.offset.is_multiple_of(ALIGNMENT));
            (&file[part.offset as usize..][..part.bytes as usize], part.dims.clone())
        };
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
        };
        let (four, eight) = (four_bits(&values, 96), eight_bits(&values, 96));
        assert_eq!(part("a.q"), (four.packed.as_slice(), vec![6, 3, 16]));
        assert_eq!(floats(part("a.scales").0), four.scales);
        assert_eq!(part("a.zeros"), (four.zeros.as_slice(), vec![6, 2]));
        assert_eq!(floats(part("b").0), [1.0, 2.0, 3.0]);
        assert_eq!(part("c.q"), (eight.packed.as_slice(), vec![6, 3, 32]));
        assert_eq!((floats(part("c.scales").0), part("c.scales").1), (eight.scales, vec![6, 3]));
        assert_eq!((floats(part("d").0), part("d").1), (transposed(&values, 96), vec![96, 6]));
        assert_eq!(weights.messages("f").len(), 7);
    }
}
