//! Results: one row for each thing that is compared with another, its bar, and whether it was met.

use crate::stats::{median, paired, quantile, spread};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What is asked of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// So many times the peer's requests per second, or more.
    TimesFaster(f64),
    /// So many times the peer's time per request, or less.
    TimesAsLong(f64),
    /// The peer's time per request, or as much more as the peer typically differs from itself.
    WithinNoise,
    /// So many nanoseconds per request more than the peer, or fewer.
    AddedNs(f64),
    /// So many seconds, or fewer, whatever the peer takes.
    Seconds(f64),
}

/// A comparison.
#[derive(Debug)]
pub(crate) struct Row {
    case: &'static str,
    ours: String,
    theirs: String,
    bar: Bar,
    /// Medians, in ns per request.
    ours_ns: f64,
    theirs_ns: f64,
    /// What the bar is about: ratio or difference; its quartiles and median.
    value: [f64; 3],
    /// The same of the peer against itself.
    noise: [f64; 3],
    /// See [`spread`].
    spread: f64,
    rounds: usize,
    pub(crate) passed: bool,
}

impl Bar {
    fn value(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::TimesFaster(_) => theirs / ours,
            Self::TimesAsLong(_) | Self::WithinNoise => ours / theirs,
            Self::AddedNs(_) => ours - theirs,
            Self::Seconds(_) => ours / 1e9,
        }
    }

    fn is_met(self, value: f64, spread: f64) -> bool {
        match self {
            Self::TimesFaster(bar) => value >= bar,
            Self::TimesAsLong(bar) | Self::AddedNs(bar) | Self::Seconds(bar) => value <= bar,
            Self::WithinNoise => value <= spread,
        }
    }

    fn print(self, spread: f64) -> String {
        match self {
            Self::TimesFaster(bar) => format!("rate >= {bar}x"),
            Self::TimesAsLong(bar) => format!("time <= {bar}x"),
            Self::AddedNs(bar) => format!("added <= {bar} ns"),
            Self::Seconds(bar) => format!("<= {bar} s"),
            Self::WithinNoise => format!("time <= {spread:.3}x (noise)"),
        }
    }

    fn print_value(self, value: f64) -> String {
        match self {
            Self::AddedNs(_) => format!("{value:+.1} ns"),
            Self::Seconds(_) => format!("{value:.3} s"),
            _ => format!("{value:.3}x"),
        }
    }
}

fn quartiles(values: &[f64]) -> [f64; 3] {
    [quantile(values, 0.25), median(values), quantile(values, 0.75)]
}

impl Row {
    /// Compare times per request that were measured round by round; `again` are the peer's, from a second run in each.
    pub(crate) fn new(
        case: &'static str,
        names: (&str, &str),
        bar: Bar,
        (ours, theirs, again): (&[f64], &[f64], &[f64]),
    ) -> Self {
        let value = quartiles(&paired(ours, theirs, |ours, theirs| bar.value(ours, theirs)));
        let spread = spread(again, theirs);
        Self {
            case,
            ours: names.0.to_owned(),
            theirs: names.1.to_owned(),
            bar,
            ours_ns: median(ours),
            theirs_ns: median(theirs),
            value,
            noise: quartiles(&paired(again, theirs, |again, theirs| bar.value(again, theirs))),
            spread,
            rounds: ours.len().min(theirs.len()),
            passed: bar.is_met(value[1], spread),
        }
    }

    fn verdict(&self) -> &'static str {
        if self.passed { "pass" } else { "FAIL" }
    }
}

/// One row as a line of text.
pub(crate) fn line(row: &Row) -> String {
    format!(
        "{} {} {:.1} ns, {} {:.1} ns: {} (bar {}; {} against itself {}): {}",
        row.case,
        row.ours,
        row.ours_ns,
        row.theirs,
        row.theirs_ns,
        row.bar.print_value(row.value[1]),
        row.bar.print(row.spread),
        row.theirs,
        row.bar.print_value(row.noise[1]),
        row.verdict(),
    )
}

/// All rows as a table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| case | ours | ns | theirs | ns | paired median [quartiles] | bar | | theirs against itself [quartiles] |\n\
         | --- | --- | ---: | --- | ---: | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let range = |values: &[f64; 3]| {
            let [low, mid, high] = values.map(|value| row.bar.print_value(value));
            format!("{mid} [{low} .. {high}]")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} | {} | {:.1} | {} | {} | {} | {} |",
            row.case,
            row.ours,
            row.ours_ns,
            row.theirs,
            row.theirs_ns,
            range(&row.value),
            row.bar.print(row.spread),
            row.verdict(),
            range(&row.noise),
        );
    }
    let failed = rows.iter().filter(|row| !row.passed).count();
    let _ = writeln!(text, "\n{} of {} bars met.", rows.len() - failed, rows.len());
    text
}

/// All rows for a program, with the versions of those who were compared with.
pub(crate) fn json(rows: &[Row], versions: &[String]) -> Value {
    let rows = rows.iter().map(|row| {
        let quartiles = |[low, median, high]: [f64; 3]| json!({"q1": low, "median": median, "q3": high});
        let (kind, bar) = match row.bar {
            Bar::TimesFaster(bar) => ("rate-at-least", Some(bar)),
            Bar::TimesAsLong(bar) => ("time-at-most", Some(bar)),
            Bar::WithinNoise => ("time-within-noise", Some(row.spread)),
            Bar::AddedNs(bar) => ("added-ns-at-most", Some(bar)),
            Bar::Seconds(bar) => ("seconds-at-most", Some(bar)),
        };
        json!({
            "case": row.case, "ours": row.ours, "theirs": row.theirs,
            "ours_ns": row.ours_ns, "theirs_ns": row.theirs_ns, "rounds": row.rounds,
            "kind": kind, "bar": bar, "value": quartiles(row.value), "noise": quartiles(row.noise),
            "noise_spread": row.spread, "passed": row.passed,
        })
    });
    json!({ "peers": versions, "rows": rows.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bar: Bar, ours: f64, theirs: f64, passes: bool) {
        let (ours, theirs, again) = ([ours; 11], [theirs; 11], [theirs * 1.02; 11]);
        let row = Row::new("case", ("us", "them"), bar, (&ours, &theirs, &again));
        assert_eq!(row.passed, passes, "{}", line(&row));
    }

    #[test]
    fn bars_are_met_or_missed() {
        check(Bar::TimesFaster(5.0), 100.0, 500.0, true);
        check(Bar::TimesFaster(5.0), 100.0, 499.0, false);
        check(Bar::TimesAsLong(1.2), 120.0, 100.0, true);
        check(Bar::TimesAsLong(1.2), 121.0, 100.0, false);
        check(Bar::AddedNs(50.0), 150.0, 100.0, true);
        check(Bar::AddedNs(50.0), 151.0, 100.0, false);
        check(Bar::Seconds(2.0), 1.9e9, 1.0, true);
        check(Bar::Seconds(2.0), 2.1e9, 9e9, false);
        check(Bar::WithinNoise, 101.9, 100.0, true);
        check(Bar::WithinNoise, 102.1, 100.0, false);
        check(Bar::WithinNoise, 50.0, 100.0, true);
    }

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let row = || Row::new("c", ("a", "b"), Bar::AddedNs(9.0), (&[3.0], &[1.0], &[1.0]));
        let text = table(&[row(), row()]);
        assert_eq!(text.lines().filter(|line| line.starts_with("| c |")).count(), 2);
        assert!(text.ends_with("2 of 2 bars met.\n"), "{text}");
        assert_eq!(json(&[row()], &[])["rows"][0]["value"]["median"], 2.0);
    }
}
