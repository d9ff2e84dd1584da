//! `-p`: how far a command has come. A bar on a terminal, the field's own text elsewhere, lines of JSON for programs.
//!
//! SIGUSR1 asks for it once, on stderr, where `-p` was not given.

use crate::cli::Failure;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// `-p`, `--progress`
#[derive(Debug, Args)]
pub(crate) struct ProgressArgs {
    /// Show how far it has come: a bar on a terminal, text elsewhere, with =json lines for programs
    #[arg(short = 'p', long, value_name = "HOW", num_args = 0..=1, require_equals = true,
          default_missing_value = "text", value_parser = style)]
    progress: Option<Style>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Text,
    Json,
}

fn style(text: &str) -> Result<Style, String> {
    match text {
        "text" => Ok(Style::Text),
        "json" => Ok(Style::Json),
        other => Err(format!("--progress expects 'text' or 'json' not '{other}'")),
    }
}

enum Output {
    /// Only when asked by the signal.
    Asked,
    Text,
    Json,
    Bar(ProgressBar),
}

#[derive(Debug, Default)]
struct State {
    done: u64,
    total: u64,
    /// Percent that were shown last.
    shown: f64,
    finished: bool,
}

/// How far a command has come. Any thread may tell. Dropped, it ends the line.
pub(crate) struct Progress {
    output: Output,
    /// Changes of fewer percent are not shown.
    step: f64,
    state: Mutex<State>,
    asked: Arc<AtomicBool>,
}

impl ProgressArgs {
    /// Start with nothing done. `step` is the least change, in percent, that is shown.
    ///
    /// # Errors
    /// The signal cannot be had.
    pub(crate) fn start(&self, quiet: bool, step: f64) -> Result<Progress, Failure> {
        let output = match self.progress.filter(|_| !quiet) {
            None => Output::Asked,
            Some(Style::Json) => Output::Json,
            Some(Style::Text) if std::io::stdout().is_terminal() => Output::Bar(bar()),
            Some(Style::Text) => Output::Text,
        };
        let asked = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, asked.clone())
            .map_err(|error| Failure::message(format!("Could not handle SIGUSR1: {error}")))?;
        let progress = Progress { output, step, state: Mutex::default(), asked };
        progress.show(&mut State::default());
        Ok(progress)
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), indicatif::ProgressDrawTarget::stdout());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

impl Progress {
    /// Whether anybody sees it: what it costs to know the total need not be paid otherwise.
    pub(crate) fn is_shown(&self) -> bool {
        !matches!(self.output, Output::Asked)
    }

    /// There are `bytes` in all.
    pub(crate) fn set_total(&self, bytes: u64) {
        self.lock().total = bytes;
    }

    /// So many more of them are done with.
    pub(crate) fn advance(&self, bytes: u64) {
        let mut state = self.lock();
        state.done += bytes;
        let percent = state.percent();
        if percent > state.shown + self.step {
            self.show(&mut state);
        }
        if self.asked.swap(false, Ordering::Relaxed) && !self.is_shown() {
            // As for errors: nobody is left to be told when stderr is gone.
            let _ = writeln!(std::io::stderr().lock(), "{}", text(percent));
        }
    }

    /// All is done.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        state.done = state.total;
        state.finished = true;
        self.show(&mut state);
    }

    fn show(&self, state: &mut State) {
        let percent = state.percent();
        state.shown = percent;
        let State { done, total, .. } = *state;
        let line = match &self.output {
            Output::Asked => return,
            Output::Text => format!("{}\r", text(percent)),
            Output::Json => {
                let value = serde_json::json!({ "done": done, "total": total, "percent": percent });
                format!("{value}\n")
            }
            Output::Bar(bar) => {
                bar.set_length(total);
                return bar.set_position(done);
            }
        };
        let mut out = std::io::stdout().lock();
        // The result is what counts: a command does not fail because nobody watches it.
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn percent(&self) -> f64 {
        match (self.done, self.total) {
            _ if self.finished => 100.0,
            (_, 0) => 0.0,
            (done, total) => done.min(total) as f64 * 100.0 / total as f64,
        }
    }
}

fn text(percent: f64) -> String {
    format!("    ({percent:.2}/100%)")
}

impl Drop for Progress {
    fn drop(&mut self) {
        match &self.output {
            Output::Text => {
                let _ = std::io::stdout().lock().write_all(b"\n");
            }
            Output::Bar(bar) => bar.abandon(),
            Output::Asked | Output::Json => {}
        }
    }
}
