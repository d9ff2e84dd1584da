//! Events as clients see them: name, data, and when.

use block_common::{Errno, QapiEnum as _};
use block_gs::Event;
use block_jobs::{JobEvent, JobInfo};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

fn event(name: &str, data: Value) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "timestamp": { "seconds": now.as_secs(), "microseconds": now.subsec_micros() },
        "event": name,
        "data": data,
    })
}

/// What the block layer tells. What has no name in the field goes into the log.
pub(crate) fn of_graph(told: Event) -> Option<Value> {
    match told {
        Event::ImageCorrupted { node, fatal, message } => {
            let data = json!({ "device": "", "node-name": node, "msg": message, "fatal": fatal });
            Some(event("BLOCK_IMAGE_CORRUPTED", data))
        }
        Event::WriteThreshold { node, exceeded, threshold } => {
            let data = json!({ "node-name": node, "amount-exceeded": exceeded, "write-threshold": threshold });
            Some(event("BLOCK_WRITE_THRESHOLD", data))
        }
        Event::QuorumReportBad { node, operation, error, sector, sectors } => {
            let mut data =
                json!({ "node-name": node, "type": operation, "sector-num": sector, "sectors-count": sectors });
            if let (Some(error), Some(data)) = (error, data.as_object_mut()) {
                data.insert("error".into(), error.to_string().into());
            }
            Some(event("QUORUM_REPORT_BAD", data))
        }
        Event::QuorumFailure { reference, sector, sectors } => {
            let data = json!({ "reference": reference, "sector-num": sector, "sectors-count": sectors });
            Some(event("QUORUM_FAILURE", data))
        }
        Event::TrayMoved { backend, device, open } => {
            Some(event("DEVICE_TRAY_MOVED", json!({ "device": backend, "tray-open": open, "id": device })))
        }
        Event::IoFailed { backend, device, node, is_write, error, action } => {
            let operation = if is_write { "write" } else { "read" };
            let nospace = error.errno() == Errno::ENOSPC;
            let mut data = json!({
                "qom-path": device.map(|device| device_path(&device)).unwrap_or_default(),
                "device": backend,
                "operation": operation,
                "action": action,
                "nospace": nospace,
                "reason": error.errno().to_string(),
            });
            if let (Some(node), Some(data)) = (node, data.as_object_mut()) {
                data.insert("node-name".into(), node.into());
            }
            Some(event("BLOCK_IO_ERROR", data))
        }
        Event::DeviceDeleted { device } => {
            let path = device_path(&device);
            Some(event("DEVICE_DELETED", json!({ "device": device, "path": path })))
        }
        Event::CloseFailed { node, error } => {
            tracing::error!(node, %error, "a node was closed, and data may be lost");
            None
        }
        other => {
            tracing::debug!(?other, "an event that the monitor has no name for");
            None
        }
    }
}

/// Where the field has a device among its objects.
fn device_path(device: &str) -> String {
    format!("/machine/peripheral/{device}")
}

/// What a job tells.
pub(crate) fn of_job(told: JobEvent) -> Option<Value> {
    if let JobEvent::Completed(job) | JobEvent::Cancelled(job) | JobEvent::Ready(job) = &told
        && !job.job_type.is_block()
    {
        return None;
    }
    match told {
        JobEvent::Pending { job_type, .. } if !job_type.is_block() => None,
        JobEvent::StatusChange { id, status } => {
            Some(event("JOB_STATUS_CHANGE", json!({ "id": id, "status": status.name() })))
        }
        JobEvent::Ready(job) => Some(event("BLOCK_JOB_READY", whole(&job))),
        JobEvent::Pending { id, job_type } => {
            Some(event("BLOCK_JOB_PENDING", json!({ "type": job_type.name(), "id": id })))
        }
        JobEvent::Completed(job) => {
            let mut data = whole(&job);
            if let (Some(error), Some(data)) = (&job.error, data.as_object_mut()) {
                data.insert("error".into(), error.to_string().into());
            }
            Some(event("BLOCK_JOB_COMPLETED", data))
        }
        JobEvent::Cancelled(job) => Some(event("BLOCK_JOB_CANCELLED", whole(&job))),
        other => {
            tracing::debug!(?other, "an event that the monitor has no name for");
            None
        }
    }
}

/// What events about a whole job have in common.
fn whole(job: &JobInfo) -> Value {
    json!({
        "type": job.job_type.name(),
        "device": job.id,
        "len": job.progress.total,
        "offset": job.progress.current,
        "speed": job.speed,
    })
}
