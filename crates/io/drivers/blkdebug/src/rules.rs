//! Rules, and which of them hold: plain data, no I/O.

use block_common::{DebugEvent, qapi_enum};

/// Errors and states are told by sectors of this many bytes.
const SECTOR: u64 = 512;

qapi_enum! {
    /// A kind of request that an error may be for.
    pub enum IoKind: "I/O type" {
        /// Reads.
        Read = "read",
        /// Writes.
        Write = "write",
        /// Zero writes.
        WriteZeroes = "write-zeroes",
        /// Discards.
        Discard = "discard",
        /// Flushes.
        Flush = "flush",
        /// Questions for block status.
        BlockStatus = "block-status",
    }
}

/// Requests fail, from an event on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// The event. [`DebugEvent::None`]: from the start.
    pub event: DebugEvent,
    /// Only if it happens in this state.
    pub state: Option<u32>,
    /// Requests of this kind only; otherwise of reads, writes, zero writes, discards and flushes.
    pub kind: Option<IoKind>,
    /// The error number; 0 lets the request through.
    pub errno: i32,
    /// Requests that touch this sector only.
    pub sector: Option<u64>,
    /// For one request.
    pub once: bool,
    /// The request fails where it is made, before it was ever put off.
    pub immediately: bool,
}

/// The state changes with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    /// The event.
    pub event: DebugEvent,
    /// Only if it happens in this state.
    pub state: Option<u32>,
    /// The state from then on.
    pub new_state: u32,
}

/// What an event does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// See [`InjectError`].
    InjectError(InjectError),
    /// See [`SetState`].
    SetState(SetState),
}

/// The rules of a node, and its state.
#[derive(Debug)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    state: u32,
    /// The errors that hold now.
    active: Vec<InjectError>,
}

impl Rules {
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        let mut rules = Self { rules, state: 1, active: Vec::new() };
        rules.happened(DebugEvent::None);
        rules
    }

    /// An event has happened. The errors that it chooses take the place of those that held before.
    pub(crate) fn happened(&mut self, event: DebugEvent) {
        let here = |state: Option<u32>| state.is_none_or(|state| state == self.state);
        let mut new_state = self.state;
        let mut chosen = Vec::new();
        for rule in &self.rules {
            match rule {
                Rule::InjectError(rule) if rule.event == event && here(rule.state) => chosen.push(rule.clone()),
                Rule::SetState(rule) if rule.event == event && here(rule.state) => new_state = rule.new_state,
                Rule::InjectError(_) | Rule::SetState(_) => {}
            }
        }
        if !chosen.is_empty() {
            self.active = chosen;
        }
        self.state = new_state;
    }

    /// The error of a request, if one holds for it.
    pub(crate) fn check(&mut self, kind: IoKind, offset: u64, len: u64) -> Option<InjectError> {
        let touches = |sector: u64| match sector.checked_mul(SECTOR) {
            Some(at) => offset < at.saturating_add(SECTOR) && at < offset.saturating_add(len.max(1)),
            None => false,
        };
        let is_for = |rule: &InjectError| match rule.kind {
            Some(of) => of == kind,
            None => kind != IoKind::BlockStatus,
        };
        let at = self.active.iter().position(|rule| is_for(rule) && rule.sector.is_none_or(touches))?;
        if self.active[at].once {
            let once = self.active.remove(at);
            // It does not come back with the next event either.
            if let Some(at) = self.rules.iter().position(|rule| *rule == Rule::InjectError(once.clone())) {
                self.rules.remove(at);
            }
            Some(once)
        } else {
            Some(self.active[at].clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(event: DebugEvent, errno: i32) -> InjectError {
        InjectError { event, state: None, kind: None, errno, sector: None, once: false, immediately: false }
    }

    fn errno(rules: &mut Rules, kind: IoKind, offset: u64, len: u64) -> Option<i32> {
        rules.check(kind, offset, len).map(|rule| rule.errno)
    }

    #[test]
    fn errors_hold_from_their_event_on() {
        let mut rules = Rules::new(vec![
            Rule::InjectError(error(DebugEvent::ReadAio, 5)),
            Rule::InjectError(InjectError { once: true, ..error(DebugEvent::WriteAio, 28) }),
        ]);
        assert_eq!(errno(&mut rules, IoKind::Read, 0, 512), None);
        rules.happened(DebugEvent::ReadAio);
        assert_eq!(errno(&mut rules, IoKind::Write, 0, 512), Some(5));
        assert_eq!(errno(&mut rules, IoKind::BlockStatus, 0, 512), None, "only where it is asked for");
        rules.happened(DebugEvent::WriteAio);
        assert_eq!(errno(&mut rules, IoKind::Read, 0, 512), Some(28));
        assert_eq!(errno(&mut rules, IoKind::Read, 0, 512), None);
        rules.happened(DebugEvent::WriteAio);
        assert_eq!(errno(&mut rules, IoKind::Read, 0, 512), None, "once is once");
    }

    #[test]
    fn kinds_sectors_and_states() {
        let in_two = InjectError { state: Some(2), ..error(DebugEvent::ReadAio, 5) };
        let change = SetState { event: DebugEvent::WriteAio, state: Some(1), new_state: 2 };
        let sector = InjectError { sector: Some(2), kind: Some(IoKind::Discard), ..error(DebugEvent::None, 9) };
        let mut rules = Rules::new(vec![Rule::InjectError(in_two), Rule::SetState(change), Rule::InjectError(sector)]);
        assert_eq!(errno(&mut rules, IoKind::Discard, 1023, 1), None);
        assert_eq!(errno(&mut rules, IoKind::Discard, 1023, 2), Some(9));
        assert_eq!(errno(&mut rules, IoKind::Discard, 1535, 1), Some(9));
        assert_eq!(errno(&mut rules, IoKind::Discard, 1536, 512), None);
        assert_eq!(errno(&mut rules, IoKind::Read, 1024, 512), None);
        rules.happened(DebugEvent::ReadAio);
        assert_eq!(errno(&mut rules, IoKind::Read, 0, 512), None);
        rules.happened(DebugEvent::WriteAio);
        rules.happened(DebugEvent::ReadAio);
        assert_eq!(errno(&mut rules, IoKind::Read, 0, 512), Some(5));
        assert_eq!(errno(&mut rules, IoKind::Discard, 1024, 512), Some(5), "the older one holds no longer");
    }
}
