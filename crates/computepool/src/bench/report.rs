//! Figures, as text for people and as JSON.

use std::fmt;

use pool_orchestrator::control::MemberView;
use pool_types::ByteSize;
use serde::Serialize;

use super::{machine::Machine, model::Size, side::Outcome};
use crate::table::Table;

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: &'static str,
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) machine: Machine,
    pub(crate) size: Size,
    pub(crate) rows: Vec<Row>,
}

/// Something that was measured, or why it was not.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The weights' type, where a model was used.
    pub(crate) quant: Option<&'static str>,
    /// Processes that wanted to run just before, over the last minute.
    pub(crate) load_before: Option<f64>,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// What to keep in mind.
    pub(crate) notes: Vec<String>,
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figures {
    /// A side against another.
    Compared(Box<Compared>),
    /// Half round trips and bulk throughput.
    Hop(Box<super::hop::Hop>),
    /// What each shard read and holds.
    Shards(Vec<ShardRow>),
    /// Why there are none.
    NotMeasured(String),
}

/// Two sides that ran in turn.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    pub(crate) unit: &'static str,
    pub(crate) first: SideFigures,
    pub(crate) second: SideFigures,
    /// The first side over the second, pair by pair.
    pub(crate) ratio: Summary,
    /// What the ratio shall reach.
    pub(crate) bound: Option<f64>,
    /// Processor time that the second side's shards spend on a token, over that of the first side's: what the ratio
    /// would be if nothing but computing counted, times the cores of the first over those of the second.
    pub(crate) processor_ratio: Summary,
    pub(crate) pairs: usize,
}

/// One of the sides.
#[derive(Debug, Serialize)]
pub(crate) struct SideFigures {
    pub(crate) name: String,
    pub(crate) speed: Summary,
    pub(crate) shard_seconds_per_token: Summary,
    /// Of the time that the shards' threads were ready to run, the part in which something else had their core.
    pub(crate) shards_waited: Summary,
    /// Processor time of gateway and client over the time elapsed; 1 is a whole core.
    pub(crate) gateway_share: Summary,
}

/// The middle and the ends of several measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// A shard's bytes.
#[derive(Debug, Serialize)]
pub(crate) struct ShardRow {
    pub(crate) side: String,
    pub(crate) name: String,
    pub(crate) layers: String,
    /// Of its layers, in the file.
    pub(crate) layer_bytes: u64,
    pub(crate) bytes_read: u64,
    pub(crate) weight_bytes: u64,
    /// KV cache at its fullest.
    pub(crate) kv_bytes: u64,
    pub(crate) resident_bytes: u64,
}

impl Summary {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else { return Self::default() };
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Self { median: (low + high) / 2.0, min: *min, max: *max }
    }
}

impl Compared {
    /// `pairs` are the outcomes of both sides, in the order they ran; not empty.
    pub(crate) fn new(
        names: [&str; 2],
        unit: &'static str,
        bound: Option<f64>,
        pairs: &[(Outcome, Outcome)],
    ) -> Box<Self> {
        let side = |name: &str, outcomes: Vec<Outcome>| SideFigures {
            name: name.to_owned(),
            speed: Summary::of(outcomes.iter().map(|o| o.tokens_per_second)),
            shard_seconds_per_token: Summary::of(outcomes.iter().map(|o| o.shard_seconds_per_token)),
            shards_waited: Summary::of(outcomes.iter().map(|o| o.shards_waited)),
            gateway_share: Summary::of(outcomes.iter().map(|o| o.gateway_share)),
        };
        let spent = |(first, second): &(Outcome, Outcome)| {
            second.shard_seconds_per_token / first.shard_seconds_per_token.max(f64::MIN_POSITIVE)
        };
        Box::new(Self {
            unit,
            first: side(names[0], pairs.iter().map(|pair| pair.0).collect()),
            second: side(names[1], pairs.iter().map(|pair| pair.1).collect()),
            ratio: Summary::of(pairs.iter().map(|(first, second)| first.tokens_per_second / second.tokens_per_second)),
            bound,
            processor_ratio: Summary::of(pairs.iter().map(spent)),
            pairs: pairs.len(),
        })
    }

    fn verdict(&self) -> String {
        match self.bound {
            None => String::new(),
            Some(bound) if self.ratio.median >= bound => format!("at least {bound}: yes"),
            Some(bound) => format!("at least {bound}: no"),
        }
    }
}

impl ShardRow {
    pub(crate) fn new(side: &str, member: &MemberView) -> Self {
        let footprint = member.footprint.unwrap_or_default();
        let resident = member.stats.as_ref().map_or(footprint.resident_bytes, |stats| stats.resident_bytes);
        Self {
            side: side.to_owned(),
            name: member.name.clone(),
            layers: member.layers.to_string(),
            layer_bytes: member.layer_bytes,
            bytes_read: footprint.bytes_read,
            weight_bytes: footprint.weight_bytes,
            kv_bytes: footprint.kv_bytes_per_token * footprint.kv_tokens,
            resident_bytes: resident,
        }
    }
}

