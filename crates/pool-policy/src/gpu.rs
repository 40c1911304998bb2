//! What is remembered of each GPU, so that it neither flaps between two readings nor comes back too soon.

use std::time::Duration;

use pool_types::{ByteSize, Reading};
use serde::{Deserialize, Serialize};

use crate::{Gpu, GpuReason, Settings};

/// One GPU's past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GpuMemory {
    busy: Latch,
    memory: Latch,
    heat: Latch,
    /// Whether it might be used after the last decision.
    in_use: bool,
    /// Time since it was taken back from us, while that matters.
    taken_back: Option<Duration>,
}

/// A rule that forbids only after a while and allows again only after another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Latch {
    forbids: bool,
    /// For how long the readings have spoken against `forbids`, without a break.
    spoken_against: Option<Duration>,
}

/// What one reading says about a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Forbid,
    Allow,
    /// Between the two thresholds: as before.
    Neither,
    /// The sensor is unavailable.
    Nothing,
}

/// How long the readings must say the same before a rule follows them.
struct Patience {
    forbid: Duration,
    allow: Duration,
    /// A rule that forbids while its sensor is unavailable cannot be applied for ever.
    silence: Duration,
}

impl Latch {
    fn follow(&mut self, says: Says, elapsed: Duration, patience: &Patience) {
        let against = match says {
            Says::Forbid => !self.forbids,
            Says::Allow | Says::Nothing => self.forbids,
            Says::Neither => false,
        };
        if !against {
            self.spoken_against = None;
            return;
        }
        let lasted = self.spoken_against.map_or(Duration::ZERO, |before| before.saturating_add(elapsed));
        let needed = match says {
            Says::Forbid => patience.forbid,
            Says::Nothing => patience.silence,
            Says::Allow | Says::Neither => patience.allow,
        };
        if lasted >= needed {
            *self = Self { forbids: !self.forbids, spoken_against: None };
        } else {
            self.spoken_against = Some(lasted);
        }
    }

    /// How long it takes at least until the rule allows, if the readings allow from now on.
    fn allows_in(&self, patience: Duration) -> Duration {
        patience.saturating_sub(self.spoken_against.unwrap_or_default())
    }
}

fn says<T>(reading: &Reading<T>, judge: impl FnOnce(&T) -> Says) -> Says {
    reading.known().map_or(Says::Nothing, judge)
}

fn forbid_if(forbidden: bool) -> Says {
    if forbidden { Says::Forbid } else { Says::Allow }
}

impl GpuMemory {
    /// A GPU that was too hot when its thermometer failed has cooled down after so long.
    const COOLS_WITHIN: Duration = Duration::from_secs(600);

    /// Time has passed.
    pub(crate) fn advance(&mut self, elapsed: Duration) {
        self.taken_back = self.taken_back.map(|before| before.saturating_add(elapsed));
    }

    /// What its sensors say now, or that there are none for the moment.
    pub(crate) fn observe(&mut self, gpu: Option<&Gpu>, settings: &Settings, elapsed: Duration) {
        let calm = settings.gpu_calm_for.duration();
        let busy = Patience { forbid: settings.gpu_busy_for.duration(), allow: calm, silence: calm };
        let memory = Patience { forbid: Duration::ZERO, allow: calm, silence: calm };
        let heat = Patience { forbid: Duration::ZERO, allow: Duration::ZERO, silence: Self::COOLS_WITHIN };

        let load = gpu.map_or(Says::Nothing, |gpu| says(&gpu.busy, |busy| forbid_if(*busy > settings.gpu_busy_above)));
        let room = gpu.map_or(Says::Nothing, |gpu| {
            says(&gpu.memory_free, |free| forbid_if(is_short(gpu, *free, settings.gpu_memory_reserve)))
        });
        let warmth = gpu.map_or(Says::Nothing, |gpu| {
            says(&gpu.temperature, |celsius| match *celsius {
                hot if hot >= settings.gpu_pause_at => Says::Forbid,
                cool if cool <= settings.gpu_resume_at => Says::Allow,
                _ => Says::Neither,
            })
        });
        self.busy.follow(load, elapsed, &busy);
        self.memory.follow(room, elapsed, &memory);
        self.heat.follow(warmth, elapsed, &heat);
    }

