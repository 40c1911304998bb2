//! The rules in their order of precedence: the table of the [crate's documentation](crate#the-order-of-precedence) as code.

use std::time::Duration;

use jiff::tz::TimeZone;
use pool_types::{ByteSize, Reading};

use crate::{
    AfterFinishing, Gpu, GpuReason, Memory, Mode, Moment, Reason, Settings, Signals, memory::Owner, owner::Wish,
    schedule::Opening,
};

/// Everything a rule may look at.
pub(crate) struct Scene<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) memory: &'a Memory,
    pub(crate) now: Moment,
    pub(crate) signals: &'a Signals,
    /// What the schedule says, where there is one.
    pub(crate) opening: Option<Opening>,
    pub(crate) owner: Owner,
}

/// How sharing ends when a rule forbids it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    AtOnce,
    /// What runs may finish.
    Gently,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    May(Reason),
    MayNot(Reason, Leave),
}

/// `None` if it does not mind.
type Rule = fn(&Scene) -> Option<(Reason, Leave)>;

/// Nothing overrides these.
const HARD: [Rule; 9] = [updating, problem, no_gpu, paused, no_gpu_chosen, on_battery, metered, disk_full, gpu_unfit];
/// The owner's wish to finish what runs.
const FINISHING: [Rule; 1] = [finishing];
/// These look after the owner's comfort; share-now sets them aside.
const SOFT: [Rule; 5] = [outside_schedule, program, screen_taken, gpu_busy, owner_here];
/// The hysteresis.
const REST: [Rule; 1] = [rest];

/// The first rule that forbids gives the reason. What runs may only finish if no rule wants the GPU back at once.
pub(crate) fn judge(scene: &Scene) -> Verdict {
    let soft: &[Rule] = if scene.memory.wish().overrides_soft_rules() { &[] } else { &SOFT };
    let rules = HARD.iter().chain(&FINISHING).chain(soft).chain(&REST);
    let mut forbidding = rules.filter_map(|rule| rule(scene));
    let Some((reason, leave)) = forbidding.next() else { return Verdict::May(why(scene)) };
    let at_once = if leave == Leave::AtOnce { None } else { forbidding.find(|(_, leave)| *leave == Leave::AtOnce) };
    match at_once {
        // Finishing is no reason any more when nothing may finish.
        Some(cause) if matches!(reason, Reason::Finishing { .. }) => Verdict::MayNot(cause.0, Leave::AtOnce),
        Some(_) => Verdict::MayNot(reason, Leave::AtOnce),
        None => Verdict::MayNot(reason, leave),
    }
}

/// What makes sharing right, when nothing makes it wrong.
fn why(scene: &Scene) -> Reason {
    match (scene.memory.wish(), &scene.owner, scene.settings.mode) {
        (Wish::ShareNow(_), ..) => Reason::ShareNow,
        (_, Owner::Unknown { .. }, _) | (_, _, Mode::BySchedule) => Reason::WithinSchedule,
        (_, Owner::Away, _) => Reason::Away,
        (_, Owner::Here { .. }, _) => Reason::Gently,
    }
}

fn updating(scene: &Scene) -> Option<(Reason, Leave)> {
    let version = scene.signals.updating.clone()?;
    Some((Reason::Updating { version, requests: 0 }, Leave::Gently))
}

fn problem(scene: &Scene) -> Option<(Reason, Leave)> {
    Some((Reason::Problem(scene.signals.problem.clone()?), Leave::AtOnce))
}

fn no_gpu(scene: &Scene) -> Option<(Reason, Leave)> {
    let reason = match &scene.signals.gpus {
        _ if scene.settings.share_cpu => return None,
        Reading::Unavailable(because) => Reason::GpusUnavailable { because: because.clone() },
        Reading::Known(gpus) if gpus.is_empty() => Reason::NoGpu,
        Reading::Known(_) => return None,
    };
    Some((reason, Leave::AtOnce))
}

