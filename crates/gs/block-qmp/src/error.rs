//! What a command answers when it fails: a class that programs look at, and a description for people.

use block_common::OptionsError;
use block_drivers::{CreateError, LiveError, RenameError};
use block_gs::{BitmapError, GraphError, StepError};
use block_jobs::JobError;
use serde_json::{Value, json};

/// The classes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Nearly all of them.
    Generic,
    /// There is no such command, or not now.
    CommandNotFound,
    /// A device or a job that is not at work.
    DeviceNotActive,
    /// There is no such device or node.
    DeviceNotFound,
}

impl ErrorClass {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generic => "GenericError",
            Self::CommandNotFound => "CommandNotFound",
            Self::DeviceNotActive => "DeviceNotActive",
            Self::DeviceNotFound => "DeviceNotFound",
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// Its class.
    pub class: ErrorClass,
    /// Why, in a sentence.
    pub desc: String,
}

/// What a command answers.
pub(crate) type QmpResult = Result<Value, QmpError>;

impl QmpError {
    /// An error of the class that nearly all have.
    pub fn new(desc: impl Into<String>) -> Self {
        Self::of(ErrorClass::Generic, desc)
    }

    pub(crate) fn of(class: ErrorClass, desc: impl Into<String>) -> Self {
        Self { class, desc: desc.into() }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "class": self.class.name(), "desc": self.desc })
    }
}

macro_rules! generic {
    ($($error:ty),*) => {
        $(impl From<$error> for QmpError {
            fn from(error: $error) -> Self {
                // What follows in a line of its own is advice for a person at a terminal.
                let text = error.to_string();
                Self::new(text.lines().next().unwrap_or_default())
            }
        })*
    };
}

generic!(OptionsError, BitmapError, CreateError);

/// What a refused act is called is for logs.
fn without_act(error: &GraphError) -> Option<QmpError> {
    match error {
        GraphError::OpBlocked { node, reason, .. } => Some(QmpError::new(format!("Node '{node}' is busy: {reason}"))),
        _ => None,
    }
}

macro_rules! with_graph_errors {
    ($($error:ty: $graph:pat => $inner:expr),*) => {
        $(impl From<$error> for QmpError {
            fn from(error: $error) -> Self {
                let act = match &error {
                    $graph => without_act($inner),
                    #[allow(unreachable_patterns, reason = "one of the types is the inner one itself")]
                    _ => None,
                };
                act.unwrap_or_else(|| Self::new(error.to_string().lines().next().unwrap_or_default()))
            }
        })*
    };
}

with_graph_errors!(
    GraphError: inner => inner,
    JobError: JobError::Graph(inner) => inner,
    StepError: StepError::Graph(inner) => inner,
    LiveError: LiveError::Graph(inner) => inner,
    RenameError: RenameError::Graph(inner) => inner
);
