//! Parses keys from the bytes that a terminal in raw mode sends. Unknown escape sequences are
//! skipped as a whole.

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Interrupt,
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
}

/// The keys in the bytes of one read. A terminal sends the bytes of one key together, so a lone
/// escape byte is the Escape key.
pub(super) fn keys(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let [first, behind @ ..] = rest {
        rest = behind;
        match *first {
            0x03 => keys.push(Key::Interrupt),
            b'\r' | b'\n' => keys.push(Key::Enter),
            0x08 | 0x7f => keys.push(Key::Backspace),
            0x1b if matches!(behind, [b'[' | b'O', ..]) => {
                let end = behind[1..].iter().position(|byte| (0x40..=0x7e).contains(byte));
                let end = end.map_or(behind.len(), |at| at + 2);
                keys.extend(sequence(&behind[1..end]));
                rest = &behind[end..];
            }
            0x1b => keys.push(Key::Escape),
            byte if byte < 0x20 => {}
            byte => {
                if let Some(c) = first_char(byte, behind) {
                    keys.push(Key::Char(c));
                    rest = &behind[c.len_utf8() - 1..];
                }
            }
        }
    }
    keys
}

/// The key for the bytes after `ESC [`.
fn sequence(bytes: &[u8]) -> Option<Key> {
    Some(match bytes {
        b"A" => Key::Up,
        b"B" => Key::Down,
        b"H" | b"1~" | b"7~" => Key::Home,
        b"5~" => Key::PageUp,
        b"6~" => Key::PageDown,
        _ => return None,
    })
}

fn first_char(first: u8, behind: &[u8]) -> Option<char> {
    let mut bytes = [first, 0, 0, 0];
    for (to, from) in bytes[1..].iter_mut().zip(behind) {
        *to = *from;
    }
    let valid = |chunk: std::str::Utf8Chunk<'_>| chunk.valid().chars().next();
    bytes.utf8_chunks().next().and_then(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_keys() {
        for (bytes, expected) in [
            (&b"q"[..], vec![Key::Char('q')]),
            (b"/m\x7f\r", vec![Key::Char('/'), Key::Char('m'), Key::Backspace, Key::Enter]),
            (b"\x1b", vec![Key::Escape]),
            (b"\x1b[A\x1b[B\x1bOB", vec![Key::Up, Key::Down, Key::Down]),
            (b"\x1b[5~\x1b[6~\x1b[H", vec![Key::PageUp, Key::PageDown, Key::Home]),
            // Unknown, cut off, or no key at all.
            (b"\x1b[1;5Cx", vec![Key::Char('x')]),
            (b"\x1b[", vec![]),
            (b"\x1b[12", vec![]),
            (b"\x00\x01", vec![]),
            (b"\xff", vec![]),
            (
                "\u{e4}\u{20ac}a".as_bytes(),
                vec![Key::Char('\u{e4}'), Key::Char('\u{20ac}'), Key::Char('a')],
            ),
            (b"\x03", vec![Key::Interrupt]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
    }
}
