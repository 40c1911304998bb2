//! Chooses among the sources that know when the last input was, and announces inputs.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use pool_types::Reading;
use tokio::sync::watch;

use crate::{
    cell::Cell,
    controllers::Controllers,
    lane::Calls,
    sensor::{InputSource, LastInput},
    values::IdleSource,
};

/// Where nothing tells, everything is tried again after this time: a desktop may have started meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Where a later source serves, the earlier ones are tried again after this time.
const TRY_BETTER: Duration = Duration::from_secs(30);

/// The longest wait of a source, so that the thread ends soon when asked to.
const SLICE: Duration = Duration::from_millis(200);

/// A last input and who knows of it.
pub(crate) type Seen = (LastInput, IdleSource);

/// A source that may or may not be there.
pub(crate) struct Candidate {
    pub(crate) source: IdleSource,
    /// Looks whether it is there; may take as long as a reading.
    pub(crate) open: Box<dyn FnMut() -> Reading<Box<dyn InputSource>> + Send>,
}

/// Asks the first source that works, in the order given, and looks for another when it stops working.
pub(crate) struct OwnerInput {
    controllers: Box<dyn Controllers>,
    candidates: Vec<Candidate>,
    current: Option<(usize, Box<dyn InputSource>)>,
    try_others_at: Instant,
    /// Why nothing works.
    reason: String,
}

impl OwnerInput {
    pub(crate) fn new(candidates: Vec<Candidate>, controllers: Box<dyn Controllers>) -> Self {
        let reason = "nothing here tells when somebody last used this computer".to_owned();
        Self { controllers, candidates, current: None, try_others_at: Instant::now(), reason }
    }

    /// The last input of keyboard and mouse, or of a game controller if that was later. Controllers alone prove
    /// nothing: without a source there is no reading.
    pub(crate) fn read(&mut self) -> Reading<Seen> {
        let played = self.controllers.last_played();
        self.ask().map(|seen| {
            let now = Instant::now();
            let idle = played.map(|played| now.saturating_duration_since(played));
            match idle.filter(|idle| *idle < seen.0.idle_for(now)) {
                // It was pressed since the look before.
                Some(idle) => (LastInput::between(now, idle, idle + SLICE), IdleSource::Controller),
                None => seen,
            }
        })
    }

    fn ask(&mut self) -> Reading<Seen> {
        let now = Instant::now();
        let mut serves = None;
        if let Some((rank, source)) = &mut self.current {
            match source.read() {
                Reading::Known(last) => serves = Some((*rank, last)),
                Reading::Unavailable(_) => {
                    self.current = None;
                    self.try_others_at = now;
                }
            }
        }
        match serves {
            Some((0, last)) => Reading::Known((last, self.candidates[0].source)),
            Some((rank, last)) => {
                let better = if now >= self.try_others_at { self.probe(rank).known().copied() } else { None };
                Reading::Known(better.unwrap_or((last, self.candidates[rank].source)))
            }
            None if now < self.try_others_at => Reading::Unavailable(self.reason.clone()),
            None => self.probe(self.candidates.len()),
        }
    }

    /// Tries the candidates before `end`; the first that answers serves from now on.
    fn probe(&mut self, end: usize) -> Reading<Seen> {
        let mut reasons = Vec::new();
        for (rank, candidate) in self.candidates.iter_mut().enumerate().take(end) {
            let opened = (candidate.open)();
            let answer = match opened {
                Reading::Known(mut source) => source.read().map(|last| (last, source)),
                Reading::Unavailable(reason) => Reading::Unavailable(reason),
            };
            match answer {
                Reading::Known((last, source)) => {
                    self.current = Some((rank, source));
                    self.try_others_at = Instant::now() + TRY_BETTER;
                    return Reading::Known((last, candidate.source));
                }
                Reading::Unavailable(reason) => reasons.push(reason),
            }
        }
        if self.current.is_some() {
            self.try_others_at = Instant::now() + TRY_BETTER;
        } else {
            self.try_others_at = Instant::now() + TRY_AGAIN;
            if !reasons.is_empty() {
                let reasons = reasons.join("; ");
                self.reason = format!("nothing here tells when somebody last used this computer ({reasons})");
            }
        }
        Reading::Unavailable(self.reason.clone())
    }

    fn wait(&mut self) {
        match &mut self.current {
            Some((_, source)) => source.wait(SLICE),
            None => thread::sleep(SLICE.min(self.try_others_at.saturating_duration_since(Instant::now()))),
        }
    }

