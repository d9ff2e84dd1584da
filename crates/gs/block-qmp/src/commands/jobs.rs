//! Jobs: looking at them, and the verbs. Each verb is there twice, for jobs of any kind and, as of old, for those of block devices.

use super::Call;
use crate::error::{ErrorClass, QmpError, QmpResult};
use block_common::QapiEnum as _;
use block_gs::GlobalState;
use block_jobs::{Cancel, JobInfo, JobRef, JobRegistry, JobStatus};
use serde_json::{Value, json};
use std::rc::Rc;

/// A job of any kind, by its id. Whoever looks for it has read all arguments: what is wrong with these is told first.
fn any(gs: &GlobalState, id: &str) -> Result<(Rc<JobRegistry>, JobRef), QmpError> {
    let registry = JobRegistry::of(gs);
    let job = registry.job(id)?;
    Ok((registry, job))
}

/// The same for a job of a block device.
fn block(gs: &GlobalState, id: &str) -> Result<(Rc<JobRegistry>, JobRef), QmpError> {
    let registry = JobRegistry::of(gs);
    let missing = || QmpError::of(ErrorClass::DeviceNotActive, format!("Block job '{id}' not found"));
    let job = registry.job(id).ok().filter(|job| job.info().job_type.is_block()).ok_or_else(missing)?;
    Ok((registry, job))
}

/// A verb that takes nothing but the job.
macro_rules! verbs {
    ($($any:ident, $block:ident($key:literal): $act:expr;)*) => {
        $(
            pub(super) async fn $any(mut call: Call) -> QmpResult {
                let (gs, id) = (call.gs(), call.arguments.require_str("id")?);
                call.finish()?;
                let (registry, job) = any(&gs, &id)?;
                $act(&registry, &job)?;
                Ok(json!({}))
            }

            pub(super) async fn $block(mut call: Call) -> QmpResult {
                let (gs, id) = (call.gs(), call.arguments.require_str($key)?);
                call.finish()?;
                let (registry, job) = block(&gs, &id)?;
                $act(&registry, &job)?;
                Ok(json!({}))
            }
        )*
    };
}

verbs! {
    pause, block_pause("device"): |_: &JobRegistry, job: &JobRef| job.pause();
    resume, block_resume("device"): |_: &JobRegistry, job: &JobRef| job.resume();
    complete, block_complete("device"): |_: &JobRegistry, job: &JobRef| job.complete();
    finalize, block_finalize("id"): |_: &JobRegistry, job: &JobRef| job.finalize();
    dismiss, block_dismiss("id"): |registry: &JobRegistry, job: &JobRef| registry.dismiss(job.id());
}

pub(super) async fn cancel(mut call: Call) -> QmpResult {
    let (gs, id) = (call.gs(), call.arguments.require_str("id")?);
    call.finish()?;
    let (_, job) = any(&gs, &id)?;
    job.cancel(Cancel::Force)?;
    Ok(json!({}))
}

pub(super) async fn block_cancel(mut call: Call) -> QmpResult {
    let (gs, id) = (call.gs(), call.arguments.require_str("device")?);
    let force = call.arguments.take_bool("force")?.unwrap_or(false);
    call.finish()?;
    let (_, job) = block(&gs, &id)?;
    let is_paused = job.info().is_pausing && !force;
    if is_paused {
        return Err(QmpError::new(format!("The block job for device '{}' is currently paused", job.id())));
    }
    job.cancel(if force { Cancel::Force } else { Cancel::Soft })?;
    Ok(json!({}))
}

pub(super) async fn block_set_speed(mut call: Call) -> QmpResult {
    let (gs, id) = (call.gs(), call.arguments.require_str("device")?);
    let speed = call.arguments.require_i64("speed")?;
    call.finish()?;
    let (_, job) = block(&gs, &id)?;
    let speed = u64::try_from(speed).map_err(|_| QmpError::new("Parameter 'speed' expects a non-negative value"))?;
    job.set_speed(speed)?;
    Ok(json!({}))
}

pub(super) async fn query(call: Call) -> QmpResult {
    let registry = JobRegistry::of(&call.gs());
    call.finish()?;
    // The newest first, as in the field.
    Ok(registry.query().iter().rev().map(told).collect())
}

fn told(job: &JobInfo) -> Value {
    let mut told = json!({
        "id": job.id,
        "type": job.job_type.name(),
        "status": job.status.name(),
        "current-progress": job.progress.current,
        "total-progress": job.progress.total,
    });
    with_error(&mut told, job);
    told
}

fn with_error(told: &mut Value, job: &JobInfo) {
    if let (Some(error), Some(told)) = (&job.error, told.as_object_mut()) {
        told.insert("error".into(), error.to_string().into());
    }
}

pub(super) async fn query_block(call: Call) -> QmpResult {
    let registry = JobRegistry::of(&call.gs());
    call.finish()?;
    let told = |job: &JobInfo| {
        let is_ready = matches!(job.status, JobStatus::Ready | JobStatus::Standby);
        let mut told = json!({
            "type": job.job_type.name(),
            "device": job.id,
            "len": job.progress.total,
            "offset": job.progress.current,
            "busy": job.status == JobStatus::Running,
            "paused": job.is_pausing,
            "speed": job.speed,
            // A job ends with its first error: there are no other policies yet.
            "io-status": "ok",
            "ready": is_ready,
            "status": job.status.name(),
            "auto-finalize": job.auto_finalize,
            "auto-dismiss": job.auto_dismiss,
        });
        with_error(&mut told, job);
        told
    };
    Ok(registry.query().iter().rev().filter(|job| job.job_type.is_block()).map(told).collect())
}