    /// The rule that keeps it from being used, before the one that only lets it rest.
    pub(crate) fn forbidden(&self, gpu: &Gpu, settings: &Settings, override_soft: bool) -> Option<GpuReason> {
        if !settings.gpus.includes(&gpu.id) {
            Some(GpuReason::NotChosen)
        } else if self.heat.forbids {
            Some(GpuReason::Hot { celsius: gpu.temperature.known().copied(), resumes_at: settings.gpu_resume_at })
        } else if self.memory.forbids {
            Some(GpuReason::MemoryNeeded)
        } else if self.busy.forbids && !override_soft {
            Some(GpuReason::Busy)
        } else {
            None
        }
    }

    /// How much longer it rests after it was taken back.
    pub(crate) fn rest(&self, settings: &Settings) -> Duration {
        let rest = settings.rest_after_stop.duration();
        self.taken_back.map_or(Duration::ZERO, |since| rest.saturating_sub(since))
    }

    /// The time until the rule that holds now could allow, at the earliest.
    pub(crate) fn allows_in(&self, reason: &GpuReason, settings: &Settings) -> Duration {
        let calm = settings.gpu_calm_for.duration();
        match reason {
            GpuReason::Busy => self.busy.allows_in(calm),
            GpuReason::MemoryNeeded => self.memory.allows_in(calm),
            GpuReason::NotChosen | GpuReason::Hot { .. } | GpuReason::Rests { .. } => Duration::ZERO,
        }
    }

    /// What was decided.
    pub(crate) fn settle(&mut self, may_use: bool, settings: &Settings) {
        if self.in_use && !may_use {
            self.taken_back = Some(Duration::ZERO);
        } else if self.rest(settings) == Duration::ZERO {
            self.taken_back = None;
        }
        self.in_use = may_use;
    }

    /// The owner asked for it: no need to rest.
    pub(crate) fn rested(&mut self) {
        self.taken_back = None;
    }
}

