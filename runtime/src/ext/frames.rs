//! Frames on their way into JavaScript: one text for many, a flat JSON array of seven fields each,
//! a line feed, then the meta texts one behind the other. runtime/js/frame.js reads it.

use std::fmt::Write as _;

use xs_engine::{Frame, Ttl};

use crate::isolate::Backend;

/// Writes frames as one text.
pub(super) fn encode<'a>(
    frames: impl Iterator<Item = &'a Frame> + Clone,
    backend: &dyn Backend,
) -> String {
    let mut text = String::from("[");
    for (index, frame) in frames.clone().enumerate() {
        if index > 0 {
            text.push(',');
        }
        fields(&mut text, frame, backend);
    }
    text.push_str("]\n");
    for frame in frames {
        text.push_str(&String::from_utf8_lossy(frame.meta()));
    }
    text
}

fn fields(text: &mut String, frame: &Frame, backend: &dyn Backend) {
    // Writing to a String cannot fail. Ids, topics, ttls and hashes need no JSON escapes.
    let _ = write!(text, "\"{}\",", frame.id());
    let _ = match frame.offset() {
        Some(offset) => write!(text, "{offset},"),
        None => write!(text, "null,"),
    };
    let _ = write!(text, "\"{}\",", frame.topic());
    let _ = match frame.ttl() {
        Ttl::Forever => write!(text, "0,"),
        ttl => write!(text, "\"{ttl}\","),
    };
    let _ = match frame.hash() {
        Some(hash) => write!(text, "\"{hash}\","),
        None => write!(text, "0,"),
    };
    let _ = write!(text, "{},", utf16_len(frame.meta()));
    let Some(origin) = frame.origin() else {
        text.push('0');
        return;
    };
    let cause = serde_json::json!({
        "processor": backend.processor_name(origin.processor),
        "source": origin.processor.to_string(),
        "frame": origin.input.map(|id| id.to_string()),
        "hops": origin.hops,
    });
    let _ = write!(text, "{cause}");
}

/// Length as JavaScript counts it.
fn utf16_len(text: &[u8]) -> usize {
    if text.is_ascii() {
        return text.len();
    }
    String::from_utf8_lossy(text).encode_utf16().count()
}
