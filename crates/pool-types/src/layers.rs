use std::{fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A contiguous, non-empty run of decoder layers `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Bounds", into = "Bounds")]
pub struct LayerRange {
    start: u32,
    end: u32,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Bounds {
    start: u32,
    end: u32,
}

/// Why two numbers are not a layer range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayerRangeError {
    /// A shard without layers does no work.
    #[error("layer range {start}..{end} is empty")]
    Empty {
        /// First layer.
        start: u32,
        /// One past the last layer.
        end: u32,
    },
    /// The text is not `first-last`.
    #[error("`{0}` is not a layer range; write the first and last layer, like 0-15")]
    Syntax(String),
}

impl LayerRange {
    /// The layers from `start` up to but not including `end`.
    pub fn new(start: u32, end: u32) -> Result<Self, LayerRangeError> {
        if start < end { Ok(Self { start, end }) } else { Err(LayerRangeError::Empty { start, end }) }
    }

    /// The first layer.
    pub fn start(self) -> u32 {
        self.start
    }

    /// One past the last layer.
    pub fn end(self) -> u32 {
        self.end
    }

    /// How many layers there are (never 0).
    #[allow(clippy::len_without_is_empty, reason = "a layer range is never empty")]
    pub fn len(self) -> u32 {
        self.end - self.start
    }

    /// Whether `layer` lies inside.
    pub fn contains(self, layer: u32) -> bool {
        (self.start..self.end).contains(&layer)
    }

    /// The layer numbers in order.
    pub fn iter(self) -> Range<u32> {
        self.start..self.end
    }

    /// At most `parts` ranges of nearly equal length that cover this one in order.
    pub fn split_evenly(self, parts: u32) -> Vec<LayerRange> {
        let parts = parts.clamp(1, self.len());
        (0..parts)
            .map(|i| LayerRange {
                start: self.start + self.len() * i / parts,
                end: self.start + self.len() * (i + 1) / parts,
            })
            .collect()
    }
}

impl TryFrom<Bounds> for LayerRange {
    type Error = LayerRangeError;

    fn try_from(b: Bounds) -> Result<Self, LayerRangeError> {
        Self::new(b.start, b.end)
    }
}

impl From<LayerRange> for Bounds {
    fn from(r: LayerRange) -> Self {
        Bounds { start: r.start, end: r.end }
    }
}

/// Which layers of a model a machine has, so that it need not fetch or load them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// On its disk, whole; in any order.
    pub on_disk: Vec<LayerRange>,
    /// In the memory of a shard that runs: these and no others.
    pub loaded: Option<LayerRange>,
}

impl Holdings {
    /// All of a model of so many layers lies on the disk.
    pub fn of_all(layers: u32) -> Self {
        Self { on_disk: LayerRange::new(0, layers).into_iter().collect(), loaded: None }
    }

    /// Notes that these layers are on the disk.
    pub fn keep(&mut self, layers: LayerRange) {
        // One range for what touches, so that there are never more than every other layer makes.
        let touches = |held: &LayerRange| held.start <= layers.end && layers.start <= held.end;
        let mut all = layers;
        for held in self.on_disk.extract_if(.., |held| touches(held)) {
            (all.start, all.end) = (all.start.min(held.start), all.end.max(held.end));
        }
        self.on_disk.push(all);
    }
}

/// Written with the last layer included, as people count: `0-15` is sixteen layers.
impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.start, self.end - 1))
    }
}

impl FromStr for LayerRange {
    type Err = LayerRangeError;

    fn from_str(text: &str) -> Result<Self, LayerRangeError> {
        let syntax = || LayerRangeError::Syntax(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(syntax)?;
        let first: u32 = first.trim().parse().map_err(|_| syntax())?;
        let last: u32 = last.trim().parse().map_err(|_| syntax())?;
        Self::new(first, last.checked_add(1).ok_or_else(syntax)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_even_split_covers_every_layer_once_and_differs_by_at_most_one(start in 0u32..100, len in 1u32..200, parts in 1u32..40) {
            let whole = LayerRange::new(start, start + len).unwrap();
            let split = whole.split_evenly(parts);
            prop_assert_eq!(split.len() as u32, parts.min(len));
            prop_assert_eq!(split[0].start(), start);
            prop_assert_eq!(split.last().unwrap().end(), start + len);
            prop_assert!(split.windows(2).all(|w| w[0].end() == w[1].start()));
            let (min, max) = (split.iter().map(|r| r.len()).min(), split.iter().map(|r| r.len()).max());
            prop_assert!(max.unwrap() - min.unwrap() <= 1);
        }

        #[test]
        fn a_range_survives_its_own_text(start in 0u32..1000, len in 1u32..1000) {
            let range = LayerRange::new(start, start + len).unwrap();
            prop_assert_eq!(range.to_string().parse::<LayerRange>().unwrap(), range);
        }
    }

    #[test]
    fn layers_that_touch_are_held_as_one_range() {
        let range = |start, end| LayerRange::new(start, end).unwrap();
        let mut holds = Holdings::default();
        for kept in [range(0, 2), range(8, 10), range(4, 6), range(4, 5), range(2, 4)] {
            holds.keep(kept);
        }
        holds.on_disk.sort();
        assert_eq!(holds.on_disk, [range(0, 6), range(8, 10)]);
        holds.keep(range(1, 9));
        assert_eq!(holds.on_disk, [range(0, 10)]);
        assert_eq!(holds, Holdings::of_all(10));
    }

    #[test]
    fn nonsense_is_refused_with_the_expected_form() {
        for bad in ["", "3", "a-b", "5-4", "0-4294967295", "-1-3"] {
            assert!(bad.parse::<LayerRange>().is_err(), "{bad:?} must not parse");
        }
        assert!(serde_json::from_str::<LayerRange>(r#"{"start":4,"end":4}"#).is_err());
    }
}
