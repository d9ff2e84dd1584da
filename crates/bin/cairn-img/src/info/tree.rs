//! How `info` prints an image and what is below it: the field's text, and the field's JSON.

use block_common::HumanSize;
use block_drivers::{ImageTold, Structure};
use serde_json::{Value, json};
use std::fmt::Write;

/// An image, or a file below one.
#[derive(Debug)]
pub(super) struct Node {
    /// What there is to tell of itself.
    pub(super) image: ImageTold,
    /// It reaches storage itself.
    pub(super) is_protocol: bool,
    /// Names of edges, and what is there.
    pub(super) children: Vec<(String, Node)>,
}

/// Add the lines between an image's size and what it is made of.
fn write_structure(image: &Structure, text: &mut String, indent: &str) {
    let mut line = |words: std::fmt::Arguments<'_>| {
        // A String takes whatever is written to it.
        let _ = writeln!(text, "{indent}{words}");
    };
    if image.is_encrypted {
        line(format_args!("encrypted: yes"));
    }
    if let Some(info) = &image.qcow2 {
        line(format_args!("cluster_size: {}", info.header.geometry.cluster_size()));
    }
    if image.is_dirty() {
        line(format_args!("cleanly shut down: no"));
    }
    match &image.backing {
        Some((name, path)) if name == path => line(format_args!("backing file: {name}")),
        Some((name, path)) => line(format_args!("backing file: {name} (actual path: {path})")),
        None => {}
    }
    if let Some(format) = image.backing_format() {
        line(format_args!("backing file format: {format}"));
    }
    if let Some(info) = image.qcow2.as_ref().filter(|info| !info.snapshots.is_empty()) {
        line(format_args!("Snapshot list:"));
        info.snapshot_table(local_time).lines().for_each(|row| line(format_args!("{row}")));
    }
    line(format_args!("Format specific information:"));
    image.specific.to_text(1).lines().for_each(|value| line(format_args!("{value}")));
}

/// A date and a time, as it is where the user is.
pub(crate) fn local_time(seconds: u32) -> String {
    let time = jiff::Timestamp::from_second(seconds.into()).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
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
        let ImageTold { file_name, driver, length, disk_size, .. } = &self.image;
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
        if let Some(structure) = &self.image.structure {
            write_structure(structure, text, indent);
        }
        for (edge, child) in &self.children {
            let path = format!("{path}/{edge}");
            let _ = writeln!(text, "{indent}Child node '{path}':");
            child.write(text, &format!("{indent}    "), &path);
        }
    }

    /// For programs; `as_chain` is a list of images.
    pub(super) fn to_json(chain: &[Self], as_chain: bool) -> String {
        let values: Value = chain.iter().map(Self::value).collect();
        let mut text = String::new();
        write_json(&mut text, if as_chain { &values } else { &values[0] }, 0);
        text + "\n"
    }

    fn value(&self) -> Value {
        let child = |(edge, child): &(String, Self)| json!({ "name": edge, "info": child.value() });
        let children = ("children".to_owned(), self.children.iter().map(child).collect());
        Value::Object([children].into_iter().chain(self.image.to_json()).collect())
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
