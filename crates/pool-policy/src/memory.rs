//! What a decision must know of the past. It is plain data: written down and read back it decides the same.

use std::{collections::BTreeMap, time::Duration};

use jiff::tz::TimeZone;
use pool_types::Reading;
use serde::{Deserialize, Serialize};

use crate::{
    Command, Gpu, GpuId, GpuReason, Moment, Settings, Signals, Term,
    gpu::GpuMemory,
    owner::{Deadline, Wish},
    rules::{Leave, Verdict},
};

/// What [`decide`](crate::decide) has to remember from one moment to the next. [`Memory::default`] has seen nothing.
///
/// It is small and bounded; the node stores it so that a pause survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    last_look: Option<Moment>,
    wish: Wish,
    phase: Phase,
    /// Time since sharing last stopped, while that matters.
    since_stop: Option<Duration>,
    presence: Presence,
    gpus: BTreeMap<GpuId, GpuMemory>,
}

/// How far sharing has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Not sharing.
    #[default]
    Resting,
    /// About to, announced so long ago.
    Notice(Duration),
    /// Sharing.
    Sharing,
    /// Finishing what runs, for so long by now.
    Leaving(Duration),
}

impl Phase {
    pub(crate) fn shares(self) -> bool {
        matches!(self, Self::Sharing | Self::Leaving(_))
    }
}

/// Signs of the owner that the input sensor does not show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Presence {
    /// Time since the last of them: somebody who watches a film touches nothing and is there.
    since_sign: Option<Duration>,
    /// Whether the input sensor worked at the last look. When it fails, that too counts as a sign: what it did not see
    /// may have been an input.
    sensor_worked: bool,
}

/// Where the owner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Away,
    /// Away in so long, if nothing more is touched.
    Here {
        away_in: Duration,
    },
    /// There is no way to know. For so long it is better to wait whatever the schedule says.
    Unknown {
        because: String,
        wait: Duration,
    },
}

impl Memory {
    /// The owner asked for something. It shows in the next decision.
    pub fn obey(&self, command: Command, settings: &Settings, now: Moment, zone: &TimeZone) -> Self {
        let mut memory = self.clone();
        // The next decision takes the time since the last look off whatever ends; what begins now has not used it.
        let unseen = now.elapsed_since(self.last_look);
        let pause = |term| Wish::Pause(Deadline::begin(term, now, unseen, zone));
        match command {
            Command::Pause(term) => memory.wish = pause(term),
            Command::NotNow => memory.wish = pause(Term::For(settings.start_after)),
            Command::FinishThenPause if matches!(self.wish, Wish::Pause(_)) => {}
            Command::FinishThenPause => {
                memory.wish = Wish::FinishThenPause { overrides: self.wish.overrides_soft_rules() };
            }
            Command::ShareNow(term) => {
                memory.wish = Wish::ShareNow(Deadline::begin(term, now, unseen, zone));
                memory.rested();
            }
            Command::Resume => {
                memory.wish = Wish::Settings;
                memory.rested();
            }
        }
        memory
    }

    /// Whoever asks for it need not wait until the hysteresis is over.
    fn rested(&mut self) {
        self.since_stop = None;
        self.gpus.values_mut().for_each(GpuMemory::rested);
    }

    /// Time has passed, and this is what the sensors say.
    pub(crate) fn observe(&mut self, settings: &Settings, now: Moment, signals: &Signals) {
        let elapsed = now.elapsed_since(self.last_look);
        self.last_look = Some(now);
        self.wish.advance(now, elapsed);
        self.since_stop = self.since_stop.map(|before| before.saturating_add(elapsed));
        if let Phase::Notice(lasted) | Phase::Leaving(lasted) = &mut self.phase {
            *lasted = lasted.saturating_add(elapsed);
        }
        self.presence.observe(settings, signals, elapsed);
        self.observe_gpus(settings, signals, elapsed);

        let time_is_up = match self.phase {
            Phase::Leaving(lasted) => lasted >= settings.finish_within.duration(),
            _ => settings.finish_within.0 == 0,
        };
        if !self.phase.shares() || signals.activity.requests() == 0 || time_is_up {
            self.wish.finished();
        }
    }

    fn observe_gpus(&mut self, settings: &Settings, signals: &Signals, elapsed: Duration) {
        for gpu in signals.gpus() {
            self.gpus.entry(gpu.id.clone()).or_default();
        }
        if self.gpus.len() > Signals::MAX_GPUS {
            self.gpus.retain(|id, _| signals.gpus().any(|gpu| gpu.id == *id));
        }
        for (id, memory) in &mut self.gpus {
            memory.advance(elapsed);
            memory.observe(signals.gpus().find(|gpu| gpu.id == *id), settings, elapsed);
        }
    }

