//! Secrets, the values of environment variables a module was given, are masked in its errors and
//! its log. They are recognised verbatim and in the usual encodings: JSON, percent-encoding, the
//! escapes of URL parsers, Base64. Other derivations of such a value are not recognised.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::{Definition, IsolateSpec, ModuleError};

/// Shorter values are not treated as secrets: they would match inside unrelated words.
const SECRET_BYTES_MIN: usize = 8;
/// Replaces a secret.
const MASK: &str = "***";

/// The characters that URL parsers escape, besides control characters, spaces and non-ASCII ones,
/// by the part of the URL: a query, a query of a non-special scheme, a fragment, a path, a user or
/// a password. Some sets lack `#` and `?`, which begin the next part if written as they are, or
/// `^`, which older parsers do not escape.
const ADDRESSES: [&[u8]; 9] = [
    b"\"<>'",
    b"\"#<>'",
    b"\"#<>",
    b"\"<>`",
    b"\"<>`{}",
    b"\"#<>?`{}",
    b"\"<>^`{}",
    b"\"#<>?^`{}",
    b"\"#/:;<=>?@[\\]^`{|}",
];

/// Values to mask.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Arc<[String]>);

impl IsolateSpec {
    /// The secrets given to a module with this definition.
    pub(crate) fn secrets(&self, definition: &Definition) -> Secrets {
        let names = match &self.script {
            Some(script) => script.hidden(),
            None => &definition.permissions.env,
        };
        Secrets::of(names.iter().filter_map(|name| self.env.get(name)).map(String::as_str))
    }
}

/// A value and its encoded forms.
fn forms(value: &str) -> Vec<String> {
    let quoted = serde_json::Value::from(value).to_string();
    let mut forms = vec![value.to_owned(), quoted[1..quoted.len() - 1].to_owned()];
    // encodeURIComponent, URLSearchParams, and variants with lower-case hex digits.
    let percent = |kept: &[u8], space: &str, lower: bool| {
        let escaped = value.bytes().map(|byte| match byte {
            b' ' => space.to_owned(),
            byte if byte.is_ascii_alphanumeric() || kept.contains(&byte) => {
                char::from(byte).to_string()
            }
            byte if lower => format!("%{byte:02x}"),
            byte => format!("%{byte:02X}"),
        });
        escaped.collect::<String>()
    };
    for lower in [false, true] {
        forms.push(percent(b"-_.!~*'()", "%20", lower));
        forms.push(percent(b"-_.~", "%20", lower));
        forms.push(percent(b"-_.*", "+", lower));
    }
    for escaped in ADDRESSES {
        let parsed = value.bytes().map(|byte| match byte {
            b'!'..=b'~' if !escaped.contains(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        });
        forms.push(parsed.collect());
    }
    for before in 0..3 {
        let inner = inner_base64(value.as_bytes(), before);
        forms.push(inner.replace('+', "-").replace('/', "_"));
        forms.push(inner);
    }
    forms
}

/// The Base64 characters that depend only on these bytes, when `before` bytes (modulo three)
/// precede them.
fn inner_base64(bytes: &[u8], before: usize) -> String {
    let text = STANDARD_NO_PAD.encode([&[0; 2][..before], bytes].concat());
    // Six bits per character: the first and the last may hold bits of a neighbour.
    let first = (before * 8).div_ceil(6);
    let last = (before + bytes.len()) * 8 / 6;
    text[first..last].to_owned()
}

impl Secrets {
    fn of<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let long = |text: &str| text.len() >= SECRET_BYTES_MIN;
        let mut forms: Vec<String> = values.filter(|value| long(value)).flat_map(forms).collect();
        // Longest first: one form may contain another.
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Self(forms.into())
    }

    /// The text with all secrets masked.
    pub(crate) fn mask(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| match text.contains(secret.as_str()) {
            true => text.replace(secret.as_str(), MASK),
            false => text,
        })
    }

    /// The error with all secrets masked.
    pub(crate) fn mask_error(&self, error: ModuleError) -> ModuleError {
        if self.0.is_empty() {
            return error;
        }
        ModuleError {
            message: self.mask(error.message),
            stack: error.stack.map(|text| self.mask(text)),
            code_frame: error.code_frame.map(|text| self.mask(text)),
            ..error
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolate::FailureKind;

    #[test]
    fn usual_encodings_are_recognised() {
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};
        let value = "p\u{e4}ss w\u{f6}rd+?>/~&'*";
        let secrets = Secrets::of([value].into_iter());
        for before in 0..4 {
            for behind in 0..4 {
                let text = format!("{}{value}{}", &"user"[..before], &"host"[..behind]);
                for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                    let masked = secrets.mask(encoded.clone());
                    assert!(masked.contains(MASK) && masked.len() <= 16, "{encoded}: {masked}");
                }
            }
        }
        for encoded in [
            "p%C3%A4ss%20w%C3%B6rd%2B%3F%3E%2F~%26'*",
            "p%c3%a4ss%20w%c3%b6rd%2b%3f%3e%2f~%26%27%2a",
            "p%C3%A4ss+w%C3%B6rd%2B%3F%3E%2F%7E%26%27*",
        ] {
            assert_eq!(secrets.mask(format!("a={encoded}&b")), "a=***&b");
        }
        // As `URL`, and any parser that follows its standard, escapes values that are written as
        // they are.
        let secrets = Secrets::of(["s3cr3t/to\"ken+x y", "it's#{no}?`|^[\u{e4}]"].into_iter());
        for encoded in [
            "s3cr3t/to%22ken+x%20y",
            "s3cr3t%2Fto%22ken+x%20y",
            "it%27s#{no}?`|^[%C3%A4]",
            "it%27s%23{no}?`|^[%C3%A4]",
            "it's#{no}?%60|^[%C3%A4]",
            "it's#%7Bno%7D?%60|^[%C3%A4]",
            "it's%23%7Bno%7D%3F%60|%5E[%C3%A4]",
            "it's%23%7Bno%7D%3F%60%7C%5E%5B%C3%A4%5D",
        ] {
            assert_eq!(secrets.mask(format!("a={encoded}&b")), "a=***&b");
        }
        // Half of a secret is not a secret.
        assert_eq!(secrets.mask(value[..9].to_owned()), value[..9]);
    }

    #[test]
    fn long_values_are_masked_wherever_they_stand() {
        let secrets =
            Secrets::of(["hunter2hunter2", "short", "hunter2hunter2+", "a\"b\"c\"d\""].into_iter());
        for (text, masked) in [
            ("with hunter2hunter2+ and hunter2hunter2!", "with *** and ***!"),
            ("short stays", "short stays"),
            ("{\"x\":\"a\\\"b\\\"c\\\"d\\\"\"}", "{\"x\":\"***\"}"),
        ] {
            assert_eq!(secrets.mask(text.to_owned()), masked);
        }
        let mut error = ModuleError::new(FailureKind::Throw, "no: hunter2hunter2");
        error.stack = Some("hunter2hunter2\n  at a.ts:1:1".to_owned());
        let masked = secrets.mask_error(error);
        assert_eq!(masked.message, "no: ***");
        assert_eq!(masked.stack.unwrap(), "***\n  at a.ts:1:1");
    }
}