/// Whether other programs are left with less than `reserve` once our shard has what it needs.
fn is_short(gpu: &Gpu, free: ByteSize, reserve: ByteSize) -> bool {
    let for_us = free.0.saturating_add(gpu.memory_ours.0);
    for_us < gpu.memory_needed.0.saturating_add(reserve.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Celsius, GpuId, Percent, Seconds};

    const SECOND: Duration = Duration::from_secs(1);

    fn gpu() -> Gpu {
        Gpu {
            id: GpuId("GPU-1".into()),
            name: "RTX 4090".into(),
            busy: Reading::Known(Percent(0)),
            memory_free: Reading::Known(ByteSize(8 << 30)),
            memory_ours: ByteSize(0),
            memory_needed: ByteSize(6 << 30),
            temperature: Reading::Known(Celsius(50)),
        }
    }

    /// The seconds after which what keeps the GPU from being used changes, starting with the first.
    fn story(readings: impl IntoIterator<Item = Gpu>) -> Vec<(usize, Option<GpuReason>)> {
        let settings = Settings::default();
        let mut memory = GpuMemory::default();
        let mut changes: Vec<(usize, Option<GpuReason>)> = Vec::new();
        for (second, gpu) in readings.into_iter().enumerate() {
            memory.observe(Some(&gpu), &settings, SECOND);
            let reason = memory.forbidden(&gpu, &settings, false);
            let kind = |reason: &Option<GpuReason>| reason.as_ref().map(std::mem::discriminant);
            if changes.last().is_none_or(|(_, before)| kind(before) != kind(&reason)) {
                changes.push((second, reason));
            }
        }
        changes
    }

    #[test]
    fn a_short_burst_of_load_is_no_reason_and_a_long_one_is_until_30_quiet_seconds() {
        let load = |percent| Gpu { busy: Reading::Known(Percent(percent)), ..gpu() };
        let burst = std::iter::repeat_n(load(90), 5).chain(std::iter::repeat_n(load(0), 60));
        assert_eq!(story(burst), [(0, None)], "seen busy over 4 seconds");
        let film = std::iter::repeat_n(load(11), 20).chain(std::iter::repeat_n(load(10), 60));
        assert_eq!(story(film), [(0, None), (5, Some(GpuReason::Busy)), (50, None)], "10 % is not above 10 %");
        let pauses = std::iter::repeat_n(load(40), 10).chain((0..90).map(|n| load(if n % 30 == 29 { 40 } else { 0 })));
        assert_eq!(story(pauses).last(), Some(&(5, Some(GpuReason::Busy))), "29 quiet seconds are not 30");
    }

    #[test]
    fn a_hot_gpu_cools_from_83_to_75_degrees() {
        let at = |celsius| Gpu { temperature: Reading::Known(Celsius(celsius)), ..gpu() };
        let cycle = [82, 83, 82, 76, 75, 82, 83].map(at);
        let hot = |celsius| Some(GpuReason::Hot { celsius: Some(Celsius(celsius)), resumes_at: Celsius(75) });
        assert_eq!(story(cycle), [(0, None), (1, hot(83)), (4, None), (6, hot(83))]);
    }

    #[test]
    fn memory_that_another_program_needs_is_given_back_and_our_own_is_not_counted_against_us() {
        let free = |free: u64, ours: u64| Gpu {
            memory_free: Reading::Known(ByteSize(free)),
            memory_ours: ByteSize(ours),
            ..gpu()
        };
        let (reserve, needed) = (256 << 20, 6 << 30);
        assert_eq!(story([free(reserve, needed)]), [(0, None)], "the shard is loaded and the reserve is free");
        assert_eq!(story([free(reserve - 1, needed)]), [(0, Some(GpuReason::MemoryNeeded))], "somebody takes of it");
        assert_eq!(story([free(needed, 0)]), [(0, Some(GpuReason::MemoryNeeded))], "the shard would leave nothing");
    }

    #[test]
    fn a_sensor_that_is_unavailable_forbids_nothing_and_does_not_count_as_good_news_at_once() {
        let blind = Gpu {
            busy: Reading::unavailable("the driver does not say"),
            memory_free: Reading::unavailable("the driver does not say"),
            temperature: Reading::unavailable("the driver does not say"),
            ..gpu()
        };
        assert_eq!(story(std::iter::repeat_n(blind.clone(), 100)), [(0, None)]);
        let hot = Gpu { temperature: Reading::Known(Celsius(90)), ..gpu() };
        let fails_hot = std::iter::once(hot).chain(std::iter::repeat_n(blind.clone(), 700));
        let seen = story(fails_hot);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!(seen[1], (601, None), "ten minutes cool it whether or not somebody measures");
        let busy = Gpu { busy: Reading::Known(Percent(99)), ..gpu() };
        let fails_busy = std::iter::repeat_n(busy, 10).chain(std::iter::repeat_n(blind, 60));
        assert_eq!(story(fails_busy), [(0, None), (5, Some(GpuReason::Busy)), (40, None)]);
    }

    #[test]
    fn a_gpu_that_was_taken_back_rests() {
        let settings = Settings::default();
        let mut memory = GpuMemory::default();
        memory.settle(true, &settings);
        memory.settle(false, &settings);
        assert_eq!(memory.rest(&settings), Seconds(60).duration());
        memory.advance(Seconds(59).duration());
        memory.settle(false, &settings);
        assert_eq!(memory.rest(&settings), SECOND, "deciding against it once more does not begin its rest anew");
        memory.rested();
        assert_eq!(memory.rest(&settings), Duration::ZERO);
    }
}
