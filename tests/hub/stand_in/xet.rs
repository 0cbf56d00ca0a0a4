//! Xet storage, as far as an upload needs it: xorbs come in, a shard says which chunks make a file.

use serde_json::json;
use xet_core_structures::metadata_shard::streaming_shard::MDBMinimalShard;
use xet_core_structures::xorb_object::deserialize_chunks;

use super::http::{Answer, Request};
use super::store::{Store, sha256};

/// Answers the storage's addresses; `None` for others.
pub fn answer(store: &mut Store, request: &Request) -> Option<Answer> {
    let path = request.path.as_str();
    match request.method.as_str() {
        "POST" if path.starts_with("/v1/xorbs/") => {
            Some(take_xorb(store, path.rsplit('/').next()?, &request.body))
        }
        "POST" if path == "/v1/shards" => Some(take_shard(store, &request.body)),
        // Not offered, as on a server of an earlier day: clients fall back to the two above.
        _ if path.starts_with("/v1/") || path.starts_with("/v2/") => {
            Some(Answer::error(404, "", "Not Found"))
        }
        _ => None,
    }
}

fn take_xorb(store: &mut Store, hash: &str, body: &[u8]) -> Answer {
    // A footer may follow the chunks; it begins with a name that is no chunk's header.
    let chunks_only =
        body.windows(7).position(|window| window == b"XETBLOB").map_or(body, |end| &body[..end]);
    let Ok((bytes, ends)) = deserialize_chunks(&mut &chunks_only[..]) else {
        return Answer::error(400, "", "this is no xorb");
    };
    let chunks = ends.windows(2).map(|pair| bytes[pair[0] as usize..pair[1] as usize].to_vec()).collect();
    let was_inserted = store.xorbs.insert(hash.to_string(), chunks).is_none();
    Answer::json(json!({ "was_inserted": was_inserted }))
}

/// Puts the files of a shard together and files them under their SHA-256, for the commit that follows.
fn take_shard(store: &mut Store, body: &[u8]) -> Answer {
    let Ok(shard) = MDBMinimalShard::from_reader(&mut &body[..], true, false) else {
        return Answer::error(400, "", "this is no shard");
    };
    for file in (0..shard.num_files()).filter_map(|i| shard.file(i)) {
        let mut bytes = Vec::new();
        for i in 0..file.num_entries() {
            let segment = file.entry(i);
            let range = segment.chunk_index_start as usize..segment.chunk_index_end as usize;
            match store.xorbs.get(&segment.xorb_hash.hex()).and_then(|chunks| chunks.get(range)) {
                Some(chunks) => bytes.extend(chunks.concat()),
                None => return Answer::error(400, "", "the shard names chunks that are not here"),
            }
        }
        store.objects.insert(sha256(&bytes), bytes);
    }
    Answer::json(json!({ "result": 1 }))
}
