//! The object `throttle-group`: limits that nodes and backends share by the group's name.
//!
//! Enforcing them is `block-throttle`'s business. Groups also come to be by their name alone, for users who say which group they want and which limits it gets; these
//! last as long as their users.

use super::{Object, ObjectError};
use crate::error::GraphResult;
use crate::state::GlobalState;
use block_common::options::{Dialect, Dict, Value};
use block_common::{OptionReader, Options, OptionsError, is_wellformed_id};
use block_throttle::{LimitKind, LimitSettings, ThrottleGroup, ThrottleLimits};
use std::fmt;
use std::rc::{Rc, Weak};

/// What is told of the type's properties.
pub(super) const HELP: &str = "throttle-group options:
  limits=<ThrottleLimits>
  x-bps-read-max-length=<int>
  x-bps-read-max=<int>
  x-bps-read=<int>
  x-bps-total-max-length=<int>
  x-bps-total-max=<int>
  x-bps-total=<int>
  x-bps-write-max-length=<int>
  x-bps-write-max=<int>
  x-bps-write=<int>
  x-iops-read-max-length=<int>
  x-iops-read-max=<int>
  x-iops-read=<int>
  x-iops-size=<int>
  x-iops-total-max-length=<int>
  x-iops-total-max=<int>
  x-iops-total=<int>
  x-iops-write-max-length=<int>
  x-iops-write-max=<int>
  x-iops-write=<int>
";

/// In which order the field reads them.
const KINDS: [LimitKind; 6] = [
    LimitKind::IopsTotal,
    LimitKind::IopsRead,
    LimitKind::IopsWrite,
    LimitKind::BpsTotal,
    LimitKind::BpsRead,
    LimitKind::BpsWrite,
];

/// A number among the limits.
#[derive(Clone, Copy, Debug)]
enum Part {
    Rate(LimitKind),
    Max(LimitKind),
    MaxLength(LimitKind),
    IopsSize,
}

impl Part {
    fn all() -> impl Iterator<Item = Self> {
        let each = |kind| [Self::Rate(kind), Self::Max(kind), Self::MaxLength(kind)];
        KINDS.into_iter().flat_map(each).chain([Self::IopsSize])
    }

    fn name(self) -> String {
        match self {
            Self::Rate(kind) => kind.name().into(),
            Self::Max(kind) => format!("{kind}-max"),
            Self::MaxLength(kind) => format!("{kind}-max-length"),
            Self::IopsSize => "iops-size".into(),
        }
    }

    fn value(self, settings: &LimitSettings) -> u64 {
        match self {
            Self::Rate(kind) => settings[kind].rate,
            Self::Max(kind) => settings[kind].max,
            Self::MaxLength(kind) => settings[kind].max_length,
            Self::IopsSize => settings.iops_size,
        }
    }

    /// Set it to `value`. Where that makes no sense beside other numbers, or is too high, is told when all of them are there.
    ///
    /// # Errors
    /// It makes no sense by itself; `prefix` stands before the name in the message.
    fn set(self, settings: &mut LimitSettings, prefix: &str, value: i64) -> Result<(), ObjectError> {
        // What is below zero is far too high.
        let number = value as u64;
        match self {
            Self::MaxLength(_) if value > i64::from(u32::MAX) => {
                return Err(ObjectError::BurstLength(format!("{prefix}{}", self.name())));
            }
            Self::IopsSize if value < 0 => return Err(ObjectError::Negative),
            Self::Rate(kind) => settings[kind].rate = number,
            Self::Max(kind) => settings[kind].max = number,
            Self::MaxLength(kind) => settings[kind].max_length = number,
            Self::IopsSize => settings.iops_size = number,
        }
        Ok(())
    }
}

/// Numbers that were given, and no others.
#[derive(Debug, Default)]
struct Given(Vec<(Part, i64)>);

impl Given {
    /// Take those called `prefix` and the part's name out of `options`.
    fn read(options: &mut OptionReader, prefix: &str) -> Result<Self, OptionsError> {
        let mut given = Vec::new();
        for part in Part::all() {
            given.extend(options.take_i64(&format!("{prefix}{}", part.name()))?.map(|value| (part, value)));
        }
        Ok(Self(given))
    }

    fn apply(&self, settings: &mut LimitSettings, prefix: &str) -> Result<(), ObjectError> {
        self.0.iter().try_for_each(|(part, value)| part.set(settings, prefix, *value))
    }
}

/// The properties, as they were written.
pub(super) struct ThrottleProperties {
    limits: Given,
    /// The same by their old names, `x-…`.
    old: Given,
}

impl ThrottleProperties {
    /// Take them out of `options`.
    ///
    /// # Errors
    /// One is of the wrong type.
    pub(super) fn read(options: &mut OptionReader) -> GraphResult<Self> {
        let limits = options.take_dict("limits", |limits| Given::read(limits, ""))?.unwrap_or_default();
        Ok(Self { limits, old: Given::read(options, "x-")? })
    }

    /// The limits; of one that has two names the one among `limits`.
    ///
    /// # Errors
    /// A number makes no sense by itself.
    pub(super) fn settings(&self) -> Result<LimitSettings, ObjectError> {
        let mut settings = LimitSettings::default();
        if self.old.0.iter().any(|(_, value)| *value < 0) {
            return Err(ObjectError::Negative);
        }
        self.old.apply(&mut settings, "x-")?;
        self.limits.apply(&mut settings, "")?;
        Ok(settings)
    }
}

