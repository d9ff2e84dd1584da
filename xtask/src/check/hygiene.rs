//! What must not be in the repository: disk images, and names of one machine or of package hosts. It knows no secrets.

use std::path::Path;

use crate::repo::RepoFile;

const IMAGE_SUFFIXES: [&str; 3] = [".img", ".qcow2", ".raw"];

/// Texts that no file may contain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needles {
    /// Absolute folders of this machine.
    folders: Vec<String>,
    /// Hosts that packages come from.
    hosts: Vec<String>,
}

impl Needles {
    /// The folders around `root` and the user's `home`, and the hosts. A folder that every machine has is no needle.
    pub(crate) fn new(root: &Path, home: Option<&Path>) -> Needles {
        let anywhere = [Path::new("/"), Path::new("/tmp"), Path::new("/home")];
        let folders = [Some(root), root.parent(), home].into_iter().flatten();
        let folders = folders.filter(|folder| folder.is_absolute() && !anywhere.contains(folder));
        let mut folders: Vec<String> = folders.map(|folder| folder.display().to_string()).collect();
        folders.sort();
        folders.dedup();
        Needles { folders, hosts: hosts() }
    }

    fn found_in(&self, text: &str) -> Option<&str> {
        let folder = self.folders.iter().find(|folder| names_folder(text, folder));
        folder.or_else(|| self.hosts.iter().find(|host| text.contains(host.as_str()))).map(String::as_str)
    }
}

/// In pieces, so that this file does not contain what it looks for.
fn hosts() -> Vec<String> {
    let hosts =
        [["index", "crates", "io"], ["static", "crates", "io"], ["deb", "debian", "org"], ["registry", "npmjs", "org"]];
    let mut hosts: Vec<String> = hosts.iter().map(|parts| parts.join(".")).collect();
    hosts.push(["pypi", "org"].join("."));
    hosts
}

/// Whether the text has an absolute path into `folder`: no path character right before it, a slash right after it.
fn names_folder(text: &str, folder: &str) -> bool {
    let before = |at: usize| text[..at].chars().next_back();
    let after = |at: usize| text[at + folder.len()..].chars().next();
    let inner = |c: char| c.is_alphanumeric() || "_-./~}".contains(c);
    text.match_indices(folder).any(|(at, _)| !before(at).is_some_and(inner) && after(at) == Some('/'))
}

/// Checks names and contents of all files.
pub(crate) fn check(files: &[RepoFile], needles: &Needles) -> Vec<String> {
    files.iter().flat_map(|file| image(file).into_iter().chain(leak(file, needles))).collect()
}

fn image(file: &RepoFile) -> Option<String> {
    let suffix = IMAGE_SUFFIXES.iter().find(|suffix| file.path.ends_with(*suffix))?;
    Some(format!("{}: rule images: tests make their images, the repository holds no {suffix} file", file.path))
}

fn leak(file: &RepoFile, needles: &Needles) -> Option<String> {
    let text = file.text();
    let (number, needle) = text.lines().zip(1..).find_map(|(line, n)| Some((n, needles.found_in(line)?)))?;
    Some(format!("{}:{number}: rule places: names `{needle}`, which is this machine's or a package host", file.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::testing::file;

    fn needles() -> Needles {
        Needles::new(Path::new("/build/agent/cairn"), Some(Path::new("/users/ada")))
    }

    fn check_text(text: &str, found: Option<&str>) {
        let lines = check(&[file("docs/a.md", text)], &needles());
        match found {
            None => assert_eq!(lines, Vec::<String>::new()),
            Some(needle) => {
                let begin = format!("docs/a.md:2: rule places: names `{needle}`");
                assert!(lines[0].starts_with(&begin), "{lines:?}");
            }
        }
    }

    #[test]
    fn ordinary_text_passes() {
        check_text("one\nsee ../shared/design.md and target/users/ada/x, /users/adam/x, $ROOT/build/agent/y\n", None);
        check_text("registry+https://github.com/rust-lang/crates.io-index\n/tmp/x /proc/self\n", None);
    }

    #[test]
    fn paths_of_this_machine_are_found() {
        check_text("one\nrun /build/agent/cairn/target/x\n", Some("/build/agent"));
        check_text("one\n\"/users/ada/.cargo\"\n", Some("/users/ada"));
    }

    #[test]
    fn hosts_of_packages_are_found() {
        for host in hosts() {
            check_text(&format!("one\nURIs: http://{host}/debian\n"), Some(&host));
        }
    }

    #[test]
    fn a_folder_that_every_machine_has_is_no_needle() {
        let needles = Needles::new(Path::new("/tmp/cairn"), Some(Path::new("/")));
        assert_eq!(needles.folders, ["/tmp/cairn"]);
    }

    #[test]
    fn disk_images_are_refused() {
        for name in ["tests/a.img", "tests/b.qcow2", "c.raw"] {
            let found = check(&[RepoFile { path: name.into(), bytes: vec![0xff, 0] }], &needles());
            assert!(found[0].starts_with(&format!("{name}: rule images")), "{found:?}");
        }
    }
}
