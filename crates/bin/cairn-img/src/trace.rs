//! `-T`: which of the library's events are logged, and where. Without the option only what drivers tell whoever uses the tool is printed,
//! and nothing else costs anything.

use crate::cli::Failure;
use block_drivers::{TOLD, print_told};
use std::fs::File;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

#[derive(Debug, Default, PartialEq)]
struct Trace {
    filters: Vec<String>,
    events: Option<String>,
    file: Option<String>,
}

fn parse(text: &str) -> Trace {
    let mut trace = Trace::default();
    for item in text.split(',').filter(|item| !item.is_empty()) {
        match item.split_once('=') {
            Some(("enable", filter)) => trace.filters.push(filter.to_owned()),
            Some(("events", path)) => trace.events = Some(path.to_owned()),
            Some(("file", path)) => trace.file = Some(path.to_owned()),
            _ => trace.filters.push(item.to_owned()),
        }
    }
    trace
}

/// Log what the options ask for. The last `file` gets all of it.
///
/// # Errors
/// A file that cannot be read or written. A filter that makes no sense is a warning, as in the field.
pub(crate) fn start(options: &[String]) -> Result<(), Failure> {
    if options.is_empty() {
        print_told(crate::PROGRAM);
        return Ok(());
    }
    let (mut filters, mut file) = (Vec::new(), None);
    for trace in options.iter().map(|text| parse(text)) {
        filters.extend(trace.filters);
        if let Some(path) = trace.events {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| Failure::message(format!("Could not open trace events file '{path}': {error}")))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            filters.extend(lines.map(str::to_owned));
        }
        file = trace.file.or(file);
    }
    let mut filter = EnvFilter::new(format!("off,{TOLD}=warn"));
    for text in filters {
        match text.parse() {
            Ok(directive) => filter = filter.add_directive(directive),
            Err(error) => crate::warn(&format!("trace filter '{text}': {error}")),
        }
    }
    let writer = match file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let file = File::create(&path)
                .map_err(|error| Failure::message(format!("Could not open trace file '{path}': {error}")))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_options_are_split() {
        let trace = parse("enable=block_gs=debug,block_io=trace,file=out.log");
        assert_eq!(trace.filters, ["block_gs=debug", "block_io=trace"]);
        assert_eq!(trace.file.as_deref(), Some("out.log"));
        assert_eq!(parse(""), Trace::default());
    }
}
