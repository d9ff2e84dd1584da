//! Programs that tests, demo and comparison call: looked for, and installed with apt-get where we are root. It removes and
//! replaces nothing: what is installed stays, whatever its version.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// A program that something calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    program: &'static str,
    /// Debian's package with it.
    package: &'static str,
    need: Need,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing goes on without it.
    Mandatory,
    /// What needs it is skipped and says so.
    Optional,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Release,
    /// The release's own version is too old, where the release is `OLD_RELEASE`.
    Backports,
}

/// The release whose own qemu is too old.
const OLD_RELEASE: &str = "bookworm";

const MKE2FS: Tool = Tool { program: "mke2fs", package: "e2fsprogs", need: Need::Mandatory, origin: Origin::Release };
const QEMU_IMG: Tool =
    Tool { program: "qemu-img", package: "qemu-utils", need: Need::Optional, origin: Origin::Backports };
const FIO: Tool = Tool { program: "fio", package: "fio", need: Need::Optional, origin: Origin::Release };
const CRYPTSETUP: Tool =
    Tool { program: "cryptsetup", package: "cryptsetup-bin", need: Need::Optional, origin: Origin::Release };
const OPENSSL: Tool = Tool { program: "openssl", package: "openssl", need: Need::Optional, origin: Origin::Release };

/// Everything, for `setup`.
pub(crate) const ALL: &[Tool] = &[MKE2FS, QEMU_IMG, CRYPTSETUP, FIO, OPENSSL];
/// For the tests: interop tests skip themselves without qemu-img, or cryptsetup.
pub(crate) const FOR_TESTS: &[Tool] = &[MKE2FS, QEMU_IMG, CRYPTSETUP];
/// For the demo, which compares nothing without qemu-img.
pub(crate) const FOR_DEMO: &[Tool] = &[MKE2FS, QEMU_IMG];
/// For the comparison, which is nothing without its peers.
pub(crate) const FOR_COMPARE: &[Tool] = &[
    Tool { need: Need::Mandatory, ..QEMU_IMG },
    Tool { need: Need::Mandatory, ..FIO },
    Tool { need: Need::Mandatory, ..OPENSSL },
];

/// Looks for the tools and installs what is missing, if we are root.
///
/// # Errors
/// A mandatory tool is missing and cannot be installed; the message names its package.
pub(crate) fn run(tools: &[Tool]) -> Result<()> {
    let lacking = missing(tools, is_installed);
    if lacking.is_empty() {
        return Ok(());
    }
    let install_error = if is_root() { install(&lacking).err() } else { None };
    let lacking = missing(tools, is_installed);
    report(&lacking).with_context(|| match install_error {
        Some(error) => format!("setup: {error:#}"),
        None => "setup".to_owned(),
    })
}

fn missing(tools: &[Tool], is_installed: impl Fn(&str) -> bool) -> Vec<Tool> {
    tools.iter().filter(|tool| !is_installed(tool.program)).copied().collect()
}

/// Says what is missing; fails if any of it is mandatory.
fn report(lacking: &[Tool]) -> Result<()> {
    for tool in lacking.iter().filter(|tool| tool.need == Need::Optional) {
        println!("setup: {} is missing (package {}); what needs it is skipped", tool.program, tool.package);
    }
    let mandatory: Vec<String> = lacking.iter().filter(|tool| tool.need == Need::Mandatory).map(describe).collect();
    if !mandatory.is_empty() {
        bail!("missing: {}; install as root, or run `cargo xtask setup` as root", mandatory.join(", "));
    }
    Ok(())
}

fn describe(tool: &Tool) -> String {
    format!("{} (package {})", tool.program, tool.package)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin"]);
    folders.filter(|folder| !folder.is_empty()).any(|folder| Path::new(folder).join(program).is_file())
}

