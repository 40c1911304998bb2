//! What is told of work and money, put together from the node's books and what is known of the chain.

use jiff::{Timestamp, tz::TimeZone};
use pool_node::income::{Income, IncomeView};
use pool_store::{IncomePoint, ShiftRecord, Store, StoreError, Work};
use pool_types::Usdcx;

use crate::wire::{EarningsView, Period, ShiftStatus, ShiftView};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// One look at the books.
pub(crate) struct Books<'a> {
    pub(crate) store: &'a Store,
    /// Where the node follows a chain.
    pub(crate) income: Option<&'a Income>,
    pub(crate) zone: &'a TimeZone,
    /// The price of electricity is known: costs are counted.
    pub(crate) counts_costs: bool,
    pub(crate) now: Timestamp,
}

impl Books<'_> {
    fn now(&self) -> u64 {
        u64::try_from(self.now.as_second()).unwrap_or(0)
    }

    /// What is known of the chain, and up to when it holds. Money streams between blocks too: as long as the chain can be
    /// read, what ran at the last block runs.
    fn known(&self) -> (IncomeView, u64) {
        let Some(income) = self.income else { return (IncomeView::default(), self.now()) };
        let view = income.view().borrow().clone();
        let known = view.read.max(view.last.at);
        let until = if view.trouble.is_some() || view.read == 0 { known } else { self.now().max(known) };
        (view, until)
    }

    /// What had been earned in all by then.
    async fn earned(&self, at: u64) -> Result<Usdcx, StoreError> {
        Ok(self.store.income_at(at).await?.map_or(Usdcx::ZERO, |point| point.until(at)))
    }

    fn period(&self, from: u64, gross: Usdcx, work: Work) -> Period {
        let cost = self.counts_costs.then_some(work.cost);
        Period {
            from,
            gross: gross.to_string(),
            served: work.served / 1000,
            tokens: work.tokens,
            watt_hours: work.energy.0 / 3_600_000,
            measured: work.measured / 1000,
            cost: cost.map(|cost| cost.to_string()),
            net: cost.and_then(|cost| gross.checked_sub(cost)).map(|net| net.to_string()),
        }
    }

    /// What came from `from` (Unix seconds) until `until`; work by whole hours.
    async fn since(&self, from: u64, until: u64) -> Result<Period, StoreError> {
        let gross = self.earned(until).await?.checked_sub(self.earned(from).await?).unwrap_or_default();
        let hours = self.store.hours(from / HOUR..u64::MAX >> 1).await?;
        let work = hours.iter().fold(Work::default(), |sum, hour| sum.plus(hour.work));
        Ok(self.period(from, gross, work))
    }

    /// Everything about what was earned.
    pub(crate) async fn earnings(&self) -> Result<EarningsView, StoreError> {
        let (view, until) = self.known();
        let now = self.now();
        let midnight = self
            .now
            .to_zoned(self.zone.clone())
            .start_of_day()
            .map_or(now, |start| u64::try_from(start.timestamp().as_second()).unwrap_or(0));
        let book = self.income.map(|income| income.chain().book());
        Ok(EarningsView {
            network: book.map(|book| book.network.clone()),
            test_money: book.is_none_or(|book| !book.real_money),
            earned: view.last.until(until).to_string(),
            rate: Usdcx::from_wei(view.last.rate).to_string(),
            at: until,
            today: self.since(midnight, until).await?,
            week: self.since(now.saturating_sub(7 * DAY), until).await?,
            month: self.since(now.saturating_sub(30 * DAY), until).await?,
            reconciled_until: view.agreed,
            differs: view.differs.map(|difference| difference.to_string()),
            trouble: view.trouble,
        })
    }

    /// The newest shifts, the newest first.
    pub(crate) async fn shifts(&self, limit: u32) -> Result<Vec<ShiftView>, StoreError> {
        let (view, until) = self.known();
        let mut told = Vec::new();
        let mut next: Option<u64> = None;
        for shift in self.store.shifts(limit).await? {
            let (began, ended) = (shift.began / 1000, shift.seen / 1000);
            let end = next.unwrap_or(until).max(began);
            next = Some(began);
            let gross = self.earned(end).await?.checked_sub(self.earned(began).await?).unwrap_or_default();
            let stop = self.store.income_stopped(ended).await?.filter(|stop| stop.at < end);
            let paid = gross != Usdcx::ZERO;
            told.push(ShiftView {
                status: self.status(&shift, &view, end),
                books: self.period(began, gross, shift.work),
                // Only of a stream that this shift began.
                stream_ran_on: stop.filter(|_| shift.ended && paid).map(|stop| stop.at.saturating_sub(ended)),
                id: shift.id,
                began: shift.began,
                ended: shift.ended.then_some(shift.seen),
                model: shift.model,
                layers: shift.layers,
                members: shift.members,
            });
        }
        Ok(told)
    }

    /// `end`: until when what streams is this shift's.
    fn status(&self, shift: &ShiftRecord, view: &IncomeView, end: u64) -> ShiftStatus {
        if self.income.is_none() {
            return ShiftStatus::Unpaid;
        }
        let IncomePoint { rate, at, .. } = view.last;
        let streams = rate != 0 && at < end && end >= self.now();
        match (shift.ended, streams) {
            (_, true) => ShiftStatus::Streaming,
            (false, false) => ShiftStatus::Idle,
            // Nothing can change any more of what streamed until the rate changed last.
            (true, false) if view.agreed.is_some_and(|agreed| agreed >= end.min(at.max(shift.seen / 1000))) => {
                ShiftStatus::Reconciled
            }
            (true, false) if view.differs.is_some() => ShiftStatus::Unreconciled,
            (true, false) => ShiftStatus::Stopped,
        }
    }
}