fn paused(scene: &Scene) -> Option<(Reason, Leave)> {
    match scene.memory.wish() {
        Wish::Pause(deadline) => Some((Reason::OwnerPaused { until: deadline.ends(scene.now) }, Leave::AtOnce)),
        _ => None,
    }
}

fn no_gpu_chosen(scene: &Scene) -> Option<(Reason, Leave)> {
    let nothing_to_share = !scene.settings.share_cpu && scene.chosen_gpus().next().is_none();
    nothing_to_share.then_some((Reason::NoGpuChosen, Leave::AtOnce))
}

fn on_battery(scene: &Scene) -> Option<(Reason, Leave)> {
    scene.settings.waits_on_battery(scene.signals).then_some((Reason::OnBattery, Leave::AtOnce))
}

fn metered(scene: &Scene) -> Option<(Reason, Leave)> {
    scene.settings.waits_on_metered(scene.signals).then_some((Reason::Metered, Leave::AtOnce))
}

/// A shard that is loaded does not need the room that the next one lacks.
fn disk_full(scene: &Scene) -> Option<(Reason, Leave)> {
    let (wanted, room) = scene.settings.lacks_room(scene.signals)?;
    (!scene.signals.activity.holds_memory()).then_some((Reason::DiskFull { wanted, room }, Leave::AtOnce))
}

/// Every GPU that is shared is too hot or without memory for us.
fn gpu_unfit(scene: &Scene) -> Option<(Reason, Leave)> {
    let hard = |reason: &GpuReason| matches!(reason, GpuReason::Hot { .. } | GpuReason::MemoryNeeded);
    let gpu = scene.first_if_all_are_forbidden(hard, hard)?;
    Some((gpu_reason(gpu), Leave::AtOnce))
}

/// No GPU that is shared is free, and at least one would be if other programs left it alone.
fn gpu_busy(scene: &Scene) -> Option<(Reason, Leave)> {
    let gpu = scene.first_if_all_are_forbidden(|_| true, |reason| *reason == GpuReason::Busy)?;
    Some((gpu_reason(gpu), Leave::AtOnce))
}

fn gpu_reason((gpu, reason): (&Gpu, GpuReason)) -> Reason {
    let gpu = gpu.name.clone();
    match reason {
        GpuReason::Hot { celsius, resumes_at } => Reason::GpuHot { gpu, celsius, resumes_at },
        GpuReason::MemoryNeeded => Reason::GpuMemoryNeeded { gpu },
        GpuReason::Busy | GpuReason::NotChosen | GpuReason::Rests { .. } => Reason::GpuBusy { gpu },
    }
}

fn finishing(scene: &Scene) -> Option<(Reason, Leave)> {
    let reason = Reason::Finishing { requests: scene.signals.activity.requests(), then: AfterFinishing::Pause };
    matches!(scene.memory.wish(), Wish::FinishThenPause { .. }).then_some((reason, Leave::Gently))
}

fn outside_schedule(scene: &Scene) -> Option<(Reason, Leave)> {
    let closed = match scene.opening {
        Some(opening) => !opening.open,
        None => scene.settings.mode == Mode::BySchedule,
    };
    closed.then_some((Reason::OutsideSchedule, Leave::Gently))
}

fn program(scene: &Scene) -> Option<(Reason, Leave)> {
    let name = scene.settings.listed_program(scene.signals)?.clone();
    Some((Reason::Program { name }, Leave::AtOnce))
}

fn screen_taken(scene: &Scene) -> Option<(Reason, Leave)> {
    let full_screen = scene.signals.full_screen.known() == Some(&true);
    let reason = if full_screen { Reason::FullScreen } else { Reason::KeptAwake };
    scene.settings.waits_for_screen(scene.signals).then_some((reason, Leave::AtOnce))
}

fn owner_here(scene: &Scene) -> Option<(Reason, Leave)> {
    let reason = match &scene.owner {
        Owner::Away => return None,
        Owner::Here { .. } if scene.settings.mode == Mode::Gently => return None,
        Owner::Here { .. } => Reason::OwnerHere,
        Owner::Unknown { wait: Duration::ZERO, .. } if scene.opening.is_some() => return None,
        Owner::Unknown { because, .. } => Reason::IdleUnavailable { because: because.clone() },
    };
    Some((reason, Leave::AtOnce))
}

