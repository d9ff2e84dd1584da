//! `transaction`: several actions, all of them or none.
//!
//! Each action is first looked at in its turn: what makes it impossible is told before a later one has touched anything, and what takes long, making and opening an
//! overlay's image, is done beside the graph. Then, as one mutation: drain, take the snapshots inside images, and change all the rest at once
//! ([`GlobalState::change_all`]). Snapshots that were taken are deleted again when that fails. `docs/snapshots.md` has the order.

use super::Call;
use super::bitmaps;
use super::snapshots::{Internal, NewImageMode, Put, Sync, device_or_node, of_two};
use crate::error::{QmpError, QmpResult};
use block_common::options::{Item, Value};
use block_common::{OptionReader, Options, OptionsError, qapi_enum};
use block_drivers::{Overlay, check_snapshot, delete_snapshot, open_overlay, take_snapshot};
use block_gs::{BitmapAct, BitmapOptions, DrainGuard, GlobalState, LeftOut, NodeRef, Step};
use serde_json::json;

qapi_enum! {
    /// Whether jobs of a transaction end together.
    enum CompletionMode: "completion mode" {
        /// Each by itself.
        Individual = "individual",
        /// All of them, or none.
        Grouped = "grouped",
    }
}

/// Actions of the field's whose jobs this monitor does not start.
const NOT_BUILT: [&str; 2] = ["blockdev-backup", "drive-backup"];

