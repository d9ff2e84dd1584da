//! Every source file says on its first line what it does. Whether that is true is for a reader to judge.

use crate::repo::RepoFile;

const FOLDERS: [&str; 4] = ["crates/", "xtask/", "tests/", "benches/"];

/// Checks the first line of every Rust file; one line for each file that has none.
pub(crate) fn check(files: &[RepoFile]) -> Vec<String> {
    let sources = files.iter().filter(|file| is_source(&file.path));
    sources.filter(|file| !has_header(file)).map(complaint).collect()
}

fn is_source(path: &str) -> bool {
    path.ends_with(".rs") && FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains("/target/")
}

/// A compile-fail case opens with its scenario, in whichever comment suits its error message.
fn is_compile_case(path: &str) -> bool {
    path.split_once("tests/").is_some_and(|(_, below)| below.split('/').any(|part| part == "ui"))
}

fn has_header(file: &RepoFile) -> bool {
    let text = file.text();
    let first = text.lines().next().unwrap_or_default();
    let marker = if is_compile_case(&file.path) { "//" } else { "//!" };
    first.strip_prefix(marker).is_some_and(|rest| !rest.trim_start_matches(['/', '!']).trim().is_empty())
}

fn complaint(file: &RepoFile) -> String {
    format!("{}: rule headers: the first line is `//!` and says what the file does", file.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::testing::file;

    fn check_one(path: &str, text: &str, passes: bool) {
        let found = check(&[file(path, text)]);
        assert_eq!(found.is_empty(), passes, "{path} {text:?}: {found:?}");
        assert!(found.iter().all(|line| line.starts_with(&format!("{path}: rule headers"))), "{found:?}");
    }

    #[test]
    fn a_header_is_asked_of_sources_alone() {
        check_one("crates/io/block-io/src/lib.rs", "//! The I/O side.\nuse std::fs;\n", true);
        check_one("docs/example.rs", "fn main() {}\n", true);
        check_one("tests/consumers/vmm/target/debug/out.rs", "fn main() {}\n", true);
        check_one("xtask/README.md", "text\n", true);
    }

    #[test]
    fn a_source_without_header_is_named() {
        check_one("crates/io/block-io/src/lib.rs", "use std::fs;\n", false);
        check_one("crates/io/block-io/src/lib.rs", "\n//! Late.\n", false);
        check_one("crates/io/block-io/src/lib.rs", "//!\n", false);
        check_one("crates/io/block-io/src/lib.rs", "// Plain.\n", false);
        check_one("xtask/src/main.rs", "", false);
        check_one("tests/stress.rs", "#![forbid(unsafe_code)]\n", false);
        check_one("benches/benches/raw.rs", "fn main() {}\n", false);
    }

    #[test]
    fn a_compile_fail_case_may_open_with_a_plain_comment() {
        check_one("tests/ui/repoint.rs", "// Repointing an edge from I/O code.\n", true);
        check_one("tests/boundary/tests/ui/repoint.rs", "// Repointing an edge from I/O code.\n", true);
        check_one("tests/ui/repoint.rs", "fn main() {}\n", false);
    }
}
