//! Objects and their properties by path, as `qom-list`, `qom-get` and `qom-set` see them.
//!
//! What a secret holds is not told, to nobody; it takes part in the list by its name.

use super::iothread::IoThreadObject;
use super::throttle::old_names;
use super::{Object, ObjectError};
use crate::error::GraphResult;
use crate::state::GlobalState;
use block_common::Options;
use block_common::options::{Dialect, Dict, Value};

/// A property's name and its type, as QEMU's object model calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PropertyInfo {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
}

/// What a path leads to.
enum Place {
    /// What everything is in.
    Top,
    /// What objects are in.
    Objects,
    /// An object, by its id.
    Object(String),
}

/// The property that every object has.
const OWN_TYPE: &str = "type";
const CONTAINER: &str = "container";
const OBJECTS: &str = "objects";

impl Object {
    /// The properties, with their types.
    fn properties(&self) -> Vec<PropertyInfo> {
        let told = |name: &str, kind: &str| PropertyInfo { name: name.into(), kind: kind.into() };
        match self {
            Self::IoThread(_) => IoThreadObject::properties().map(|name| told(name, "int")).collect(),
            Self::Secret(_) => {
                let text = ["iv", "keyid", "file", "data"].map(|name| told(name, "string"));
                text.into_iter().chain([told("format", "QCryptoSecretFormat")]).collect()
            }
            Self::ThrottleGroup(_) => {
                let old = old_names().map(|name| told(&name, "int"));
                old.chain([told("limits", "ThrottleLimits")]).collect()
            }
        }
    }

    fn check_property(&self, name: &str) -> Result<(), ObjectError> {
        match self.properties().iter().any(|property| property.name == name) {
            true => Ok(()),
            false => Err(no_property(self.qom_type(), name)),
        }
    }
}

fn no_property(of: &'static str, name: &str) -> ObjectError {
    ObjectError::NoProperty { of, property: name.into() }
}

impl GlobalState {
    fn place(&self, path: &str) -> GraphResult<Place> {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        let missing = || ObjectError::NoPath(path.into()).into();
        match (parts.as_slice(), path.starts_with('/')) {
            ([], true) => Ok(Place::Top),
            ([], false) => Err(ObjectError::AmbiguousPath(path.into()).into()),
            ([OBJECTS], _) => Ok(Place::Objects),
            // What does not begin at the top may begin anywhere.
            ([OBJECTS, id], _) | ([id], false) if self.0.objects.all.borrow().contains_key(*id) => {
                Ok(Place::Object((*id).to_owned()))
            }
            _ => Err(missing()),
        }
    }

    /// The properties of what is at `path`: an object (`/objects/id`, or `id`), or what objects are in.
    ///
    /// # Errors
    /// [`ObjectError::NoPath`], [`ObjectError::AmbiguousPath`].
    pub fn object_properties(&self, path: &str) -> GraphResult<Vec<PropertyInfo>> {
        let told = |name: &str, kind: String| PropertyInfo { name: name.into(), kind };
        let place = self.place(path)?;
        let objects = self.0.objects.all.borrow();
        let own = match place {
            Place::Top => vec![told(OBJECTS, format!("child<{CONTAINER}>"))],
            Place::Objects => {
                objects.iter().map(|(id, object)| told(id, format!("child<{}>", object.qom_type()))).collect()
            }
            Place::Object(id) => objects.get(&id).map(Object::properties).unwrap_or_default(),
        };
        Ok([told(OWN_TYPE, "string".into())].into_iter().chain(own).collect())
    }

    /// The property called `name` of what is at `path`.
    ///
    /// # Errors
    /// As [`GlobalState::object_properties`]; [`ObjectError::NoProperty`]; [`ObjectError::Untold`] for those of secrets.
    pub fn object_property(&self, path: &str, name: &str) -> GraphResult<Value> {
        let place = self.place(path)?;
        let objects = self.0.objects.all.borrow();
        let object = match &place {
            Place::Object(id) => objects.get(id),
            _ => None,
        };
        let of = object.map_or(CONTAINER, Object::qom_type);
        match (place, object) {
            _ if name == OWN_TYPE => Ok(of.into()),
            (Place::Top, _) if name == OBJECTS => Ok(format!("/{OBJECTS}").into()),
            (Place::Objects, _) if objects.contains_key(name) => Ok(format!("/{OBJECTS}/{name}").into()),
            (_, Some(object)) => {
                object.check_property(name)?;
                match object {
                    Object::IoThread(thread) => {
                        thread.property(name).map(Value::from).ok_or_else(|| no_property(of, name).into())
                    }
                    Object::ThrottleGroup(group) => group.property(name),
                    Object::Secret(_) => Err(ObjectError::Untold { of, property: name.into() }.into()),
                }
            }
            _ => Err(no_property(of, name).into()),
        }
    }

    /// Set the property called `name` of what is at `path`: limits of a throttle group, how an I/O thread looks for completions. It holds at once.
    ///
    /// # Errors
    /// As [`GlobalState::object_properties`]; [`ObjectError::NoProperty`], [`ObjectError::NotWritable`], [`ObjectError::Initialized`]; a value of another type, or one
    /// that makes no sense.
    pub fn set_object_property(&self, path: &str, name: &str, value: Value) -> GraphResult<()> {
        let place = self.place(path)?;
        let not_writable = |of| ObjectError::NotWritable { of, property: name.into() }.into();
        let Place::Object(id) = place else {
            return match self.object_property(path, name) {
                Ok(_) => Err(not_writable(CONTAINER)),
                Err(error) => Err(error),
            };
        };
        let is_limits = {
            let objects = self.0.objects.all.borrow();
            let Some(object) = objects.get(&id) else { return Err(ObjectError::NotFound(id).into()) };
            if name == OWN_TYPE {
                return Err(not_writable(object.qom_type()));
            }
            object.check_property(name)?;
            match object {
                Object::IoThread(thread) => {
                    let mut dict = Dict::new();
                    dict.insert(name, value)?;
                    let value = Options::from_dict(Dialect::Qmp, dict).read(|options| options.require_i64(name))?;
                    return thread.set(name, value);
                }
                Object::ThrottleGroup(_) => name == "limits",
                Object::Secret(_) => false,
            }
        };
        match is_limits {
            true => self.set_throttle_limits(&id, value),
            false => Err(ObjectError::Initialized.into()),
        }
    }
}
