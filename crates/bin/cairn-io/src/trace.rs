//! `-T`: which of the library's events are logged, and where. Without the option only what drivers tell whoever uses the tool is printed,
//! and nothing else costs anything.

use block_drivers::{TOLD, print_told};
use cairn_io::output::Output;
use std::fs::File;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Log what the options ask for. The last `file` gets all of it. A filter that makes no sense is a warning, as in the
/// field.
///
/// # Errors
/// A file that cannot be read or written.
pub(crate) fn start(options: &[Vec<u8>], out: &Output) -> Result<(), String> {
    if options.is_empty() {
        print_told("cairn-io");
        return Ok(());
    }
    let (mut filters, mut file) = (Vec::new(), None);
    for text in options {
        let text = String::from_utf8_lossy(text);
        for item in text.split(',').filter(|item| !item.is_empty()) {
            match item.split_once('=') {
                Some(("enable", filter)) => filters.push(filter.to_owned()),
                Some(("events", path)) => filters.extend(read_events(path)?),
                Some(("file", path)) => file = Some(path.to_owned()),
                _ => filters.push(item.to_owned()),
            }
        }
    }
    let mut filter = EnvFilter::new(format!("off,{TOLD}=warn"));
    for text in filters {
        match text.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(error) => out.fail(format!("warning: trace filter '{text}': {error}")),
        }
    }
    let writer = match file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = File::create(&path).map_err(|error| format!("Could not open trace file '{path}': {error}"))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).init();
    Ok(())
}

/// The lines of a file that are neither empty nor comments.
fn read_events(path: &str) -> Result<Vec<String>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("Could not open trace events file '{path}': {error}"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}
