//! How far the engine lies from the reference.

use std::fmt;

use super::fixture::Row;

/// Differences of log-probabilities and of greedy tokens over any number of rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deviation {
    /// The largest difference of a log-probability, and where it was.
    pub(crate) worst: f32,
    worst_at: String,
    sum: f64,
    values: usize,
    /// Rows whose greedy token is the reference's.
    agreed: usize,
    rows: usize,
    /// Rows with another greedy token though the reference's led by more than `margin`.
    pub(crate) lost: usize,
    lost_at: String,
    margin: f32,
    /// The reference's greatest lead in a row with another greedy token.
    overturned: f32,
}

impl Deviation {
    /// Greedy tokens count as lost only where the reference's lead exceeds `margin`.
    pub(crate) fn beyond(margin: f32) -> Self {
        Self { margin, ..Self::default() }
    }

    /// Compares one row's logits. `place` says where: the model, the shards, the step.
    pub(crate) fn compare(&mut self, expected: &Row, logits: &[f32], place: impl Fn() -> String) {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = f64::from(greatest) + logits.iter().map(|l| f64::from(l - greatest).exp()).sum::<f64>().ln();
        self.compare_with(expected, |token| (f64::from(logits[token as usize]) - log_sum) as f32, &place);
        let best = logits.iter().position(|logit| *logit == greatest);
        self.compare_token(expected, best.map_or(u32::MAX, |token| token as u32), &place);
    }

    fn compare_with(&mut self, expected: &Row, got: impl Fn(u32) -> f32, place: &impl Fn() -> String) {
        for (token, want) in expected.top.iter().chain(&expected.watched) {
            self.value(*token, got(*token), *want, place);
        }
    }

    /// Compares one log-probability.
    pub(crate) fn value(&mut self, token: u32, got: f32, want: f32, place: &impl Fn() -> String) {
        let difference = if got.is_finite() { (got - want).abs() } else { f32::INFINITY };
        self.sum += f64::from(difference);
        self.values += 1;
        if difference > self.worst {
            self.worst = difference;
            self.worst_at =
                format!("{}: the log-probability of token {token} is {got}, the reference says {want}", place());
        }
    }

    /// Compares one greedy token.
    pub(crate) fn compare_token(&mut self, expected: &Row, got: u32, place: &impl Fn() -> String) {
        self.rows += 1;
        if got == expected.best() {
            self.agreed += 1;
            return;
        }
        self.overturned = self.overturned.max(expected.margin());
        if expected.margin() > self.margin {
            self.lost += 1;
            let (want, lead) = (expected.best(), expected.margin());
            self.lost_at = format!("{}: the next token is {got}, the reference says {want} by {lead}", place());
        }
    }

    /// Takes in what another run found.
    pub(crate) fn merge(&mut self, other: Deviation) {
        if other.worst > self.worst {
            self.worst = other.worst;
            self.worst_at = other.worst_at;
        }
        if other.lost > 0 {
            self.lost_at = other.lost_at;
        }
        self.sum += other.sum;
        self.values += other.values;
        self.agreed += other.agreed;
        self.rows += other.rows;
        self.lost += other.lost;
        self.overturned = self.overturned.max(other.overturned);
    }

    /// The mean difference of a log-probability.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.values.max(1) as f64
    }

    /// The share of rows whose greedy token is the reference's.
    pub(crate) fn agreement(&self) -> f64 {
        self.agreed as f64 / self.rows.max(1) as f64
    }

    /// Fails unless every log-probability is within `tolerance` and no clear greedy token was lost.
    pub(crate) fn assert_within(&self, tolerance: f32) {
        assert!(self.values > 0 && self.rows > 0, "nothing was compared");
        assert!(self.worst <= tolerance, "{} (tolerance {tolerance})", self.worst_at);
        assert!(self.lost == 0, "{} ({} such rows)", self.lost_at, self.lost);
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mean, worst, agreement) = (self.mean(), self.worst, 100.0 * self.agreement());
        write!(f, "{} rows: mean {mean:.2e}, worst {worst:.2e}, next token {agreement:.2} %, ", self.rows)?;
        write!(f, "greatest lead overturned {:.3}; worst at {}", self.overturned, self.worst_at)
    }
}
