//! Where the program prints. Standard output is buffered as C buffers it, so that what it shares a file with comes in
//! the same order.
//!
//! On a terminal a line is printed when it is complete. Anywhere else printing waits for 4096 bytes, a prompt or the
//! end, and is lost when the program crashes before that.

use cairn_io::parse::Line;
use std::cell::RefCell;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

const BUFFER_BYTES: usize = 4096;

/// Standard output and standard error of a program with a name.
#[derive(Clone)]
pub(crate) struct Output(Rc<Inner>);

struct Inner {
    name: String,
    is_terminal: bool,
    waiting: RefCell<Vec<u8>>,
    /// What other threads have to say: it goes before what is printed next.
    told: Arc<Mutex<Vec<u8>>>,
}

impl Output {
    /// `name` goes in front of messages.
    pub(crate) fn new(name: String) -> Self {
        let waiting = RefCell::new(Vec::with_capacity(BUFFER_BYTES));
        Self(Rc::new(Inner { name, is_terminal: stdout().is_terminal(), waiting, told: Arc::default() }))
    }

    /// For other threads: what is put there is printed before whatever this one prints next.
    pub(crate) fn told(&self) -> Arc<Mutex<Vec<u8>>> {
        self.0.told.clone()
    }

    fn hear(&self) {
        let told = std::mem::take(&mut *self.0.told.lock().unwrap_or_else(PoisonError::into_inner));
        if !told.is_empty() {
            self.print_now(&told);
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Print to standard output.
    pub(crate) fn print(&self, text: impl AsRef<[u8]>) {
        self.hear();
        self.print_now(text.as_ref());
    }

    fn print_now(&self, mut text: &[u8]) {
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
    pub(crate) fn flush(&self) {
        self.hear();
        put(&mut self.0.waiting.borrow_mut());
    }

    /// Print a line to standard error.
    pub(crate) fn complain(&self, text: impl AsRef<[u8]>) {
        // Nobody is left to be told when it is gone.
        let _ = stderr().write_all(&[text.as_ref(), b"\n"].concat());
    }

    /// Print a line to standard error, behind the program's name.
    pub(crate) fn fail(&self, text: impl AsRef<[u8]>) {
        self.complain([self.0.name.as_bytes(), b": ", text.as_ref()].concat());
    }

    /// Print a line where it belongs.
    pub(crate) fn tell(&self, line: &Line) {
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