fn rest(scene: &Scene) -> Option<(Reason, Leave)> {
    (!scene.rest().is_zero()).then_some((Reason::Rest, Leave::AtOnce))
}

/// What the settings make of single signals. An unavailable sensor never makes us wait.
impl Settings {
    pub(crate) fn waits_on_battery(&self, signals: &Signals) -> bool {
        !self.share_on_battery && signals.on_battery.known() == Some(&true)
    }

    pub(crate) fn waits_on_metered(&self, signals: &Signals) -> bool {
        !self.share_on_metered && signals.metered.known() == Some(&true)
    }

    pub(crate) fn waits_for_screen(&self, signals: &Signals) -> bool {
        let taken = [&signals.full_screen, &signals.kept_awake].map(Reading::known).contains(&Some(&true));
        self.wait_for_full_screen && taken
    }

    /// The first program of the list that runs. Names are compared without regard to case.
    pub(crate) fn listed_program<'a>(&self, signals: &'a Signals) -> Option<&'a String> {
        let listed = |name: &&String| self.wait_for_programs.iter().any(|listed| listed.eq_ignore_ascii_case(name));
        signals.programs.known()?.iter().find(listed)
    }

    /// What the next download needs and what models may still take, where that is too little.
    pub(crate) fn lacks_room(&self, signals: &Signals) -> Option<(ByteSize, ByteSize)> {
        let disk = signals.disk.known()?;
        let in_budget = self.disk_budget.0.saturating_sub(disk.models.0);
        let on_disk = disk.free.0.saturating_sub(self.disk_reserve.0);
        let room = ByteSize(in_budget.min(on_disk));
        (disk.wanted > room).then_some((disk.wanted, room))
    }
}

impl<'a> Scene<'a> {
    pub(crate) fn new(
        settings: &'a Settings,
        memory: &'a Memory,
        now: Moment,
        zone: &TimeZone,
        signals: &'a Signals,
    ) -> Self {
        let opening = settings.schedule.as_ref().map(|schedule| schedule.opening(now.wall, zone));
        let owner = memory.owner(settings, &signals.idle);
        Self { settings, memory, now, signals, opening, owner }
    }

    /// The same scene after the decision.
    pub(crate) fn settled<'b>(self, memory: &'b Memory) -> Scene<'b>
    where
        'a: 'b,
    {
        Scene { memory, ..self }
    }

    pub(crate) fn chosen_gpus(&self) -> impl Iterator<Item = &'a Gpu> {
        let (settings, signals) = (self.settings, self.signals);
        signals.gpus().filter(|gpu| settings.gpus.includes(&gpu.id))
    }

    /// Of the GPUs that are shared, the first whose reason is to be `named`, if each has a reason that `counts`. Never
    /// when the processor is shared, for that is left.
    fn first_if_all_are_forbidden(
        &self,
        counts: impl Fn(&GpuReason) -> bool,
        named: impl Fn(&GpuReason) -> bool,
    ) -> Option<(&'a Gpu, GpuReason)> {
        if self.settings.share_cpu {
            return None;
        }
        let reasons: Option<Vec<(&Gpu, GpuReason)>> = (self.chosen_gpus())
            .map(|gpu| Some((gpu, self.memory.gpu_forbidden(gpu, self.settings).filter(&counts)?)))
            .collect();
        reasons?.into_iter().find(|(_, reason)| named(reason))
    }

    /// How much longer nothing can start because something stopped.
    pub(crate) fn rest(&self) -> Duration {
        let free = self.chosen_gpus().filter(|gpu| self.memory.gpu_forbidden(gpu, self.settings).is_none());
        let first_gpu = free.map(|gpu| self.memory.gpu_rest(gpu, self.settings)).min().unwrap_or_default();
        let first_gpu = if self.settings.share_cpu { Duration::ZERO } else { first_gpu };
        self.memory.node_rest(self.settings).max(first_gpu)
    }
}
