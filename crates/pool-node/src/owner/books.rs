//! The books of what the node works: shifts and hours, with the energy they used and what it cost.

use std::time::Duration;

use pool_store::{Store, StoreError, Work};
use pool_types::{Energy, EnergyPrice};
use tracing::info;

use crate::node::Activity;

/// How much may be lost when the node is killed: what was done since the last entry.
const EVERY: Duration = Duration::from_secs(15);

/// What the energy meters said of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// As far as it was measured.
    pub(super) energy: Energy,
    /// The time of which it was.
    pub(super) measured: Duration,
}

/// One node's books.
pub(super) struct Books {
    model: String,
    open: Option<Open>,
}

/// A shift that runs.
struct Open {
    id: i64,
    layers: String,
    /// Tokens that its node had worked on before it began.
    tokens: u64,
    /// What is not booked yet.
    rest: Work,
    booked: Duration,
    last: Duration,
}

impl Books {
    /// Closes what was cut off, and begins.
    pub(super) async fn open(store: &Store, model: String) -> Result<Self, StoreError> {
        store.end_open_shifts().await?;
        Ok(Self { model, open: None })
    }

    /// Books what was done up to now: `steady` on the node's own clock, `wall` in Unix milliseconds. `tokens` counts what
    /// the running node has worked on, `used` is what was measured since the last call.
    pub(super) async fn count(
        &mut self,
        store: &Store,
        (steady, wall): (Duration, u64),
        activity: &Activity,
        tokens: u64,
        used: Used,
        price: Option<EnergyPrice>,
    ) -> Result<(), StoreError> {
        let serving = match activity {
            Activity::Serving { layers, members, .. } => Some((layers.to_string(), *members)),
            Activity::Preparing { .. } | Activity::Fetching { .. } | Activity::Idle => None,
        };
        if let Some(open) = &mut self.open {
            let goes_on = match activity {
                Activity::Serving { layers, .. } | Activity::Preparing { layers, .. } => {
                    layers.to_string() == open.layers
                }
                Activity::Fetching { .. } | Activity::Idle => false,
            };
            open.rest = open.rest.plus(Work {
                served: steady.saturating_sub(open.last).as_millis() as u64,
                measured: used.measured.as_millis() as u64,
                tokens: tokens.saturating_sub(open.tokens),
                energy: used.energy,
                cost: price.unwrap_or_default().of(used.energy),
            });
            (open.last, open.tokens) = (steady, tokens.max(open.tokens));
            if !goes_on || steady.saturating_sub(open.booked) >= EVERY {
                let rest = std::mem::take(&mut open.rest);
                open.booked = steady;
                store.shift_worked(open.id, wall, rest, !goes_on).await?;
            }
            if !goes_on {
                info!(shift = open.id, "the shift is over");
                self.open = None;
            }
        }
        if let (None, Some((layers, members))) = (&self.open, serving) {
            let members = u32::try_from(members).unwrap_or(u32::MAX);
            let id = store.shift_begun(wall, &self.model, &layers, members).await?;
            info!(shift = id, layers, "a shift has begun");
            self.open = Some(Open { id, layers, tokens, rest: Work::default(), booked: steady, last: steady });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pool_types::{LayerRange, Usdcx};

    use super::*;

    fn serving(first: u32) -> Activity {
        Activity::Serving { layers: LayerRange::new(first, first + 4).unwrap(), members: 2, requests: 0 }
    }

    fn preparing(first: u32) -> Activity {
        Activity::Preparing { layers: LayerRange::new(first, first + 4).unwrap(), members: 2 }
    }

    #[tokio::test]
    async fn a_shift_lasts_as_long_as_its_layers_are_served_and_is_booked_as_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("node.db")).await.unwrap();
        let mut books = Books::open(&store, "tiny".to_owned()).await.unwrap();
        let price = Some(EnergyPrice("0.36".parse().unwrap()));
        let mut seconds = 0;
        let mut step = async |books: &mut Books, activity: &Activity, tokens| {
            let now = (Duration::from_secs(seconds), 3_600_000_000 + 1000 * seconds);
            let used = Used { energy: Energy(100_000), measured: Duration::from_secs(1) };
            books.count(&store, now, activity, tokens, used, price).await.unwrap();
            seconds += 1;
        };
        step(&mut books, &Activity::Idle, 0).await;
        step(&mut books, &preparing(0), 0).await;
        assert!(store.shifts(9).await.unwrap().is_empty(), "who loads does not serve yet");
        for second in 0..20 {
            step(&mut books, &serving(0), 10 * second).await;
        }
        let kept = store.shifts(9).await.unwrap().pop().unwrap();
        assert_eq!((kept.ended, kept.work.served, kept.work.tokens), (false, 15_000, 150), "kept every 15 s");
        // Its coalition forms anew: the same layers are the same shift.
        step(&mut books, &preparing(0), 190).await;
        step(&mut books, &serving(0), 190).await;
        step(&mut books, &serving(4), 200).await;
        step(&mut books, &serving(4), 207).await;
        step(&mut books, &Activity::Idle, 207).await;
        let shifts = store.shifts(9).await.unwrap();
        let told: Vec<_> = shifts
            .iter()
            .map(|shift| {
                (shift.layers.as_str(), shift.ended, shift.work.served, shift.work.tokens, shift.work.energy.0)
            })
            .collect();
        assert_eq!(told, [("4-7", true, 2_000, 7, 200_000), ("0-3", true, 22_000, 200, 2_200_000)]);
        assert_eq!(shifts[0].work.cost, Usdcx::from_wei(20_000_000_000_000), "0.2 kJ at 0.36 a kilowatt hour");
        let hours = store.hours(0..u64::MAX / 2).await.unwrap();
        assert_eq!(hours.iter().map(|hour| hour.work.tokens).sum::<u64>(), 207, "the hours add up to the shifts");
    }

    #[tokio::test]
    async fn a_node_that_is_killed_loses_seconds_and_its_shift_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("node.db")).await.unwrap();
        let mut books = Books::open(&store, "tiny".to_owned()).await.unwrap();
        for second in 0..40 {
            let now = (Duration::from_secs(second), 1000 * second);
            books.count(&store, now, &serving(0), second, Used::default(), None).await.unwrap();
        }
        drop(books);
        Books::open(&store, "tiny".to_owned()).await.unwrap();
        let kept = store.shifts(9).await.unwrap().pop().unwrap();
        assert_eq!((kept.ended, kept.seen, kept.work.tokens, kept.work.cost), (true, 30_000, 30, Usdcx::ZERO));
    }
}
