//! JSON text to values, with the field's extension (single quotes) and with bounds on depth, count and length.
//!
//! A parser of our own, because serde's knows neither single quotes nor duplicate keys, and its depth is not ours to set.
//! It reads whole texts; splitting a stream into texts is the monitor's work.

use super::error::{JsonErrorKind as Kind, excerpt};
use super::{DEPTH_MAX, Dict, Integer, JsonError, OptionsError, TEXT_BYTES_MAX, VALUES_MAX, Value};

/// The one value in `text`. Keys are not checked.
pub(super) fn parse(text: &str) -> Result<Value, OptionsError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(OptionsError::TooLong);
    }
    let mut parser = Parser { text, at: 0, depth: 0, count: 0 };
    parser.skip_space();
    if parser.peek().is_none() {
        return Err(parser.error(Kind::Empty));
    }
    let value = parser.value()?;
    parser.skip_space();
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.error(Kind::Trailing)),
    }
}

/// The same value. Recursion stops at the depth that options may have.
pub(super) fn convert(value: &serde_json::Value) -> Result<Value, OptionsError> {
    fn at_depth(value: &serde_json::Value, depth: usize, count: &mut usize) -> Result<Value, OptionsError> {
        use serde_json::Value as Json;
        *count += 1;
        if *count > VALUES_MAX {
            return Err(OptionsError::TooMany);
        }
        if depth >= DEPTH_MAX && (value.is_array() || value.is_object()) {
            return Err(OptionsError::TooDeep);
        }
        Ok(match value {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Value::Int(value.into()),
                (_, Some(value)) => Value::Int(value.into()),
                _ => Value::Float(number.as_f64().unwrap_or(0.0)),
            },
            Json::String(text) => Value::Str(text.clone()),
            Json::Array(list) => {
                Value::List(list.iter().map(|value| at_depth(value, depth + 1, count)).collect::<Result<_, _>>()?)
            }
            Json::Object(map) => {
                let mut dict = Dict::new();
                for (key, value) in map {
                    dict.insert_unchecked(key.clone(), at_depth(value, depth + 1, count)?);
                }
                Value::Dict(dict)
            }
        })
    }
    at_depth(value, 0, &mut 0)
}

