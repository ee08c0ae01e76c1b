//! Uuids of stores as text, in the same form everywhere.

/// 32 hexadecimal digits, in the order of the bytes.
#[must_use]
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    uuid.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses the output of [`uuid_text`].
#[must_use]
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in uuid.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let uuid = [0, 1, 0x2f, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff];
        assert_eq!(uuid_text(&uuid), "00012f030405060708090a0b0c0d0eff");
        assert_eq!(parse_uuid(&uuid_text(&uuid)), Some(uuid));
        for wrong in ["", "00012f030405060708090a0b0c0d0ef", "+0012f030405060708090a0b0c0d0eff"] {
            assert_eq!(parse_uuid(wrong), None, "{wrong}");
        }
    }
}
