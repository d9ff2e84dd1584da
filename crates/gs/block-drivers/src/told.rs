//! What drivers have to tell whoever uses a tool, beside the errors of its requests: an image was found to be corrupt, or is being repaired. The field's tools
//! print that, in these words.

use std::fmt;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Metadata};

pub use block_qcow2::TOLD;

/// Print on standard error, from now on, what drivers tell; everything else that could be logged costs nothing. A program that logs has a subscriber of
/// its own, and lets events with the target [`TOLD`] through. Does nothing where there is one already. A warning has the `program`'s name before it.
pub fn print_told(program: &'static str) {
    // Whoever was there first prints what he likes.
    let _ = tracing::subscriber::set_global_default(Print(program));
}

/// With the program's name.
struct Print(&'static str);

impl Subscriber for Print {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::WARN)
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TOLD && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message(self.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Message(&'static str);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let text = format!("{value:?}");
            let program = if text.starts_with("warning: ") { format!("{}: ", self.0) } else { String::new() };
            eprintln!("{program}{text}");
        }
    }
}
