//! Where one JSON text ends and the next begins in what a client sends. Nothing is parsed here.
//!
//! A text is an object or a list with everything in it, or whatever stands by itself between spaces and brackets: that is no command, and the parser will
//! say so.

use block_common::options::TEXT_BYTES_MAX;

/// What was found in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// A text, whole as far as brackets and quotes tell.
    Whole(String),
    /// A text that is longer than [`TEXT_BYTES_MAX`]; what was in it is gone.
    TooLong,
    /// A text that is not UTF-8.
    NotUtf8,
}

/// Splits a stream into texts, whatever pieces it comes in. Keeps at most one text of at most [`TEXT_BYTES_MAX`] bytes.
#[derive(Debug, Default)]
pub struct Splitter {
    text: Vec<u8>,
    /// How many brackets are open.
    depth: usize,
    /// The quote that ends the string that this is in.
    quote: Option<u8>,
    is_escaped: bool,
    is_too_long: bool,
}

impl Splitter {
    /// A splitter at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Take what came next, and tell the texts that end in it.
    pub fn push(&mut self, bytes: &[u8], mut found: impl FnMut(Text)) {
        for byte in bytes {
            self.take(*byte, &mut found);
        }
    }

    fn take(&mut self, byte: u8, found: &mut impl FnMut(Text)) {
        if let Some(quote) = self.quote {
            self.keep(byte);
            if self.is_escaped {
                self.is_escaped = false;
            } else if byte == b'\\' {
                self.is_escaped = true;
            } else if byte == quote {
                self.quote = None;
                self.end_if_alone(found);
            }
            return;
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                self.end_if_alone(found);
                if self.depth > 0 {
                    self.keep(byte);
                }
            }
            b'"' | b'\'' => {
                self.keep(byte);
                self.quote = Some(byte);
            }
            b'{' | b'[' => {
                self.end_if_alone(found);
                self.keep(byte);
                self.depth += 1;
            }
            b'}' | b']' => {
                self.end_if_alone(found);
                self.keep(byte);
                self.depth = self.depth.saturating_sub(1);
                self.end_if_alone(found);
            }
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) {
        if self.text.len() < TEXT_BYTES_MAX && !self.is_too_long {
            self.text.push(byte);
        } else {
            self.is_too_long = true;
            self.text = Vec::new();
        }
    }

    /// Outside brackets and quotes, what there is so far is a text.
    fn end_if_alone(&mut self, found: &mut impl FnMut(Text)) {
        if self.depth > 0 || self.quote.is_some() || self.text.is_empty() && !self.is_too_long {
            return;
        }
        let text = std::mem::take(&mut self.text);
        found(match std::mem::take(&mut self.is_too_long) {
            true => Text::TooLong,
            false => String::from_utf8(text).map_or(Text::NotUtf8, Text::Whole),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stream: &str, expected: &[&str]) {
        let expected: Vec<_> = expected.iter().map(|text| Text::Whole((*text).to_owned())).collect();
        // In one piece, byte by byte, and in two pieces.
        for cut in (0..=stream.len()).chain([usize::MAX]) {
            let (mut splitter, mut found) = (Splitter::new(), Vec::new());
            match stream.as_bytes().split_at_checked(cut) {
                Some((one, other)) => {
                    splitter.push(one, |text| found.push(text));
                    splitter.push(other, |text| found.push(text));
                }
                None => stream.bytes().for_each(|byte| splitter.push(&[byte], |text| found.push(text))),
            }
            assert_eq!(found, expected, "{stream} cut at {cut}");
        }
    }

    #[test]
    fn texts_end_where_their_brackets_do() {
        check(r#"{"a":1}{"b":[2,{}]} [ ] "#, &[r#"{"a":1}"#, r#"{"b":[2,{}]}"#, "[ ]"]);
        check("{\"a\":\n \"}{\\\"\"}\n", &["{\"a\":\n \"}{\\\"\"}"]);
        check(r#"{'a': '}"'}"#, &[r#"{'a': '}"'}"#]);
        check("foo\nbar {}", &["foo", "bar", "{}"]);
        check(r#"{"a": } ] }{"#, &[r#"{"a": }"#, "]", "}"]);
        check(r#"5 "abc" null,"#, &["5", r#""abc""#]);
        check("  \r\n", &[]);
        check("{\"grüße\":\"ß\"}", &["{\"grüße\":\"ß\"}"]);
    }

    #[test]
    fn too_long_texts_are_counted_and_forgotten() {
        let (mut splitter, mut found) = (Splitter::new(), Vec::new());
        splitter.push(b"{\"a\": \"", |text| found.push(text));
        for _ in 0..40 {
            splitter.push(&[b'x'; 65536], |text| found.push(text));
            assert!(splitter.text.len() <= TEXT_BYTES_MAX);
        }
        splitter.push(b"\"} {\"b\":1}\xff {\"c\":\"\xff\"}{}", |text| found.push(text));
        let whole = |text: &str| Text::Whole(text.into());
        assert_eq!(found, [Text::TooLong, whole("{\"b\":1}"), Text::NotUtf8, Text::NotUtf8, whole("{}")]);
    }

    /// However deep somebody nests, it costs bytes and no stack.
    #[test]
    fn nesting_costs_nothing_but_bytes() {
        let (mut splitter, mut found) = (Splitter::new(), 0);
        for _ in 0..3 << 20 {
            splitter.push(b"[", |_| found += 1);
        }
        assert_eq!((found, splitter.text.len()), (0, 0));
        for _ in 0..3 << 20 {
            splitter.push(b"]", |text| found += usize::from(text == Text::TooLong));
        }
        assert_eq!(found, 1);
    }
}
