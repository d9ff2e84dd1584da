//! Patches that each break one rule, and tests that must notice: `tests/mutants/*.patch`. They are applied to a copy of the
//! tree, never to the tree itself.
//!
//! A patch begins with comment lines: `# test: <command>` first, then anything, and `# hangs` (or `# hangs: <seconds>`) where
//! a test that never ends is the expected way to notice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::repo::Repo;
use crate::report::{Outcome, Report, outcome_of};
use crate::shell;

/// The folder of the patches, from the repository's root.
const FOLDER: &str = "tests/mutants";

/// How long the tests may run, once they are compiled.
const TEST_SECONDS_MAX: u64 = 300;

/// How much of a command's output is shown where it is shown.
const TAIL_LINES_MAX: usize = 40;

/// How long compiling may take, which is no finding about the tests.
const BUILD_SECONDS_MAX: u64 = 1800;

/// What a patch's comment lines say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mutant {
    /// The file's name.
    name: String,
    /// A line for `sh`.
    test: String,
    /// How long to wait for a test that is expected to hang; `None` if it is not.
    hang: Option<Duration>,
}

/// How a test command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It succeeded and at least one test ran.
    Passed,
    /// It succeeded without running a test.
    RanNothing,
    /// Tests ran and failed, or crashed.
    Failed,
    /// It was compiled and did not end.
    Hung,
    /// It did not get as far as running tests.
    NotBuilt,
}

/// Runs the mutants whose name contains `filter`, and prints their table.
///
/// # Errors
/// A mutant survived or could not be tried.
pub(crate) fn run(repo: &Repo, filter: Option<&str>) -> Result<()> {
    match outcome(repo, filter)? {
        Outcome::Failed(why) => bail!("mutants:\n{why}"),
        _ => Ok(()),
    }
}

/// The same as a step of `long`.
///
/// # Errors
/// The tree could not be copied or the patches not be read.
pub(crate) fn outcome(repo: &Repo, filter: Option<&str>) -> Result<Outcome> {
    let mutants = read_mutants(repo, filter)?;
    if mutants.is_empty() {
        return Ok(Outcome::Skipped(format!("no patch in {FOLDER}")));
    }
    let bench = Bench { repo, home: repo.target("mutants") };
    let mut report = Report::default();
    let mut violations = Vec::new();
    // All of them before the first patch: what they need is built once.
    let mut sound = BTreeMap::new();
    for mutant in &mutants {
        if !sound.contains_key(&mutant.test) {
            sound.insert(&mutant.test, bench.baseline(&mutant.test)?);
        }
    }
    for mutant in &mutants {
        let baseline = sound[&mutant.test];
        report.step(&mutant.name, || {
            // A patch that does not apply any more is as bad as one that survives.
            let found = judge(mutant, baseline, || bench.patched(mutant));
            let found = found.unwrap_or_else(|error| Err(format!("{error:#}")));
            violations.extend(found.clone().err().map(|why| format!("{}: {why}", mutant.name)));
            Ok(found.map_or_else(Outcome::Failed, Outcome::Passed))
        });
    }
    println!("\n{}", report.table());
    Ok(outcome_of(&violations, format!("{} caught", mutants.len())))
}

fn read_mutants(repo: &Repo, filter: Option<&str>) -> Result<Vec<Mutant>> {
    let in_folder = |path: &String| path.starts_with(&format!("{FOLDER}/")) && path.ends_with(".patch");
    let wanted = |path: &String| filter.is_none_or(|part| path.contains(part));
    let paths = repo.file_paths()?.into_iter().filter(in_folder).filter(wanted);
    paths.map(|path| parse(&path, &std::fs::read_to_string(repo.root.join(&path))?)).collect()
}

fn parse(path: &str, text: &str) -> Result<Mutant> {
    let first = text.lines().next().unwrap_or_default();
    let test =
        first.strip_prefix("# test: ").with_context(|| format!("{path}: the first line is `# test: <command>`"))?;
    let comments = text.lines().take_while(|line| line.starts_with('#'));
    let hang = comments.filter_map(|line| line.strip_prefix("# hangs")).next();
    let seconds = match hang.map(|rest| rest.trim_start_matches(':').trim()) {
        None => None,
        Some("") => Some(TEST_SECONDS_MAX),
        Some(number) => Some(number.parse().with_context(|| format!("{path}: `# hangs: {number}`"))?),
    };
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    Ok(Mutant { name, test: test.trim().to_owned(), hang: seconds.map(Duration::from_secs) })
}

