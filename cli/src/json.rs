//! The JSON form of a frame, the same wherever xs prints one: topic, id, offset, hash, meta, ttl,
//! origin, and the body if requested. Missing values are null, but a missing offset or origin is
//! left out. Builds text; prints nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use xs_engine::Frame;

/// Maximum bytes of a body in a line.
pub(crate) const BODY_IN_LINE_MAX: u64 = 64 * 1024 * 1024;

/// One frame as one line of JSON, without the line feed.
pub(crate) fn frame(frame: &Frame, body: Option<&[u8]>) -> String {
    let mut out = format!("{{\"topic\":{},\"id\":\"{}\"", text(frame.topic()), frame.id());
    if let Some(offset) = frame.offset() {
        out += &format!(",\"offset\":{offset}");
    }
    match frame.hash() {
        Some(hash) => out += &format!(",\"hash\":\"{hash}\""),
        None => out += ",\"hash\":null",
    }
    out += &format!(",\"meta\":{},\"ttl\":\"{}\"", meta(frame), frame.ttl());
    if let Some(origin) = frame.origin() {
        let input = origin.input.map_or_else(|| "null".to_owned(), |id| format!("\"{id}\""));
        out += &format!(",\"origin\":{{\"processor\":\"{}\",\"input\":{input}", origin.processor);
        if let Some(offset) = origin.input_offset {
            out += &format!(",\"input_offset\":{offset}");
        }
        out += &format!(",\"hops\":{}}}", origin.hops);
    }
    match body.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        Some((_, Ok(body))) => out += &format!(",\"body\":{}", text(body)),
        Some((bytes, Err(_))) => out += &format!(",\"body_base64\":\"{}\"", STANDARD.encode(bytes)),
        None => {}
    }
    out + "}"
}

/// The meta of a frame on one line; `null` when there is none.
pub(crate) fn meta(frame: &Frame) -> String {
    if frame.meta().is_empty() { "null".to_owned() } else { one_line(frame.meta()) }
}

/// A JSON string.
pub(crate) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// JSON text without white space between tokens. Numbers and key order stay as written, which
/// parsing and printing would not guarantee.
fn one_line(json: &[u8]) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let kept = json.iter().copied().filter(|&byte| {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            return true;
        }
        in_string = byte == b'"';
        !byte.is_ascii_whitespace()
    });
    String::from_utf8_lossy(&kept.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xs_engine::{BlobHash, FrameId, Meta, NewFrame, Origin, Topic, Ttl};

    fn sample() -> NewFrame {
        NewFrame {
            meta: Meta::parse("{\n \"a\": [1.0, \"x \\\" y\\\\\"],\t\"b\": 18446744073709551615 }")
                .unwrap(),
            ..NewFrame::new(Topic::parse("a.b").unwrap())
        }
    }

    #[test]
    fn a_full_frame_keeps_its_meta_as_written() {
        let id = FrameId::first_of_ms(1_700_000_000_000);
        let origin =
            Origin { processor: id, input: Some(id.next()), input_offset: Some(3), hops: 1 };
        let new = NewFrame { ttl: Ttl::TimeMs(5), origin: Some(origin), ..sample() };
        let hash = BlobHash::of(b"hi\n");
        let made = Frame::assemble(&new, id, Some(7), Some((3, hash))).unwrap();
        let expected = format!(
            "{{\"topic\":\"a.b\",\"id\":\"{id}\",\"offset\":7,\"hash\":\"{hash}\",\
             \"meta\":{{\"a\":[1.0,\"x \\\" y\\\\\"],\"b\":18446744073709551615}},\"ttl\":\"time:5\",\
             \"origin\":{{\"processor\":\"{id}\",\"input\":\"{}\",\"input_offset\":3,\"hops\":1}},\
             \"body\":\"hi\\n\"}}",
            id.next()
        );
        assert_eq!(frame(&made, Some(b"hi\n")), expected);
    }

    #[test]
    fn an_ephemeral_frame_has_no_offset_and_bytes_become_base64() {
        let new = NewFrame { meta: Meta::none(), ttl: Ttl::Ephemeral, ..sample() };
        let made = Frame::assemble(&new, FrameId::ZERO, None, None).unwrap();
        let id = FrameId::ZERO;
        assert_eq!(
            frame(&made, Some(b"\xff\x00")),
            format!(
                "{{\"topic\":\"a.b\",\"id\":\"{id}\",\"hash\":null,\"meta\":null,\
                 \"ttl\":\"ephemeral\",\"body_base64\":\"/wA=\"}}"
            )
        );
    }
}
