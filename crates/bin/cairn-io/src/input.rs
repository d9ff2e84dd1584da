//! Where commands come from when the command line has none: a prompt, on a terminal with a line editor.
//!
//! A thread of its own waits for lines, so that requests go on and report while nobody types.

use cairn_io::catalogue::COMMANDS;
use cairn_io::output::Output;
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use std::io::{BufRead, IsTerminal, StdinLock, stdin, stdout};
use std::sync::mpsc as ask;
use tokio::sync::mpsc;

/// Longer lines are several.
const LINE_BYTES_MAX: usize = 1023;

/// A prompt.
pub(crate) struct Input {
    ask: ask::Sender<()>,
    lines: mpsc::UnboundedReceiver<Option<Vec<u8>>>,
    is_terminal: bool,
    out: Output,
}

impl Input {
    pub(crate) fn new(out: Output) -> Self {
        let is_terminal = stdin().is_terminal() && stdout().is_terminal();
        let (ask, asked) = ask::channel();
        let (send, lines) = mpsc::unbounded_channel();
        let prompt = prompt(&out);
        std::thread::spawn(move || {
            let mut source = if is_terminal { editor(prompt) } else { plain() };
            while asked.recv().is_ok() && send.send(source()).is_ok() {}
        });
        Self { ask, lines, is_terminal, out }
    }

    /// Ask for the next line. `None` when there are no more.
    pub(crate) async fn line(&mut self) -> Option<Vec<u8>> {
        if !self.is_terminal {
            self.out.print(prompt(&self.out));
        }
        self.out.flush();
        self.ask.send(()).ok()?;
        self.lines.recv().await.flatten()
    }
}

fn prompt(out: &Output) -> String {
    format!("{}> ", out.name())
}

type Source = Box<dyn FnMut() -> Option<Vec<u8>>>;

/// Lines of a file or pipe.
fn plain() -> Source {
    let mut input = stdin().lock();
    Box::new(move || read_line(&mut input))
}

fn read_line(input: &mut StdinLock<'_>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < LINE_BYTES_MAX {
        let waiting = input.fill_buf().unwrap_or_default();
        let room = waiting.len().min(LINE_BYTES_MAX - line.len());
        let end = waiting[..room].iter().position(|&byte| byte == b'\n');
        let len = end.unwrap_or(room);
        line.extend_from_slice(&waiting[..len]);
        input.consume(len + usize::from(end.is_some()));
        match (end, room) {
            (Some(_), _) => return Some(line),
            (None, 0) => return (!line.is_empty()).then_some(line),
            (None, _) => {}
        }
    }
    Some(line)
}

/// Lines that somebody types.
fn editor(prompt: String) -> Source {
    let config = Config::builder().auto_add_history(true).completion_type(CompletionType::List).build();
    let mut editor = match Editor::<Words, MemHistory>::with_history(config, MemHistory::new()) {
        Ok(editor) => editor,
        Err(_) => return plain(),
    };
    editor.set_helper(Some(Words));
    // An interrupt ends the program as the end of the input does: with the image closed.
    Box::new(move || editor.readline(&prompt).ok().map(String::into_bytes))
}

/// Completes the names of commands.
struct Words;

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..at];
        let names = COMMANDS.iter().map(|entry| entry.word).filter(|word| word.starts_with(begun));
        Ok((0, names.map(|name| format!("{name} ")).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}
