//! Steps, how they went and how long they took, as lines and as a table. It runs nothing by itself.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what it should; the text, which may be empty, says what.
    Passed(String),
    /// It did not; the text says why, in one or many lines.
    Failed(String),
    /// It could not run here; the text says why.
    Skipped(String),
}

/// One step of a task.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// A short name, the first column of the table.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

/// The steps of one task, in order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
}

impl Report {
    /// Runs a step, prints a line when it begins and one when it ends, and keeps the outcome. An error is a failure.
    pub(crate) fn step(&mut self, name: &str, body: impl FnOnce() -> Result<Outcome>) {
        println!("== {name}");
        let begin = Instant::now();
        let outcome = body().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let elapsed = begin.elapsed();
        match &outcome {
            Outcome::Failed(why) => println!("{why}\n== {name}: FAILED ({:.1} s)", elapsed.as_secs_f64()),
            Outcome::Skipped(why) => println!("== {name}: SKIPPED: {why}"),
            Outcome::Passed(what) => println!("== {name}: ok ({:.1} s) {what}", elapsed.as_secs_f64()),
        }
        self.steps.push(Step { name: name.to_owned(), outcome, elapsed });
    }

    /// Names of the steps that failed.
    pub(crate) fn failed(&self) -> Vec<&str> {
        let failed = self.steps.iter().filter(|step| matches!(step.outcome, Outcome::Failed(_)));
        failed.map(|step| step.name.as_str()).collect()
    }

    /// The table: step, result with the first line of what there is to say, seconds.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from("| step | result | seconds |\n| --- | --- | --- |\n");
        for step in &self.steps {
            let (word, text) = match &step.outcome {
                Outcome::Passed(text) => ("ok", text),
                Outcome::Failed(text) => ("FAILED", text),
                Outcome::Skipped(text) => ("skipped", text),
            };
            let first = first_line(text);
            let colon = if first.is_empty() { "" } else { ": " };
            let _ = writeln!(table, "| {} | {word}{colon}{first} | {:.1} |", step.name, step.elapsed.as_secs_f64());
        }
        table
    }

    /// Fails if any step failed.
    ///
    /// # Errors
    /// Names the failed steps.
    pub(crate) fn result(&self) -> Result<()> {
        let failed = self.failed();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

/// The first line, and how many follow it.
fn first_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default().replace('|', "/");
    match text.lines().count() {
        0 | 1 => first,
        lines => format!("{first} (+ {} lines)", lines - 1),
    }
}

/// A check's findings as an outcome: none is a pass.
pub(crate) fn outcome_of(violations: &[String], what: impl Into<String>) -> Outcome {
    if violations.is_empty() { Outcome::Passed(what.into()) } else { Outcome::Failed(violations.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_does_not_stop_the_next_and_fails_the_report() {
        let mut report = Report::default();
        report.step("one", || bail!("broken | thing\nand more\nand more"));
        report.step("two", || Ok(Outcome::Passed(String::new())));
        report.step("three", || Ok(Outcome::Skipped("no nightly".into())));
        assert_eq!(report.failed(), ["one"]);
        assert!(report.table().contains("| one | FAILED: broken / thing (+ 2 lines) | 0.0 |\n| two | ok | 0.0 |"));
        assert!(report.table().contains("| three | skipped: no nightly |"));
        assert_eq!(report.result().unwrap_err().to_string(), "failed: one");
    }

    #[test]
    fn findings_fail_and_none_pass() {
        assert_eq!(outcome_of(&[], "4 crates"), Outcome::Passed("4 crates".into()));
        assert_eq!(outcome_of(&["a".into(), "b".into()], ""), Outcome::Failed("a\nb".into()));
    }
}