/// One of a transaction's.
pub(super) enum Action {
    Abort,
    Overlay(Put),
    Sync(Sync),
    Internal(Internal),
    AddBitmap { node: String, options: BitmapOptions },
    Bitmap { kind: &'static str, node: String, name: String },
    Merge { node: String, target: String, bitmaps: Vec<(Option<String>, String)> },
    NotBuilt(&'static str),
}

impl Action {
    /// What clients call it.
    fn name(&self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Overlay(_) => "blockdev-snapshot",
            Self::Sync(_) => "blockdev-snapshot-sync",
            Self::Internal(_) => "blockdev-snapshot-internal-sync",
            Self::AddBitmap { .. } => "block-dirty-bitmap-add",
            Self::Bitmap { kind, .. } => kind,
            Self::Merge { .. } => "block-dirty-bitmap-merge",
            Self::NotBuilt(name) => name,
        }
    }

    fn take(item: Item) -> Result<Self, OptionsError> {
        item.into_dict(|action| {
            let name = action.require_str("type")?;
            let missing = action.missing("data");
            let Some(data) = action.take("data") else {
                // Whether there is such a thing is looked at first.
                return Err(if Self::is_known(&name) { missing } else { unknown(name) });
            };
            if !Self::is_known(&name) {
                return Err(unknown(name));
            }
            if let Some(name) = NOT_BUILT.into_iter().find(|known| *known == name) {
                drop(data.into_value());
                return Ok(Self::NotBuilt(name));
            }
            data.into_dict(|data| Self::take_data(&name, data))
        })
    }

    fn is_known(name: &str) -> bool {
        const KNOWN: [&str; 10] = [
            "abort",
            "block-dirty-bitmap-add",
            "block-dirty-bitmap-clear",
            "block-dirty-bitmap-disable",
            "block-dirty-bitmap-enable",
            "block-dirty-bitmap-merge",
            "block-dirty-bitmap-remove",
            "blockdev-snapshot",
            "blockdev-snapshot-internal-sync",
            "blockdev-snapshot-sync",
        ];
        KNOWN.contains(&name) || NOT_BUILT.contains(&name)
    }

    fn take_data(name: &str, data: &mut OptionReader) -> Result<Self, OptionsError> {
        let kind = match name {
            "abort" => return Ok(Self::Abort),
            "blockdev-snapshot" => return Put::take(data).map(Self::Overlay),
            "blockdev-snapshot-sync" => return Sync::take(data).map(Self::Sync),
            "blockdev-snapshot-internal-sync" => return Internal::take(data).map(Self::Internal),
            "block-dirty-bitmap-add" => {
                let node = data.require_str("node")?;
                return Ok(Self::AddBitmap { node, options: bitmaps::options(data)? });
            }
            "block-dirty-bitmap-merge" => {
                let (node, target, bitmaps) = bitmaps::merged(data)?;
                return Ok(Self::Merge { node, target, bitmaps });
            }
            "block-dirty-bitmap-clear" => "block-dirty-bitmap-clear",
            "block-dirty-bitmap-disable" => "block-dirty-bitmap-disable",
            "block-dirty-bitmap-enable" => "block-dirty-bitmap-enable",
            _ => "block-dirty-bitmap-remove",
        };
        Ok(Self::Bitmap { kind, node: data.require_str("node")?, name: data.require_str("name")? })
    }
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

fn unknown(value: String) -> OptionsError {
    OptionsError::BadValue { key: "type".into(), value }
}

pub(super) async fn transaction(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let actions = call.arguments.take_list("actions", Action::take).map_err(short)?;
    let actions = actions.ok_or_else(|| call.arguments.missing("actions"))?;
    let properties = call.arguments.take_dict("properties", |properties| properties.take_enum("completion-mode"));
    let properties = properties.map_err(short)?;
    call.finish()?;
    let is_grouped = properties.flatten() == Some(CompletionMode::Grouped);
    carry_out(&gs, actions, is_grouped).await
}

/// Carry out all of `actions`, or none.
pub(super) async fn carry_out(gs: &GlobalState, actions: Vec<Action>, is_grouped: bool) -> QmpResult {
    let mut gathered = Gathered::default();
    for action in actions {
        if is_grouped {
            let name = action.name();
            let refused = format!("Action '{name}' does not support transaction property completion-mode = grouped");
            gathered.close(gs).await;
            return Err(QmpError::new(refused));
        }
        if let Err(error) = gathered.add(gs, action).await {
            gathered.close(gs).await;
            return Err(error);
        }
    }
    let (steps, snapshots) = (gathered.steps.clone(), std::mem::take(&mut gathered.snapshots));
    let done = gs.mutate(move |gs| async move { change(&gs, &steps, &snapshots).await }).await;
    gathered.close(gs).await;
    done.map(|()| json!({}))
}

/// What a transaction is going to do, ready as far as possible without changing what anybody reads.
#[derive(Default)]
struct Gathered {
    steps: Vec<Step>,
    /// Snapshots inside images: the nodes, and the names.
    snapshots: Vec<(NodeRef, String)>,
    /// Overlays that were opened for it, and the names of their files.
    opened: Vec<(NodeRef, String)>,
}

impl Gathered {
    async fn add(&mut self, gs: &GlobalState, action: Action) -> Result<(), QmpError> {
        match action {
            Action::Abort => return Err(QmpError::new("Transaction aborted using Abort action")),
            Action::NotBuilt(name) => return Err(QmpError::new(format!("Action '{name}' is not supported"))),
            Action::Overlay(Put { node, overlay }) => {
                let node = device_or_node(gs, &node)?;
                self.check_not_overlaid(&node)?;
                gs.check_op(&node, block_common::OpType::ExternalSnapshot)?;
                let overlay = device_or_node(gs, &overlay)?;
                gs.check_overlay(&node, &overlay)?;
                self.steps.push(Step::Overlay { node, overlay });
            }
            Action::Sync(sync) => {
                let node = of_two(gs, sync.device.as_deref(), sync.node.as_deref())?;
                self.check_not_overlaid(&node)?;
                gs.check_op(&node, block_common::OpType::ExternalSnapshot)?;
                check_names(gs, &sync)?;
                let file = sync.file.clone();
                let overlay = self.open(gs, &node, sync).await?;
                self.opened.push((overlay.clone(), file));
                gs.check_overlay(&node, &overlay)?;
                self.steps.push(Step::Overlay { node, overlay });
            }
            Action::Internal(Internal { device, name }) => {
                let node = device_or_node(gs, &device)?;
                check_snapshot(gs, &node, &name)?;
                self.snapshots.push((node, name));
            }
            Action::AddBitmap { node, options } => {
                let node = device_or_node(gs, &node)?;
                if !self.touches(&node, &options.name) && gs.bitmap(&node, &options.name).is_ok() {
                    return Err(block_gs::BitmapError::Exists(options.name).into());
                }
                self.steps.push(Step::AddBitmap { node, options });
            }
            Action::Bitmap { kind, node, name } => {
                let node = bitmaps::find(gs, &node)?;
                if !self.touches(&node, &name) {
                    gs.bitmap(&node, &name)?;
                }
                let act = match kind {
                    "block-dirty-bitmap-clear" => BitmapAct::Clear,
                    "block-dirty-bitmap-disable" => BitmapAct::Disable,
                    "block-dirty-bitmap-enable" => BitmapAct::Enable,
                    _ => BitmapAct::Remove,
                };
                self.steps.push(Step::Bitmap { node, name, act });
            }
            Action::Merge { node, target, bitmaps } => {
                let node = bitmaps::find(gs, &node)?;
                let mut sources = Vec::new();
                for (of, name) in bitmaps {
                    sources.push((of.map_or_else(|| Ok(node.clone()), |of| bitmaps::find(gs, &of))?, name));
                }
                self.steps.push(Step::Bitmap { node, name: target, act: BitmapAct::Merge(sources) });
            }
        }
        Ok(())
    }

    /// Whether an earlier action is about this bitmap: then only that one knows what there will be.
    fn touches(&self, node: &NodeRef, name: &str) -> bool {
        self.steps.iter().any(|step| match step {
            Step::AddBitmap { node: of, options } => of.same(node) && options.name == name,
            Step::Bitmap { node: of, name: other, .. } => of.same(node) && other == name,
            _ => false,
        })
    }

    /// What an earlier action puts an overlay on gets no second one.
    fn check_not_overlaid(&self, node: &NodeRef) -> Result<(), QmpError> {
        let above = self.steps.iter().find_map(|step| match step {
            Step::Overlay { node: below, overlay } if below.same(node) => Some(overlay.name()),
            _ => None,
        });
        match above {
            Some(above) => {
                Err(QmpError::new(format!("Node '{}' is busy: node is used as backing hd of '{above}'", node.name())))
            }
            None => Ok(()),
        }
    }

    /// Make what `sync` says to a node that nothing stands on.
    async fn open(&self, gs: &GlobalState, base: &NodeRef, sync: Sync) -> Result<NodeRef, QmpError> {
        // What is going to stand on something does not show yet what its name says.
        let base_name = self.opened.iter().find(|(node, _)| node.same(base)).map(|(_, file)| file.clone());
        let is_there = sync.mode == NewImageMode::Existing;
        let overlay = Overlay { file: sync.file, format: sync.format, node_name: sync.overlay, is_there, base_name };
        Ok(open_overlay(gs, base, &overlay).await?)
    }

    /// Close overlays that nobody uses: nothing came of it, or nobody used what they were put on.
    async fn close(self, gs: &GlobalState) {
        drop(self.steps);
        // The uppermost comes last.
        for (node, _) in self.opened.into_iter().rev() {
            if gs.node_info(&node).is_ok_and(|info| !info.parents.is_empty()) {
                continue;
            }
            let name = node.name().to_owned();
            if let Err(error) = gs.close(node).await {
                tracing::warn!(node = name, %error, "an overlay that nobody uses was not closed well");
            }
        }
    }
}

/// The overlay's node needs a name, which nobody has.
fn check_names(gs: &GlobalState, sync: &Sync) -> Result<(), QmpError> {
    match &sync.overlay {
        None if sync.node.is_some() => Err(QmpError::new("New overlay node-name missing")),
        Some(name) if gs.find_node(name).is_ok() => Err(QmpError::new("New overlay node-name already in use")),
        _ => Ok(()),
    }
}

/// The mutation. Requests to all nodes wait while it lasts.
async fn change(gs: &GlobalState, steps: &[Step], snapshots: &[(NodeRef, String)]) -> Result<(), QmpError> {
    let mut sections: Vec<DrainGuard> = Vec::new();
    for (node, _) in snapshots {
        sections.push(gs.drain(node).await);
    }
    let mut taken = Vec::new();
    let done = async {
        for (node, name) in snapshots {
            taken.push((node, take_snapshot(gs, node, name).await?));
        }
        sections.extend(gs.drain_for(steps).await?);
        gs.change_all(&sections, steps)?;
        Ok::<_, QmpError>(())
    };
    let done = done.await;
    match &done {
        Ok(()) => fix_below(gs, steps).await,
        Err(_) => {
            for (node, id) in taken.into_iter().rev() {
                if let Err(error) = delete_snapshot(gs, node, Some(id), None).await {
                    tracing::error!(node = node.name(), %error, "a snapshot is left that nobody wanted in the end");
                }
            }
        }
    }
    drop(sections);
    done
}

/// What is below an overlay is only read from now on, unless somebody else writes to it.
async fn fix_below(gs: &GlobalState, steps: &[Step]) {
    for step in steps {
        let Step::Overlay { node, .. } = step else { continue };
        let mut options = Options::from_value(Value::Dict(block_common::options::Dict::new())).unwrap_or_default();
        if node.io().is_read_only() || options.insert("read-only", true).is_err() {
            continue;
        }
        if let Err(error) = gs.reopen_in_mutation(vec![(node.clone(), options)], LeftOut::Stays).await {
            tracing::debug!(node = node.name(), %error, "what is below an overlay stays open for writing");
        }
    }
}