struct Parser<'a> {
    text: &'a str,
    /// The next byte to look at; always between two characters.
    at: usize,
    depth: usize,
    count: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, kind: Kind) -> OptionsError {
        JsonError { kind, offset: self.at }.into()
    }

    /// An error that cites the text from `start` to the next character, that one included.
    fn stray(&self, start: usize) -> OptionsError {
        let end = self.text[self.at..].chars().next().map_or(self.at, |c| self.at + c.len_utf8());
        self.error(Kind::Stray(excerpt(&self.text[start..end])))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Step over `byte`, if it is next.
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self) -> Result<Value, OptionsError> {
        self.count += 1;
        if self.count > VALUES_MAX {
            return Err(OptionsError::TooMany);
        }
        self.skip_space();
        match self.peek() {
            None => Err(self.error(Kind::Premature)),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::list),
            Some(b'"' | b'\'') => Ok(Value::Str(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'a'..=b'z') => self.keyword(),
            Some(b',' | b':' | b'}' | b']') => Err(self.error(Kind::NoValue)),
            Some(_) => Err(self.stray(self.at)),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value, OptionsError>) -> Result<Value, OptionsError> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(OptionsError::TooDeep);
        }
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, OptionsError> {
        let mut dict = Dict::new();
        self.skip_space();
        if self.eat(b'}') {
            return Ok(Value::Dict(dict));
        }
        loop {
            let (start, key) = self.key()?;
            self.skip_space();
            if !self.eat(b':') {
                return Err(self.end_or(Kind::Colon));
            }
            let value = self.value()?;
            if !dict.insert_unchecked(key, value) {
                return Err(JsonError { kind: Kind::DuplicateKey, offset: start }.into());
            }
            self.skip_space();
            if self.eat(b'}') {
                return Ok(Value::Dict(dict));
            }
            if !self.eat(b',') {
                return Err(self.end_or(Kind::DictSeparator));
            }
        }
    }

    /// An object's key, and where it starts. What stands there instead is read, so that its own error comes first.
    fn key(&mut self) -> Result<(usize, String), OptionsError> {
        self.skip_space();
        let start = self.at;
        match self.value()? {
            Value::Str(key) => {
                self.count -= 1;
                Ok((start, key))
            }
            _ => Err(JsonError { kind: Kind::KeyType, offset: start }.into()),
        }
    }

    fn list(&mut self) -> Result<Value, OptionsError> {
        let mut list = Vec::new();
        self.skip_space();
        if self.eat(b']') {
            return Ok(Value::List(list));
        }
        loop {
            list.push(self.value()?);
            self.skip_space();
            if self.eat(b']') {
                return Ok(Value::List(list));
            }
            if !self.eat(b',') {
                return Err(self.end_or(Kind::ListSeparator));
            }
        }
    }

    /// What is wrong if punctuation is not there: `kind`, unless the text stops here or goes on with no token at all.
    fn end_or(&self, kind: Kind) -> OptionsError {
        match self.peek() {
            None => self.error(Kind::Premature),
            Some(b',' | b':' | b'{' | b'}' | b'[' | b']' | b'"' | b'\'' | b'-' | b'0'..=b'9' | b'a'..=b'z') => {
                self.error(kind)
            }
            Some(_) => self.stray(self.at),
        }
    }

    fn keyword(&mut self) -> Result<Value, OptionsError> {
        let word = self.word(|b| b.is_ascii_lowercase());
        match word {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "null" => Ok(Value::Null),
            _ => Err(self.error(Kind::Keyword(excerpt(word)))),
        }
    }

    /// The longest run of bytes, ASCII all of them, that `belongs` accepts.
    fn word(&mut self, belongs: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii() && belongs(b)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    /// A number as RFC 8259 defines it, section 6.
    fn number(&mut self) -> Result<Value, OptionsError> {
        let start = self.at;
        let digits = |parser: &mut Self| parser.word(|b| b.is_ascii_digit()).len();
        self.eat(b'-');
        match digits(self) {
            0 => return Err(self.stray(start)),
            n if n > 1 && self.text.as_bytes()[self.at - n] == b'0' => {
                self.at -= n - 1;
                return Err(self.stray(start));
            }
            _ => {}
        }
        let mut whole = true;
        if self.eat(b'.') {
            whole = false;
            if digits(self) == 0 {
                return Err(self.stray(start));
            }
        }
        if self.eat(b'e') || self.eat(b'E') {
            whole = false;
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            if digits(self) == 0 {
                return Err(self.stray(start));
            }
        }
        let text = &self.text[start..self.at];
        if let Some(value) = text.parse().ok().and_then(Integer::from_i128).filter(|_| whole) {
            return Ok(Value::Int(value));
        }
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Value::Float(value)),
            _ => Err(self.error(Kind::Number(excerpt(text)))),
        }
    }

    fn string(&mut self) -> Result<String, OptionsError> {
        let start = self.at;
        let quote = if self.eat(b'"') { b'"' } else { b'\'' };
        self.at = start + 1;
        let mut string = String::new();
        loop {
            // Bytes of longer characters are none of the three, so the run ends between characters.
            let run = self.text.as_bytes()[self.at..]
                .iter()
                .take_while(|b| **b != quote && **b != b'\\' && **b >= b' ')
                .count();
            string.push_str(&self.text[self.at..self.at + run]);
            self.at += run;
            match self.peek() {
                Some(byte) if byte == quote => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                Some(_) | None => return Err(self.stray(start)),
            }
        }
    }

    /// The character that an escape sequence stands for.
    fn escape(&mut self) -> Result<char, OptionsError> {
        let start = self.at;
        let Some(byte) = self.text.as_bytes().get(start + 1) else { return Err(self.stray(start)) };
        self.at += 2;
        match byte {
            b'"' => Ok('"'),
            b'\'' => Ok('\''),
            b'\\' => Ok('\\'),
            b'/' => Ok('/'),
            b'b' => Ok('\u{8}'),
            b'f' => Ok('\u{c}'),
            b'n' => Ok('\n'),
            b'r' => Ok('\r'),
            b't' => Ok('\t'),
            b'u' => self.unicode(start),
            _ => {
                self.at = start;
                Err(self.error(Kind::Escape))
            }
        }
    }

    /// The character whose UTF-16 code unit is next, together with the second half of a pair.
    fn unicode(&mut self, start: usize) -> Result<char, OptionsError> {
        let first = self.hex4();
        let second = match first {
            Some(0xd800..=0xdbff) if self.text[self.at..].starts_with("\\u") => {
                self.at += 2;
                self.hex4()
            }
            _ => None,
        };
        let units = first.into_iter().chain(second);
        let mut chars = char::decode_utf16(units);
        match (chars.next(), chars.next()) {
            (Some(Ok(c)), None) => Ok(c),
            _ => {
                let cited: String = self.text[start..].chars().take(6).collect();
                self.at = start;
                Err(self.error(Kind::Unicode(cited)))
            }
        }
    }

    /// Four hexadecimal digits; steps over them if they are there.
    fn hex4(&mut self) -> Option<u16> {
        let digits = self.text.get(self.at..self.at + 4)?;
        let unit = digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())??;
        self.at += 4;
        Some(unit)
    }
}
