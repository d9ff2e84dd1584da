//! What only a lint can see: an engine that blocks its I/O thread. Clippy runs over a small engine with the workspace's
//! own settings, and must refuse it by name; over one that behaves, it must not.

#![allow(clippy::disallowed_methods, reason = "the test makes the engine's files and runs cargo")]

use std::path::{Path, PathBuf};
use std::process::Command;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The `[workspace.lints]` of the workspace's manifest, as a package of its own would have them.
fn lints() -> String {
    let manifest = std::fs::read_to_string(Path::new(WORKSPACE).join("Cargo.toml")).expect("the workspace's manifest");
    let mut inside = false;
    let mut lints = String::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.starts_with("[workspace.lints");
        }
        if inside {
            lints.push_str(&line.replace("[workspace.lints", "[lints"));
            lints.push('\n');
        }
    }
    assert!(lints.contains("disallowed_methods"), "the workspace denies nothing:\n{lints}");
    lints
}

/// A package with this engine, where cargo keeps what it generates.
fn package(name: &str, engine: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lints").join(name);
    std::fs::create_dir_all(folder.join("src")).expect("a folder below the target folder");
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\npublish = false\n\n{}\n[workspace]\n",
        lints()
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).expect("a manifest");
    // A touched file is checked again, so that clippy speaks each time.
    std::fs::write(folder.join("src/lib.rs"), engine).expect("an engine");
    folder
}

/// Clippy's verdict on the engine, and what it said.
fn clippy(name: &str, engine: &str) -> (bool, String) {
    let folder = package(name, engine);
    let output = Command::new(env!("CARGO"))
        .args(["clippy", "--quiet", "--offline"])
        .current_dir(&folder)
        .env("CLIPPY_CONF_DIR", WORKSPACE)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env_remove("RUSTFLAGS")
        .output()
        .expect("cargo runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Each call is refused, by its path and with what to use instead.
#[track_caller]
fn refused(name: &str, body: &str, calls: &[&str]) {
    let engine = format!("//! An engine that blocks.\n\n/// Serve a read.\npub fn read() {{\n{body}\n}}\n");
    let (passed, said) = clippy(name, &engine);
    assert!(!passed, "clippy let this pass:\n{engine}");
    for call in calls {
        let complaint = format!("error: use of a disallowed method `{call}`");
        assert!(said.contains(&complaint), "no complaint about {call}:\n{said}");
    }
    assert!(said.contains("= note: "), "clippy does not say what to use instead:\n{said}");
}

// Scenario: an engine opens the file that a header names, and reads it, with the standard library.
#[test]
fn an_engine_that_opens_files_is_refused() {
    refused(
        "engine-opens-files",
        "    let bytes = std::fs::read(\"backing\").unwrap_or_default();\n    \
         let file = std::fs::File::open(\"data-file\").and_then(|file| file.sync_all());\n    \
         drop((bytes, file));",
        &["std::fs::read", "std::fs::File::open", "std::fs::File::sync_all"],
    );
}

// Scenario: the same through methods that look harmless.
#[test]
fn an_engine_that_looks_at_the_host_is_refused() {
    refused(
        "engine-looks-at-the-host",
        "    let there = std::path::Path::new(\"backing\").exists();\n    \
         let len = std::fs::metadata(\"backing\").map(|data| data.len());\n    \
         drop((there, len));",
        &["std::path::Path::exists", "std::fs::metadata"],
    );
}

// Scenario: an engine waits for its device by sleeping.
#[test]
fn an_engine_that_sleeps_is_refused() {
    refused("engine-sleeps", "    std::thread::sleep(std::time::Duration::from_millis(1));", &["std::thread::sleep"]);
}

// Scenario: an engine that does none of this; what was refused above was refused for what it did.
#[test]
fn an_engine_that_does_not_block_passes() {
    let engine = "//! An engine.\n\n/// Serve a read.\npub fn read(bytes: &mut [u8]) {\n    bytes.fill(0);\n}\n";
    let (passed, said) = clippy("engine-does-not-block", engine);
    assert!(passed, "{said}");
}