/// Whether the mutant was caught: how, or why not. The patched tree is tried only if the tests pass without the patch.
fn judge(
    mutant: &Mutant,
    baseline: Verdict,
    patched: impl FnOnce() -> Result<Verdict>,
) -> Result<Result<String, String>> {
    if baseline != Verdict::Passed {
        return Ok(Err(format!("without the patch, `{}` does not pass: {baseline:?}", mutant.test)));
    }
    Ok(match patched()? {
        Verdict::Failed => Ok("caught, the test fails".into()),
        Verdict::Hung if mutant.hang.is_some() => Ok("caught, the test hangs as foretold".into()),
        Verdict::Hung => Err("the test hangs, and the patch does not say `# hangs`".into()),
        Verdict::Passed | Verdict::RanNothing => Err(format!("SURVIVED `{}`", mutant.test)),
        Verdict::NotBuilt => Err("the patched tree does not compile".into()),
    })
}

/// The place where patches are tried.
struct Bench<'a> {
    repo: &'a Repo,
    /// Holds `tree`, the copy, and `target`, what is built from it.
    home: PathBuf,
}

impl Bench<'_> {
    fn tree(&self) -> PathBuf {
        self.home.join("tree")
    }

    /// Tries the test on the tree as it is, which must pass.
    fn baseline(&self, test: &str) -> Result<Verdict> {
        sync(self.repo, &self.tree())?;
        self.run(test, Duration::from_secs(TEST_SECONDS_MAX), |verdict| verdict != Verdict::Passed)
    }

    /// Applies the patch, runs the test, and puts the tree back whatever happens.
    fn patched(&self, mutant: &Mutant) -> Result<Verdict> {
        let tree = self.tree();
        sync(self.repo, &tree)?;
        let mut git = shell::command("git", &tree);
        // The copy is no repository, and git must not take the one around it for its own.
        git.env("GIT_CEILING_DIRECTORIES", &self.home).env_remove("GIT_DIR");
        shell::run(git.arg("apply").arg(self.repo.root.join(FOLDER).join(&mutant.name)))?;
        let limit = mutant.hang.unwrap_or(Duration::from_secs(TEST_SECONDS_MAX));
        let verdict = self.run(&mutant.test, limit, |verdict| verdict == Verdict::NotBuilt);
        sync(self.repo, &tree)?;
        verdict
    }

    /// Runs a test, and shows the end of its output if the verdict is one that a reader will ask about.
    fn run(&self, test: &str, limit: Duration, is_odd: impl Fn(Verdict) -> bool) -> Result<Verdict> {
        let mut command = shell::command("sh", &self.tree());
        command.args(["-c", &format!("exec 2>&1; {test}")]).env("CARGO_TARGET_DIR", self.home.join("target"));
        // Nobody looks into these programs with a debugger, and linking them is most of the time.
        command.env("CARGO_PROFILE_DEV_DEBUG", "false");
        let (verdict, seen) = watch(&mut command, limit)?;
        if is_odd(verdict) {
            seen.tail.iter().for_each(|line| println!("    {line}"));
        }
        Ok(verdict)
    }
}

/// Makes `tree` hold the repository's files and no others. Files that are the same keep their times, so that cargo builds
/// only what a patch changed.
fn sync(repo: &Repo, tree: &Path) -> Result<()> {
    let files: BTreeSet<PathBuf> = repo.file_paths()?.into_iter().map(PathBuf::from).collect();
    std::fs::create_dir_all(tree)?;
    remove_others(tree, tree, &files)?;
    for file in &files {
        let (from, to) = (repo.root.join(file), tree.join(file));
        let content = std::fs::read(&from).with_context(|| format!("cannot read {}", file.display()))?;
        if std::fs::read(&to).is_ok_and(|old| old == content) {
            continue;
        }
        std::fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        std::fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
        std::fs::set_permissions(&to, std::fs::metadata(&from)?.permissions())?;
    }
    Ok(())
}

fn remove_others(folder: &Path, tree: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, tree, files)?;
        } else if !files.contains(path.strip_prefix(tree)?) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Runs a test command until it ends or until `limit` after its tests began, and judges it by what cargo printed.
