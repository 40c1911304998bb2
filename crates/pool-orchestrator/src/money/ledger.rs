//! The sessions that may be served, each with its meter: what is to be done for them, and when.
//!
//! The ledger decides and does nothing. It says which streams are not as they should be; whoever drives it sends what
//! is missing and says so. What is wanted replaces what was wanted before, so nothing queues up here.

use std::collections::HashMap;

use alloy_primitives::{Address, B256};
use pool_coalition::session::{Change, Ended, Meter};
use pool_types::{FlowRate, SessionId};
use tokio::sync::watch;

/// A session that may be served.
pub(crate) struct Live {
    pub(crate) vault: Address,
    /// It ends with its first request.
    pub(crate) one_request: bool,
    /// When its terms end, in Unix seconds.
    pub(crate) expiry: u64,
    meter: Meter,
    /// What the stream should be.
    wanted: FlowRate,
    /// What was last set on its way.
    intended: FlowRate,
    /// What was last seen to have arrived.
    arrived: FlowRate,
    /// A session of one request whose request has not begun is closed at this time.
    begin_by: Option<u64>,
    /// Set once it is to be closed.
    closing: Option<&'static str>,
    close_sent: bool,
    spent: watch::Sender<Option<&'static str>>,
}

/// What is known of a session whose vault is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenVault {
    pub(crate) vault: Address,
    /// The hash of its bearer token; none for a session of one request.
    pub(crate) token: Option<B256>,
    pub(crate) one_request: bool,
    /// When its terms end, in Unix seconds.
    pub(crate) expiry: u64,
    /// What flows now.
    pub(crate) rate: FlowRate,
}

/// Something to set on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The stream must be set to this rate.
    Rate(SessionId, Address, FlowRate),
    /// The session must be closed, for this reason.
    Close(SessionId, Address, &'static str),
}

/// Every live session, by id and by the hash of its token. Times are milliseconds of one clock that never goes back.
#[derive(Default)]
pub(crate) struct Ledger {
    sessions: HashMap<SessionId, Live>,
    tokens: HashMap<B256, SessionId>,
}

/// Leave for a request to run, as long as `spent` holds nothing.
pub(crate) type Spent = watch::Receiver<Option<&'static str>>;

/// A client that paid for one request is there to have it answered, or has gone: milliseconds.
const BEGIN_WITHIN: u64 = 5_000;

pub(crate) const USED_UP: &str = "the session's time is used up; open another session";
pub(crate) const OVER: &str = "the session was closed; open another session";

impl Ledger {
    /// A session is open on the chain. Only the stream of a session of one request is meant to run before its request
    /// begins; any other was left on by an earlier run.
    pub(crate) fn opened(&mut self, id: SessionId, open: OpenVault, meter: Meter, now: u64) {
        let OpenVault { vault, token, one_request, expiry, rate } = open;
        if let Some(token) = token {
            self.tokens.insert(token, id);
        }
        let live = Live {
            vault,
            one_request,
            expiry,
            meter,
            wanted: if one_request { rate } else { FlowRate::ZERO },
            intended: rate,
            arrived: rate,
            begin_by: one_request.then_some(now + BEGIN_WITHIN),
            closing: None,
            close_sent: false,
            spent: watch::channel(None).0,
        };
        // A step that is run again after a crash opens nothing twice.
        self.sessions.entry(id).or_insert(live);
    }

