//! Messages of protobuf, written field by field
//! (<https://protobuf.dev/programming-guides/encoding>).

/// A message that is being written. Each method adds a field with that number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    /// A whole number, true or false, or a value of an enumeration.
    pub(crate) fn number(mut self, field: u32, value: u64) -> Self {
        self.tag(field, 0);
        self.varint(value);
        self
    }

    pub(crate) fn float(mut self, field: u32, value: f32) -> Self {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn double(mut self, field: u32, value: f64) -> Self {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub(crate) fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub(crate) fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// The same field once for each of `values`.
    pub(crate) fn each<T>(self, values: impl IntoIterator<Item = T>, add: impl Fn(Self, T) -> Self) -> Self {
        values.into_iter().fold(self, add)
    }

    fn tag(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_the_documentations() {
        // The examples of protobuf's own description: 150 in field 1, "testing" in field 2, one in the other.
        let one = Message::default().number(1, 150);
        assert_eq!(one.0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().text(2, "testing").0, b"\x12\x07testing");
        assert_eq!(Message::default().message(3, &one).0, [0x1a, 0x03, 0x08, 0x96, 0x01]);
        // From field 16 on the number takes two bytes; a number below zero always ten.
        assert_eq!(Message::default().number(20, 7).0, [0xa0, 0x01, 0x07]);
        assert_eq!(Message::default().number(1, -1i64 as u64).0[1..], [[0xff; 9].as_slice(), &[1]].concat());
        assert_eq!(Message::default().float(2, 1.0).0, [0x15, 0, 0, 0x80, 0x3f]);
        assert_eq!(Message::default().double(1, 1.0).0, [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        let list = Message::default().each([1, 2], |message, n| message.number(4, n));
        assert_eq!(list.0, [0x20, 1, 0x20, 2]);
    }
}