fn is_root() -> bool {
    shell::capture(shell::command("id", Path::new("/")).arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

/// Installs each package by itself, so that one that cannot be had does not keep back the others.
fn install(lacking: &[Tool]) -> Result<()> {
    let codename = codename(&std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?);
    let is_old = codename.as_deref() == Some(OLD_RELEASE);
    let suite = format!("{OLD_RELEASE}-backports");
    if is_old && lacking.iter().any(|tool| tool.origin == Origin::Backports) {
        add_suite(&suite)?;
    }
    shell::run(apt_get().arg("update"))?;
    let mut failures = Vec::new();
    for tool in lacking {
        let from = (is_old && tool.origin == Origin::Backports).then_some(suite.as_str());
        failures.extend(shell::run(apt_get().args(install_arguments(tool, from))).err());
    }
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn apt_get() -> Command {
    let mut command = shell::command("apt-get", Path::new("/"));
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// `--no-upgrade` keeps whatever is installed already as it is, a newer qemu above all.
fn install_arguments(tool: &Tool, suite: Option<&str>) -> Vec<String> {
    let options = ["install", "-y", "--no-install-recommends", "--no-upgrade", "--no-remove"];
    let suite = suite.into_iter().flat_map(|suite| ["-t", suite]);
    options.into_iter().chain(suite).chain([tool.package]).map(str::to_owned).collect()
}

fn codename(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// Makes a suite known to apt, from the same host as the release's own packages.
fn add_suite(suite: &str) -> Result<()> {
    let sources = apt_sources();
    if sources.iter().any(|text| knows_suite(text, suite)) {
        return Ok(());
    }
    let derived = sources.iter().find_map(|text| derive_stanza(text, OLD_RELEASE, suite));
    let stanza =
        derived.with_context(|| format!("apt's sources have no entry for {OLD_RELEASE} to take the host from"))?;
    let path = Path::new("/etc/apt/sources.list.d").join(format!("{suite}.sources"));
    std::fs::write(&path, stanza).with_context(|| format!("cannot write {}", path.display()))
}

/// Contents of the files that apt reads.
fn apt_sources() -> Vec<String> {
    let in_folder = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let mut paths: Vec<_> = in_folder.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "sources" || suffix == "list"));
    paths.push("/etc/apt/sources.list".into());
    paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with('#'))
}

fn knows_suite(text: &str, suite: &str) -> bool {
    code_lines(text).any(|line| line.split_whitespace().any(|word| word == suite))
}

/// An entry for `suite` like the one for `release`, if `text` has one, in the newer of apt's two notations.
fn derive_stanza(text: &str, release: &str, suite: &str) -> Option<String> {
    stanza_from_fields(text, release, suite).or_else(|| stanza_from_line(text, release, suite))
}

fn stanza_from_fields(text: &str, release: &str, suite: &str) -> Option<String> {
    let field = |stanza: &str, name: &str| {
        let value =
            code_lines(stanza).find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()));
        value.filter(|value| !value.is_empty())
    };
    let serves = |stanza: &&str| field(stanza, "Suites").is_some_and(|suites| suites.split(' ').any(|s| s == release));
    let stanza = text.split("\n\n").find(serves)?;
    let uris = field(stanza, "URIs")?;
    let mut new = format!("Types: deb\nURIs: {uris}\nSuites: {suite}\nComponents: main\n");
    if let Some(key) = field(stanza, "Signed-By") {
        new += &format!("Signed-By: {key}\n");
    }
    Some(new)
}

fn stanza_from_line(text: &str, release: &str, suite: &str) -> Option<String> {
    code_lines(text).find_map(|line| {
        let rest = line.strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let uri = words.next().filter(|_| words.next() == Some(release))?;
        let key = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        let key = key.map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        Some(format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{key}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &str = "# a comment\nTypes: deb\n# bookworm-backports is not here\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
        Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n";

    const STANZA: &str = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n\
        Signed-By: /usr/share/keyrings/k.gpg\n";

    fn check_stanza(text: &str, expected: Option<&str>) {
        assert_eq!(derive_stanza(text, "bookworm", "bookworm-backports").as_deref(), expected);
    }

    #[test]
    fn a_suite_is_derived_from_the_entry_of_the_release() {
        check_stanza(FIELDS, Some(STANZA));
        let line = "deb-src http://mirror.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main\n";
        check_stanza(line, Some(STANZA));
        let plain = "deb http://mirror.example/debian bookworm main contrib\n";
        check_stanza(plain, Some(STANZA.split_once("Signed-By").unwrap().0));
        check_stanza("deb http://mirror.example/node nodistro main\n", None);
        check_stanza("Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n", None);
    }

    #[test]
    fn a_suite_is_known_only_where_an_entry_names_it() {
        assert!(!knows_suite(FIELDS, "bookworm-backports"));
        assert!(knows_suite(STANZA, "bookworm-backports"));
        assert!(knows_suite("deb http://mirror.example/debian bookworm-backports main", "bookworm-backports"));
    }

    #[test]
    fn the_codename_is_read_from_os_release() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("ID=strange\n"), None);
    }

    #[test]
    fn installing_upgrades_and_removes_nothing() {
        let words = install_arguments(&QEMU_IMG, Some("bookworm-backports")).join(" ");
        let options = "install -y --no-install-recommends --no-upgrade --no-remove";
        assert_eq!(words, format!("{options} -t bookworm-backports qemu-utils"));
        assert_eq!(install_arguments(&FIO, None).join(" "), format!("{options} fio"));
    }

    #[test]
    fn a_missing_mandatory_package_is_an_error_that_names_it() {
        assert_eq!(missing(ALL, |program| ["fio", "openssl"].contains(&program)), [MKE2FS, QEMU_IMG, CRYPTSETUP]);
        let error = report(&[MKE2FS, QEMU_IMG]).unwrap_err().to_string();
        assert!(error.starts_with("missing: mke2fs (package e2fsprogs);"), "{error}");
        assert!(report(&[QEMU_IMG, FIO]).is_ok());
        assert!(
            report(FOR_COMPARE).unwrap_err().to_string().contains("qemu-img (package qemu-utils), fio (package fio)")
        );
    }
}
