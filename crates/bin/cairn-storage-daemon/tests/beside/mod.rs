//! Both daemons beside each other, for tests: theirs and ours, started, told something, and ended.

#![allow(dead_code, reason = "no test needs all of it")]

use block_testkit::bed::skipped;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_cairn-storage-daemon");
pub(crate) const THEIRS: &str = "qemu-storage-daemon";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a daemon may say before anybody listens: a schema, say.
const OUT_BYTES: usize = 1 << 20;

/// Whether there is anybody to compare with; `test` is skipped otherwise.
pub(crate) fn has_theirs(test: &str) -> bool {
    let found = Command::new(THEIRS).arg("--version").output().is_ok();
    if !found {
        skipped(test, "qemu-storage-daemon is not installed");
    }
    found
}

/// Have qemu-img do something with images.
pub(crate) fn image(dir: &Path, args: &str) {
    let output = Command::new("qemu-img").current_dir(dir).args(args.split(' ')).output().expect("qemu-img");
    assert!(output.status.success(), "{args}: {output:?}");
}

/// What a daemon says to `input` on its standard input, line by line; it ends by itself.
pub(crate) fn talk(program: &str, dir: &Path, options: &[&str], input: &str) -> (Vec<Value>, Output) {
    let mut daemon = Command::new(program);
    daemon.current_dir(dir).args(["--chardev", "stdio,id=m", "--monitor", "m"]).args(options);
    let mut daemon = daemon.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(program);
    // Theirs ends without what is still in the way when it quits.
    let out = daemon.stdout.as_ref().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(out, OUT_BYTES).expect("a large pipe");
    // Both programs read on until they are told to quit.
    daemon.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = in_time(daemon);
    let lines = String::from_utf8(output.stdout.clone()).expect("text");
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    (lines.collect(), output)
}

/// The end of a program that is about to end.
pub(crate) fn in_time(mut program: Child) -> Output {
    let end = Instant::now() + PATIENCE;
    while program.try_wait().expect("a child").is_none() {
        if Instant::now() > end {
            program.kill().expect("a child");
            panic!("the daemon hangs: {:?}", program.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    program.wait_with_output().expect("a child")
}

/// A daemon that is told one thing after the other, each when the one before was answered.
pub(crate) struct Conversation {
    daemon: Child,
    to: ChildStdin,
    from: Receiver<String>,
    /// All that it said since the greeting, in order.
    pub(crate) lines: Vec<Value>,
}

impl Conversation {
    /// Start `program` in `dir`.
    pub(crate) fn begin(program: &str, dir: &Path, options: &[&str]) -> Self {
        let mut daemon = Command::new(program);
        daemon.current_dir(dir).args(options).args(["--chardev", "stdio,id=m", "--monitor", "m"]);
        let mut daemon = daemon.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(program);
        let (to, out) = (daemon.stdin.take().expect("a pipe"), daemon.stdout.take().expect("a pipe"));
        let (send, from) = channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line).ok())
        });
        let mut started = Self { daemon, to, from, lines: Vec::new() };
        assert!(started.line().get("QMP").is_some());
        started.answer(r#"{"execute": "qmp_capabilities"}"#);
        started.lines.clear();
        started
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.daemon.id()
    }

    fn line(&mut self) -> Value {
        loop {
            let line = self
                .from
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("{:?} has no word more: {:#?}", self.daemon.try_wait(), self.lines));
            // Theirs tells of images that it creates as a tool would.
            if line.starts_with("Formatting '") {
                continue;
            }
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            self.lines.push(line.clone());
            return line;
        }
    }

    /// The answer to a command as a client writes it.
    pub(crate) fn answer(&mut self, command: &str) -> Value {
        // In one piece: a daemon that is told to quit reads no further than that.
        if self.to.write_all(format!("{command}\n").as_bytes()).is_err() {
            let end = self.daemon.wait();
            panic!("it does not read {command}: {end:?} {:#?}", self.lines);
        }
        loop {
            let line = self.line();
            if line.get("event").is_none() {
                return line;
            }
        }
    }

    /// What the command brought.
    pub(crate) fn done(&mut self, command: &str, arguments: Value) -> Value {
        let command = serde_json::json!({ "execute": command, "arguments": arguments }).to_string();
        let answer = self.answer(&command);
        answer.get("return").unwrap_or_else(|| panic!("{command}: {answer}")).clone()
    }

    /// Wait until `is_so` of all that was said.
    pub(crate) fn until(&mut self, is_so: impl Fn(&[Value]) -> bool) {
        while !is_so(&self.lines) {
            self.line();
        }
    }

    /// The end; all that was said.
    pub(crate) fn quit(mut self) -> Vec<Value> {
        self.answer(r#"{"execute": "quit"}"#);
        drop(self.to);
        let output = in_time(self.daemon);
        assert!(output.status.success(), "{output:?}");
        while let Ok(line) = self.from.recv_timeout(PATIENCE) {
            self.lines.extend(serde_json::from_str::<Value>(&line));
        }
        self.lines
    }
}