fn watch(command: &mut Command, limit: Duration) -> Result<(Verdict, Seen)> {
    println!("$ {}", shell::describe(command));
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let lines = lines_of(child.stdout.take().context("standard output was asked for")?);
    let mut seen = Seen::default();
    let mut deadline = Instant::now() + Duration::from_secs(BUILD_SECONDS_MAX);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) if seen.add(&line) => deadline = Instant::now() + limit,
            // A test that hangs may be talkative.
            Ok(_) if !left.is_zero() => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Ok(_) | Err(RecvTimeoutError::Timeout) => {
                kill_group(&mut child)?;
                return Ok((seen.verdict_without_end(), seen));
            }
        }
    }
    Ok((seen.verdict(child.wait()?.success()), seen))
}

/// Lines as they come, from a thread, so that waiting for one can time out.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        for line in lines {
            // Nobody listens any more once the command was given up.
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A test that hangs may have children of its own: all of the command's group end with it.
fn kill_group(child: &mut Child) -> Result<()> {
    let group = format!("-{}", child.id());
    shell::run(shell::command("kill", Path::new("/")).args(["-KILL", "--", &group]))?;
    child.wait()?;
    Ok(())
}

/// What a test command has printed so far.
#[derive(Debug, Default)]
struct Seen {
    counts: crate::test::Counts,
    has_begun: bool,
    is_uncompilable: bool,
    /// The last lines.
    tail: VecDeque<String>,
}

impl Seen {
    /// Whether this line says that the first tests begin.
    fn add(&mut self, line: &str) -> bool {
        self.tail.push_back(line.to_owned());
        if self.tail.len() > TAIL_LINES_MAX {
            self.tail.pop_front();
        }
        self.counts.add_line(line);
        self.is_uncompilable |= line.contains("error: could not compile");
        let line = line.trim_start();
        let begins =
            !self.has_begun && ["Running ", "Doc-tests ", "running "].iter().any(|word| line.starts_with(word));
        self.has_begun |= begins;
        begins
    }

    fn verdict(&self, success: bool) -> Verdict {
        match success {
            true if self.counts.passed > 0 => Verdict::Passed,
            true => Verdict::RanNothing,
            false if self.has_begun && !self.is_uncompilable => Verdict::Failed,
            false => Verdict::NotBuilt,
        }
    }