    /// The thread's work: keeps `cell` true and tells `news` of every input as soon as it is seen.
    pub(crate) fn follow(mut self, cell: &Arc<Cell<Seen>>, news: &watch::Sender<Reading<Instant>>, calls: &Calls) {
        let mut known: Option<LastInput> = None;
        while !calls.ends() {
            let reading = self.read();
            let now = Instant::now();
            // Stored before it is told: whoever hears of an input and looks finds it.
            match &reading {
                Reading::Known((last, _)) => {
                    cell.set(reading.clone(), last.observed());
                    if known.is_none_or(|earlier| last.is_news_after(&earlier)) {
                        let at = now.checked_sub(last.idle_for(now)).unwrap_or(now);
                        news.send_replace(Reading::Known(at));
                    }
                    known = Some(*last);
                }
                Reading::Unavailable(reason) => {
                    cell.set(reading.clone(), now);
                    news.send_if_modified(|told| {
                        let was_known = told.known().is_some();
                        *told = Reading::Unavailable(reason.clone());
                        was_known
                    });
                    known = None;
                }
            }
            self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{controllers::NoControllers, sensor::Sensor};

    /// A source that works while its switch is on.
    struct Switched(Arc<AtomicBool>);

    impl Sensor<LastInput> for Switched {
        fn read(&mut self) -> Reading<LastInput> {
            match self.0.load(Ordering::SeqCst) {
                true => Reading::Known(LastInput::between(Instant::now(), Duration::ZERO, Duration::ZERO)),
                false => Reading::unavailable("it is switched off"),
            }
        }
    }

    impl InputSource for Switched {
        fn wait(&mut self, _at_most: Duration) {}
    }

    fn candidate(source: IdleSource, on: &Arc<AtomicBool>) -> Candidate {
        let on = on.clone();
        let open = move || match on.load(Ordering::SeqCst) {
            true => Reading::Known(Box::new(Switched(on.clone())) as Box<dyn InputSource>),
            false => Reading::Unavailable(format!("{source} is off")),
        };
        Candidate { source, open: Box::new(open) }
    }

    #[test]
    fn the_first_source_that_works_serves_and_another_takes_over() {
        let (first, second) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let both = vec![candidate(IdleSource::X11, &first), candidate(IdleSource::Mutter, &second)];
        let mut input = OwnerInput::new(both, Box::new(NoControllers));
        let who = |input: &mut OwnerInput| input.read().map(|(_, source)| source);
        assert_eq!(who(&mut input), Reading::Known(IdleSource::X11), "both work: the first in order");
        first.store(false, Ordering::SeqCst);
        assert_eq!(who(&mut input), Reading::Known(IdleSource::Mutter), "the next takes over without a gap");
        second.store(false, Ordering::SeqCst);
        let told = who(&mut input).to_string();
        for reason in ["the X server is off", "GNOME is off"] {
            assert!(told.contains(reason), "every source says why it does not serve: {told}");
        }
        first.store(true, Ordering::SeqCst);
        assert!(who(&mut input).known().is_none(), "it is not tried at every reading");
        input.try_others_at = Instant::now();
        assert_eq!(who(&mut input), Reading::Known(IdleSource::X11), "it came back");
    }

    #[test]
    fn a_better_source_is_noticed_later() {
        let (first, second) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let mut input = OwnerInput::new(
            vec![candidate(IdleSource::X11, &first), candidate(IdleSource::Login, &second)],
            Box::new(NoControllers),
        );
        assert_eq!(input.read().map(|(_, source)| source), Reading::Known(IdleSource::Login));
        first.store(true, Ordering::SeqCst);
        assert_eq!(input.read().map(|(_, source)| source), Reading::Known(IdleSource::Login), "not tried every time");
        input.try_others_at = Instant::now();
        assert_eq!(input.read().map(|(_, source)| source), Reading::Known(IdleSource::X11), "the better one serves");
    }

    /// A keyboard that nobody touches, and a controller that is played since a moment.
    struct Untouched(Instant);

    impl Sensor<LastInput> for Untouched {
        fn read(&mut self) -> Reading<LastInput> {
            let now = Instant::now();
            Reading::Known(LastInput::from_idle_time(now, now, now - self.0 + Duration::from_secs(600), Duration::ZERO))
        }
    }

    impl InputSource for Untouched {
        fn wait(&mut self, _at_most: Duration) {}
    }

    struct Played(Option<Instant>);

    impl Controllers for Played {
        fn last_played(&mut self) -> Option<Instant> {
            self.0
        }
    }

    #[test]
    fn somebody_who_plays_with_a_controller_is_there() {
        let start = Instant::now();
        let open = move || Reading::Known(Box::new(Untouched(start)) as Box<dyn InputSource>);
        let keyboard = || vec![Candidate { source: IdleSource::X11, open: Box::new(open) }];
        let mut input = OwnerInput::new(keyboard(), Box::new(Played(None)));
        let away = input.read().known().copied().expect("the keyboard's source works");
        assert_eq!(away.1, IdleSource::X11, "nobody plays");
        input.controllers = Box::new(Played(Some(Instant::now())));
        let here = input.read().known().copied().expect("the keyboard's source works");
        assert_eq!(here.1, IdleSource::Controller, "the controller was used later than the keyboard");
        assert!(here.0.is_news_after(&away.0), "that is an input");
        let still = input.read().known().copied().expect("the keyboard's source works");
        assert!(!still.0.is_news_after(&here.0), "but only one");
        let alone = OwnerInput::new(Vec::new(), Box::new(Played(Some(start)))).read();
        assert!(alone.known().is_none(), "who does not see the keyboard does not know who is away");
    }
}