/// A throttle group that somebody uses: as long as there is one of these, its object cannot be deleted.
#[derive(Clone)]
pub struct ThrottleGroupRef(Rc<Named>);

struct Named {
    name: String,
    group: ThrottleGroup,
}

impl ThrottleGroupRef {
    /// The group's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The group.
    pub fn group(&self) -> &ThrottleGroup {
        &self.0.group
    }
}

impl fmt::Debug for ThrottleGroupRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name(), self.group())
    }
}

/// A group that is an object.
pub(super) struct GroupObject(ThrottleGroupRef);

impl GroupObject {
    pub(super) fn new(name: &str, group: ThrottleGroup) -> Self {
        Self(named(name, group))
    }

    pub(super) fn is_in_use(&self) -> bool {
        Rc::strong_count(&self.0.0) > 1
    }
}

impl GroupObject {
    /// The limits, or one of them by its old name.
    pub(super) fn property(&self, name: &str) -> GraphResult<Value> {
        let limits = self.0.group().limits();
        let value = |part: Part| Value::from(i64::try_from(part.value(limits.settings())).unwrap_or(i64::MAX));
        if let Some(part) = Part::all().find(|part| name.strip_prefix("x-") == Some(part.name().as_str())) {
            return Ok(value(part));
        }
        let mut all = Dict::new();
        for part in Part::all() {
            all.insert(&part.name(), value(part))?;
        }
        Ok(Value::Dict(all))
    }
}

/// The names that limits had of old.
pub(super) fn old_names() -> impl Iterator<Item = String> {
    Part::all().map(|part| format!("x-{}", part.name()))
}

fn named(name: &str, group: ThrottleGroup) -> ThrottleGroupRef {
    ThrottleGroupRef(Rc::new(Named { name: name.into(), group }))
}

/// Groups that came to be by their name.
#[derive(Default)]
pub(super) struct Unowned(Vec<Weak<Named>>);

impl Unowned {
    fn find(&self, name: &str) -> Option<ThrottleGroupRef> {
        self.0.iter().filter_map(Weak::upgrade).find(|group| group.name == name).map(ThrottleGroupRef)
    }
}

impl GlobalState {
    /// Make `group` known as the object `id`: one that goes by a clock of its own, for example.
    ///
    /// # Errors
    /// An id that is none, or is taken; a group of this name without an object.
    pub fn add_throttle_group(&self, id: &str, group: ThrottleGroup) -> GraphResult<()> {
        if !is_wellformed_id(id) {
            return Err(ObjectError::BadId.into());
        }
        self.0.objects.check_new(id)?;
        self.check_no_group(id)?;
        self.0.objects.put(id, Object::ThrottleGroup(GroupObject::new(id, group)));
        Ok(())
    }

    /// The limits that `settings` make, for a new group called `id`.
    pub(super) fn new_limits(&self, id: &str, settings: LimitSettings) -> GraphResult<ThrottleLimits> {
        self.check_no_group(id)?;
        Ok(ThrottleLimits::new(settings).map_err(ObjectError::from)?)
    }

    fn check_no_group(&self, id: &str) -> GraphResult<()> {
        match self.0.objects.unowned.borrow().find(id) {
            Some(_) => Err(ObjectError::GroupExists.into()),
            None => Ok(()),
        }
    }

    /// The throttle group called `name`, for somebody who uses it.
    ///
    /// # Errors
    /// [`ObjectError::NoThrottleGroup`].
    pub fn throttle_group(&self, name: &str) -> GraphResult<ThrottleGroupRef> {
        let object = match self.0.objects.all.borrow().get(name) {
            Some(Object::ThrottleGroup(group)) => Some(group.0.clone()),
            _ => None,
        };
        let found = object.or_else(|| self.0.objects.unowned.borrow().find(name));
        found.ok_or_else(|| ObjectError::NoThrottleGroup(name.into()).into())
    }

    /// The throttle group called `name`; where there is none, a new one without limits, which is no object and goes with its last user.
    pub fn throttle_group_or_new(&self, name: &str) -> ThrottleGroupRef {
        self.throttle_group(name).unwrap_or_else(|_| {
            let made = named(name, ThrottleGroup::new(ThrottleLimits::default()));
            let mut unowned = self.0.objects.unowned.borrow_mut();
            unowned.0.retain(|group| group.strong_count() > 0);
            unowned.0.push(Rc::downgrade(&made.0));
            made
        })
    }

    /// The limits of the throttle group called `name`.
    ///
    /// # Errors
    /// [`ObjectError::NoThrottleGroup`].
    pub fn throttle_limits(&self, name: &str) -> GraphResult<ThrottleLimits> {
        Ok(self.throttle_group(name)?.group().limits())
    }

    /// Change limits of the throttle group called `name`: those that `limits`, a dictionary, has; the others stay. They hold at once, also for requests that wait.
    ///
    /// # Errors
    /// [`ObjectError::NoThrottleGroup`]; what is wrong with the numbers, by themselves or beside those that stay. All is as it was then.
    pub fn set_throttle_limits(&self, name: &str, limits: Value) -> GraphResult<()> {
        let group = self.throttle_group(name)?;
        let mut dict = Dict::new();
        dict.insert("limits", limits)?;
        let given = Options::from_dict(Dialect::Qmp, dict).read(ThrottleProperties::read)?.limits;
        let mut settings = *group.group().limits().settings();
        given.apply(&mut settings, "")?;
        group.group().set_limits(ThrottleLimits::new(settings).map_err(ObjectError::from)?);
        Ok(())
    }
}
