//! Where commands print. The program's standard output is buffered as C buffers it, so that what it shares a file with comes in
//! the same order.
//!
//! On a terminal a line is printed when it is complete. Anywhere else printing waits for 4096 bytes, a prompt or the
//! end, and is lost when the program crashes before that.

use crate::parse::Line;
use std::cell::RefCell;
use std::fmt;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

const BUFFER_BYTES: usize = 4096;

/// Standard output and standard error of a program with a name; or a text that somebody keeps.
#[derive(Clone)]
pub struct Output(Rc<Inner>);

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output({})", self.0.name)
    }
}

struct Inner {
    name: String,
    /// What is printed, and complained about, stays here: so much of it, at most.
    kept_max: Option<usize>,
    is_terminal: bool,
    waiting: RefCell<Vec<u8>>,
    /// What other threads have to say: it goes before what is printed next.
    told: Arc<Mutex<Vec<u8>>>,
}

impl Output {
    /// `name` goes in front of messages.
    pub fn new(name: String) -> Self {
        let waiting = RefCell::new(Vec::with_capacity(BUFFER_BYTES));
        let (is_terminal, told) = (stdout().is_terminal(), Arc::default());
        Self(Rc::new(Inner { name, kept_max: None, is_terminal, waiting, told }))
    }

    /// Nothing is printed: what would be is kept, in the order in which it comes, but no more than `bytes_max` of it.
    pub fn kept(bytes_max: usize) -> Self {
        let (name, waiting) = (String::new(), RefCell::default());
        Self(Rc::new(Inner { name, kept_max: Some(bytes_max), is_terminal: false, waiting, told: Arc::default() }))
    }

    /// What was kept until now, which is forgotten.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.waiting.borrow_mut())
    }

    fn keep(&self, text: &[u8], bytes_max: usize) {
        let mut kept = self.0.waiting.borrow_mut();
        let room = bytes_max.saturating_sub(kept.len());
        kept.extend_from_slice(&text[..text.len().min(room)]);
    }

    /// For other threads: what is put there is printed before whatever this one prints next.
    pub fn told(&self) -> Arc<Mutex<Vec<u8>>> {
        self.0.told.clone()
    }

    fn hear(&self) {
        let told = std::mem::take(&mut *self.0.told.lock().unwrap_or_else(PoisonError::into_inner));
        if !told.is_empty() {
            self.print_now(&told);
        }
    }

    /// The name that goes in front of messages.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Print to standard output.
    pub fn print(&self, text: impl AsRef<[u8]>) {
        self.hear();
        self.print_now(text.as_ref());
    }

    fn print_now(&self, mut text: &[u8]) {
        if let Some(bytes_max) = self.0.kept_max {
            return self.keep(text, bytes_max);
        }
        let mut waiting = self.0.waiting.borrow_mut();
        while waiting.len() + text.len() > BUFFER_BYTES {
            let (now, later) = text.split_at(BUFFER_BYTES - waiting.len());
            waiting.extend_from_slice(now);
            put(&mut waiting);
            text = later;
        }
        waiting.extend_from_slice(text);
        if self.0.is_terminal && waiting.contains(&b'\n') {
            put(&mut waiting);
        }
    }

    /// Let everything out that was printed so far.
    pub fn flush(&self) {
        self.hear();
        if self.0.kept_max.is_none() {
            put(&mut self.0.waiting.borrow_mut());
        }
    }

    /// Print a line to standard error.
    pub fn complain(&self, text: impl AsRef<[u8]>) {
        let line = [text.as_ref(), b"\n"].concat();
        if let Some(bytes_max) = self.0.kept_max {
            return self.keep(&line, bytes_max);
        }
        // Nobody is left to be told when it is gone.
        let _ = stderr().write_all(&line);
    }

    /// Print a line to standard error, behind the program's name.
    pub fn fail(&self, text: impl AsRef<[u8]>) {
        let name = if self.0.name.is_empty() { String::new() } else { format!("{}: ", self.0.name) };
        self.complain([name.as_bytes(), text.as_ref()].concat());
    }

    /// Print a line where it belongs.
    pub fn tell(&self, line: &Line) {
        match line {
            Line::Out(text) => self.print([text.as_slice(), b"\n"].concat()),
            Line::Err(text) => self.complain(text),
            Line::Program(text) => self.fail(text),
        }
    }
}

fn put(waiting: &mut Vec<u8>) {
    // A reader that has gone does not keep the commands from being carried out.
    let mut stdout = stdout().lock();
    let _ = stdout.write_all(waiting).and_then(|()| stdout.flush());
    waiting.clear();
}
