//! A frame's meta: JSON text, validated once and kept as written.

use std::fmt;

use bytes::Bytes;

use super::{ValueError, shorten};
use crate::limits::{META_BYTES_MAX, META_DEPTH_MAX};

/// JSON text of at most 64 KiB and 64 levels, or nothing. The bytes are kept as given.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Meta(Bytes);

impl Meta {
    /// Returns an empty meta.
    #[must_use]
    pub const fn none() -> Self {
        Self(Bytes::new())
    }

    /// Checks that `text` is one JSON value within the limits. Empty text is no meta.
    ///
    /// # Errors
    /// [`ValueError::MetaBytes`], [`ValueError::MetaDepth`] or [`ValueError::MetaSyntax`].
    pub fn parse(text: impl Into<Bytes>) -> Result<Self, ValueError> {
        let text = text.into();
        if text.is_empty() {
            return Ok(Self(text));
        }
        if text.len() > META_BYTES_MAX {
            return Err(ValueError::MetaBytes { bytes: text.len(), max: META_BYTES_MAX });
        }
        if depth(&text) > META_DEPTH_MAX {
            return Err(ValueError::MetaDepth { max: META_DEPTH_MAX });
        }
        // A borrowed RawValue checks the syntax and the UTF-8 without building the value.
        match serde_json::from_slice::<&serde_json::value::RawValue>(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(ValueError::MetaSyntax(shorten(&error.to_string()))),
        }
    }

    /// Returns the JSON text; empty when there is no meta.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there is no meta.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meta({})", String::from_utf8_lossy(&self.0))
    }
}

/// An upper bound of the nesting of brackets outside strings, exact for deep text. For text that is
/// not JSON the result is meaningless, and the syntax check that follows rejects it.
fn depth(text: &[u8]) -> usize {
    // Most text has too few brackets to be too deep, and counting them is branch-free.
    let open = text.iter().filter(|&&byte| byte == b'{' || byte == b'[').count();
    if open <= META_DEPTH_MAX {
        return open;
    }
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for &byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_is_checked() {
        for good in ["", "null", "1", "{}", r#"{"a":[1,"[[[",{"b":"\"{"}]}"#, " {} "] {
            assert!(Meta::parse(good).is_ok(), "{good}");
        }
        for bad in ["{", "{}{}", "a", "{a:1}", "\"\u{1}\""] {
            assert!(matches!(Meta::parse(bad), Err(ValueError::MetaSyntax(_))), "{bad}");
        }
        assert!(matches!(Meta::parse(&b"\"\xff\""[..]), Err(ValueError::MetaSyntax(_))));
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Meta::parse(nested(META_DEPTH_MAX)).is_ok());
        assert!(matches!(
            Meta::parse(nested(META_DEPTH_MAX + 1)),
            Err(ValueError::MetaDepth { .. })
        ));
        let long = |bytes: usize| format!("\"{}\"", "a".repeat(bytes - 2));
        assert!(Meta::parse(long(META_BYTES_MAX)).is_ok());
        assert!(Meta::parse(long(META_BYTES_MAX + 1)).is_err());
    }
}
