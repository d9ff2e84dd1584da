//! `quorum`: a list of `children`, options `vote-threshold`, `blkverify`, `rewrite-corrupted` and `read-pattern`; what it tells of children becomes events.

use async_trait::async_trait;
use block_common::options::{DriverKind, Value};
use block_common::{ChildName, ChildRole, ChildSpec, OptionReader, Perm, PermPair, QapiEnum};
use block_gs::{DriverType, EngineControl, Event, GraphError, GraphResult, OpenContext, Opened};
use block_io::Edge;
use block_quorum::{Quorum, QuorumControl, QuorumOptions, ReadPattern, Told};
use std::any::Any;

/// Events count in sectors of this many bytes.
const SECTOR: u64 = 512;

/// The quorum driver.
#[derive(Clone, Copy, Debug)]
pub struct QuorumType;

/// Its nodes' control is a [`QuorumControl`].
struct Control {
    engine: QuorumControl,
    /// Whether reads may have to write.
    rewrites: bool,
    /// The numbers that the edges of children have, in the children's order.
    numbers: Vec<usize>,
    /// The number of the next one.
    next: usize,
}

impl Control {
    /// Which child, in their order, is at the edge called `edge`.
    fn at(&self, edge: &str) -> Option<usize> {
        let number = edge.strip_prefix("children.")?.parse::<usize>().ok()?;
        self.numbers.iter().position(|known| *known == number)
    }
}

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.engine
    }

    fn child_perm_more(&self) -> PermPair {
        if self.rewrites { PermPair::new(Perm::WRITE, Perm::all()) } else { PermPair::NONE }
    }

    fn place_for_child(&self) -> Option<GraphResult<(ChildName, ChildRole)>> {
        Some(match self.engine.options().verify {
            true => Err(refused("Cannot add a child to a quorum in blkverify mode")),
            false => Ok((ChildName::indexed("children", self.next), ChildRole::DATA)),
        })
    }

    fn add_child(&mut self, edge: Edge) {
        self.engine.add(edge);
        self.numbers.push(self.next);
        self.next += 1;
    }

    fn may_remove(&self, _edge: &str) -> Option<GraphResult<()>> {
        let threshold = self.engine.options().threshold;
        Some(match self.numbers.len() > threshold {
            true => Ok(()),
            false => {
                let message = format!("The number of children cannot be lower than the vote threshold {threshold}");
                Err(refused(message))
            }
        })
    }

    fn remove_child(&mut self, edge: &str) {
        let Some(at) = self.at(edge) else { return };
        self.engine.remove(at);
        let number = self.numbers.remove(at);
        // Only the last number is given again.
        if number + 1 == self.next {
            self.next = number;
        }
    }
}

fn refused(message: impl Into<String>) -> GraphError {
    GraphError::Open(message.into())
}

fn children_of(options: &mut OptionReader) -> GraphResult<Vec<ChildSpec>> {
    let children = match options.peek("children") {
        _ if !options.is_legacy() => {
            let children = options.take_list("children", |item| item.into_child())?;
            children.ok_or_else(|| options.missing("children"))?
        }
        None => Vec::new(),
        Some(Value::List(_)) => options.take_list("children", |item| item.into_child())?.unwrap_or_default(),
        Some(Value::Dict(_)) => return Err(refused("Option children is not a valid array")),
        Some(_) => Vec::new(),
    };
    if children.is_empty() { Err(refused("Number of provided children must be 1 or more")) } else { Ok(children) }
}

fn options_of(options: &mut OptionReader, children: usize) -> GraphResult<QuorumOptions> {
    let threshold = options.take_i64("vote-threshold")?.unwrap_or(0);
    if threshold < 1 {
        return Err(refused("Parameter 'vote-threshold' expects a value >= 1"));
    }
    let threshold = usize::try_from(threshold).ok().filter(|threshold| *threshold <= children);
    let threshold = threshold.ok_or_else(|| refused("threshold may not exceed children count"))?;
    let pattern = match options.take_str("read-pattern")? {
        None => ReadPattern::default(),
        Some(name) => {
            ReadPattern::from_name(&name).ok_or_else(|| refused("Please set read-pattern as fifo or quorum"))?
        }
    };
    let verify = options.take_bool("blkverify")?.unwrap_or(false);
    let rewrite = options.take_bool("rewrite-corrupted")?.unwrap_or(false);
    // Who asks the first child alone has nothing to compare.
    let votes = pattern == ReadPattern::Quorum;
    if votes && verify && (children != 2 || threshold != 2) {
        let message = "blkverify=on can only be set if there are exactly two files and vote-threshold is 2";
        return Err(refused(message));
    }
    if votes && verify && rewrite {
        return Err(refused("rewrite-corrupted=on cannot be used with blkverify=on"));
    }
    Ok(QuorumOptions { threshold, pattern, verify: votes && verify, rewrite: votes && rewrite })
}

fn event_of(node: &str, told: Told) -> Event {
    let sectors = |offset: u64, len: u64| {
        let first = offset / SECTOR;
        (first, offset.saturating_add(len).div_ceil(SECTOR) - first)
    };
    match told {
        Told::Bad { node, op, error, offset, len } => {
            let (sector, sectors) = sectors(offset, len);
            Event::QuorumReportBad { node, operation: op.name(), error, sector, sectors }
        }
        Told::Failure { offset, len } => {
            let (sector, sectors) = sectors(offset, len);
            Event::QuorumFailure { reference: node.into(), sector, sectors }
        }
        Told::Mismatch(message) => Event::VerifyFailed { node: node.into(), message },
    }
}

#[async_trait(?Send)]
impl DriverType for QuorumType {
    fn name(&self) -> &'static str {
        "quorum"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let specs = children_of(options)?;
        let quorum = options_of(options, specs.len())?;
        let read_only = context.common().read_only;
        if quorum.rewrite && read_only {
            return Err(refused("Block node is read-only"));
        }
        let mut children = Vec::new();
        for (at, spec) in specs.into_iter().enumerate() {
            children.push(context.open_child(ChildName::indexed("children", at), ChildRole::DATA, spec).await?);
        }
        let open = |req| async move { Quorum::open(&req, children, quorum).await };
        let (engine, control) = context.run("Could not refresh total sector count", open).await?;
        let (events, node) = (context.global().event_sender(), context.node_name());
        control.report_to(move |told| events.send(event_of(&node, told)));
        let count = control.children();
        let control = Control { engine: control, rewrites: quorum.rewrite, numbers: (0..count).collect(), next: count };
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }

    /// Nobody else may write to a child: the others would not have it.
    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        PermPair::new(above.perm, above.shared & (Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED))
    }

    fn reopens(&self) -> bool {
        false
    }
}
