//! Why the bytes of a safetensors file do not make one: read off its header, in words.

use serde_json::Value;

/// What is wrong with `bytes`, which the library refused with the error `said`, and the way out.
pub(super) fn what_is_wrong(bytes: &[u8], said: &str) -> (String, &'static str) {
    const AGAIN: &str = "Fetch or save the file again";
    let have = bytes.len() as u64;
    let Some(&[a, b, c, d, e, f, g, h]) = bytes.get(..8).and_then(|front| front.first_chunk::<8>()) else {
        let problem = match have {
            0 => "damaged or cut short: it is empty".to_string(),
            _ => format!("damaged or cut short: it has {have} bytes, fewer than a header's length takes"),
        };
        return (problem, AGAIN);
    };
    if let Some(found) = crate::sniff::disguise(&bytes[..bytes.len().min(crate::sniff::START)]) {
        return (found.problem.to_string(), found.help);
    }
    if bytes.starts_with(b"GGUF") {
        return ("is a GGUF file".to_string(), "Give it the ending .gguf, and name the file itself");
    }
    let length = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    if bytes.get(8) != Some(&b'{') {
        return (format!("not a safetensors file, {have} bytes ({said})"), AGAIN);
    }
    let header = usize::try_from(length).ok().and_then(|length| bytes.get(8..length.checked_add(8)?));
    let Some(header) = header else {
        return (
            format!("damaged or cut short: its header has {length} bytes, the file {have} in all"),
            AGAIN,
        );
    };
    let damaged = (format!("damaged or cut short, {have} bytes ({said})"), AGAIN);
    let Ok(Value::Object(entries)) = serde_json::from_slice::<Value>(header) else { return damaged };
    let end_of = |entry: &Value| entry.get("data_offsets")?.get(1)?.as_u64();
    let wanted = entries.values().filter_map(end_of).max().and_then(|end| end.checked_add(8 + length));
    match wanted {
        Some(wanted) if have < wanted => (
            format!(
                "damaged or cut short: it has {have} of its {wanted} bytes, {} are missing",
                wanted - have
            ),
            "Fetch the file again: its download did not come to its end",
        ),
        Some(wanted) if have > wanted => {
            (format!("{} bytes longer than its header says ({wanted} bytes)", have - wanted), AGAIN)
        }
        _ => damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    #[test]
    fn missing_bytes_are_counted() {
        let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        let said = |bytes: &[u8]| what_is_wrong(bytes, "said").0;
        let whole = 8 + header.len() + 16;
        assert_eq!(
            said(&file(header, 9)),
            format!("damaged or cut short: it has {} of its {whole} bytes, 7 are missing", whole - 7)
        );
        assert!(said(&file(header, 20)).contains("4 bytes longer"));
        assert!(said(&file(header, 0)[..30]).contains("its header has"));
        assert!(said(b"abc").contains("3 bytes"));
        assert!(said(&file("{\"a\": nonsense}", 4)).contains("(said)"));
        assert!(said(b"GGUF\x03\0\0\0\0\0\0\0").contains("GGUF"));
        assert!(said(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS"));
    }
}
