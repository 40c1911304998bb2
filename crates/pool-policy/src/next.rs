//! What will change a decision, and when at the earliest.

use std::time::Duration;

use crate::{
    Event, GpuReason, Mode, NextEvent, Reason,
    memory::{Owner, Phase},
    owner::Wish,
    rules::Scene,
};

/// The scene is the settled one: a stop that was just decided has begun its rest.
pub(crate) fn next_event(scene: &Scene, reason: &Reason) -> NextEvent {
    let by_itself = |event| NextEvent { event, then_shares_after: None, earliest: None };
    // Sharing follows `event` after at least `extra`.
    let then_shares = |event, extra| {
        let delay = scene.shares_in(extra);
        NextEvent { event, then_shares_after: Some(delay), earliest: Some(scene.now.after(delay)) }
    };
    match reason {
        Reason::Away => by_itself(Event::OwnerReturns),
        Reason::Gently => {
            let away_in = scene.away_in();
            NextEvent { earliest: Some(scene.now.after(away_in)), ..by_itself(Event::OwnerLeaves) }
        }
        Reason::WithinSchedule => match scene.opening.and_then(|opening| opening.changes) {
            Some(closes) => NextEvent { earliest: Some(closes), ..by_itself(Event::ScheduleCloses) },
            None => by_itself(Event::SettingsChange),
        },
        Reason::ShareNow => match scene.wish_ends() {
            Some(ends) => NextEvent { earliest: Some(ends), ..by_itself(Event::ShareNowEnds) },
            None => by_itself(Event::OwnerStops),
        },
        Reason::Finishing { .. } => by_itself(Event::RequestsFinish),
        Reason::NoCoalition => by_itself(Event::CoalitionForms),
        Reason::Downloading { .. } | Reason::DownloadWaits { .. } => by_itself(Event::DownloadEnds),
        Reason::Loading { .. } => by_itself(Event::LoadingEnds),
        Reason::Notice { starts_in } => {
            let earliest = Some(scene.now.after(starts_in.duration()));
            NextEvent { earliest, ..by_itself(Event::SharingStarts) }
        }
        Reason::Rest => then_shares(Event::SharingStarts, Duration::ZERO),
        Reason::OwnerHere => {
            // It counts from the last input; how long ago that was, only the time of day knows.
            let earliest = then_shares(Event::OwnerLeaves, Duration::ZERO).earliest;
            NextEvent { earliest, ..then_shares(Event::OwnerLeaves, scene.absence()) }
        }
        Reason::IdleUnavailable { .. } if scene.opening.is_some() => then_shares(Event::SharingStarts, Duration::ZERO),
        Reason::IdleUnavailable { .. } | Reason::NoGpuChosen => by_itself(Event::SettingsChange),
        Reason::FullScreen => then_shares(Event::FullScreenCloses, scene.absence()),
        Reason::KeptAwake => then_shares(Event::KeptAwakeEnds, scene.absence()),
        Reason::Program { .. } => then_shares(Event::ProgramCloses, scene.absence()),
        Reason::GpuBusy { .. } => then_shares(Event::GpuCalms, scene.gpu_allows_in(&GpuReason::Busy)),
        Reason::GpuMemoryNeeded { .. } => {
            then_shares(Event::GpuMemoryIsFree, scene.gpu_allows_in(&GpuReason::MemoryNeeded))
        }
        Reason::GpuHot { .. } => then_shares(Event::GpuCools, Duration::ZERO),
        Reason::OnBattery => then_shares(Event::PluggedIn, Duration::ZERO),
        Reason::Metered => then_shares(Event::NetworkUnmetered, Duration::ZERO),
        Reason::DiskFull { .. } => then_shares(Event::DiskHasRoom, Duration::ZERO),
        Reason::OutsideSchedule => {
            let earliest = scene.opening.and_then(|opening| opening.changes);
            NextEvent { earliest, ..by_itself(Event::ScheduleOpens) }
        }
        Reason::OwnerPaused { until: Some(until) } => {
            NextEvent { earliest: Some(*until), ..by_itself(Event::PauseEnds) }
        }
        Reason::OwnerPaused { until: None } => by_itself(Event::OwnerResumes),
        Reason::Problem(_) | Reason::NoGpu | Reason::GpusUnavailable { .. } => by_itself(Event::ProblemSolved),
        Reason::Updating { .. } => by_itself(Event::UpdateEnds),
    }
}

impl Scene<'_> {
    /// How soon sharing begins if what forbids it ends after `extra` and nothing else happens.
    fn shares_in(&self, extra: Duration) -> Duration {
        if matches!(self.memory.wish(), Wish::ShareNow(_)) {
            return extra.max(self.rest());
        }
        let notice = match self.memory.phase() {
            Phase::Notice(lasted) => self.settings.notice.duration().saturating_sub(lasted),
            _ => self.settings.notice.duration(),
        };
        let beside_owner = self.settings.mode == Mode::Gently && matches!(self.owner, Owner::Here { .. });
        let away_in = if beside_owner { Duration::ZERO } else { self.away_in() };
        extra.max(self.rest()).max(away_in).saturating_add(notice)
    }

    /// How long the owner must be away after what counts as being there.
    fn absence(&self) -> Duration {
        if self.settings.mode == Mode::Gently { Duration::ZERO } else { self.settings.away_after().duration() }
    }

    /// How long until the owner counts as away.
    fn away_in(&self) -> Duration {
        match self.owner {
            Owner::Away => Duration::ZERO,
            Owner::Here { away_in } => away_in,
            Owner::Unknown { wait, .. } => wait,
        }
    }

    fn wish_ends(&self) -> Option<jiff::Timestamp> {
        match self.memory.wish() {
            Wish::Pause(deadline) | Wish::ShareNow(deadline) => deadline.ends(self.now),
            Wish::Settings | Wish::FinishThenPause { .. } => None,
        }
    }

    /// The shortest time in which a GPU that waits for this reason could be free of it.
    fn gpu_allows_in(&self, reason: &GpuReason) -> Duration {
        let waiting = self.chosen_gpus().filter(|gpu| self.memory.gpu_forbidden(gpu, self.settings) == Some(*reason));
        waiting.map(|gpu| self.memory.gpu_allows_in(gpu, reason, self.settings)).min().unwrap_or_default()
    }
}
