//! How `info` prints an image and what is below it: the field's text, and the field's JSON.

use block_common::HumanSize;
use block_qcow2::info::{ImageInfo, InfoValue};
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
    /// What the image says of itself, if it has a structure.
    pub(super) image: Option<Box<Image>>,
}

/// An image with a structure.
#[derive(Debug)]
pub(super) struct Image {
    /// What its format says of it.
    pub(super) specific: InfoValue,
    /// Whether its data is encrypted.
    pub(super) is_encrypted: bool,
    /// What else a qcow2 image says.
    pub(super) qcow2: Option<ImageInfo>,
    /// The backing file's name as it stands there, and as it is from here.
    pub(super) backing: Option<(String, String)>,
}

impl Image {
    fn backing_format(&self) -> Option<String> {
        let header = &self.qcow2.as_ref()?.header;
        let format = header.backing_format.as_ref().filter(|_| self.backing.is_some());
        format.map(|format| String::from_utf8_lossy(format).into_owned())
    }

    fn is_dirty(&self) -> bool {
        self.qcow2.as_ref().is_some_and(ImageInfo::is_dirty)
    }

    /// The lines between an image's size and what it is made of.
    fn write(&self, text: &mut String, indent: &str) {
        let mut line = |words: std::fmt::Arguments<'_>| {
            // A String takes whatever is written to it.
            let _ = writeln!(text, "{indent}{words}");
        };
        if self.is_encrypted {
            line(format_args!("encrypted: yes"));
        }
        if let Some(info) = &self.qcow2 {
            line(format_args!("cluster_size: {}", info.header.geometry.cluster_size()));
        }
        if self.is_dirty() {
            line(format_args!("cleanly shut down: no"));
        }
        match &self.backing {
            Some((name, path)) if name == path => line(format_args!("backing file: {name}")),
            Some((name, path)) => line(format_args!("backing file: {name} (actual path: {path})")),
            None => {}
        }
        if let Some(format) = self.backing_format() {
            line(format_args!("backing file format: {format}"));
        }
        if let Some(info) = self.qcow2.as_ref().filter(|info| !info.snapshots.is_empty()) {
            line(format_args!("Snapshot list:"));
            info.snapshot_table(local_time).lines().for_each(|row| line(format_args!("{row}")));
        }
        line(format_args!("Format specific information:"));
        self.specific.to_text(1).lines().for_each(|value| line(format_args!("{value}")));
    }
}

/// A date and a time, as it is where the user is.
pub(crate) fn local_time(seconds: u32) -> String {
    let time = jiff::Timestamp::from_second(seconds.into()).unwrap_or_default();
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn json_of(value: &InfoValue) -> Value {
    match value {
        InfoValue::Text(words) => words.as_str().into(),
        InfoValue::Number(number) => (*number).into(),
        InfoValue::Flag(flag) => (*flag).into(),
        InfoValue::List(list) => list.iter().map(json_of).collect(),
        InfoValue::Map(map) => map.iter().map(|(name, value)| ((*name).to_owned(), json_of(value))).collect(),
    }
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
        if let Some(image) = &self.image {
            image.write(text, indent);
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
        let mut map = Map::new();
        let mut add = |key: &str, value: Value| drop(map.insert(key.into(), value));
        add("children", self.children.iter().map(child).collect());
        let image = self.image.as_deref();
        if let Some(format) = image.and_then(Image::backing_format) {
            add("backing-filename-format", format.into());
        }
        let qcow2 = image.and_then(|image| image.qcow2.as_ref());
        if let Some(info) = qcow2.filter(|info| !info.snapshots.is_empty()) {
            add("snapshots", info.snapshot_values().iter().map(json_of).collect());
        }
        add("virtual-size", self.length.into());
        add("filename", self.file_name.as_str().into());
        if let Some(info) = qcow2 {
            add("cluster-size", info.header.geometry.cluster_size().into());
        }
        add("format", self.driver.into());
        if let Some(bytes) = self.disk_size {
            add("actual-size", bytes.into());
        }
        if matches!(self.driver, "file" | "host_device") {
            add("format-specific", json!({ "type": "file", "data": {} }));
        }
        if let Some(image) = image {
            add("format-specific", json!({ "type": self.driver, "data": json_of(&image.specific) }));
            if let Some((name, path)) = &image.backing {
                add("full-backing-filename", path.as_str().into());
                add("backing-filename", name.as_str().into());
            }
            if image.is_encrypted {
                add("encrypted", true.into());
            }
        }
        if self.has_flags {
            add("dirty-flag", image.is_some_and(Image::is_dirty).into());
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
