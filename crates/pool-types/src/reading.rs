use std::fmt;

use serde::{Deserialize, Serialize};

/// What a sensor says: a value, or why there is none. Never a guess.
///
/// ```
/// use pool_types::Reading;
///
/// let battery: Reading<bool> = Reading::unavailable("this machine has no battery");
/// assert_eq!(battery.known(), None);
/// assert_eq!(battery.to_string(), "unavailable, because this machine has no battery");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading<T> {
    /// The sensor works.
    Known(T),
    /// It does not: why, to be read after "because".
    Unavailable(String),
}

impl<T> Reading<T> {
    /// No value, and why; the reason is read after "because".
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }

    /// The value, where there is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unavailable(_) => None,
        }
    }

    /// Another value from this one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Reading<U> {
        match self {
            Self::Known(value) => Reading::Known(change(value)),
            Self::Unavailable(reason) => Reading::Unavailable(reason),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Reading<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(value) => value.fmt(formatter),
            Self::Unavailable(reason) => write!(formatter, "unavailable, because {reason}"),
        }
    }
}
