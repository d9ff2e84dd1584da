//! `blkdebug`: child `image`, limits, permissions, and rules from options and from a file.
//!
//! The file has a group for each rule, in the syntax of git's configuration:
//!
//! ```text
//! [inject-error]
//! event = "read_aio"
//! errno = "28"
//! ```

use async_trait::async_trait;
use block_blkdebug::{Blkdebug, BlkdebugControl, BlkdebugLimits, InjectError, IoKind, Rule, SetState};
use block_common::options::{Dialect, DriverKind};
use block_common::{
    ChildName, ChildRole, DebugEvent, Errno, OptionReader, Options, OptionsError, Perm, PermPair, QapiEnum,
};
use block_gs::{DriverType, EngineControl, GraphError, GraphResult, OpenContext, Opened, filter_perm};
use std::any::Any;

const IMAGE: ChildName = ChildName::from_static("image");

/// The blkdebug driver.
#[derive(Clone, Copy, Debug)]
pub struct BlkdebugType;

/// Its nodes' control is a [`BlkdebugControl`].
struct Control {
    engine: BlkdebugControl,
    /// What is taken of the image, and not shared, whoever uses the node.
    perm: PermPair,
}

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.engine
    }

    fn child_perm_more(&self) -> PermPair {
        self.perm
    }
}

#[async_trait(?Send)]
impl DriverType for BlkdebugType {
    fn name(&self) -> &'static str {
        "blkdebug"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let mut rules = Vec::new();
        if let Some(path) = options.take_str("config")? {
            rules.extend(read_config(context, path).await?);
        }
        let injected = options.take_list("inject-error", |item| item.into_dict(inject_error))?;
        let states = options.take_list("set-state", |item| item.into_dict(set_state))?;
        rules.extend(injected.into_iter().chain(states).flatten());
        let limits = BlkdebugLimits {
            align: options.take_size("align")?,
            max_transfer: options.take_size("max-transfer")?,
            opt_write_zero: options.take_size("opt-write-zero")?,
            max_write_zero: options.take_size("max-write-zero")?,
            opt_discard: options.take_size("opt-discard")?,
            max_discard: options.take_size("max-discard")?,
        };
        let (taken, unshared) = (perms(options, "take-child-perms")?, perms(options, "unshare-child-perms")?);
        let image = context.require_child(options, IMAGE, ChildRole::FILTERED_PRIMARY).await?;
        let open = |req| async move {
            let below = image.limits(&req)?;
            Ok(Blkdebug::new(image, below, limits, rules))
        };
        let opened = context.run("Could not open the blkdebug node", open).await?;
        let (engine, control) = opened.map_err(|error| GraphError::Open(error.to_string()))?;
        let control = Control { engine: control, perm: PermPair::new(taken, !unshared) };
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        filter_perm(above)
    }
}

/// A list of permissions; none without it.
fn perms(options: &mut OptionReader, key: &str) -> GraphResult<Perm> {
    let perms = options.take_list(key, |item| {
        let (key, value) = (item.key(), item.into_str()?);
        Perm::from_qapi_name(&value).ok_or(OptionsError::BadValue { key, value })
    })?;
    Ok(perms.into_iter().flatten().collect())
}

fn value<T: QapiEnum>(rule: &mut OptionReader, key: &str) -> GraphResult<Option<T>> {
    let Some(name) = rule.take_str(key)? else { return Ok(None) };
    let known = T::from_name(&name).map(Some);
    known.ok_or_else(|| GraphError::Open(format!("invalid parameter value: {name}")))
}

fn event(rule: &mut OptionReader) -> GraphResult<DebugEvent> {
    value(rule, "event")?.ok_or_else(|| GraphError::Open("Missing event name for rule".into()))
}

/// State 0 is any state.
fn state(rule: &mut OptionReader) -> GraphResult<Option<u32>> {
    Ok(rule.take_u32("state")?.filter(|state| *state != 0))
}

