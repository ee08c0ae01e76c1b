//! Estimates how deeply a source is nested, before it is parsed: the parser and the passes over its
//! trees recurse per level. It works on tokens, which need not form valid code. What it misses
//! costs a crash, so it is no defence against malicious code.

/// The maximum total weight open at any position. Far more than people write and bundlers generate:
/// the engine gives up much earlier.
const WEIGHT_MAX: usize = 16_384;
/// The weight of an open bracket; an operator between two commas weighs one.
const BRACKET_WEIGHT: usize = 8;
/// Words after which `/` starts a regular expression.
const OPERATORS: [&[u8]; 13] = [
    b"await",
    b"case",
    b"delete",
    b"do",
    b"else",
    b"in",
    b"instanceof",
    b"new",
    b"of",
    b"return",
    b"throw",
    b"typeof",
    b"void",
];

/// The byte offset from which a source is nested too deeply, if it is.
pub(super) fn too_deep(source: &str) -> Option<usize> {
    let mut scan = Scan::of(source.as_bytes());
    while scan.at < scan.source.len() {
        scan.token();
        if scan.weight > WEIGHT_MAX {
            return Some(scan.at.min(source.len()));
        }
    }
    None
}

/// The kind of the previous token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// One that needs an operand, or the start of the source.
    Operator,
    /// A word, a string, a number or a bracket that ends an operand.
    Operand,
    /// The end of a block or of an object.
    Brace,
}

#[derive(Debug)]
struct Scan<'s> {
    source: &'s [u8],
    at: usize,
    /// For each open bracket: whether it is a template's, and the number of operators before it
    /// since the last comma.
    open: Vec<(bool, usize)>,
    /// Operators since the last comma, semicolon or open bracket.
    chain: usize,
    /// The total weight.
    weight: usize,
    last: Last,
    /// Whether there was a line break since the last token.
    is_new_line: bool,
}

impl<'s> Scan<'s> {
    fn of(source: &'s [u8]) -> Self {
        let last = Last::Operator;
        Self { source, at: 0, open: Vec::new(), chain: 0, weight: 0, last, is_new_line: false }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.source.get(self.at + ahead).copied().unwrap_or_default()
    }

    fn token(&mut self) {
        let byte = self.peek(0);
        match (byte, self.peek(1)) {
            (b'\n', _) => self.is_new_line = true,
            (b'/', b'/') => return self.skip_to(b"\n"),
            (b'/', b'*') => {
                self.at += 2;
                self.skip_to(b"*/");
                self.at += 2;
                return;
            }
            _ if byte.is_ascii_whitespace() => {}
            (b'"' | b'\'', _) => {
                self.text(byte);
                return self.operand(&[]);
            }
            (b'`', _) => {
                self.at += 1;
                return self.template();
            }
            (b'/', _) if self.last == Last::Operator => {
                self.pattern();
                return self.operand(&[]);
            }
            (b'(' | b'[' | b'{', _) => self.push(false),
            (b')' | b']' | b'}', _) => {
                self.at += 1;
                return self.pop(byte);
            }
            (b',' | b';', _) => {
                self.end_chain();
                self.set(Last::Operator);
            }
            _ if is_word(byte) => return self.word(),
            _ => {
                self.grow();
                self.set(Last::Operator);
            }
        }
        self.at += 1;
    }

    fn set(&mut self, last: Last) {
        self.last = last;
        self.is_new_line = false;
    }

    fn grow(&mut self) {
        self.chain += 1;
        self.weight += 1;
    }

    fn end_chain(&mut self) {
        self.weight -= std::mem::take(&mut self.chain);
    }

    fn push(&mut self, is_template: bool) {
        self.open.push((is_template, std::mem::take(&mut self.chain)));
        self.weight += BRACKET_WEIGHT;
        self.set(Last::Operator);
    }

    fn pop(&mut self, byte: u8) {
        self.end_chain();
        // An unmatched bracket is an error that the parser reports.
        let Some((is_template, chain)) = self.open.pop() else { return };
        self.weight -= BRACKET_WEIGHT;
        self.chain = chain;
        if is_template {
            return self.template();
        }
        self.grow();
        self.set(if byte == b'}' { Last::Brace } else { Last::Operand });
    }