    /// The session of a token.
    pub(crate) fn by_token(&self, hash: &B256) -> Option<SessionId> {
        self.tokens.get(hash).copied()
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Live> {
        self.sessions.get(&id)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Every session's vault whose stream may run: it was set to, or has not been seen to stop.
    pub(crate) fn streaming(&self) -> Vec<(SessionId, Address)> {
        let runs = |live: &Live| live.intended != FlowRate::ZERO || live.arrived != FlowRate::ZERO;
        let streaming = self.sessions.iter().filter(|(_, live)| runs(live));
        streaming.map(|(id, live)| (*id, live.vault)).collect()
    }

    /// A rate has arrived on the chain.
    pub(crate) fn arrived(&mut self, id: SessionId, rate: FlowRate) {
        if let Some(live) = self.sessions.get_mut(&id) {
            live.arrived = rate;
        }
    }

    /// Whether the session's stream runs as far as we know: it was set, it arrived, and nothing else was set since.
    pub(crate) fn should_stream(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|live| {
            live.closing.is_none() && live.intended != FlowRate::ZERO && live.arrived == live.intended
        })
    }

    /// A request of the session begins.
    pub(crate) fn begin(&mut self, id: SessionId, now: u64) -> Result<Spent, Ended> {
        let live = self.sessions.get_mut(&id).ok_or(Ended::Closed)?;
        if live.closing.is_some() {
            return Err(Ended::Closed);
        }
        let change = live.meter.begin(now);
        live.begin_by = None;
        live.note(change.unwrap_or(Change::None));
        change.map(|_| live.spent.subscribe())
    }

    /// A request of the session has ended.
    pub(crate) fn end(&mut self, id: SessionId, now: u64) {
        let Some(live) = self.sessions.get_mut(&id) else { return };
        let change = live.meter.end(now);
        live.note(change);
        if live.one_request {
            live.close(now, "its request has ended");
        }
    }

    /// The session is to be closed.
    pub(crate) fn close(&mut self, id: SessionId, now: u64, why: &'static str) {
        if let Some(live) = self.sessions.get_mut(&id) {
            live.close(now, why);
        }
    }

    /// The session is closed on the chain.
    pub(crate) fn closed(&mut self, id: SessionId) {
        if let Some(live) = self.sessions.remove(&id) {
            live.spent.send_replace(Some(OVER));
        }
        self.tokens.retain(|_, session| *session != id);
    }

    /// Lets time pass, and says what is to be set on its way. The same is said again until [`Ledger::sent`].
    pub(crate) fn due(&mut self, now: u64, unix: u64) -> Vec<Due> {
        let mut due = Vec::new();
        for (id, live) in &mut self.sessions {
            let change = live.meter.tick(now);
            live.note(change);
            if live.meter.ended() == Some(Ended::Spent) {
                live.spent.send_if_modified(|spent| spent.replace(USED_UP).is_none());
                live.close(now, "its time is used up");
            } else if live.begin_by.is_some_and(|by| now >= by) {
                live.close(now, "its request never began");
            } else if unix >= live.expiry {
                live.close(now, "its terms have ended");
            }
            match live.closing {
                // Closing stops the stream as well.
                Some(why) if !live.close_sent => due.push(Due::Close(*id, live.vault, why)),
                None if live.wanted != live.intended => due.push(Due::Rate(*id, live.vault, live.wanted)),
                _ => {}
            }
        }
        due
    }

    /// What was due is on its way.
    pub(crate) fn sent(&mut self, due: &Due) {
        match due {
            Due::Rate(id, _, rate) => {
                if let Some(live) = self.sessions.get_mut(id) {
                    live.intended = *rate;
                }
            }
            Due::Close(id, ..) => {
                if let Some(live) = self.sessions.get_mut(id) {
                    (live.close_sent, live.intended) = (true, FlowRate::ZERO);
                }
            }
        }
    }

    /// A stream did not get to where it was set on its way to: what is wanted is to be sent again.
    pub(crate) fn not_sent(&mut self, id: SessionId, found: FlowRate) {
        if let Some(live) = self.sessions.get_mut(&id) {
            live.intended = found;
        }
    }

    /// Ends every running request, as when the orchestrator stops, and wants every stream to stand still.
    pub(crate) fn stand_still(&mut self, now: u64) {
        for live in self.sessions.values_mut() {
            live.wanted = FlowRate::ZERO;
            live.meter.close(now);
            live.spent.send_replace(Some(OVER));
        }
    }

    /// In how many milliseconds something will be due by itself; expiries are looked at every now and then.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        let open = self.sessions.values().filter(|live| live.closing.is_none());
        open.filter_map(|live| live.meter.wake_at().into_iter().chain(live.begin_by).min()).min()
    }
}

impl Live {
    pub(crate) fn seconds_left(&self, now: u64) -> u64 {
        self.meter.left(now) / 1000
    }

    pub(crate) fn running(&self) -> u32 {
        self.meter.running()
    }

    fn note(&mut self, change: Change) {
        if let Change::SetRate(rate) = change {
            self.wanted = rate;
        }
    }

