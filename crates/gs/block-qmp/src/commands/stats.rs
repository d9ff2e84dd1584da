//! What is counted: of requests of devices, and of what nodes were asked for.

use super::Call;
use super::devices::is_shown;
use crate::error::{QmpError, QmpResult};
use block_backend::Backend;
use block_backend_io::{ACCT_KINDS, AcctKind, Histogram, IntervalStats, StatsSnapshot};
use block_common::ChildName;
use block_drivers::{DATA_FILE, discard_counts};
use block_gs::{GlobalState, NodeRef};
use serde_json::{Map, Value, json};

/// What kinds are called in answers. The last one is of devices with zones, which none here has.
const KINDS: [(&str, Option<AcctKind>); 5] = [
    ("rd", Some(AcctKind::Read)),
    ("wr", Some(AcctKind::Write)),
    ("flush", Some(AcctKind::Flush)),
    ("unmap", Some(AcctKind::Unmap)),
    ("zone_append", None),
];

fn ns(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `BlockDeviceStats`: what was seen of requests, if somebody counts them, and where the highest write of the node ends, in bytes.
fn stats(seen: Option<&StatsSnapshot>, written_to: u64) -> Value {
    let mut out = Map::new();
    for (name, kind) in KINDS {
        let count = seen.zip(kind).map(|(seen, kind)| *seen.count(kind)).unwrap_or_default();
        out.insert(format!("{name}_operations"), count.operations.into());
        out.insert(format!("{name}_total_time_ns"), ns(count.time).into());
        out.insert(format!("failed_{name}_operations"), count.failed.into());
        out.insert(format!("invalid_{name}_operations"), count.invalid.into());
        if name != "flush" {
            out.insert(format!("{name}_bytes"), count.bytes.into());
            out.insert(format!("{name}_merged"), count.merged.into());
        }
    }
    out.insert("wr_highest_offset".into(), written_to.into());
    out.insert("account_invalid".into(), seen.is_some_and(|seen| seen.settings.account_invalid).into());
    out.insert("account_failed".into(), seen.is_some_and(|seen| seen.settings.account_failed).into());
    if let Some(idle) = seen.and_then(|seen| seen.idle) {
        out.insert("idle_time_ns".into(), ns(idle).into());
    }
    out.insert("timed_stats".into(), seen.into_iter().flat_map(|seen| &seen.intervals).map(interval).collect());
    for (kind, histogram) in seen.into_iter().flat_map(|seen| ACCT_KINDS.into_iter().zip(&seen.histograms)) {
        let name = KINDS.iter().find(|(_, known)| *known == Some(kind)).map_or("", |(name, _)| name);
        if let Some(Histogram { boundaries, bins }) = histogram {
            out.insert(format!("{name}_latency_histogram"), json!({ "boundaries": boundaries, "bins": bins }));
        }
    }
    Value::Object(out)
}

/// `BlockDeviceTimedStats`.
fn interval(seen: &IntervalStats) -> Value {
    let mut out = Map::new();
    out.insert("interval_length".into(), seen.length.as_secs().into());
    for (name, kind) in KINDS.into_iter().filter(|(name, _)| *name != "unmap") {
        let latency = kind.map(|kind| seen.latency[kind as usize]).unwrap_or_default();
        out.insert(format!("min_{name}_latency_ns"), ns(latency.min).into());
        out.insert(format!("max_{name}_latency_ns"), ns(latency.max).into());
        out.insert(format!("avg_{name}_latency_ns"), ns(latency.average).into());
        if name != "flush" {
            out.insert(format!("avg_{name}_queue_depth"), latency.queue_depth.into());
        }
    }
    Value::Object(out)
}

/// Whose counts are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Devices': all that their media stand on is told with them.
    Devices,
    /// Nodes', each by itself and with what keeps its data.
    Nodes,
}

/// What keeps a node's data: the data file of an image that has one, or else what it stands on.
fn storage(gs: &GlobalState, node: &NodeRef) -> Result<Option<NodeRef>, QmpError> {
    match gs.child(node, DATA_FILE.as_str()) {
        Ok(Some(data)) => Ok(Some(data)),
        _ => Ok(gs.primary_child(node)?),
    }
}

/// What is told of a node beside what was counted of requests, which enter at devices.
fn add_node(out: &mut Map<String, Value>, gs: &GlobalState, node: &NodeRef) {
    out.insert("node-name".into(), node.name().into());
    if let Some(counts) = discard_counts(gs, node) {
        let told = json!({
            "driver": node.io().driver(),
            "discard-nb-ok": counts.done,
            "discard-nb-failed": counts.failed,
            "discard-bytes-ok": counts.done_bytes,
        });
        out.insert("driver-specific".into(), told);
    }
}

/// How deep nodes may stand on each other to be told with what is above: beyond that an answer would be too deep to read.
const DEPTH_MAX: usize = 200;

fn add_below(
    out: &mut Map<String, Value>,
    (gs, asked, depth): (&GlobalState, Asked, usize),
    node: &NodeRef,
) -> Result<(), QmpError> {
    if depth == DEPTH_MAX {
        return Ok(());
    }
    if let Some(storage) = storage(gs, node)? {
        out.insert("parent".into(), of_node((gs, asked, depth + 1), &storage)?);
    }
    // What a filter passes on was told already.
    let is_image = asked == Asked::Devices && gs.filtered_child(node)?.is_none();
    if let (true, Ok(Some(backing))) = (is_image, gs.child(node, ChildName::BACKING.as_str())) {
        out.insert("backing".into(), of_node((gs, asked, depth + 1), &backing)?);
    }
    Ok(())
}

fn of_node(how: (&GlobalState, Asked, usize), node: &NodeRef) -> QmpResult {
    let mut out = Map::new();
    out.insert("stats".into(), stats(None, node.io().written_to()));
    add_node(&mut out, how.0, node);
    add_below(&mut out, how, node)?;
    Ok(Value::Object(out))
}

fn of_backend(gs: &GlobalState, backend: &Backend) -> QmpResult {
    let (mut out, node) = (Map::new(), backend.node());
    out.insert("device".into(), (*backend.name()).into());
    if let Some(device) = backend.device() {
        out.insert("qdev".into(), device.id().into());
    }
    let written_to = node.as_ref().map_or(0, |node| node.io().written_to());
    out.insert("stats".into(), stats(Some(&backend.io().stats().snapshot()), written_to));
    if let Some(node) = node {
        add_node(&mut out, gs, &node);
        add_below(&mut out, (gs, Asked::Devices, 0), &node)?;
    }
    Ok(Value::Object(out))
}

pub(super) async fn query(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let of_nodes = call.arguments.take_bool("query-nodes")?.unwrap_or(false);
    call.finish()?;
    if of_nodes {
        let told = |info: block_gs::NodeInfo| of_node((&gs, Asked::Nodes, 0), &gs.find_node(&info.name)?);
        return gs.nodes().into_iter().map(told).collect();
    }
    Backend::everyone(&gs).iter().filter(|backend| is_shown(backend)).map(|backend| of_backend(&gs, backend)).collect()
}
