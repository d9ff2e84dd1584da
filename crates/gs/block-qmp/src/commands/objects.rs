//! Objects beside the graph: secrets, groups of limits.

use super::Call;
use crate::error::QmpResult;
use serde_json::json;

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
