//! Options that make no sense: an error that names the thing, in the field's words, and a graph as it was.
//!
//! The expected texts are those of `qemu-storage-daemon --blockdev …` and `qemu-io --image-opts …` (10.0.2), with the drivers `raw` for
//! our `pass` and `null-co` for our `leaf`; where ours differ on purpose, a comment says so. `as_qemu_says` asks the installed tools.

#![allow(clippy::disallowed_methods, reason = "runs the installed tools, and waits for them")]

mod common;

use block_common::{NODE_NAME_BYTES_MAX, Options, OptionsError};
use common::{World, dotted, image_opts, json_options, message};
use std::process::{Command, Stdio};

/// A block layer with a few nodes, and what they look like.
fn furnished() -> (World, Vec<String>) {
    let world = World::new();
    world.run(async {
        world.add(r#"{"driver": "null-co", "node-name": "there"}"#).await;
        world.add(r#"{"driver": "pass", "node-name": "above", "file": "there"}"#).await;
    });
    let graph = world.graph();
    (world, graph)
}

/// Opening fails with `expected`, and nothing has changed.
fn check(options: Options, expected: &str) {
    let (world, before) = furnished();
    let text = options.to_string();
    world.run(async {
        assert_eq!(message(world.gs.open(options).await), expected, "{text}");
        assert_eq!(world.graph(), before, "{text}");
        assert_eq!(world.leaves.open_count(), 0, "{text}");
    });
    world.close();
}

fn check_json(json: &str, expected: &str) {
    check(json_options(json), expected);
}

#[test]
fn unknown_drivers() {
    check_json(r#"{"driver": "nope"}"#, "Parameter 'driver' does not accept value 'nope'");
    check_json(r#"{"driver": "pass", "file": {"driver": "nope"}}"#, "Parameter 'driver' does not accept value 'nope'");
    check(dotted("nope,node-name=a"), "Parameter 'driver' does not accept value 'nope'");
    check(image_opts("driver=nope"), "Unknown driver 'nope'");
    check(image_opts("driver=pass,file.driver=nope"), "Unknown driver 'nope'");
    check_json(r#"{"node-name": "a"}"#, "Parameter 'driver' is missing");
    check_json(r#"{"driver": 7}"#, "Invalid parameter type for 'driver', expected: string");
}

#[test]
fn unknown_and_misspelt_options() {
    check_json(r#"{"driver": "null-co", "foo": 1}"#, "Parameter 'foo' is unexpected");
    check_json(r#"{"driver": "null-co", "nodename": "a"}"#, "Parameter 'nodename' is unexpected");
    check_json(
        r#"{"driver": "pass", "file": {"driver": "null-co", "bogus": 3}}"#,
        "Parameter 'file.bogus' is unexpected",
    );
    check_json(r#"{"driver": "null-co", "cache": {"driect": true}}"#, "Parameter 'cache.driect' is unexpected");
    check(dotted("null-co,foo=1"), "Parameter 'foo' is unexpected");
    check(image_opts("driver=null-co,foo=1"), "Block protocol 'null-co' doesn't support the option 'foo'");
    check(
        image_opts("driver=pass,bogus=2,file.driver=null-co"),
        "Block format 'pass' does not support the option 'bogus'",
    );
    check(
        image_opts("driver=pass,file.driver=null-co,file.bogus=1"),
        "Block protocol 'null-co' doesn't support the option 'bogus'",
    );
}

#[test]
fn wrong_types_and_values() {
    check_json(r#"{"driver": "null-co", "size": "x"}"#, "Invalid parameter type for 'size', expected: integer");
    check_json(r#"{"driver": "null-co", "size": -1}"#, "Value '-1' is out of range for parameter 'size'");
    check_json(
        r#"{"driver": "null-co", "read-only": "on"}"#,
        "Invalid parameter type for 'read-only', expected: boolean",
    );
    check_json(r#"{"driver": "null-co", "discard": "x"}"#, "Parameter 'discard' does not accept value 'x'");
    check_json(
        r#"{"driver": "pass", "file": {"driver": "pass", "file": {"driver": "null-co", "read-only": "x"}}}"#,
        "Invalid parameter type for 'file.file.read-only', expected: boolean",
    );
    check(dotted("null-co,size=x"), "Parameter 'size' expects integer");
    check(dotted("null-co,read-only=7"), "Parameter 'read-only' expects 'on' or 'off'");
    check(image_opts("driver=null-co,read-only=7"), "Parameter 'read-only' expects 'on' or 'off'");
    let force = "force-share=on can only be used with read-only images";
    check_json(r#"{"driver": "null-co", "force-share": true}"#, force);
    check(image_opts("driver=null-co,force-share=on"), force);
    check_json(
        r#"{"driver": "null-co", "detect-zeroes": "unmap"}"#,
        "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
    );
    // QEMU has inactive nodes; here they come with migration.
    check_json(r#"{"driver": "null-co", "active": false}"#, "active=off is not supported");
}

#[test]
fn missing_and_impossible_children() {
    check_json(r#"{"driver": "pass"}"#, "Parameter 'file' is missing");
    check_json(r#"{"driver": "pass", "file": null}"#, "Invalid parameter type for 'file', expected: BlockdevRef");
    check_json(r#"{"driver": "pass", "file": 7}"#, "Invalid parameter type for 'file', expected: BlockdevRef");
    check(image_opts("driver=pass"), "A block device must be specified for \"file\"");
    check_json(r#"{"driver": "pass", "file": "nope"}"#, "Cannot find device='nope' nor node-name='nope'");
    check(image_opts("driver=pass,file=nope"), "Cannot find device='nope' nor node-name='nope'");
    check_json(r#"{"driver": "pass", "file": ""}"#, "Cannot find device='' nor node-name=''");
    check_json(
        r#"{"driver": "fmt", "file": "there", "backing": "nope"}"#,
        "Cannot find device='nope' nor node-name='nope'",
    );
}

#[test]
fn a_node_is_not_its_own_child() {
    check_json(r#"{"driver": "pass", "node-name": "a", "file": "a"}"#, "Cannot find device='a' nor node-name='a'");
    check_json(
        r#"{"driver": "pass", "node-name": "a", "file": {"driver": "pass", "file": "a"}}"#,
        "Cannot find device='a' nor node-name='a'",
    );
}

#[test]
fn names_that_are_taken() {
    check_json(r#"{"driver": "null-co", "node-name": "there"}"#, "Duplicate nodes with node-name='there'");
    // A parent and the child that is opened with it; two children of one parent; a child and somebody else.
    let twice = "Duplicate nodes with node-name='a'";
    check_json(r#"{"driver": "pass", "node-name": "a", "file": {"driver": "null-co", "node-name": "a"}}"#, twice);
    check_json(
        r#"{"driver": "fmt", "file": {"driver": "null-co", "node-name": "a"}, "backing": {"driver": "null-co", "node-name": "a"}}"#,
        twice,
    );
    check_json(
        r#"{"driver": "pass", "node-name": "a", "file": {"driver": "null-co", "node-name": "above"}}"#,
        "Duplicate nodes with node-name='above'",
    );
    check(image_opts("driver=pass,node-name=a,file.driver=null-co,file.node-name=a"), twice);
}

#[test]
fn names_that_are_none() {
    let long = "n".repeat(NODE_NAME_BYTES_MAX + 1);
    check_json(&format!(r#"{{"driver": "null-co", "node-name": "{long}"}}"#), "Node name too long");
    check_json(
        &format!(r#"{{"driver": "pass", "file": {{"driver": "null-co", "node-name": "{long}"}}}}"#),
        "Node name too long",
    );
    for bad in ["", "1a", "#block7", "a b", "a/b", "ä"] {
        let expected = format!("Invalid node-name: '{bad}'");
        check_json(&format!(r#"{{"driver": "null-co", "node-name": "{bad}"}}"#), &expected);
        check_json(
            &format!(r#"{{"driver": "pass", "file": {{"driver": "null-co", "node-name": "{bad}"}}}}"#),
            &expected,
        );
    }
    check(image_opts("driver=pass,file.driver=null-co,file.node-name=1"), "Invalid node-name: '1'");
    check_json(r#"{"driver": "null-co", "node-name": 7}"#, "Invalid parameter type for 'node-name', expected: string");
}

fn nested(levels: usize) -> String {
    let mut json = String::from(r#"{"driver": "null-co"}"#);
    for _ in 0..levels {
        json = format!(r#"{{"driver": "pass", "file": {json}}}"#);
    }
    json
}

#[test]
fn children_nest_as_deep_as_stated_and_no_deeper() {
    let (world, before) = furnished();
    world.run(async {
        let node = world.open(&nested(200)).await.expect("as deep as stated");
        assert_eq!(world.gs.nodes().len(), before.len() + 201);
        world.gs.close(node).await.expect("it closes");
        assert_eq!(world.graph(), before);
    });
    world.close();
    check_json(&nested(201), "children nest deeper than 200 levels");
    // The text itself is bounded before that.
    let error = Options::parse_json(&nested(300)).expect_err("too deep");
    assert_eq!(error, OptionsError::TooDeep);
    let dotted = format!("driver=pass,{}driver=null-co", "file.".repeat(300));
    assert_eq!(Options::parse_keyval(&dotted, None), Err(OptionsError::TooDeep));
}

#[test]
fn chains_of_references_are_bounded_as_well() {
    let world = World::new();
    world.run(async {
        let mut below = world.add(&nested(200)).await;
        // 201 nodes; 4 more stacks of 200 would make 1001, and 24 more would be too many.
        for i in 0..823 {
            let json = format!(r#"{{"driver": "pass", "node-name": "n{i}", "file": "{}"}}"#, below.name());
            below = world.open(&json).await.expect("not yet too deep");
        }
        let before = world.gs.nodes().len();
        let json = format!(r#"{{"driver": "pass", "node-name": "last", "file": "{}"}}"#, below.name());
        let expected = "node 'last' would be on top of a chain of more than 1024 nodes";
        assert_eq!(message(world.open(&json).await), expected);
        // Nor by repointing: a node that has one above it, over the whole chain.
        let side = world.add(r#"{"driver": "pass", "node-name": "side", "file": {"driver": "null-co"}}"#).await;
        let above = world.add(r#"{"driver": "pass", "node-name": "over", "file": "side"}"#).await;
        let guard = world.gs.drain(&side).await;
        let refused = world.gs.replace_child(&guard, &side, "file", Some(&below));
        assert_eq!(message(refused), "node 'side' would be on top of a chain of more than 1024 nodes");
        drop((guard, above, side));
        assert_eq!(world.gs.nodes().len(), before + 3);
    });
    world.close();
}

/// What the storage daemon says to `--blockdev option` after `--blockdev before`, without its prefix.
fn daemon_says(before: &[&str], option: &str) -> Option<String> {
    let mut command = Command::new("qemu-storage-daemon");
    for node in before {
        command.args(["--blockdev", node]);
    }
    let child = command.args(["--blockdev", option, "--blockdev", "driver=none"]).stdin(Stdio::null()).output();
    let output = String::from_utf8_lossy(&child.ok()?.stderr).into_owned();
    let prefix = format!("qemu-storage-daemon: --blockdev {option}: ");
    Some(output.strip_prefix(&prefix).unwrap_or_else(|| panic!("unexpected: {output}")).trim_end().to_owned())
}

/// What qemu-io says to `--image-opts option`.
fn io_says(option: &str) -> Option<String> {
    let child = Command::new("qemu-io").args(["--image-opts", option, "-c", "q"]).stdin(Stdio::null()).output();
    let output = String::from_utf8_lossy(&child.ok()?.stderr).into_owned();
    let says = output.strip_prefix("qemu-io: can't open: ").unwrap_or_else(|| panic!("unexpected: {output}"));
    Some(says.trim_end().to_owned())
}

/// Ours, for the same text: `raw` is our `pass`.
fn we_say(before: &[&str], options: Options) -> String {
    let world = World::new();
    let said = world.run(async {
        for node in before {
            world.add(&node.replace("raw", "pass")).await;
        }
        message(world.gs.open(options).await)
    });
    world.close();
    said.replace("'pass'", "'raw'")
}

#[test]
fn as_qemu_says() {
    let there = r#"{"driver": "null-co", "node-name": "there"}"#;
    let daemon = [
        r#"{"driver":"nope","node-name":"a"}"#,
        r#"{"node-name":"a"}"#,
        r#"{"driver":"null-co","node-name":"a","foo":1}"#,
        r#"{"driver":"null-co","node-name":"a","size":"x"}"#,
        r#"{"driver":"null-co","node-name":"a","read-only":"x"}"#,
        r#"{"driver":"null-co","node-name":"a","cache":{"driect":true}}"#,
        r#"{"driver":"null-co","node-name":"a","cache":7}"#,
        r#"{"driver":"null-co","node-name":"a","discard":"x"}"#,
        r#"{"driver":"null-co","node-name":"a","detect-zeroes":"unmap"}"#,
        r#"{"driver":"null-co","node-name":"a","force-share":true}"#,
        r#"{"driver":"null-co","node-name":"there"}"#,
        r#"{"driver":"null-co","node-name":"1"}"#,
        r#"{"driver":"null-co","node-name":"a2345678901234567890123456789012"}"#,
        r#"{"driver":"raw","node-name":"a"}"#,
        r#"{"driver":"raw","node-name":"a","file":null}"#,
        r#"{"driver":"raw","node-name":"a","file":"a"}"#,
        r#"{"driver":"raw","node-name":"a","file":"nope"}"#,
        r#"{"driver":"raw","node-name":"a","file":{"driver":"null-co","bogus":3}}"#,
        r#"{"driver":"raw","node-name":"a","file":{"driver":"null-co","node-name":"a"}}"#,
        r#"{"driver":"raw","node-name":"a","file":{"driver":"raw","file":{"driver":"nope"}}}"#,
        r#"{"driver":"raw","node-name":"a","file":{"driver":"raw","file":{"driver":"null-co","read-only":"x"}}}"#,
        "driver=null-co,node-name=a,foo=1",
        "driver=null-co,node-name=a,size=x",
        "driver=null-co,node-name=a,read-only=7",
        "driver=raw,node-name=a,file.driver=null-co,file.bogus=1",
    ];
    for text in daemon {
        let Some(theirs) = daemon_says(&[there], text) else {
            return block_testkit::bed::skipped("as_qemu_says", "no qemu-storage-daemon");
        };
        let options =
            Options::parse_blockdev(&text.replace("\"raw\"", "\"pass\"").replace("=raw", "=pass")).expect(text);
        assert_eq!(we_say(&[there], options), theirs, "{text}");
    }
    let tools = [
        "driver=nope",
        "driver=null-co,foo=1",
        "driver=raw",
        "driver=raw,file=nope",
        "driver=raw,bogus=2,file.driver=null-co",
        "driver=raw,file.driver=null-co,file.bogus=1",
        "driver=raw,file.driver=null-co,file.node-name=1",
        "driver=raw,node-name=a,file.driver=null-co,file.node-name=a",
        "driver=null-co,read-only=7",
        "driver=null-co,force-share=on",
    ];
    for text in tools {
        let Some(theirs) = io_says(text) else {
            return block_testkit::bed::skipped("as_qemu_says", "no qemu-io");
        };
        assert_eq!(we_say(&[], image_opts(&text.replace("=raw", "=pass"))), theirs, "{text}");
    }
}