fn inject_error(rule: &mut OptionReader) -> GraphResult<Rule> {
    Ok(Rule::InjectError(InjectError {
        event: event(rule)?,
        state: state(rule)?,
        kind: value::<IoKind>(rule, "iotype")?,
        errno: rule.take_u32("errno")?.map_or(Errno::EIO.raw(), |errno| errno as i32),
        sector: rule.take_i64("sector")?.and_then(|sector| u64::try_from(sector).ok()),
        once: rule.take_bool("once")?.unwrap_or(false),
        immediately: rule.take_bool("immediately")?.unwrap_or(false),
    }))
}

fn set_state(rule: &mut OptionReader) -> GraphResult<Rule> {
    let (event, state) = (event(rule)?, state(rule)?);
    Ok(Rule::SetState(SetState { event, state, new_state: rule.take_u32("new_state")?.unwrap_or(0) }))
}

async fn read_config(context: &OpenContext<'_>, path: String) -> GraphResult<Vec<Rule>> {
    #[allow(clippy::disallowed_methods, reason = "runs in the pool, whose threads may sleep")]
    let read = move || std::fs::read_to_string(path);
    let text = context.pool().run(read).await.unwrap_or_else(|| Err(std::io::Error::other("the thread panicked")));
    let text = text.map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO.raw()));
        GraphError::Open(format!("Could not read blkdebug config file: {errno}"))
    })?;
    parse_config(&text)
}

/// The rules of a configuration file.
fn parse_config(text: &str) -> GraphResult<Vec<Rule>> {
    let open = |message: String| GraphError::Open(message);
    let mut groups: Vec<(&str, Options)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(group) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            let name = group.0.split(' ').next().unwrap_or_default();
            if !matches!(name, "inject-error" | "set-state") {
                return Err(open(format!("There is no option group '{name}'")));
            }
            groups.push((name, Options::new(Dialect::Legacy)));
            continue;
        }
        let Some((_, options)) = groups.last_mut() else { return Err(open("no group defined".into())) };
        let quoted = line.split_once('=').and_then(|(key, value)| {
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            Some((key.trim(), value))
        });
        let Some((key, value)) = quoted else { return Err(open("parse error".into())) };
        options.insert(key, value)?;
    }
    groups.into_iter().map(|(name, options)| rule_of(name, options)).collect()
}

fn rule_of(group: &str, options: Options) -> GraphResult<Rule> {
    let mut reader = options.reader();
    let rule = if group == "inject-error" { inject_error(&mut reader) } else { set_state(&mut reader) }?;
    reader.finish().map_err(|error| match error {
        OptionsError::Unexpected { key } => GraphError::Open(format!("Invalid parameter '{key}'")),
        other => other.into(),
    })?;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_file() {
        let text = "# two rules\n[inject-error]\nevent = \"read_aio\"\nerrno = \"28\"\nonce = \"on\"\n\n[set-state]\n\
                    event = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n";
        let rules = parse_config(text).expect("it is well-formed");
        let error = InjectError {
            event: DebugEvent::ReadAio,
            state: None,
            kind: None,
            errno: 28,
            sector: None,
            once: true,
            immediately: false,
        };
        let change = SetState { event: DebugEvent::WriteAio, state: Some(1), new_state: 2 };
        assert_eq!(rules, [Rule::InjectError(error), Rule::SetState(change)]);
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let error = |text| parse_config(text).expect_err(text).to_string();
        assert_eq!(error("[bogus]\n"), "There is no option group 'bogus'");
        assert_eq!(error("x"), "no group defined");
        assert_eq!(error("[inject-error]\nevent = \"bogus\"\n"), "invalid parameter value: bogus");
        assert_eq!(error("[inject-error]\nerrno = \"1\"\n"), "Missing event name for rule");
        assert_eq!(error("[set-state]\nevent = \"none\"\nbogus = \"1\"\n"), "Invalid parameter 'bogus'");
    }
}
