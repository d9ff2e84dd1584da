//! The commands by name, and what is common to them. Each takes its arguments, and everything it does is asked of the crates below.

mod bitmaps;
mod create;
mod devices;
pub(crate) mod human;
mod jobs;
mod nodes;
mod objects;
mod queries;
mod snapshots;
mod stats;
mod transaction;

use crate::error::{ErrorClass, QmpError, QmpResult};
use crate::monitor::Monitor;
use crate::schema::Schema;
use block_common::options::{Dict, Value};
use block_common::{OptionReader, Options};
use block_gs::GlobalState;
use serde_json::json;
use std::future::Future;
use std::pin::Pin;

/// What a command is given.
pub(crate) struct Call {
    pub(crate) monitor: Monitor,
    pub(crate) arguments: OptionReader,
}

impl Call {
    fn gs(&self) -> GlobalState {
        self.monitor.0.gs.clone()
    }

    /// Nothing else was given.
    fn finish(self) -> Result<(), QmpError> {
        Ok(self.arguments.finish()?)
    }
}

type Running = Pin<Box<dyn Future<Output = QmpResult>>>;

/// A command's name and what carries it out.
type Entry = (&'static str, fn(Call) -> Running);

/// A row of the table for an `async fn(Call) -> QmpResult`.
macro_rules! commands {
    ($($name:literal => $function:path,)*) => {
        &[$(($name, |call| Box::pin($function(call)) as Running)),*]
    };
}

/// All of them, in the order of their names.
const COMMANDS: &[Entry] = commands! {
    "block-dirty-bitmap-add" => bitmaps::add,
    "block-dirty-bitmap-clear" => bitmaps::clear,
    "block-dirty-bitmap-disable" => bitmaps::disable,
    "block-dirty-bitmap-enable" => bitmaps::enable,
    "block-dirty-bitmap-merge" => bitmaps::merge,
    "block-dirty-bitmap-remove" => bitmaps::remove,
    "block-job-cancel" => jobs::block_cancel,
    "block-job-complete" => jobs::block_complete,
    "block-job-dismiss" => jobs::block_dismiss,
    "block-job-finalize" => jobs::block_finalize,
    "block-job-pause" => jobs::block_pause,
    "block-job-resume" => jobs::block_resume,
    "block-job-set-speed" => jobs::block_set_speed,
    "block-latency-histogram-set" => devices::set_latency_histogram,
    "block-set-write-threshold" => nodes::set_write_threshold,
    "block_resize" => nodes::resize,
    "block_set_io_throttle" => devices::set_io_throttle,
    "blockdev-add" => nodes::add,
    "blockdev-change-medium" => devices::change,
    "blockdev-close-tray" => devices::close,
    "blockdev-create" => create::create,
    "blockdev-del" => nodes::delete,
    "blockdev-insert-medium" => devices::insert,
    "blockdev-open-tray" => devices::open,
    "blockdev-remove-medium" => devices::remove,
    "blockdev-reopen" => nodes::reopen,
    "blockdev-snapshot" => snapshots::put,
    "blockdev-snapshot-delete-internal-sync" => snapshots::delete_internal,
    "blockdev-snapshot-internal-sync" => snapshots::internal,
    "blockdev-snapshot-sync" => snapshots::sync,
    "change-backing-file" => snapshots::change_backing,
    "cont" => devices::go_on,
    "device_add" => devices::add,
    "device_del" => devices::delete,
    "eject" => devices::eject_medium,
    "human-monitor-command" => human::command,
    "job-cancel" => jobs::cancel,
    "job-complete" => jobs::complete,
    "job-dismiss" => jobs::dismiss,
    "job-finalize" => jobs::finalize,
    "job-pause" => jobs::pause,
    "job-resume" => jobs::resume,
    "object-add" => objects::add,
    "object-del" => objects::delete,
    "qom-get" => objects::property,
    "qom-list" => objects::list,
    "qom-set" => objects::set_property,
    "query-block" => devices::query,
    "query-block-exports" => queries::exports,
    "query-block-jobs" => jobs::query_block,
    "query-blockstats" => stats::query,
    "query-commands" => query_commands,
    "query-iothreads" => objects::threads,
    "query-jobs" => jobs::query,
    "query-named-block-nodes" => queries::named_nodes,
    "query-qmp-schema" => query_schema,
    "query-version" => query_version,
    "quit" => quit,
    "transaction" => transaction::transaction,
    "x-blockdev-amend" => create::amend,
    "x-blockdev-change" => nodes::change,
    "x-blockdev-set-iothread" => nodes::set_iothread,
    "x-debug-block-dirty-bitmap-sha256" => bitmaps::sha256,
    "x-debug-query-block-graph" => queries::graph,
    "x-guest-act" => devices::guest,
};

fn find(name: &str) -> Result<Entry, QmpError> {
    let missing = |_| QmpError::of(ErrorClass::CommandNotFound, format!("The command {name} has not been found"));
    COMMANDS.binary_search_by(|(known, _)| (*known).cmp(name)).map(|at| COMMANDS[at]).map_err(missing)
}

/// Carry out the command called `name`.
pub(crate) async fn run(monitor: &Monitor, name: &str, arguments: Dict) -> QmpResult {
    let (_, function) = find(name)?;
    let arguments = Options::from_value(Value::Dict(arguments))?.reader();
    function(Call { monitor: monitor.clone(), arguments }).await
}

/// What is answered when the command called `name` is to overtake others.
pub(crate) fn cannot_overtake(name: &str) -> QmpError {
    let refused = |_| QmpError::new(format!("The command {name} does not support OOB"));
    find(name).map_or_else(|missing| missing, refused)
}

async fn query_version(call: Call) -> QmpResult {
    let options = call.monitor.0.options.clone();
    call.finish()?;
    let [major, minor, micro] = options.version;
    Ok(json!({ "qemu": { "micro": micro, "minor": minor, "major": major }, "package": options.package }))
}

/// The names of all commands; one of them is the session's own.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name).chain(["qmp_capabilities"])
}

async fn query_commands(call: Call) -> QmpResult {
    call.finish()?;
    Ok(names().map(|name| json!({ "name": name })).collect())
}

async fn query_schema(call: Call) -> QmpResult {
    call.finish()?;
    Ok(Schema::read().to_json())
}

async fn quit(call: Call) -> QmpResult {
    let monitor = call.monitor.clone();
    call.finish()?;
    monitor.quit();
    Ok(json!({}))
}

#[cfg(test)]
mod tests {
    use super::COMMANDS;

    #[test]
    fn commands_can_be_found() {
        assert!(COMMANDS.is_sorted_by(|(one, _), (other, _)| one < other));
    }
}
