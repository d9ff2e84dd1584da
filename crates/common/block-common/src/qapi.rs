//! Enumerations with QAPI names: one list of names serves text, JSON, options and messages.
//!
//! The macro writes nothing else: no schema, and no structures.

/// An enumeration whose values have names that users and programs write. Made by [`qapi_enum!`](crate::qapi_enum).
pub trait QapiEnum: Copy + Eq + 'static {
    /// What the values are, in the singular and in words: `preallocation mode`.
    const WHAT: &'static str;
    /// All values, in the order of their definition.
    const ALL: &'static [Self];

    /// The value's name in QAPI.
    fn name(self) -> &'static str;

    /// The other names that command lines and `--image-opts` have for the value, but QMP has not.
    fn aliases(self) -> &'static [&'static str];

    /// The value that QAPI calls `name`.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }

    /// As [`QapiEnum::from_name`], and by the other names too.
    fn from_name_or_alias(name: &str) -> Option<Self> {
        Self::from_name(name).or_else(|| Self::ALL.iter().copied().find(|value| value.aliases().contains(&name)))
    }
}

/// No value of an enumeration has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} '{name}', expected one of: {expected}")]
pub struct UnknownName {
    /// What was looked for: `preallocation mode`.
    pub what: &'static str,
    /// The name that is unknown, cut after a hundred characters.
    pub name: String,
    /// The names that would do, with commas between.
    pub expected: String,
}

impl UnknownName {
    /// `name` is no value of `T`.
    pub fn of<T: QapiEnum>(name: &str) -> Self {
        let expected: Vec<_> = T::ALL.iter().map(|value| value.name()).collect();
        Self { what: T::WHAT, name: name.chars().take(100).collect(), expected: expected.join(", ") }
    }
}

#[doc(hidden)]
pub use serde as __serde;

/// Define an enumeration with QAPI names.
///
/// Gives it [`QapiEnum`], `Display` (the QAPI name), `FromStr` (the QAPI name or an alias: command lines), and serde (the QAPI
/// name alone: QMP).
///
/// ```
/// block_common::qapi_enum! {
///     /// What to do with discards.
///     #[derive(Default)]
///     pub enum Mode: "discard mode" {
///         /// Ignore them.
///         #[default]
///         Ignore = "ignore" | "off",
///         /// Pass them on.
///         Unmap = "unmap" | "on",
///     }
/// }
/// assert_eq!("on".parse(), Ok(Mode::Unmap));
/// assert_eq!(Mode::default().to_string(), "ignore");
/// ```
#[macro_export]
macro_rules! qapi_enum {
    (
        $(#[$attr:meta])*
        $vis:vis enum $name:ident: $what:literal {
            $($(#[$variant_attr:meta])* $variant:ident = $text:literal $(| $alias:literal)*),+ $(,)?
        }
    ) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[$variant_attr])* $variant,)+
        }

        impl $crate::QapiEnum for $name {
            const WHAT: &'static str = $what;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            fn aliases(self) -> &'static [&'static str] {
                match self {
                    $(Self::$variant => &[$($alias),*],)+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad($crate::QapiEnum::name(*self))
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::UnknownName;

            fn from_str(name: &str) -> ::std::result::Result<Self, $crate::UnknownName> {
                $crate::QapiEnum::from_name_or_alias(name).ok_or_else(|| $crate::UnknownName::of::<Self>(name))
            }
        }

        impl $crate::__serde::Serialize for $name {
            fn serialize<S: $crate::__serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str($crate::QapiEnum::name(*self))
            }
        }

        impl<'de> $crate::__serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::__serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::std::result::Result<Self, D::Error> {
                let name = <::std::borrow::Cow<'de, str> as $crate::__serde::Deserialize>::deserialize(deserializer)?;
                $crate::QapiEnum::from_name(&name)
                    .ok_or_else(|| $crate::__serde::de::Error::custom($crate::UnknownName::of::<Self>(&name)))
            }
        }
    };
}
