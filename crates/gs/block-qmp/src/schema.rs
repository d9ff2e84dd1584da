//! `query-qmp-schema`: which commands and events there are, and the types of what they take and tell.
//!
//! They are written down as text beside this file, a declaration a line, and a line that begins with a blank goes on with the one before it. Clients see numbers in the
//! place of the names of types, as in the field: these names are nobody's to rely on.
//!
//! ```text
//! command NAME [TYPE] [-> TYPE] [!feature …]       event NAME [TYPE]
//! object NAME member, … [!feature …] [by TAG CASE:TYPE …]
//! enum NAME value …                                alternate NAME TYPE | TYPE
//! member: [?]NAME:TYPE[!feature]     TYPE: a name, [TYPE], or { member, … }
//! ```

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const TEXTS: [&str; 3] =
    [include_str!("schema/commands.txt"), include_str!("schema/nodes.txt"), include_str!("schema/changes.txt")];

/// The types that are there by themselves, and what they are in JSON.
const BUILTINS: [(&str, &str); 6] =
    [("str", "string"), ("int", "int"), ("number", "number"), ("bool", "boolean"), ("null", "null"), ("any", "value")];

/// What takes nothing, or tells nothing.
const EMPTY: &str = "empty";

/// Everything that is declared, as it is told, and what could not be read, which is nothing.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    told: Vec<Value>,
    /// The declarations of types by name.
    types: BTreeMap<String, Declared>,
    /// The number of each type that is used, and the names of those that are still to be told.
    numbers: BTreeMap<String, usize>,
    coming: Vec<String>,
    pub(crate) mistakes: Vec<String>,
}

/// A type's declaration: its kind, and what follows its name.
#[derive(Clone, Debug)]
struct Declared {
    kind: &'static str,
    rest: String,
}

impl Schema {
    /// Read what is written down.
    pub(crate) fn read() -> Self {
        let mut schema = Self::default();
        let mut tops = Vec::new();
        for line in TEXTS.iter().flat_map(|text| declarations(text)) {
            let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let (name, rest) = (name.to_owned(), rest.trim().to_owned());
            let mut declare = |kind| drop(schema.types.insert(name.clone(), Declared { kind, rest: rest.clone() }));
            match kind {
                "object" => declare("object"),
                "enum" => declare("enum"),
                "alternate" => declare("alternate"),
                "command" | "event" => tops.push((kind == "command", name, rest)),
                _ => schema.mistakes.push(line),
            }
        }
        schema.types.insert(EMPTY.into(), Declared { kind: "object", rest: String::new() });
        for (is_command, name, rest) in tops {
            schema.top(is_command, &name, &rest);
        }
        while let Some(name) = schema.coming.pop() {
            schema.tell_type(&name);
        }
        schema
    }

    /// As it is answered.
    pub(crate) fn to_json(&self) -> Value {
        self.told.clone().into()
    }

