//! Jobs that create and amend images.
//!
//! Options are read, and refused, before there is a job; what goes wrong afterwards is what the job ends with.

use super::Call;
use super::snapshots::of_two;
use crate::error::{QmpError, QmpResult};
use block_common::{OptionReader, OptionsError, qapi_enum};
use block_drivers::{CreateError, CreateJobOptions, Qcow2Control, SlotChange, change_slots, check_format};
use block_gs::{GlobalState, NodeRef};
use block_jobs::{Amending, Creating, JobOptions, JobRegistry, TaskJob};
use serde_json::json;

qapi_enum! {
    /// What becomes of key slots.
    enum SlotState: "state" {
        /// They get a password.
        Active = "active",
        /// They are erased.
        Inactive = "inactive",
    }
}

/// A job as these commands start it: it stays until it is dismissed.
fn job_options(id: String) -> JobOptions {
    JobOptions { auto_dismiss: false, ..JobOptions::new(id) }
}

/// Whether `driver` is the name of a driver, here or in the field.
fn check_driver(gs: &GlobalState, driver: String) -> Result<String, QmpError> {
    let is_known = gs.driver(&driver).is_ok() || !matches!(check_format(&driver), Err(CreateError::UnknownFormat(_)));
    if is_known { Ok(driver) } else { Err(OptionsError::BadValue { key: "driver".into(), value: driver }.into()) }
}

pub(super) async fn create(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("job-id")?;
    let options = call.arguments.take_dict("options", |options| {
        let driver = check_driver(&gs, options.require_str("driver")?)?;
        match check_format(&driver) {
            Ok(()) if !matches!(driver.as_str(), "raw" | "host_device") => {
                CreateJobOptions::take(&driver, options).map(Some).map_err(QmpError::from)
            }
            Err(error @ CreateError::NotBuilt(_)) => Err(error.into()),
            _ => Ok(None),
        }
    })?;
    let options = options.ok_or_else(|| call.arguments.missing("options"))?;
    call.finish()?;
    let options = options.ok_or_else(|| QmpError::new("Driver does not support blockdev-create"))?;
    let work = |gs: GlobalState| async move {
        let created = options.create(&gs).await;
        created.map_err(|error| QmpError::from(error).desc)
    };
    JobRegistry::start(&gs, job_options(id), TaskJob::<Creating>::new(work)).await?;
    Ok(json!({}))
}

/// What is to become of key slots.
fn slots(options: &mut OptionReader) -> Result<SlotChange, OptionsError> {
    let state: SlotState = options.require_enum("state").map_err(short)?;
    let number = |number: Option<i64>| number.map(|number| number as u64);
    Ok(SlotChange {
        active: state == SlotState::Active,
        new_secret: options.take_str("new-secret")?,
        old_secret: options.take_str("old-secret")?,
        // Negative ones are large ones, as in C.
        keyslot: number(options.take_i64("keyslot")?),
        iter_time: number(options.take_i64("iter-time")?),
    })
}

/// Of a value that is none of those that there are, only the last key is told.
fn short(error: OptionsError) -> OptionsError {
    match error {
        OptionsError::BadValue { key, value } => {
            OptionsError::BadValue { key: key.rsplit('.').next().unwrap_or_default().into(), value }
        }
        other => other,
    }
}

/// What is to be different about an image.
enum Wanted {
    Nothing,
    Slots(SlotChange),
    /// Something about encryption as of old, which has nothing that could be.
    Old,
}

/// The key slots of an encrypted qcow2 image.
fn encrypted(options: &mut OptionReader) -> Result<Wanted, OptionsError> {
    match options.require_str("format")?.as_str() {
        "luks" => slots(options).map(Wanted::Slots),
        "qcow" => Ok(Wanted::Old),
        value => Err(OptionsError::BadValue { key: "format".into(), value: value.into() }),
    }
}

pub(super) async fn amend(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("job-id")?;
    let name = call.arguments.require_str("node-name")?;
    let options = call.arguments.take_dict("options", |options| {
        let driver = check_driver(&gs, options.require_str("driver")?)?;
        let change = match driver.as_str() {
            "luks" => Wanted::Slots(slots(options)?),
            "qcow2" => options.take_dict("encrypt", encrypted)?.unwrap_or(Wanted::Nothing),
            _ => Wanted::Nothing,
        };
        Ok::<_, QmpError>((driver, change))
    })?;
    let (driver, wanted) = options.ok_or_else(|| call.arguments.missing("options"))?;
    let force = call.arguments.take_bool("force")?.unwrap_or(false);
    call.finish()?;
    let node = of_two(&gs, None, Some(&name))?;
    if node.io().driver() != Some(driver.as_str()) {
        return Err(QmpError::new("x-blockdev-amend doesn't support changing the block driver"));
    }
    if !matches!(driver.as_str(), "luks" | "qcow2") {
        return Err(QmpError::new("Driver does not support x-blockdev-amend"));
    }
    let work = move |gs: GlobalState| async move { change(&gs, &node, wanted, force).await };
    JobRegistry::start(&gs, job_options(id), TaskJob::<Amending>::new(work)).await?;
    Ok(json!({}))
}

/// The job's work.
async fn change(gs: &GlobalState, node: &NodeRef, wanted: Wanted, force: bool) -> Result<(), String> {
    let method = gs.with_control(node, |control: &mut Qcow2Control| control.header().crypt_method).ok();
    let change = match (wanted, method) {
        (Wanted::Nothing, _) => return Ok(()),
        (_, Some(0)) => return Err("image is not encrypted, can't amend".into()),
        (Wanted::Old, _) | (_, Some(1)) => return Err(CreateError::AmendOld.to_string()),
        (Wanted::Slots(change), _) => change,
    };
    let changed = change_slots(gs, node, &change, force).await;
    changed.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}
