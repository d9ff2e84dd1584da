//! Objects beside the graph: secrets, groups of limits, threads; and their properties by path.

use super::Call;
use crate::error::{ErrorClass, QmpError, QmpResult};
use block_gs::{GraphError, ObjectError};
use serde_json::{Value, json};

pub(super) async fn add(call: Call) -> QmpResult {
    let gs = call.gs();
    gs.add_object(call.arguments.into_rest()).await?;
    Ok(json!({}))
}

pub(super) async fn delete(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let id = call.arguments.require_str("id")?;
    call.finish()?;
    gs.remove_object(&id)?;
    Ok(json!({}))
}

/// What is not there is said to be a device.
fn by_path(error: GraphError) -> QmpError {
    match &error {
        GraphError::Object(ObjectError::NoPath(_)) => QmpError::of(ErrorClass::DeviceNotFound, error.to_string()),
        _ => error.into(),
    }
}

pub(super) async fn list(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let path = call.arguments.require_str("path")?;
    call.finish()?;
    let properties = gs.object_properties(&path).map_err(by_path)?;
    Ok(properties.iter().map(|property| json!({ "name": property.name, "type": property.kind })).collect())
}

pub(super) async fn property(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let path = call.arguments.require_str("path")?;
    let name = call.arguments.require_str("property")?;
    call.finish()?;
    let value = gs.object_property(&path, &name).map_err(by_path)?;
    Ok(serde_json::to_value(value).unwrap_or(Value::Null))
}

pub(super) async fn set_property(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let path = call.arguments.require_str("path")?;
    let name = call.arguments.require_str("property")?;
    let Some(value) = call.arguments.take("value") else { return Err(call.arguments.missing("value").into()) };
    let value = value.into_value();
    call.finish()?;
    gs.set_object_property(&path, &name, value).map_err(by_path)?;
    Ok(json!({}))
}

pub(super) async fn threads(call: Call) -> QmpResult {
    let gs = call.gs();
    call.finish()?;
    let told = |thread: &block_gs::IoThreadInfo| {
        json!({
            "poll-shrink": thread.poll_shrink,
            "thread-id": thread.number,
            "aio-max-batch": thread.aio_max_batch,
            "poll-grow": thread.poll_grow,
            "poll-max-ns": thread.poll_max_ns,
            "id": thread.id,
        })
    };
    Ok(gs.io_threads().iter().map(told).collect())
}