    fn word(&mut self) {
        let rest = &self.source[self.at..];
        let len = rest.iter().position(|&byte| !is_word(byte)).unwrap_or(rest.len());
        self.at += len;
        self.operand(&rest[..len]);
    }

    /// Handles an operand, or a word that may be an operator.
    fn operand(&mut self, word: &[u8]) {
        match self.last {
            // Two operands in a row are two statements if a line or a block ends in between.
            Last::Brace if word != b"else" => self.end_chain(),
            Last::Operand if self.is_new_line => self.end_chain(),
            Last::Operator if !OPERATORS.contains(&word) => {}
            _ => self.grow(),
        }
        let is_operator = OPERATORS.contains(&word);
        self.set(if is_operator { Last::Operator } else { Last::Operand });
    }

    /// Moves to the end marker, or to the end of the source.
    fn skip_to(&mut self, end: &[u8]) {
        let rest = self.source.get(self.at..).unwrap_or_default();
        let found = rest.windows(end.len()).position(|window| window == end);
        self.at += found.unwrap_or(rest.len());
    }

    /// Moves past a quoted string, which ends with its line at the latest.
    fn text(&mut self, quote: u8) {
        self.at += 1;
        while self.at < self.source.len() && self.peek(0) != b'\n' {
            match self.peek(0) {
                b'\\' => self.at += 2,
                byte => {
                    self.at += 1;
                    if byte == quote {
                        return;
                    }
                }
            }
        }
    }

    /// Moves past a regular expression, which ends with its line at the latest.
    fn pattern(&mut self) {
        let mut in_class = false;
        self.at += 1;
        while self.at < self.source.len() && self.peek(0) != b'\n' {
            match self.peek(0) {
                b'\\' => self.at += 1,
                b'[' => in_class = true,
                b']' => in_class = false,
                b'/' if !in_class => {
                    self.at += 1;
                    return;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Moves through the text of a template, to an interpolation or past its end.
    fn template(&mut self) {
        while self.at < self.source.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\\', _) => self.at += 1,
                (b'`', _) => {
                    self.at += 1;
                    return self.operand(&[]);
                }
                (b'$', b'{') => {
                    self.at += 2;
                    return self.push(true);
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'#' | b'@') || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_and_bundlers_write_is_not_too_deep() {
        let many = |text: &str| text.repeat(20_000);
        let flat = [
            many("f(a, b)\n"),
            many("function f(a){return a+1}"),
            many("class A { b() { if (c) { d() } else { e() } } }\n"),
            many("if (a) b()\n"),
            many("/[(/*]/.test(a)\n"),
            many("// ((( [[[ {{{\n"),
            many("/* ((( */ \"(((\" + '[\\'[['\n"),
            many("a = `(((${b}{{{`;"),
            many("a / (b / c), /[[(]\\//,"),
            many("a++\nb\n"),
            format!("export default [{}];", many("{ a: [1], b: \"[\" },\n")),
            format!("export const a = {{{}}};", many("b: -1,")),
            format!("export const a = b{};", "+'c'\n".repeat(5_000)),
            format!("{}1{}", "[".repeat(1_000), "]".repeat(1_000)),
        ];
        for source in flat {
            assert_eq!(too_deep(&source), None, "{}", &source[..40]);
        }
    }

    #[test]
    fn what_is_nested_a_hundred_thousand_deep_is_too_deep() {
        for part in [
            "[",
            "(",
            "{",
            "{a:",
            "`${",
            "!",
            "- ",
            "a=>",
            "a+",
            "a.b",
            "a()",
            "if(a)",
            "a?b:",
            "typeof ",
            "new ",
            "await ",
            "f(",
            "A<",
            "while(a)",
            "a:",
            "if(a){}else ",
            "a+\n",
            "/a/+",
            "a\n.b",
            "a**",
            "()=>{",
        ] {
            let source = part.repeat(100_000);
            let at = too_deep(&source).unwrap_or_else(|| panic!("{part:?}"));
            assert!(at <= (WEIGHT_MAX + 1) * part.len(), "{part:?}");
        }
    }

    #[test]
    fn no_text_is_too_strange() {
        for text in ["\\", "`${", "`\\", "\"\\", "/\\", "/[", "}", "`a${b}", "/*", "/", "\u{e4}`"] {
            for end in ["", "`", "}"] {
                assert_eq!(too_deep(&format!("{text}{end}")), None, "{text:?}");
            }
        }
    }
}
