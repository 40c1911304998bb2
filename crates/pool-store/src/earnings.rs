//! What an owner's node worked, used and earned.

use std::ops::Range;

use pool_types::{Energy, Usdcx};
use sqlx::{Row, sqlite::SqliteRow};

use crate::{Store, StoreError, nodes::from_json};

/// Work, and what it used: over some time, or of one step of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Milliseconds.
    pub served: u64,
    /// Milliseconds of it whose energy was measured.
    pub measured: u64,
    /// Tokens that went through the layers.
    pub tokens: u64,
    /// What it used, as far as it was measured.
    pub energy: Energy,
    /// What that cost, at the price that held then.
    pub cost: Usdcx,
}

impl Work {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            served: self.served.saturating_add(other.served),
            measured: self.measured.saturating_add(other.measured),
            tokens: self.tokens.saturating_add(other.tokens),
            energy: self.energy.plus(other.energy),
            cost: self.cost.checked_add(other.cost).unwrap_or(self.cost),
        }
    }
}

/// A spell of serving. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShiftRecord {
    /// Which shift; they grow.
    pub id: i64,
    /// When it began.
    pub began: u64,
    /// When it was last known to run.
    pub seen: u64,
    /// Whether it has ended, at `seen`.
    pub ended: bool,
    /// The model's name.
    pub model: String,
    /// The layers, as text like `0-15`.
    pub layers: String,
    /// Members of its coalition, the node itself included.
    pub members: u32,
    /// What was done in it.
    pub work: Work,
}

/// What was done in one hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourRecord {
    /// Hours since 1970 (UTC).
    pub hour: u64,
    /// What was done in it.
    pub work: Work,
}

/// What had been earned in all at a moment, and how fast from then on until the next such moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IncomePoint {
    /// Unix seconds of a block.
    pub at: u64,
    /// Until then.
    pub earned: Usdcx,
    /// Wei a second, from then on.
    pub rate: i128,
}

impl IncomePoint {
    /// What had been earned in all at a moment that is not before this one.
    pub fn until(&self, at: u64) -> Usdcx {
        let since = i128::from(at.saturating_sub(self.at));
        Usdcx::from_wei(self.earned.wei().saturating_add(self.rate.saturating_mul(since)))
    }
}

/// How long hours and points of income are kept: what a chart of a year needs.
const KEEP_HOURS: u64 = 400 * 24;

