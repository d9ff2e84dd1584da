//! How `info` prints an image and what is below it: the field's text, and the field's JSON.

use block_common::HumanSize;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// An image, or a file below one.
#[derive(Debug)]
pub(super) struct Node {
    /// The name that opens it.
    pub(super) file_name: String,
    /// Its driver.
    pub(super) driver: &'static str,
    /// It reaches storage itself.
    pub(super) is_protocol: bool,
    /// Bytes, whole sectors.
    pub(super) length: u64,
    /// Bytes that the host has allocated, where that is told.
    pub(super) disk_size: Option<u64>,
    /// It is, or is on, something that tells more of itself than its length.
    pub(super) has_flags: bool,
    /// Names of edges, and what is there.
    pub(super) children: Vec<(String, Node)>,
}

impl Node {
    /// For people.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, "", "");
        text
    }

    /// Add the lines of this node, which is at `path`, each behind `indent`.
    fn write(&self, text: &mut String, indent: &str, path: &str) {
        let Self { file_name, driver, length, disk_size, .. } = self;
        let below = self.is_protocol && !path.is_empty();
        let words = match below {
            true => ["filename", "protocol type", "file length"],
            false => ["image", "file format", "virtual size"],
        };
        let [name, kind, size] = words;
        let human = HumanSize(*length);
        let disk = disk_size.map_or("unavailable".to_owned(), |bytes| HumanSize(bytes).to_string());
        // A String takes whatever is written to it.
        let _ = writeln!(text, "{indent}{name}: {file_name}\n{indent}{kind}: {driver}");
        let _ = writeln!(text, "{indent}{size}: {human} ({length} bytes)\n{indent}disk size: {disk}");
        for (edge, child) in &self.children {
            let path = format!("{path}/{edge}");
            let _ = writeln!(text, "{indent}Child node '{path}':");
            child.write(text, &format!("{indent}    "), &path);
        }
    }

    /// For programs; `as_chain` is a list of images.
    pub(super) fn to_json(&self, as_chain: bool) -> String {
        let value = self.value();
        let mut text = String::new();
        write_json(&mut text, &if as_chain { Value::Array(vec![value]) } else { value }, 0);
        text + "\n"
    }

    fn value(&self) -> Value {
        let child = |(edge, child): &(String, Self)| json!({ "name": edge, "info": child.value() });
        let mut map = Map::new();
        let mut add = |key: &str, value: Value| drop(map.insert(key.into(), value));
        add("children", self.children.iter().map(child).collect());
        add("virtual-size", self.length.into());
        add("filename", self.file_name.as_str().into());
        add("format", self.driver.into());
        if let Some(bytes) = self.disk_size {
            add("actual-size", bytes.into());
        }
        if matches!(self.driver, "file" | "host_device") {
            add("format-specific", json!({ "type": "file", "data": {} }));
        }
        if self.has_flags {
            add("dirty-flag", false.into());
        }
        Value::Object(map)
    }
}

/// JSON laid out as the field's tools do it: four spaces, and a line of its own for the end of what is empty.
pub(crate) fn write_json(text: &mut String, value: &Value, depth: usize) {
    let (open, close, items): (_, _, Vec<(String, &Value)>) = match value {
        Value::Array(list) => ('[', ']', list.iter().map(|value| (String::new(), value)).collect()),
        Value::Object(map) => ('{', '}', map.iter().map(|(key, value)| (format!("{}: ", json!(key)), value)).collect()),
        scalar => return text.push_str(&scalar.to_string()),
    };
    text.push(open);
    text.push('\n');
    let count = items.len();
    for (at, (key, value)) in items.into_iter().enumerate() {
        text.push_str(&"    ".repeat(depth + 1));
        text.push_str(&key);
        write_json(text, value, depth + 1);
        text.push_str(if at + 1 < count { ",\n" } else { "\n" });
    }
    text.push_str(&"    ".repeat(depth));
    text.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_containers_have_two_lines() {
        let mut text = String::new();
        write_json(&mut text, &json!({ "a": [], "b": 1 }), 0);
        assert_eq!(text, "{\n    \"a\": [\n    ],\n    \"b\": 1\n}");
    }
}
