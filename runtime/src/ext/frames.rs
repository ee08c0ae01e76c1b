//! Frames encoded for JavaScript: one text for many, with the topics as a JSON array, a line feed,
//! and then for each frame its id, a flat JSON array of the rarely used fields, and its meta. A
//! list of numbers gives the positions of these, so that a frame nobody looks into costs no
//! parsing. Decoded by runtime/js/frame.js.

use std::fmt::Write as _;

use xs_engine::{Frame, Ttl};

use crate::isolate::Backend;

/// Frames as one text, with their positions in it.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// The text.
    pub(crate) text: String,
    /// Four numbers per frame, in UTF-16 code units: the end of its id, the start and the end of
    /// its meta, and the index of its topic.
    pub(crate) places: Vec<u32>,
}

/// Encodes frames as one text after a prefix, with their positions.
pub(crate) fn encode_behind<'a>(
    prefix: &str,
    frames: impl Iterator<Item = &'a Frame> + Clone,
    backend: &dyn Backend,
) -> Encoded {
    let mut topics: Vec<&str> = Vec::new();
    let mut numbers = Vec::new();
    let mut bytes = 0;
    for frame in frames.clone() {
        // Frames of one topic mostly arrive in a row.
        let known = topics.iter().rposition(|known| *known == frame.topic());
        numbers.push(known.unwrap_or_else(|| {
            topics.push(frame.topic());
            topics.len() - 1
        }));
        bytes += ID_CHARS + REST_BYTES + frame.meta().len();
    }
    let mut text = String::with_capacity(prefix.len() + bytes);
    text.push_str(prefix);
    text.push('[');
    for (index, topic) in topics.iter().enumerate() {
        // Writing to a String cannot fail. Topics, ids, ttls and hashes need no JSON escapes.
        let _ = write!(text, "{}\"{topic}\"", if index > 0 { "," } else { "" });
    }
    text.push_str("]\n");
    let mut places = Vec::with_capacity(numbers.len() * 4);
    // How many more bytes than UTF-16 code units there are so far.
    let mut fewer = 0;
    for (frame, topic) in frames.zip(numbers) {
        let _ = write!(text, "{}", frame.id());
        let id_end = text.len() - fewer;
        rest(&mut text, frame, backend);
        let meta = text.len() - fewer;
        let before = text.len();
        text.push_str(&String::from_utf8_lossy(frame.meta()));
        fewer += text.len() - before - utf16_len(&text[before..]);
        let end = text.len() - fewer;
        places.extend([id_end, meta, end, topic].map(|at| u32::try_from(at).unwrap_or(u32::MAX)));
    }
    Encoded { text, places }
}

/// Encodes frames as one text that begins with their positions.
pub(super) fn encode<'a>(
    frames: impl Iterator<Item = &'a Frame> + Clone,
    backend: &dyn Backend,
) -> String {
    let Encoded { text, places } = encode_behind("", frames, backend);
    let mut all = String::with_capacity(text.len() + places.len() * 6 + 2);
    for (index, place) in places.iter().enumerate() {
        let _ = write!(all, "{}{place}", if index > 0 { "," } else { "[" });
    }
    all.push_str(if places.is_empty() { "[]\n" } else { "]\n" });
    all.push_str(&text);
    all
}

/// Characters of a frame id.
const ID_CHARS: usize = 25;
/// Approximate bytes of a frame's other fields without hash and cause.
const REST_BYTES: usize = 24;

/// Offset, ttl, hash and cause.
fn rest(text: &mut String, frame: &Frame, backend: &dyn Backend) {
    let _ = match frame.offset() {
        Some(offset) => write!(text, "[{offset},"),
        None => write!(text, "[null,"),
    };
    let _ = match frame.ttl() {
        Ttl::Forever => write!(text, "0,"),
        ttl => write!(text, "\"{ttl}\","),
    };
    let _ = match frame.hash() {
        Some(hash) => write!(text, "\"{hash}\","),
        None => write!(text, "0,"),
    };
    let Some(origin) = frame.origin() else {
        text.push_str("0]");
        return;
    };
    let cause = serde_json::json!({
        "processor": backend.processor_name(origin.processor),
        "source": origin.processor.to_string(),
        "frame": origin.input.map(|id| id.to_string()),
        "hops": origin.hops,
    });
    let _ = write!(text, "{cause}]");
}

/// Length in UTF-16 code units.
fn utf16_len(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.encode_utf16().count() }
}

#[cfg(test)]
mod tests {
    use xs_engine::{FrameId, Meta, NewFrame, Topic};

    use super::*;
    use crate::host::check::NoStore;

    fn frame(topic: &str, meta: &str, offset: u64) -> Frame {
        let mut new = NewFrame::new(Topic::parse(topic).unwrap());
        new.meta = Meta::parse(meta.to_owned()).unwrap();
        Frame::assemble(&new, FrameId::first_of_ms(offset + 1), Some(offset), None).unwrap()
    }

    #[test]
    fn places_count_as_javascript_does() {
        let metas = [r#"{"a":1}"#, "{\"b\":\"\u{e9}\u{1f600}\"}", "", r#"{"c":2}"#];
        let frames: Vec<Frame> = metas
            .iter()
            .zip(0..)
            .map(|(meta, at)| frame(["x", "y"][at as usize % 2], meta, at))
            .collect();
        let Encoded { text, places } = encode_behind("B", frames.iter(), &NoStore);
        let chars: Vec<u16> = text.encode_utf16().collect();
        let slice =
            |from: u32, to: u32| String::from_utf16(&chars[from as usize..to as usize]).unwrap();
        assert!(text.starts_with("B[\"x\",\"y\"]\n"), "{text}");
        for ((frame, meta), place) in frames.iter().zip(metas).zip(places.chunks(4)) {
            assert_eq!(slice(place[0] - 25, place[0]), frame.id().to_string());
            assert_eq!(slice(place[0], place[1]), format!("[{},0,0,0]", frame.offset().unwrap()));
            assert_eq!(slice(place[1], place[2]), meta);
            assert_eq!(["x", "y"][place[3] as usize], frame.topic());
        }
        let whole = encode(frames[..1].iter(), &NoStore);
        assert!(whole.starts_with("[31,40,47,0]\n[\"x\"]\n"), "{whole}");
        assert_eq!(encode([].iter(), &NoStore), "[]\n[]\n");
    }
}