impl Row {
    fn title(&self) -> String {
        self.quant.map_or_else(|| self.name.clone(), |quant| format!("{}, {quant}", self.name))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.load_before.map_or(String::new(), |load| format!("  (load {load:.1})"));
        writeln!(f, "\n{}{load}", self.title())?;
        match &self.figures {
            Figures::Compared(compared) => {
                let mut table = Table::new(&[
                    "side",
                    &format!(">{}", compared.unit),
                    ">least",
                    ">most",
                    ">ms of processor a token",
                    ">waited for a core",
                    ">gateway and client",
                ]);
                for side in [&compared.first, &compared.second] {
                    table.row([
                        side.name.clone(),
                        format!("{:.2}", side.speed.median),
                        format!("{:.2}", side.speed.min),
                        format!("{:.2}", side.speed.max),
                        format!("{:.2}", side.shard_seconds_per_token.median * 1e3),
                        format!("{:.0} %", side.shards_waited.median * 100.0),
                        format!("{:.1} % of a core", side.gateway_share.median * 100.0),
                    ]);
                }
                write!(f, "{table}")?;
                let Summary { median, min, max } = compared.ratio;
                writeln!(
                    f,
                    "  ratio {median:.3} ({min:.3} to {max:.3}, {} pairs) {}",
                    compared.pairs,
                    compared.verdict()
                )?;
                writeln!(f, "  by processor time of the shards {:.3}", compared.processor_ratio.median)?;
            }
            Figures::Hop(hop) => write!(f, "{hop}")?,
            Figures::Shards(shards) => {
                let mut table = Table::new(&[
                    "side",
                    "shard",
                    ">layers",
                    ">bytes of these layers",
                    ">bytes read",
                    ">weights",
                    ">cache at most",
                    ">resident",
                ]);
                for shard in shards {
                    let sizes =
                        [shard.layer_bytes, shard.bytes_read, shard.weight_bytes, shard.kv_bytes, shard.resident_bytes];
                    let texts = [shard.side.clone(), shard.name.clone(), shard.layers.clone()];
                    table.row(texts.into_iter().chain(sizes.map(|size| ByteSize(size).to_string())));
                }
                write!(f, "{table}")?;
            }
            Figures::NotMeasured(reason) => writeln!(f, "  not measured: {reason}")?,
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

/// The table at the end: every ratio with its bound.
pub(crate) fn overview(rows: &[Row]) -> Table {
    let mut table = Table::new(&["what", ">ratio", ">least", ">most", "bound", ">load"]);
    for row in rows {
        let load = row.load_before.map_or_else(|| "-".to_owned(), |load| format!("{load:.1}"));
        match &row.figures {
            Figures::Compared(compared) => {
                let Summary { median, min, max } = compared.ratio;
                let numbers = [median, min, max].map(|number| format!("{number:.3}"));
                table.row([row.title()].into_iter().chain(numbers).chain([compared.verdict(), load]));
            }
            Figures::Hop(hop) => {
                let Summary { median, min, max } = hop.webrtc.half_round_trip_p50_ms;
                let numbers = [median, min, max].map(|ms| format!("{ms:.2} ms"));
                table.row([row.title()].into_iter().chain(numbers).chain([hop.verdict(), load]));
            }
            Figures::NotMeasured(_) => {
                let dashes = ["-", "-", "-", "not measured"].map(str::to_owned);
                table.row([row.title()].into_iter().chain(dashes).chain([load]));
            }
            Figures::Shards(_) => {}
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0]), Summary { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Summary::of([]), Summary::default());
    }

    #[test]
    fn a_ratio_is_of_pairs_so_that_a_machine_that_slows_down_does_not_change_it() {
        let at = |speed: f64| Outcome {
            tokens_per_second: speed,
            shard_seconds_per_token: 1.0 / speed,
            shards_waited: 0.0,
            gateway_share: 0.1,
        };
        let pairs: Vec<_> = [10.0, 5.0, 2.0].map(|speed| (at(1.9 * speed), at(speed))).into();
        let compared = Compared::new(["two", "one"], "tokens/s", Some(1.85), &pairs);
        assert!((compared.ratio.min - 1.9).abs() < 1e-9 && (compared.ratio.max - 1.9).abs() < 1e-9);
        assert_eq!(compared.verdict(), "at least 1.85: yes");
        assert!((compared.processor_ratio.median - 1.9).abs() < 1e-9);
    }
}
