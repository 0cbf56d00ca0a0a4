//! ONNX's messages, as far as the graph needs them (`onnx.proto` of <https://github.com/onnx/onnx>).

use crate::protobuf::Message;

/// The standard operators' release: the first with `RMSNormalization`.
const OPSET: u64 = 23;
/// The format's version; runtimes from 2024 on read it.
const IR_VERSION: u64 = 10;
/// Where onnxruntime's own operators are.
const MICROSOFT: &str = "com.microsoft";
const OF_MICROSOFT: [&str; 2] = ["GroupQueryAttention", "MatMulNBits"];

/// The type of a tensor's values, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float = 1,
    Uint8 = 2,
    Int32 = 6,
    Int64 = 7,
}

/// A setting of an operator.
pub(super) enum Attribute<'a> {
    Float(f32),
    Int(i64),
    Text(&'a str),
}

/// An axis of a tensor: so long, or as long as others of this name.
#[derive(Clone, Copy)]
pub(super) enum Axis<'a> {
    Length(usize),
    Named(&'a str),
}

/// An operation, `NodeProto`. It is called like its first output.
pub(super) fn node(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute<'_>)],
) -> Message {
    let node = Message::default()
        .each(inputs, |node, name| node.text(1, name))
        .each(outputs, |node, name| node.text(2, name))
        .text(3, outputs.first().copied().unwrap_or_default())
        .text(4, op)
        .each(attributes, |node, (name, value)| node.message(5, &attribute(name, value)));
    match OF_MICROSOFT.contains(&op) {
        true => node.text(7, MICROSOFT),
        false => node,
    }
}

fn attribute(name: &str, value: &Attribute<'_>) -> Message {
    let named = Message::default().text(1, name);
    match value {
        Attribute::Float(value) => named.float(2, *value).number(20, 1),
        Attribute::Int(value) => named.number(3, *value as u64).number(20, 2),
        Attribute::Text(value) => named.text(4, value).number(20, 3),
    }
}

fn tensor(name: &str, kind: Kind, dims: &[usize]) -> Message {
    let dims = Message::default().each(dims, |tensor, dim| tensor.number(1, *dim as u64));
    dims.number(2, kind as u64).text(8, name)
}

/// A tensor whose values, little-endian, are in the graph's own file.
pub(super) fn constant(name: &str, kind: Kind, dims: &[usize], bytes: &[u8]) -> Message {
    tensor(name, kind, dims).bytes(9, bytes)
}

/// A tensor whose values are in another file.
pub(super) fn outside(
    name: &str,
    kind: Kind,
    dims: &[usize],
    file: &str,
    offset: u64,
    bytes: u64,
) -> Message {
    let place =
        [("location", file.to_string()), ("offset", offset.to_string()), ("length", bytes.to_string())];
    tensor(name, kind, dims)
        .each(place, |tensor, (key, value)| {
            tensor.message(13, &Message::default().text(1, key).text(2, &value))
        })
        .number(14, 1)
}

/// The declaration of an input or output, `ValueInfoProto`.
pub(super) fn value(name: &str, kind: Kind, axes: &[Axis<'_>]) -> Message {
    let shape = Message::default().each(axes, |shape, axis| {
        let axis = match axis {
            Axis::Length(length) => Message::default().number(1, *length as u64),
            Axis::Named(name) => Message::default().text(2, name),
        };
        shape.message(1, &axis)
    });
    let of_tensor = Message::default().number(1, kind as u64).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &of_tensor))
}

/// The whole file, `ModelProto`.
pub(super) fn model(
    nodes: &[Message],
    tensors: &[Message],
    inputs: &[Message],
    outputs: &[Message],
) -> Message {
    let opset = |domain: &str, version| Message::default().text(1, domain).number(2, version);
    let graph = Message::default()
        .each(nodes, |graph, node| graph.message(1, node))
        .text(2, "gemma3")
        .each(tensors, |graph, tensor| graph.message(5, tensor))
        .each(inputs, |graph, input| graph.message(11, input))
        .each(outputs, |graph, output| graph.message(12, output));
    Message::default()
        .number(1, IR_VERSION)
        .text(2, "emoji_lab")
        .text(3, env!("CARGO_PKG_VERSION"))
        .message(7, &graph)
        .message(8, &opset("", OPSET))
        .message(8, &opset(MICROSOFT, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_by_hand() {
        let scale = [("scale", Attribute::Float(0.5)), ("bits", Attribute::Int(-1))];
        let wanted: &[u8] = b"\x0a\x01x\x0a\x01w\x12\x01y\x1a\x01y\x22\x0bMatMulNBits\
            \x2a\x0f\x0a\x05scale\x15\x00\x00\x00\x3f\xa0\x01\x01\
            \x2a\x14\x0a\x04bits\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\xa0\x01\x02\
            \x3a\x0dcom.microsoft";
        assert_eq!(node("MatMulNBits", &["x", "w"], &["y"], &scale).0, wanted);
        let plain = node("Gelu", &["x"], &["y"], &[("approximate", Attribute::Text("tanh"))]);
        let wanted: &[u8] =
            b"\x0a\x01x\x12\x01y\x1a\x01y\x22\x04Gelu\x2a\x16\x0a\x0bapproximate\x22\x04tanh\xa0\x01\x03";
        assert_eq!(plain.0, wanted);

        assert_eq!(
            constant("one", Kind::Int32, &[1], &[1, 0, 0, 0]).0,
            b"\x08\x01\x10\x06\x42\x03one\x4a\x04\x01\x00\x00\x00"
        );
        let wanted: &[u8] = b"\x08\x02\x08\x03\x10\x01\x42\x01w\x6a\x0d\x0a\x08location\x12\x01f\
            \x6a\x0c\x0a\x06offset\x12\x02\x34\x30\x6a\x0c\x0a\x06length\x12\x02\x32\x34\x70\x01";
        assert_eq!(outside("w", Kind::Float, &[2, 3], "f", 40, 24).0, wanted);
        let wanted: &[u8] = b"\x0a\x02id\x12\x0f\x0a\x0d\x08\x07\x12\x09\x0a\x02\x08\x03\x0a\x03\x12\x01n";
        assert_eq!(value("id", Kind::Int64, &[Axis::Length(3), Axis::Named("n")]).0, wanted);
    }
}