impl Store {
    /// Opens the books of a shift, at `at` (Unix milliseconds); gives its id.
    pub async fn shift_begun(&self, at: u64, model: &str, layers: &str, members: u32) -> Result<i64, StoreError> {
        let row = sqlx::query(
            "INSERT INTO shifts (began, seen, ended, model, layers, members, tokens, energy, served, measured, cost) \
             VALUES ($1, $1, FALSE, $2, $3, $4, 0, 0, 0, 0, '0') RETURNING id",
        )
        .bind(at as i64)
        .bind(model)
        .bind(layers)
        .bind(members)
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("id")?)
    }

    /// Books what was done until `at` (Unix milliseconds) in a shift since the last time, and in the hour of that
    /// moment: both or neither.
    pub async fn shift_worked(&self, id: i64, at: u64, work: Work, ended: bool) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query("SELECT * FROM shifts WHERE id = $1").bind(id).fetch_optional(&mut *transaction).await?;
        if let Some(row) = row {
            let all = shift(&row)?.work.plus(work);
            sqlx::query(
                "UPDATE shifts SET seen = $2, ended = $3, tokens = $4, energy = $5, measured = $6, cost = $7, \
                 served = $8 WHERE id = $1",
            )
            .bind(id)
            .bind(at as i64)
            .bind(ended)
            .bind(all.tokens as i64)
            .bind(all.energy.0 as i64)
            .bind(all.measured as i64)
            .bind(all.cost.wei().to_string())
            .bind(all.served as i64)
            .execute(&mut *transaction)
            .await?;
        }
        let hour = at / 3_600_000;
        let before = sqlx::query("SELECT * FROM hours WHERE hour = $1").bind(hour as i64);
        let before = before.fetch_optional(&mut *transaction).await?;
        let before = before.as_ref().map(self::hour).transpose()?;
        let all = before.map_or(work, |before| before.work.plus(work));
        sqlx::query(
            "INSERT INTO hours (hour, served, measured, tokens, energy, cost) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (hour) DO UPDATE SET served = excluded.served, measured = excluded.measured, \
             tokens = excluded.tokens, energy = excluded.energy, cost = excluded.cost",
        )
        .bind(hour as i64)
        .bind(all.served as i64)
        .bind(all.measured as i64)
        .bind(all.tokens as i64)
        .bind(all.energy.0 as i64)
        .bind(all.cost.wei().to_string())
        .execute(&mut *transaction)
        .await?;
        let old = hour.saturating_sub(KEEP_HOURS) as i64;
        sqlx::query("DELETE FROM hours WHERE hour < $1").bind(old).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Closes the books of shifts that were cut off: they ended when they were last seen.
    pub async fn end_open_shifts(&self) -> Result<(), StoreError> {
        sqlx::query("UPDATE shifts SET ended = TRUE WHERE ended = FALSE").execute(&self.pool).await?;
        Ok(())
    }

    /// The newest shifts, the newest first.
    pub async fn shifts(&self, limit: u32) -> Result<Vec<ShiftRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM shifts ORDER BY id DESC LIMIT $1");
        rows.bind(limit).fetch_all(&self.pool).await?.iter().map(shift).collect()
    }

    /// What was done in these hours (since 1970, UTC), in order; hours without work are left out.
    pub async fn hours(&self, range: Range<u64>) -> Result<Vec<HourRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM hours WHERE hour >= $1 AND hour < $2 ORDER BY hour");
        let rows = rows.bind(range.start as i64).bind(range.end as i64).fetch_all(&self.pool).await?;
        rows.iter().map(hour).collect()
    }

    /// Books what was earned: points in order, and the books that they come from (the caller's own, kept as a setting
    /// under `key`), both or neither. `anew` forgets all points from before: the chain was re-organised.
    pub async fn income_booked(
        &self,
        anew: bool,
        points: &[IncomePoint],
        key: &str,
        books: &str,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if anew {
            sqlx::query("DELETE FROM income").execute(&mut *transaction).await?;
        }
        for point in points {
            sqlx::query(
                "INSERT INTO income (at, earned, rate) VALUES ($1, $2, $3) \
                 ON CONFLICT (at) DO UPDATE SET earned = excluded.earned, rate = excluded.rate",
            )
            .bind(point.at as i64)
            .bind(point.earned.wei().to_string())
            .bind(point.rate.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        if let Some(last) = points.last() {
            // The last one before what is kept says what the first one kept begins with.
            let old = last.at.saturating_sub(KEEP_HOURS * 3600) as i64;
            sqlx::query("DELETE FROM income WHERE at < (SELECT MAX(at) FROM income WHERE at <= $1)")
                .bind(old)
                .execute(&mut *transaction)
                .await?;
        }
        Self::put_setting(&mut *transaction, key, books).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// What was earned in all by `at` (Unix seconds), as the last point before it says; `None` where there is none.
    pub async fn income_at(&self, at: u64) -> Result<Option<IncomePoint>, StoreError> {
        let row = sqlx::query("SELECT at, earned, rate FROM income WHERE at <= $1 ORDER BY at DESC LIMIT 1");
        let row = row.bind(i64::try_from(at).unwrap_or(i64::MAX)).fetch_optional(&self.pool).await?;
        row.as_ref().map(income).transpose()
    }

    /// The first point at or after `at` (Unix seconds) from which on nothing flowed.
    pub async fn income_stopped(&self, at: u64) -> Result<Option<IncomePoint>, StoreError> {
        let row = sqlx::query("SELECT at, earned, rate FROM income WHERE at >= $1 AND rate = '0' ORDER BY at LIMIT 1");
        let row = row.bind(i64::try_from(at).unwrap_or(i64::MAX)).fetch_optional(&self.pool).await?;
        row.as_ref().map(income).transpose()
    }
}

fn shift(row: &SqliteRow) -> Result<ShiftRecord, StoreError> {
    Ok(ShiftRecord {
        id: row.try_get("id")?,
        began: number(row, "began")?,
        seen: number(row, "seen")?,
        ended: row.try_get("ended")?,
        model: row.try_get("model")?,
        layers: row.try_get("layers")?,
        members: u32::try_from(number(row, "members")?).unwrap_or(u32::MAX),
        work: work(row)?,
    })
}

fn hour(row: &SqliteRow) -> Result<HourRecord, StoreError> {
    Ok(HourRecord { hour: number(row, "hour")?, work: work(row)? })
}

fn work(row: &SqliteRow) -> Result<Work, StoreError> {
    Ok(Work {
        served: number(row, "served")?,
        measured: number(row, "measured")?,
        tokens: number(row, "tokens")?,
        energy: Energy(number(row, "energy")?),
        cost: amount(row, "cost")?,
    })
}

fn income(row: &SqliteRow) -> Result<IncomePoint, StoreError> {
    Ok(IncomePoint { at: number(row, "at")?, earned: amount(row, "earned")?, rate: amount(row, "rate")?.wei() })
}

fn number(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    Ok(row.try_get::<i64, _>(column)? as u64)
}

/// Wei as text: more than a column of numbers holds.
fn amount(row: &SqliteRow, column: &str) -> Result<Usdcx, StoreError> {
    let text: String = row.try_get(column)?;
    from_json("amount", &format!("\"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("state.db")).await.unwrap();
        (directory, store)
    }

    fn step(tokens: u64) -> Work {
        Work { served: 60_000, measured: 50_000, tokens, energy: Energy(7_000), cost: Usdcx::from_wei(11) }
    }

    #[tokio::test]
    async fn a_shift_adds_up_and_so_do_its_hours() {
        let (_directory, store) = store().await;
        let hour = 500_000;
        let noon = hour * 3_600_000;
        let first = store.shift_begun(noon + 3_480_000, "tiny", "0-3", 2).await.unwrap();
        store.shift_worked(first, noon + 3_540_000, step(5), false).await.unwrap();
        store.shift_worked(first, noon + 3_600_000, step(6), false).await.unwrap();
        let second = store.shift_begun(noon + 4_000_000, "tiny", "4-7", 2).await.unwrap();
        store.shift_worked(second, noon + 4_060_000, step(1), true).await.unwrap();
        let shifts = store.shifts(10).await.unwrap();
        assert_eq!(shifts.iter().map(|shift| shift.id).collect::<Vec<_>>(), [second, first], "the newest first");
        assert_eq!((shifts[0].ended, shifts[1].ended), (true, false));
        assert_eq!(shifts[1].work, Work { served: 120_000, ..step(5).plus(step(6)) });
        store.end_open_shifts().await.unwrap();
        let cut_off = store.shifts(10).await.unwrap().pop().unwrap();
        assert!(cut_off.ended && cut_off.seen == noon + 3_600_000, "it ended when it was last seen: {cut_off:?}");
        let hours = store.hours(hour..hour + 2).await.unwrap();
        let by_hour: Vec<(u64, u64)> = hours.iter().map(|hour| (hour.hour, hour.work.tokens)).collect();
        assert_eq!(by_hour, [(hour, 5), (hour + 1, 7)]);
        assert_eq!(store.hours(hour + 1..hour + 2).await.unwrap().len(), 1, "only what was asked for");
    }

    #[tokio::test]
    async fn income_is_known_for_every_moment_since_the_first() {
        let (_directory, store) = store().await;
        assert_eq!(store.income_at(u64::MAX).await.unwrap(), None);
        let point = |at, earned, rate| IncomePoint { at, earned: Usdcx::from_wei(earned), rate };
        let points = [point(100, 0, 7), point(110, 70, 0), point(150, 70, i128::from(u64::MAX))];
        store.income_booked(false, &points, "books", "one").await.unwrap();
        assert_eq!(store.income_at(99).await.unwrap(), None);
        let earned = async |at| store.income_at(at).await.unwrap().unwrap().until(at).wei();
        assert_eq!((earned(100).await, earned(105).await, earned(110).await, earned(149).await), (0, 35, 70, 70));
        assert_eq!(earned(152).await, 70 + 2 * i128::from(u64::MAX), "more than a column of numbers holds");
        let stopped = async |at| store.income_stopped(at).await.unwrap().map(|point| point.at);
        assert_eq!((stopped(100).await, stopped(110).await, stopped(111).await), (Some(110), Some(110), None));
        assert_eq!(store.setting("books").await.unwrap().as_deref(), Some("one"));
        store.income_booked(true, &[point(120, 3, 0)], "books", "two").await.unwrap();
        assert_eq!(store.income_at(115).await.unwrap(), None, "a re-organised chain is booked anew");
        let late = 120 + KEEP_HOURS * 3600;
        store.income_booked(false, &[point(200, 5, 0), point(late + 100, 9, 0)], "books", "three").await.unwrap();
        assert_eq!(earned(late).await, 5, "the last point before what is kept stays");
    }
}