    /// The names of the commands.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> Vec<&str> {
        let is_command = |told: &&Value| told["meta-type"] == "command";
        self.told.iter().filter(is_command).filter_map(|told| told["name"].as_str()).collect()
    }

    /// A command or an event.
    fn top(&mut self, is_command: bool, name: &str, rest: &str) {
        let (rest, features) = features(rest);
        let (takes, answers) = rest.split_once("->").unwrap_or((rest, EMPTY));
        let (takes, answers) = (takes.trim(), answers.trim());
        let mut told = json!({ "name": name, "arg-type": self.name_of(if takes.is_empty() { EMPTY } else { takes }) });
        let mut add = |key: &str, value: Value| told.as_object_mut().and_then(|told| told.insert(key.into(), value));
        if is_command {
            add("ret-type", self.name_of(answers).into());
        }
        add("meta-type", if is_command { "command" } else { "event" }.into());
        if !features.is_empty() {
            add("features", features.into());
        }
        self.told.push(told);
    }

    /// The name that clients see for a type, which is told if it was not yet.
    fn name_of(&mut self, kind: &str) -> String {
        if let Some(element) = kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')) {
            let element = self.name_of(element);
            let name = format!("[{element}]");
            if self.numbers.insert(name.clone(), 0).is_none() {
                self.told.push(json!({ "name": name, "element-type": element, "meta-type": "array" }));
            }
            return name;
        }
        if let Some((name, json_type)) = BUILTINS.iter().find(|(name, _)| *name == kind) {
            if self.numbers.insert((*name).to_owned(), 0).is_none() {
                self.told.push(json!({ "name": name, "json-type": json_type, "meta-type": "builtin" }));
            }
            return (*name).to_owned();
        }
        let next = self.numbers.len();
        let number = *self.numbers.entry(kind.to_owned()).or_insert_with(|| {
            self.coming.push(kind.to_owned());
            next
        });
        number.to_string()
    }

    fn tell_type(&mut self, name: &str) {
        let inline = name.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let inline = inline.map(|rest| Declared { kind: "object", rest: rest.trim().to_owned() });
        let Some(Declared { kind, rest }) = inline.or_else(|| self.types.get(name).cloned()) else {
            self.mistakes.push(format!("there is no type {name}"));
            return;
        };
        let mut told = match kind {
            "enum" => {
                let values: Vec<_> = rest.split_whitespace().collect();
                let members: Vec<_> = values.iter().map(|value| json!({ "name": value })).collect();
                json!({ "members": members, "values": values })
            }
            "alternate" => {
                let kinds: Vec<_> = rest.split('|').map(|kind| self.name_of(kind.trim())).collect();
                json!({ "members": kinds.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>() })
            }
            _ => self.object(&rest),
        };
        if let Some(told) = told.as_object_mut() {
            told.insert("name".into(), self.numbers.get(name).copied().unwrap_or_default().to_string().into());
            told.insert("meta-type".into(), kind.into());
        }
        self.told.push(told);
    }

    /// The members of an object, and what it has beside them in which case.
    fn object(&mut self, rest: &str) -> Value {
        let (rest, variants) = rest.split_once(" by ").map_or((rest, None), |(rest, by)| (rest, Some(by)));
        let (rest, features) = features(rest);
        let members = rest.split(',').map(str::trim).filter(|member| !member.is_empty() && *member != "-");
        let members: Vec<_> = members.map(|member| self.member(member)).collect();
        let mut told = Map::new();
        told.insert("members".into(), members.into());
        if let Some((tag, cases)) = variants.and_then(|by| by.split_once(' ')) {
            told.insert("tag".into(), tag.into());
            told.insert("variants".into(), self.variants(tag, rest, cases).into());
        }
        if !features.is_empty() {
            told.insert("features".into(), features.into());
        }
        told.into()
    }

    fn member(&mut self, member: &str) -> Value {
        let Some((name, kind)) = member.split_once(':') else {
            self.mistakes.push(format!("no member: {member}"));
            return Value::Null;
        };
        let (kind, feature) = kind.split_once('!').map_or((kind, None), |(kind, feature)| (kind, Some(feature)));
        let is_optional = name.starts_with('?');
        let mut told = json!({ "name": name.trim_start_matches('?'), "type": self.name_of(kind) });
        let mut add = |key: &str, value: Value| told.as_object_mut().and_then(|told| told.insert(key.into(), value));
        if is_optional {
            add("default", Value::Null);
        }
        if let Some(feature) = feature {
            add("features", json!([feature]));
        }
        told
    }

    /// What comes in which case; in those that are not named, nothing.
    fn variants(&mut self, tag: &str, members: &str, cases: &str) -> Vec<Value> {
        let named: Vec<_> = cases.split_whitespace().filter_map(|case| case.split_once(':')).collect();
        let tag_type = members.split(',').find_map(|member| member.trim().strip_prefix(tag)?.strip_prefix(':'));
        let values = tag_type.and_then(|kind| self.types.get(kind)).map(|declared| declared.rest.clone());
        let Some(values) = values else {
            self.mistakes.push(format!("no tag: {tag}"));
            return Vec::new();
        };
        let kind_of = |value: &str| named.iter().find(|(case, _)| *case == value).map_or(EMPTY, |(_, kind)| kind);
        values.split_whitespace().map(|value| json!({ "case": value, "type": self.name_of(kind_of(value)) })).collect()
    }
}

/// The declarations in a text, each in one line.
fn declarations(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        match all.last_mut() {
            Some(last) if line.starts_with(' ') => {
                last.push(' ');
                last.push_str(line.trim());
            }
            _ => all.push(line.to_owned()),
        }
    }
    all
}

/// What stands before the features at the end, and these.
fn features(rest: &str) -> (&str, Vec<&str>) {
    match rest.split_once(" !") {
        Some((rest, features)) => (rest, features.split(" !").map(str::trim).collect()),
        None => (rest, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::Schema;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_written_down_can_be_read() {
        let schema = Schema::read();
        assert_eq!(schema.mistakes, [""; 0]);
        let unused: Vec<_> = schema.types.keys().filter(|name| !schema.numbers.contains_key(name.as_str())).collect();
        assert_eq!(unused, [""; 0], "types that nobody uses");
    }

    #[test]
    fn each_command_has_an_entry_and_each_entry_is_a_command() {
        let schema = Schema::read();
        let told: BTreeSet<_> = schema.commands().into_iter().collect();
        let known: BTreeSet<_> = crate::commands::names().collect();
        assert_eq!(told, known);
    }
}