    fn verdict_without_end(&self) -> Verdict {
        if self.has_begun { Verdict::Hung } else { Verdict::NotBuilt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::testing::write_tree;

    #[test]
    fn a_patch_names_its_test_and_may_foretell_a_hang() {
        let plain =
            parse("tests/mutants/a.patch", "# test: cargo test -p block-io pin\n# why\ndiff --git a b\n").unwrap();
        let expected = Mutant { name: "a.patch".into(), test: "cargo test -p block-io pin".into(), hang: None };
        assert_eq!(plain, expected);
        let hang = |text: &str| parse("a.patch", text).unwrap().hang.map(|time| time.as_secs());
        assert_eq!(hang("# test: t\n# hangs\n"), Some(TEST_SECONDS_MAX));
        assert_eq!(hang("# test: t\n# reason\n# hangs: 20\n"), Some(20));
        assert_eq!(hang("# test: t\ndiff\n# hangs\n"), None);
        let error = parse("tests/mutants/a.patch", "diff --git a b\n").unwrap_err().to_string();
        assert!(error.contains("tests/mutants/a.patch: the first line is"), "{error}");
    }

    fn check_judge(hang: bool, baseline: Verdict, patched: Verdict, expected: Result<&str, &str>) {
        let hang = hang.then_some(Duration::from_secs(1));
        let mutant = Mutant { name: "a.patch".into(), test: "t".into(), hang };
        let found = judge(&mutant, baseline, || Ok(patched)).unwrap();
        match expected {
            Ok(text) => assert!(found.as_ref().is_ok_and(|how| how.contains(text)), "{found:?}"),
            Err(text) => assert!(found.as_ref().is_err_and(|why| why.contains(text)), "{found:?}"),
        }
    }

    #[test]
    fn a_mutant_is_caught_only_by_a_test_that_passes_without_it() {
        use Verdict::{Failed, Hung, NotBuilt, Passed, RanNothing};
        check_judge(false, Passed, Failed, Ok("fails"));
        check_judge(true, Passed, Hung, Ok("hangs as foretold"));
        check_judge(true, Passed, Failed, Ok("fails"));
        check_judge(false, Passed, Hung, Err("does not say `# hangs`"));
        check_judge(false, Passed, Passed, Err("SURVIVED `t`"));
        check_judge(false, Passed, RanNothing, Err("SURVIVED"));
        check_judge(false, Passed, NotBuilt, Err("does not compile"));
        check_judge(false, Failed, Failed, Err("without the patch, `t` does not pass: Failed"));
        check_judge(false, RanNothing, Failed, Err("without the patch"));
    }

    fn check_watch(script: &str, expected: Verdict) {
        let mut command = shell::command("sh", Path::new("."));
        let (verdict, _) =
            watch(command.args(["-c", &format!("exec 2>&1; {script}")]), Duration::from_millis(300)).unwrap();
        assert_eq!(verdict, expected, "{script}");
    }

    #[test]
    fn a_command_is_judged_by_what_cargo_prints() {
        let running = "echo '     Running unittests src/lib.rs'";
        check_watch(&format!("{running}; echo 'test result: ok. 2 passed; 0 failed'"), Verdict::Passed);
        check_watch(&format!("{running}; echo 'test result: ok. 0 passed; 0 failed'"), Verdict::RanNothing);
        check_watch(&format!("{running}; echo 'test result: FAILED. 1 passed; 1 failed'; exit 101"), Verdict::Failed);
        check_watch(&format!("{running}; exit 134"), Verdict::Failed);
        check_watch("echo 'error: could not compile `block-io`'; exit 101", Verdict::NotBuilt);
        check_watch("echo 'error: no such package'; exit 101", Verdict::NotBuilt);
        check_watch(&format!("{running}; sleep 60"), Verdict::Hung);
    }

    const PATCH: &str = "# test: sh ./check.sh\n--- a/value\n+++ b/value\n@@ -1 +1 @@\n-one\n+two\n";

    const CHECK: &str = "echo 'running 1 test'\n\
        if grep -q WORD value; then echo 'test result: ok. 1 passed; 0 failed'; else exit 101; fi\n";

    /// A whole small repository: `value` says `one`, the patch makes it `two`, the test looks for `word`.
    fn try_repository(word: &str, patch: &str) -> (Outcome, String) {
        let dir = tempfile::tempdir().unwrap();
        let check = CHECK.replace("WORD", word);
        write_tree(
            dir.path(),
            &[
                (".gitignore", "/target\n"),
                ("value", "one\n"),
                ("check.sh", &check),
                ("tests/mutants/m.patch", patch),
                ("target/mutants/tree/stale/file", "left by an earlier run"),
            ],
        );
        shell::capture(shell::command("git", dir.path()).args(["init", "-q"])).unwrap();
        let outcome = outcome(&Repo { root: dir.path().to_owned() }, None).unwrap();
        let tree = dir.path().join("target/mutants/tree");
        assert!(!tree.join("stale/file").exists());
        assert_eq!(std::fs::read_to_string(dir.path().join("value")).unwrap(), "one\n", "the tree itself was patched");
        (outcome, std::fs::read_to_string(tree.join("value")).unwrap())
    }

    #[test]
    fn a_caught_mutant_passes_and_the_copy_is_put_back() {
        assert_eq!(try_repository("one", PATCH), (Outcome::Passed("1 caught".into()), "one\n".into()));
    }

    #[test]
    fn a_surviving_mutant_is_named() {
        let (outcome, _) = try_repository("o", PATCH);
        assert_eq!(outcome, Outcome::Failed("m.patch: SURVIVED `sh ./check.sh`".into()));
    }

    #[test]
    fn a_test_that_fails_without_the_patch_proves_nothing() {
        let (outcome, _) = try_repository("three", PATCH);
        let Outcome::Failed(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.starts_with("m.patch: without the patch, `sh ./check.sh` does not pass: Failed"), "{why}");
    }

    #[test]
    fn a_patch_that_does_not_apply_is_named() {
        let (outcome, _) = try_repository("one", &PATCH.replace("-one", "-ten"));
        let Outcome::Failed(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.starts_with("m.patch: ") && why.contains("git apply"), "{why}");
    }
}
