//! Running other programs: a clean environment, the command echoed, output streamed or captured. It interprets no output.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// Prefixes of the variables that `cargo run` sets for us and that a cargo below us must not take for its own.
const INHERITED_PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];

/// A command that runs in `dir`, without the variables of the cargo that started xtask and with `/usr/sbin` on its path
/// (a plain user's path often lacks it, and mke2fs lives there).
pub(crate) fn command(program: impl AsRef<OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).env("PATH", path_with_sbin());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if INHERITED_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// `cargo` with these arguments in `dir`.
pub(crate) fn cargo<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = command("cargo", dir);
    command.args(args);
    command
}

/// The command as a line one can read and nearly paste: set variables, program, arguments.
pub(crate) fn describe(command: &Command) -> String {
    let envs = command.get_envs().filter(|(name, _)| *name != "PATH").filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        let quote = if value.contains(' ') { "'" } else { "" };
        Some(format!("{}={quote}{value}{quote}", name.to_string_lossy()))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned());
    envs.chain(words).collect::<Vec<_>>().join(" ")
}

/// Runs a command with its output passed through.
///
/// # Errors
/// The command could not be started, or it failed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command and returns its standard output; its standard error is passed through.
///
/// # Errors
/// The command could not be started, it failed, or its output is no text.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{line}`"))
}

/// Runs a command, printing each line of its output and its errors as it comes and handing it to `each_line`.
///
/// # Errors
/// The command could not be started or its output not be read; that it failed is in the returned status.
pub(crate) fn stream(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<ExitStatus> {
    let line = describe(command);
    println!("$ {line}");
    let (reader, writer) = std::io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
    // The command holds the pipe's writing ends, without which the loop below would end only with us.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let text = String::from_utf8_lossy(&bytes);
        print!("{text}");
        each_line(text.trim_end());
        bytes.clear();
    }
    Ok(child.wait()?)
}

/// Runs a command like [`run`], through our own standard output, which a test that calls us can hold back.
///
/// # Errors
/// The command could not be started, or it failed.
pub(crate) fn run_streamed(command: &mut Command) -> Result<()> {
    let status = stream(command, |_| {})?;
    if !status.success() {
        bail!("`{}` failed: {status}", describe(command));
    }
    Ok(())
}

fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut entries: Vec<&str> = path.split(':').collect();
    for sbin in ["/usr/sbin", "/sbin"] {
        if !entries.contains(&sbin) {
            entries.push(sbin);
        }
    }
    entries.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_described_with_its_variables_and_without_its_path() {
        let mut command = cargo(Path::new("."), ["test", "-p", "block-io"]);
        command.env("RUSTFLAGS", "--cfg loom");
        assert!(
            describe(&command).ends_with("RUSTFLAGS='--cfg loom' cargo test -p block-io"),
            "{}",
            describe(&command)
        );
        assert!(!describe(&command).contains("PATH="));
    }

    #[test]
    fn a_failing_command_is_named_in_the_error() {
        let error = run(command("false", Path::new(".")).arg("loudly")).unwrap_err();
        assert!(error.to_string().contains("`false loudly` failed"), "{error}");
    }

    #[test]
    fn streamed_lines_arrive_in_order_and_the_status_is_kept() {
        let mut seen = Vec::new();
        let mut command = command("sh", Path::new("."));
        let status = stream(command.args(["-c", "echo one; echo two >&2; exit 3"]), |line| seen.push(line.to_owned()));
        assert_eq!(status.unwrap().code(), Some(3));
        assert_eq!(seen, ["one", "two"]);
    }
}
