//! What a module was told in confidence, the values of variables, kept out of what it says: its
//! errors and its log. Text that was derived from such a value is not recognised.

use std::sync::Arc;

use super::{Definition, IsolateSpec, ModuleError};

/// Shorter values are no secrets: they would be found in words that mean something else.
const SECRET_BYTES_MIN: usize = 8;
/// What stands for a secret.
const MASK: &str = "***";

/// Values that are not to be seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Arc<[String]>);

impl IsolateSpec {
    /// What a module of this definition is told in confidence.
    pub(crate) fn secrets(&self, definition: &Definition) -> Secrets {
        let names = match &self.script {
            Some(script) => script.hidden(),
            None => &definition.permissions.env,
        };
        Secrets::of(names.iter().filter_map(|name| self.env.get(name)).map(String::as_str))
    }
}

impl Secrets {
    fn of<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let long = |text: &str| text.len() >= SECRET_BYTES_MIN;
        // In a line of JSON they look different.
        let forms = values.filter(|value| long(value)).flat_map(|value| {
            let quoted = serde_json::Value::from(value).to_string();
            [value.to_owned(), quoted[1..quoted.len() - 1].to_owned()]
        });
        let mut forms: Vec<String> = forms.collect();
        // One may hold another.
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Self(forms.into())
    }

    /// The text without them.
    pub(crate) fn mask(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| match text.contains(secret.as_str()) {
            true => text.replace(secret.as_str(), MASK),
            false => text,
        })
    }

    /// The error without them.
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
