//! `query-qmp-schema`: what it says is what qemu-storage-daemon says of the same commands, and it is true.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and look at files"
)]

mod beside;

use beside::{OURS, THEIRS, has_theirs, image, talk};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const CAPABILITIES: &str = r#"{"execute": "qmp_capabilities"}"#;

fn says(command: &str, arguments: &Value) -> String {
    json!({ "execute": command, "arguments": arguments }).to_string()
}

/// What a program answers to `commands`, one after the other; events are left out.
fn answers(program: &str, dir: &Path, commands: &[String]) -> Vec<Value> {
    let input = format!("{CAPABILITIES}\n{}\n{}\n", commands.join("\n"), r#"{"execute": "quit"}"#);
    let (lines, output) = talk(program, dir, &["--object", "secret,id=s,data=abc"], &input);
    assert!(output.status.success(), "{output:?}");
    let lines = lines.into_iter().filter(|line| line.get("event").is_none() && line.get("QMP").is_none());
    let mut lines: Vec<_> = lines.skip(1).collect();
    lines.truncate(commands.len());
    assert_eq!(lines.len(), commands.len(), "{lines:?}");
    lines
}

/// The entries by name.
struct Schema(BTreeMap<String, Value>);

impl Schema {
    fn of(program: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let told = answers(program, dir.path(), &[says("query-qmp-schema", &json!({}))]);
        let entries = told[0]["return"].as_array().expect("a list").iter();
        let named: BTreeMap<_, _> = entries.map(|entry| (text(&entry["name"]), entry.clone())).collect();
        assert_eq!(named.len(), told[0]["return"].as_array().map_or(0, Vec::len), "names are there once");
        Self(named)
    }

    fn tops(&self, kind: &str) -> BTreeSet<&str> {
        let of_kind = self.0.iter().filter(|(_, entry)| entry["meta-type"] == kind);
        of_kind.map(|(name, _)| name.as_str()).collect()
    }

    fn entry(&self, name: &Value) -> &Value {
        let name = text(name);
        self.0.get(&name).unwrap_or_else(|| panic!("a type that is not told: {name}"))
    }

    /// Every way that leads from a type to another one, with the names on it: what matters of a schema.
    fn paths(&self, kind: &Value, path: &str, on_the_way: &mut Vec<String>, to: &mut BTreeSet<String>) {
        let (name, entry) = (text(kind), self.entry(kind));
        if on_the_way.contains(&name) {
            to.insert(format!("{path} again"));
            return;
        }
        on_the_way.push(name);
        features(entry, path, to);
        match entry["meta-type"].as_str().expect("text") {
            "builtin" => drop(to.insert(format!("{path}:{}={}", text(kind), text(&entry["json-type"])))),
            "array" => self.paths(&entry["element-type"], &format!("{path}[]"), on_the_way, to),
            "enum" => {
                let members: Vec<_> = list(&entry["members"]).iter().map(|member| member["name"].clone()).collect();
                assert_eq!(list(&entry["values"]), members);
                for member in list(&entry["members"]) {
                    let path = format!("{path}={}", text(&member["name"]));
                    features(&member, &path, to);
                    to.insert(path);
                }
            }
            "alternate" => {
                for member in list(&entry["members"]) {
                    let kind = self.entry(&member["type"])["meta-type"].as_str().expect("text");
                    self.paths(&member["type"], &format!("{path}|{kind}"), on_the_way, to);
                }
            }
            "object" => {
                for member in list(&entry["members"]) {
                    let optional = if member.get("default").is_some() { "?" } else { "" };
                    let path = format!("{path}.{optional}{}", text(&member["name"]));
                    features(&member, &path, to);
                    self.paths(&member["type"], &path, on_the_way, to);
                }
                for variant in list(&entry["variants"]) {
                    let path = format!("{path}<{}={}>", text(&entry["tag"]), text(&variant["case"]));
                    self.paths(&variant["type"], &path, on_the_way, to);
                }
                to.insert(format!("{path} object"));
            }
            other => panic!("no type: {other}"),
        }
        on_the_way.pop();
    }

    /// The paths from a command or an event.
    fn paths_of(&self, name: &str) -> BTreeSet<String> {
        let (entry, mut paths) = (&self.0[name], BTreeSet::new());
        features(entry, name, &mut paths);
        self.paths(&entry["arg-type"], name, &mut Vec::new(), &mut paths);
        if entry["meta-type"] == "command" {
            self.paths(&entry["ret-type"], &format!("{name} -> "), &mut Vec::new(), &mut paths);
        }
        paths
    }

    /// The members of a command's arguments, or of an object's variant.
    fn members(&self, kind: &Value) -> Vec<(String, Value)> {
        let members = list(&self.entry(kind)["members"]);
        members.iter().map(|member| (text(&member["name"]), member["type"].clone())).collect()
    }

    /// A value that such a member may have, as far as its type goes.
    fn value(&self, kind: &Value) -> Value {
        let entry = self.entry(kind);
        match entry["meta-type"].as_str().expect("text") {
            "builtin" => match text(kind).as_str() {
                "str" => "x".into(),
                "int" | "number" => 1.into(),
                "bool" => true.into(),
                _ => Value::Null,
            },
            "array" => json!([]),
            "enum" => list(&entry["members"])[0]["name"].clone(),
            "alternate" => {
                let kinds: Vec<_> = list(&entry["members"]).iter().map(|member| member["type"].clone()).collect();
                self.value(kinds.iter().find(|kind| **kind == "str").unwrap_or(&kinds[0]))
            }
            _ => {
                let mut members = list(&entry["members"]);
                // Of several kinds, the first one that its tag names.
                if let Some(tag) = members.iter().find(|member| member["name"] == entry["tag"]) {
                    let first = self.value(&tag["type"]);
                    let variants = list(&entry["variants"]);
                    let variant = variants.iter().find(|variant| variant["case"] == first);
                    members
                        .extend(variant.into_iter().flat_map(|variant| list(&self.entry(&variant["type"])["members"])));
                }
                let needed = members.iter().filter(|member| member.get("default").is_none());
                needed.map(|member| (text(&member["name"]), self.value(&member["type"]))).collect::<Map<_, _>>().into()
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn features(entry: &Value, path: &str, to: &mut BTreeSet<String>) {
    for feature in list(&entry["features"]) {
        to.insert(format!("{path} !{}", text(&feature)));
    }
}

/// What is only in ours, on purpose: the path has this in it.
const ONLY_OURS: [&str; 5] = [
    // LUKS2 has no algorithms for all key slots, and something else for each.
    "ivgen-alg",
    "cipher-",
    "slots[]",
    ".?version",
    ".?sector-size",
];

/// What is only in theirs: drivers, types of objects, kinds of encryption that are not built; limits, which nodes have none of.
const ONLY_THEIRS: [&str; 27] = [
    "<driver=",
    ".driver=",
    "<qom-type=",
    ".qom-type=",
    "ivgen-alg",
    "cipher-",
    "slots[]",
    "hash-alg=md5",
    "hash-alg=sm3",
    "<format=aes>",
    "<type=vmdk>",
    "<type=rbd>",
    ".type=vmdk",
    ".type=rbd",
    "?extent-size-hint",
    ".?compressed",
    "_max",
    "?iops_size",
    "?group",
    "?pr-manager",
    "?aio-max-batch",
    ".?backing-fmt=",
    ".?secret:str",
    "=blockdev-backup",
    "=drive-backup",
    "zone_append_latency_histogram",
    // What jobs of one kind tell beside the others.
    "query-block-jobs -> []<type=",
];

/// What the commands and events that both programs have take and tell is the same, but for what is listed above.
#[test]
fn schemas_are_alike() {
    if !has_theirs("schemas_are_alike") {
        return;
    }
    let (ours, theirs) = (Schema::of(OURS), Schema::of(THEIRS));
    let alone: Vec<_> = ours.tops("command").difference(&theirs.tops("command")).copied().collect();
    // What the system emulator has, or nobody.
    let expected = [
        "block-latency-histogram-set",
        "block_set_io_throttle",
        "blockdev-change-medium",
        "blockdev-close-tray",
        "blockdev-insert-medium",
        "blockdev-open-tray",
        "blockdev-remove-medium",
        "cont",
        "device_add",
        "device_del",
        "eject",
        "human-monitor-command",
        "query-iothreads",
        "x-guest-act",
    ];
    assert_eq!(alone, expected);
    let alone: Vec<_> = ours.tops("event").difference(&theirs.tops("event")).copied().collect();
    assert_eq!(alone, ["DEVICE_DELETED", "DEVICE_TRAY_MOVED"]);
    let mut wrong = Vec::new();
    for kind in ["command", "event"] {
        for name in ours.tops(kind).intersection(&theirs.tops(kind)) {
            let (our, their) = (ours.paths_of(name), theirs.paths_of(name));
            let drivers = ours.drivers();
            for path in our.difference(&their).filter(|path| !ONLY_OURS.iter().any(|known| path.contains(known))) {
                wrong.push(format!("only ours:   {path}"));
            }
            for path in their.difference(&our) {
                // Of drivers that are built, nothing is missing but what is listed by itself.
                let named = || path.split("<driver=").skip(1).filter_map(|rest| rest.split('>').next());
                let is_ours = |name: &str| drivers.iter().any(|driver| driver == name);
                // Of drivers that make or change nothing, theirs lists that they take nothing.
                let makes = ["blockdev-create.", "x-blockdev-amend."].iter().any(|name| path.starts_with(name));
                let is_nothing = makes && path.ends_with("> object");
                let built = named().next().is_some() && named().all(is_ours) && !is_nothing;
                let known = |known: &&str| path.contains(*known) && !(built && **known == *"<driver=");
                if !ONLY_THEIRS.iter().any(known) {
                    wrong.push(format!("only theirs: {path}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Schema {
    fn drivers(&self) -> Vec<String> {
        let options = &self.entry(&self.0["blockdev-add"]["arg-type"]);
        list(&options["variants"]).iter().map(|variant| text(&variant["case"])).collect()
    }
}

/// Each argument that is told is taken, and no other one.
#[test]
fn the_schema_is_true_of_arguments() {
    let schema = Schema::of(OURS);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut commands = Vec::new();
    for name in schema.tops("command") {
        // The first ends the conversation; what nodes, objects and devices are made of has tests of its own.
        if ["quit", "blockdev-add", "object-add", "device_add"].contains(&name) {
            continue;
        }
        let members = schema.members(&schema.0[name]["arg-type"]);
        let all: Map<_, _> = members.iter().map(|(name, kind)| (name.clone(), schema.value(kind))).collect();
        let mut more = all.clone();
        more.insert("bogus".into(), 1.into());
        commands.push((name, "bogus".to_owned(), says(name, &more.into())));
        for (member, kind) in &members {
            let mut wrong = all.clone();
            let value = if schema.value(kind).is_array() { json!(5) } else { json!([[]]) };
            wrong.insert(member.clone(), value);
            if text(kind) != "any" {
                commands.push((name, member.clone(), says(name, &wrong.into())));
            }
        }
    }
    let texts: Vec<_> = commands.iter().map(|(.., command)| command.clone()).collect();
    for ((name, member, command), answer) in commands.iter().zip(answers(OURS, dir.path(), &texts)) {
        let said = answer["error"]["desc"].as_str().unwrap_or_else(|| panic!("{command}: {answer}"));
        let again = *name == "qmp_capabilities" && said.starts_with("Capabilities negotiation is already complete");
        let expected = match member.as_str() {
            "bogus" => vec!["Parameter 'bogus' is unexpected".to_owned()],
            // What is no number may be too large for one.
            _ => vec![
                format!("Invalid parameter type for '{member}', expected: "),
                format!("Parameter '{member}' expects "),
            ],
        };
        assert!(again || expected.iter().any(|expected| said.starts_with(expected)), "{command}: {said}");
    }
}

/// The same for the options of nodes, driver by driver, on nodes that can be opened; and of objects.
#[test]
fn the_schema_is_true_of_options() {
    let schema = Schema::of(OURS);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    image(dir.path(), "create -q -f qcow2 a.qcow2 1M");
    image(dir.path(), "create -q --object secret,id=s,data=abc -f luks -o key-secret=s,iter-time=10 l.luks 1M");
    image(dir.path(), "create -q r.raw 1M");
    let disk = json!({ "driver": "null-co", "size": 1 << 20, "read-zeroes": true });
    let file = |name: &str| json!({ "driver": "file", "filename": name });
    let base = |driver: &str| match driver {
        "blkdebug" => json!({ "image": disk }),
        "blklogwrites" => json!({ "file": disk, "log": disk }),
        "blkverify" => json!({ "raw": disk, "test": disk }),
        "compress" | "preallocate" => json!({ "file": { "driver": "qcow2", "file": file("a.qcow2") } }),
        "copy-before-write" => json!({ "file": disk, "target": disk }),
        "snapshot-access" => json!({ "file": { "driver": "copy-before-write", "file": disk, "target": disk } }),
        "file" | "host_device" => json!({ "filename": "r.raw" }),
        "luks" => json!({ "file": file("l.luks"), "key-secret": "s" }),
        "null-co" | "null-aio" => json!({}),
        "qcow2" => json!({ "file": file("a.qcow2") }),
        "quorum" => json!({ "children": [disk], "vote-threshold": 1 }),
        "throttle" => json!({ "file": disk, "throttle-group": "tg" }),
        _ => json!({ "file": disk }),
    };
    let mut commands =
        vec![(String::new(), false, says("object-add", &json!({ "qom-type": "throttle-group", "id": "tg" })))];
    let options = schema.0["blockdev-add"]["arg-type"].clone();
    let mut ask = |driver: &str, key: &str, value: Value, is_told: bool| {
        let mut all = base(driver).as_object().expect("an object").clone();
        all.insert("driver".into(), driver.into());
        all.insert("node-name".into(), "x".into());
        all.insert(key.to_owned(), value);
        commands.push((key.to_owned(), is_told, says("blockdev-add", &all.into())));
        // It was made, or not.
        commands.push((String::new(), true, says("blockdev-del", &json!({ "node-name": "x" }))));
    };
    for variant in list(&schema.entry(&options)["variants"]) {
        let driver = text(&variant["case"]);
        if driver == "host_device" {
            // There is none to open; it is one driver with `file`.
            continue;
        }
        ask(&driver, "bogus", 1.into(), false);
        let common = schema.members(&options).into_iter().filter(|(key, _)| key != "driver" && key != "node-name");
        for (key, kind) in common.chain(schema.members(&variant["type"])) {
            ask(&driver, &key, schema.value(&kind), true);
        }
    }
    let options = schema.0["object-add"]["arg-type"].clone();
    for variant in list(&schema.entry(&options)["variants"]) {
        let members = schema.members(&variant["type"]).into_iter().map(|(key, kind)| (key, schema.value(&kind), true));
        for (key, value, is_told) in members.chain([("bogus".to_owned(), json!(1), false)]) {
            let mut all = Map::new();
            all.insert("qom-type".into(), variant["case"].clone());
            all.insert("id".into(), "o".into());
            all.insert(key.clone(), value);
            commands.push((key, is_told, says("object-add", &all.into())));
            commands.push((String::new(), true, says("object-del", &json!({ "id": "o" }))));
        }
    }
    let texts: Vec<_> = commands.iter().map(|(.., command)| command.clone()).collect();
    for ((key, is_told, command), answer) in commands.iter().zip(answers(OURS, dir.path(), &texts)) {
        if key.is_empty() {
            continue;
        }
        let said = answer["error"]["desc"].as_str().unwrap_or_default();
        let is_unknown = said.contains(&format!("'{key}' is unexpected"));
        assert_eq!(is_unknown, !is_told, "{command}: {answer}");
    }
}