    fn close(&mut self, now: u64, why: &'static str) {
        self.closing.get_or_insert(why);
        self.meter.close(now);
        self.wanted = FlowRate::ZERO;
        self.spent.send_if_modified(|spent| {
            let first = spent.is_none();
            spent.get_or_insert(OVER);
            first
        });
    }
}

#[cfg(test)]
mod tests {
    use pool_coalition::session::MeterSettings;

    use super::*;

    const RATE: FlowRate = FlowRate::from_units_per_second(100);
    const SOON: u64 = 1_800_000_000;

    fn id(byte: u8) -> SessionId {
        SessionId(B256::repeat_byte(byte))
    }

    fn vault(byte: u8) -> Address {
        Address::repeat_byte(byte)
    }

    fn ledger(one_request: bool) -> Ledger {
        let settings = MeterSettings { rate: RATE, sold: 60_000, linger: 5_000, most_requests: 2 };
        let mut ledger = Ledger::default();
        let rate = if one_request { RATE } else { FlowRate::ZERO };
        let token = (!one_request).then(|| B256::repeat_byte(1));
        let open = OpenVault { vault: vault(1), token, one_request, expiry: SOON, rate };
        ledger.opened(id(1), open, Meter::new(settings), 0);
        ledger
    }

    #[test]
    fn a_stream_is_wanted_once_and_what_was_not_sent_is_wanted_again() {
        let mut ledger = ledger(false);
        assert_eq!(ledger.due(0, 0), []);
        let spent = ledger.begin(id(1), 1_000).unwrap();
        let start = Due::Rate(id(1), vault(1), RATE);
        assert_eq!(ledger.due(1_000, 0), std::slice::from_ref(&start));
        assert_eq!(ledger.due(1_001, 0), std::slice::from_ref(&start), "said until it is sent");
        ledger.sent(&start);
        assert_eq!(ledger.due(1_002, 0), []);
        ledger.not_sent(id(1), FlowRate::ZERO);
        assert_eq!(ledger.due(1_003, 0), std::slice::from_ref(&start), "the transaction failed");
        ledger.sent(&start);
        ledger.end(id(1), 2_000);
        assert_eq!(ledger.due(6_999, 0), []);
        assert_eq!(ledger.due(7_000, 0), [Due::Rate(id(1), vault(1), FlowRate::ZERO)]);
        assert_eq!(*spent.borrow(), None);
    }

    #[test]
    fn a_start_that_was_never_sent_and_is_not_wanted_any_more_is_forgotten() {
        let mut ledger = ledger(false);
        let _running = ledger.begin(id(1), 0).unwrap();
        ledger.end(id(1), 10);
        assert_eq!(ledger.due(5_010, 0), [], "nothing was sent, so there is nothing to stop");
    }

    #[test]
    fn a_spent_session_ends_its_requests_and_is_closed() {
        let mut ledger = ledger(false);
        let spent = ledger.begin(id(1), 0).unwrap();
        ledger.sent(&Due::Rate(id(1), vault(1), RATE));
        let close = Due::Close(id(1), vault(1), "its time is used up");
        assert_eq!(ledger.due(60_000, 0), std::slice::from_ref(&close));
        assert_eq!(*spent.borrow(), Some(USED_UP));
        assert!(ledger.begin(id(1), 60_001).is_err());
        ledger.sent(&close);
        assert_eq!(ledger.due(60_002, 0), []);
        ledger.closed(id(1));
        assert_eq!((ledger.len(), ledger.by_token(&B256::repeat_byte(1))), (0, None));
    }

    #[test]
    fn a_session_of_one_request_closes_with_it_and_expired_terms_close_any() {
        let mut one = ledger(true);
        let _running = one.begin(id(1), 0).unwrap();
        assert_eq!(one.due(10, 0), [], "its stream was started with the vault");
        one.end(id(1), 20);
        assert_eq!(one.due(20, 0), [Due::Close(id(1), vault(1), "its request has ended")]);
        let mut left = ledger(true);
        assert_eq!(left.wake_at(), Some(5_000));
        let nobody = Due::Close(id(1), vault(1), "its request never began");
        assert_eq!(left.due(5_000, 0), [nobody], "its client went away while it was opened");
        let mut idle = ledger(false);
        assert_eq!(idle.due(0, SOON - 1), []);
        assert_eq!(idle.due(0, SOON), [Due::Close(id(1), vault(1), "its terms have ended")]);
    }
}