    /// The decision is made: what follows from it for the next one.
    pub(crate) fn settle(&mut self, settings: &Settings, signals: &Signals, verdict: &Verdict) {
        let before = self.phase;
        let notice = settings.notice.duration();
        let at_once = notice.is_zero() || matches!(self.wish, Wish::ShareNow(_));
        let finish_within = settings.finish_within.duration();
        let something_to_finish = signals.activity.requests() > 0;
        self.phase = match (verdict, before) {
            (Verdict::May(_), Phase::Sharing | Phase::Leaving(_)) => Phase::Sharing,
            (Verdict::May(_), Phase::Resting) if !at_once => Phase::Notice(Duration::ZERO),
            (Verdict::May(_), Phase::Notice(lasted)) if !at_once && lasted < notice => Phase::Notice(lasted),
            (Verdict::May(_), Phase::Resting | Phase::Notice(_)) => Phase::Sharing,
            (Verdict::MayNot(_, Leave::Gently), Phase::Sharing) if something_to_finish && !finish_within.is_zero() => {
                Phase::Leaving(Duration::ZERO)
            }
            (Verdict::MayNot(_, Leave::Gently), Phase::Leaving(lasted))
                if something_to_finish && lasted < finish_within =>
            {
                Phase::Leaving(lasted)
            }
            (Verdict::MayNot(..), _) => Phase::Resting,
        };
        if before.shares() && !self.phase.shares() {
            self.since_stop = Some(Duration::ZERO);
        } else if self.phase.shares() || self.node_rest(settings).is_zero() {
            self.since_stop = None;
        }
        for (id, memory) in &mut self.gpus {
            let gpu = signals.gpus().find(|gpu| gpu.id == *id);
            let forbidden = |gpu| memory.forbidden(gpu, settings, self.wish.overrides_soft_rules()).is_some();
            let may_use =
                self.phase.shares() && gpu.is_some_and(|gpu| !forbidden(gpu)) && memory.rest(settings).is_zero();
            memory.settle(may_use, settings);
        }
    }

    pub(crate) fn wish(&self) -> Wish {
        self.wish
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// How much longer nothing starts after a stop.
    pub(crate) fn node_rest(&self, settings: &Settings) -> Duration {
        self.since_stop.map_or(Duration::ZERO, |since| settings.rest_after_stop.duration().saturating_sub(since))
    }

    /// How much longer this GPU rests.
    pub(crate) fn gpu_rest(&self, gpu: &Gpu, settings: &Settings) -> Duration {
        self.gpus.get(&gpu.id).map_or(Duration::ZERO, |memory| memory.rest(settings))
    }

    /// What speaks against using this GPU, its rest apart.
    pub(crate) fn gpu_forbidden(&self, gpu: &Gpu, settings: &Settings) -> Option<GpuReason> {
        let memory = self.gpus.get(&gpu.id)?;
        memory.forbidden(gpu, settings, self.wish.overrides_soft_rules())
    }

    /// The time until that could be over.
    pub(crate) fn gpu_allows_in(&self, gpu: &Gpu, reason: &GpuReason, settings: &Settings) -> Duration {
        self.gpus.get(&gpu.id).map_or(Duration::ZERO, |memory| memory.allows_in(reason, settings))
    }

    pub(crate) fn owner(&self, settings: &Settings, idle: &Reading<Duration>) -> Owner {
        let needed = settings.away_after().duration();
        let since_sign = self.presence.since_sign.unwrap_or(Duration::MAX);
        match idle {
            Reading::Known(idle) => match needed.saturating_sub((*idle).min(since_sign)) {
                Duration::ZERO => Owner::Away,
                away_in => Owner::Here { away_in },
            },
            Reading::Unavailable(because) => {
                Owner::Unknown { because: because.clone(), wait: needed.saturating_sub(since_sign) }
            }
        }
    }
}

impl Presence {
    fn observe(&mut self, settings: &Settings, signals: &Signals, elapsed: Duration) {
        let works = signals.idle.known().is_some();
        let sensor_failed = self.sensor_worked && !works;
        let screen_taken = settings.waits_for_screen(signals);
        let sign = sensor_failed || screen_taken || settings.listed_program(signals).is_some();
        self.since_sign = if sign { Some(Duration::ZERO) } else { self.since_sign.map(|t| t.saturating_add(elapsed)) };
        self.sensor_worked = works;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Percent, Seconds};

    #[test]
    fn a_memory_of_another_version_is_read_as_far_as_it_goes() {
        let memory: Memory = serde_json::from_str(r#"{ "phase": "sharing", "something": "new" }"#).unwrap();
        assert_eq!(memory, Memory { phase: Phase::Sharing, ..Memory::default() });
    }

    #[test]
    fn gpus_that_come_and_go_do_not_fill_the_memory() {
        let settings = Settings::default();
        let mut memory = Memory::default();
        let mut signals = Signals::unavailable("a test");
        for number in 0..1_000 {
            let id = GpuId(number.to_string());
            let gpu = Gpu {
                id,
                name: "eGPU".into(),
                busy: Reading::Known(Percent(0)),
                memory_free: Reading::unavailable("a test"),
                memory_ours: Default::default(),
                memory_needed: Default::default(),
                temperature: Reading::unavailable("a test"),
            };
            signals.gpus = Reading::Known(vec![gpu]);
            let now = Moment { wall: Default::default(), steady: Duration::from_secs(number) };
            memory.observe(&settings, now, &signals);
            assert!(memory.gpus.len() <= Signals::MAX_GPUS, "{} GPUs are remembered", memory.gpus.len());
        }
    }

    #[test]
    fn a_clock_that_was_not_looked_at_takes_nothing_off_a_pause_that_begins() {
        let (settings, zone) = (Settings::default(), TimeZone::UTC);
        let at = |steady| Moment { wall: Default::default(), steady: Duration::from_secs(steady) };
        let mut memory = Memory::default();
        memory.observe(&settings, at(10), &Signals::unavailable("a test"));
        let mut paused = memory.obey(Command::Pause(Term::For(Seconds(60))), &settings, at(14), &zone);
        paused.observe(&settings, at(14), &Signals::unavailable("a test"));
        let Wish::Pause(deadline) = paused.wish() else { panic!("the pause has begun") };
        assert_eq!(deadline.ends(at(14)), Some(at(14).after(Duration::from_secs(60))), "a whole minute");
    }
}
