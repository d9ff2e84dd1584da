//! Where the repository is and which files belong to it. It reads files and changes none.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell;

/// The repository that xtask was built from.
#[derive(Debug, Clone)]
pub(crate) struct Repo {
    /// The workspace's root folder.
    pub(crate) root: PathBuf,
}

/// A file of the repository: its path from the root, with `/`, and its bytes.
#[derive(Debug, Clone)]
pub(crate) struct RepoFile {
    /// The path from the repository's root.
    pub(crate) path: String,
    /// The whole content.
    pub(crate) bytes: Vec<u8>,
}

impl RepoFile {
    /// The content as text, with what is no UTF-8 replaced.
    pub(crate) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

impl Repo {
    /// Finds the root from the folder that cargo builds xtask in.
    ///
    /// # Errors
    /// xtask was not started by cargo.
    pub(crate) fn locate() -> Result<Repo> {
        let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR").context("start xtask with `cargo xtask`")?;
        let root = Path::new(&manifest_dir).parent().context("xtask lies in the workspace's root")?;
        Ok(Repo { root: root.to_owned() })
    }

    /// A path below the build directory, where everything that xtask makes belongs.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.root.join("target").join(name)
    }

    /// Paths of all files that are tracked, or would be once added; deleted ones are left out.
    ///
    /// # Errors
    /// git cannot be run.
    pub(crate) fn file_paths(&self) -> Result<Vec<String>> {
        let mut git = shell::command("git", &self.root);
        // A clone made by another user is still ours to list.
        git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listing = shell::capture(&mut git)?;
        let mut paths: Vec<String> = listing.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
        paths.sort();
        paths.dedup();
        paths.retain(|path| self.root.join(path).is_file());
        Ok(paths)
    }

    /// All files of the repository with their contents.
    ///
    /// # Errors
    /// git cannot be run or a file not be read.
    pub(crate) fn files(&self) -> Result<Vec<RepoFile>> {
        self.file_paths()?.into_iter().map(|path| self.read(path)).collect()
    }

    fn read(&self, path: String) -> Result<RepoFile> {
        let bytes = std::fs::read(self.root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        Ok(RepoFile { path, bytes })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Made-up repositories for the tests of the checks.

    use super::*;

    /// A file that exists only in the test.
    pub(crate) fn file(path: &str, text: &str) -> RepoFile {
        RepoFile { path: path.to_owned(), bytes: text.as_bytes().to_vec() }
    }

    /// Writes files below `root`, making their folders.
    pub(crate) fn write_tree(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a fresh git repository with an ignored build folder, an untracked file and a tracked file since deleted.
    #[test]
    fn ignored_and_deleted_files_are_left_out_and_new_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        testing::write_tree(
            dir.path(),
            &[(".gitignore", "/target\n"), ("a.rs", ""), ("gone.rs", ""), ("target/x", "")],
        );
        shell::capture(shell::command("git", dir.path()).args(["init", "-q"])).unwrap();
        shell::capture(shell::command("git", dir.path()).args(["add", "gone.rs"])).unwrap();
        std::fs::remove_file(dir.path().join("gone.rs")).unwrap();
        let repo = Repo { root: dir.path().to_owned() };
        assert_eq!(repo.file_paths().unwrap(), [".gitignore", "a.rs"]);
        assert_eq!(repo.files().unwrap()[0].text(), "/target\n");
    }
}
