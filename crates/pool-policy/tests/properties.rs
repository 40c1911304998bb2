//! What holds for all settings and all signals, not only for the days that the scenarios tell.
//!
//! The rules are written down here a second time, from the signals alone and in the most direct way, so that a mistake in
//! the crate and one in its test would have to be the same mistake.

#[path = "support/any.rs"]
mod any;

use std::time::Duration;

use any::{Step, any_moment, any_settings, any_signals, story};
use jiff::{Timestamp, tz::TimeZone};
use pool_policy::{
    Action, Command, Decision, Gpu, GpuReason, Memory, Mode, Moment, Reason, Sensor, Settings, Signals, State, decide,
};
use pool_types::Reading;
use proptest::prelude::*;

/// Every decision of a story, with the moment and the signals it was made from.
fn play(settings: &Settings, zone: &TimeZone, steps: &[Step]) -> Vec<(Moment, Signals, Decision)> {
    let mut memory = Memory::default();
    let mut played = Vec::new();
    for step in steps {
        if let Some(command) = step.command {
            memory = memory.obey(command, settings, step.now, zone);
        }
        let (decision, next) = decide(settings, &memory, step.now, zone, &step.signals);
        memory = next;
        played.push((step.now, step.signals.clone(), decision));
    }
    played
}

fn is_hard_for(gpu: &Gpu, settings: &Settings) -> bool {
    let hot = gpu.temperature.known().is_some_and(|celsius| *celsius >= settings.gpu_pause_at);
    let short = gpu
        .memory_free
        .known()
        .is_some_and(|free| free.0 + gpu.memory_ours.0 < gpu.memory_needed.0 + settings.gpu_memory_reserve.0);
    hot || short || !settings.gpus.includes(&gpu.id)
}

/// What no wish of the owner overrides, by the signals of this moment alone.
fn is_forbidden(settings: &Settings, signals: &Signals) -> bool {
    let on_battery = signals.on_battery == Reading::Known(true) && !settings.share_on_battery;
    let metered = signals.metered == Reading::Known(true) && !settings.share_on_metered;
    let no_device = !settings.share_cpu
        && signals.gpus.known().is_none_or(|gpus| gpus.iter().all(|gpu| is_hard_for(gpu, settings)));
    on_battery || metered || no_device || signals.problem.is_some()
}

/// The sensors without a value: the machine's, then each GPU's, with its name.
fn silent_sensors(signals: &Signals) -> Vec<(Sensor, Option<String>)> {
    let mut all = vec![
        (Sensor::Idle, None, signals.idle.known().is_some()),
        (Sensor::FullScreen, None, signals.full_screen.known().is_some()),
        (Sensor::KeptAwake, None, signals.kept_awake.known().is_some()),
        (Sensor::Programs, None, signals.programs.known().is_some()),
        (Sensor::Battery, None, signals.on_battery.known().is_some()),
        (Sensor::Metered, None, signals.metered.known().is_some()),
        (Sensor::Disk, None, signals.disk.known().is_some()),
        (Sensor::Gpus, None, signals.gpus.known().is_some()),
    ];
    for gpu in signals.gpus.known().into_iter().flatten() {
        let name = || Some(gpu.name.clone());
        all.push((Sensor::GpuBusy, name(), gpu.busy.known().is_some()));
        all.push((Sensor::GpuMemory, name(), gpu.memory_free.known().is_some()));
        all.push((Sensor::GpuTemperature, name(), gpu.temperature.known().is_some()));
    }
    all.into_iter().filter(|(_, _, works)| !works).map(|(sensor, gpu, _)| (sensor, gpu)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_shared_while_a_hard_rule_forbids((settings, steps) in story()) {
        for (now, signals, decision) in play(&settings, &TimeZone::UTC, &steps) {
            if is_forbidden(&settings, &signals) {
                prop_assert!(!decision.action.computes(), "at {now:?}: {decision:?}");
                prop_assert!(decision.gpus.iter().all(|gpu| !gpu.may_use) && !decision.cpu, "at {now:?}: {decision:?}");
                prop_assert_ne!(decision.state, State::Earning, "nothing is earned");
            }
            if signals.updating.is_some() {
                prop_assert!(!matches!(decision.action, Action::Share | Action::ShareGently(_)), "nothing new is begun");
            }
            for (gpu, decided) in signals.gpus.known().into_iter().flatten().zip(&decision.gpus) {
                prop_assert_eq!(&gpu.id, &decided.id);
                prop_assert!(!(decided.may_use && is_hard_for(gpu, &settings)), "at {now:?}: {decided:?} of {gpu:?}");
                prop_assert!(!(decided.may_use && decided.because.is_some()), "a GPU is used or there is a reason");
            }
        }
    }

    #[test]
    fn there_is_always_one_reason_one_next_event_and_a_sentence((settings, steps) in story()) {
        for (now, signals, decision) in play(&settings, &TimeZone::UTC, &steps) {
            prop_assert_eq!(decision.state, decision.reason.state());
            let may_compute = decision.action.computes();
            let serves = decision.serving.is_some();
            match decision.state {
                State::Earning => prop_assert!(may_compute && serves, "{decision:?}"),
                State::Waiting => prop_assert!(!(may_compute && serves), "what serves is not waiting: {decision:?}"),
                State::Updating => prop_assert!(!may_compute || matches!(decision.action, Action::Drain(_))),
                State::Paused | State::Problem => prop_assert!(!may_compute, "{decision:?}"),
            }
            if matches!(decision.action, Action::Share | Action::ShareGently(_)) {
                prop_assert!(decision.cpu || decision.gpus.iter().any(|gpu| gpu.may_use), "on what? {decision:?}");
            }
            prop_assert!(decision.next.earliest.is_none_or(|at| at >= now.wall), "what comes next lies ahead: {decision:?}");
            let sentence = decision.sentence(now, &TimeZone::UTC);
            let text = sentence.to_string();
            prop_assert!(text.starts_with(sentence.state) && text.ends_with('.'), "{text}");
            prop_assert!(!text.contains(['!', '\n', '_', '{']) && !text.contains("..") && !text.contains("  "), "{text}");
            prop_assert!(text.len() < 400, "one glance: {text}");
            prop_assert!(sentence.row().chars().next().is_some_and(|letter| !letter.is_lowercase()), "{text}");
            let listed = decision.unavailable.iter().map(|missing| (missing.sensor, missing.gpu.clone()));
            prop_assert_eq!(listed.collect::<Vec<_>>(), silent_sensors(&signals), "each that has no value, and no other");
        }
    }

    #[test]
    fn sharing_never_flaps_faster_than_the_hysteresis((settings, steps) in story()) {
        let rest = settings.rest_after_stop.duration();
        let mut stopped: Option<Duration> = None;
        let mut gpu_stopped = std::collections::BTreeMap::new();
        let mut before: Option<Decision> = None;
        for (step, (now, _, decision)) in steps.iter().zip(play(&settings, &TimeZone::UTC, &steps)) {
            if matches!(step.command, Some(Command::ShareNow(_) | Command::Resume)) {
                // Whoever asks for it need not wait.
                stopped = None;
                gpu_stopped.clear();
            }
            let shares = |decision: &Option<Decision>| decision.as_ref().is_some_and(|d| d.action.computes());
            let uses = |decision: &Option<Decision>, id| {
                decision.as_ref().is_some_and(|d| d.gpus.iter().any(|gpu| gpu.id == id && gpu.may_use))
            };
            let ids: Vec<_> = decision.gpus.iter().map(|gpu| gpu.id.clone()).collect();
            let after = Some(decision);
            match (shares(&before), shares(&after)) {
                (true, false) => stopped = Some(now.steady),
                (false, true) => {
                    let long_enough = stopped.is_none_or(|at| now.steady - at >= rest);
                    prop_assert!(long_enough, "stopped at {stopped:?}, shares again at {now:?}: {after:?}");
                }
                _ => {}
            }
            for id in ids {
                match (uses(&before, id.clone()), uses(&after, id.clone())) {
                    (true, false) => {
                        gpu_stopped.insert(id, now.steady);
                    }
                    (false, true) => {
                        let long_enough = gpu_stopped.get(&id).is_none_or(|at| now.steady - *at >= rest);
                        prop_assert!(long_enough, "{id:?} was given back at {gpu_stopped:?} and is used at {now:?}");
                    }
                    _ => {}
                }
            }
            before = after;
        }
    }

    #[test]
    fn an_input_takes_the_gpu_back_at_once_unless_the_owner_said_otherwise((settings, steps) in story()) {
        let mode = if settings.mode == Mode::Gently { Mode::WhenAway } else { settings.mode };
        let settings = Settings { mode, ..settings };
        let mut said_otherwise = false;
        for (step, (now, signals, decision)) in steps.iter().zip(play(&settings, &TimeZone::UTC, &steps)) {
            said_otherwise |= matches!(step.command, Some(Command::ShareNow(_)));
            let touched = signals.idle.known().is_some_and(|idle| *idle < Duration::from_secs(10));
            if touched && !said_otherwise {
                prop_assert!(!decision.action.computes(), "at {now:?}: {decision:?}");
            }
        }
    }

    #[test]
    fn a_start_is_announced_for_as_long_as_is_set((settings, steps) in story()) {
        let mut announced: Option<Duration> = None;
        let mut shared = false;
        for (step, (now, _, decision)) in steps.iter().zip(play(&settings, &TimeZone::UTC, &steps)) {
            if step.command.is_some() {
                break;
            }
            let shares = decision.action.computes();
            if shares && !shared && settings.notice.0 > 0 {
                let since = announced.expect("a start without a command has been announced");
                prop_assert!(now.steady - since >= settings.notice.duration(), "announced at {since:?}, begun at {now:?}");
            }
            let announces = matches!(decision.reason, Reason::Notice { .. });
            announced = if announces { announced.or(Some(now.steady)) } else { None };
            shared = shares;
        }
    }

    #[test]
    fn a_memory_that_is_written_down_and_read_back_decides_the_same((settings, steps) in story()) {
        let (mut memory, mut twin) = (Memory::default(), Memory::default());
        for step in steps {
            let read_back: Memory = serde_json::from_str(&serde_json::to_string(&twin).unwrap()).unwrap();
            prop_assert_eq!(&read_back, &twin);
            if let Some(command) = step.command {
                memory = memory.obey(command, &settings, step.now, &TimeZone::UTC);
                twin = read_back.obey(command, &settings, step.now, &TimeZone::UTC);
            }
            let (expected, next) = decide(&settings, &memory, step.now, &TimeZone::UTC, &step.signals);
            let (decision, next_twin) = decide(&settings, &twin, step.now, &TimeZone::UTC, &step.signals);
            prop_assert_eq!(&decision, &expected);
            let text = serde_json::to_string(&decision).unwrap();
            prop_assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), decision, "the decision log can be read");
            prop_assert!(text.len() < 1 << 14, "a line of the log stays small: {} bytes", text.len());
            (memory, twin) = (next, next_twin);
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_changes_no_hysteresis((settings, steps) in story(), jump in -1_000_000_i64..1_000_000, at in 0_usize..100) {
        // Without a schedule and without wishes the time of day means nothing.
        let settings = Settings { schedule: None, mode: if settings.mode == Mode::BySchedule { Mode::WhenAway } else { settings.mode }, ..settings };
        let steps: Vec<Step> = steps.into_iter().map(|step| Step { command: None, ..step }).collect();
        let jumped: Vec<Step> = (steps.iter().enumerate())
            .map(|(index, step)| {
                let jump = jiff::SignedDuration::from_secs(if index < at { 0 } else { jump });
                Step { now: Moment { wall: step.now.wall + jump, ..step.now }, ..step.clone() }
            })
            .collect();
        let told = play(&settings, &TimeZone::UTC, &steps).into_iter().map(|(_, _, decision)| (decision.action, decision.reason));
        let told_jumped = play(&settings, &TimeZone::UTC, &jumped).into_iter().map(|(_, _, decision)| (decision.action, decision.reason));
        prop_assert!(told.eq(told_jumped));
    }

    #[test]
    fn no_moment_however_odd_breaks_it(settings in any_settings(), moments in prop::collection::vec((any_moment(), any_signals()), 1..20)) {
        let mut memory = Memory::default();
        for (now, signals) in moments {
            let (decision, next) = decide(&settings, &memory, now, &TimeZone::UTC, &signals);
            decision.sentence(now, &TimeZone::UTC).to_string();
            let (again, _) = decide(&settings, &next, now, &TimeZone::UTC, &signals);
            prop_assert_eq!(decision.action.computes(), again.action.computes(), "asked twice in one moment, it stands by its word");
            memory = next;
        }
    }
}

/// The properties above only mean something if their stories contain what they are about.
#[test]
fn the_stories_share_stop_and_share_again() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut starts, mut stops, mut forbidden, mut gpu_reasons, mut states) =
        (0, 0, 0, 0, std::collections::BTreeSet::new());
    for _ in 0..200 {
        let tree = story().new_tree(&mut runner).expect("a story can be told");
        let (settings, steps) = proptest::strategy::ValueTree::current(&tree);
        let mut shared = false;
        for (_, signals, decision) in play(&settings, &TimeZone::UTC, &steps) {
            let shares = decision.action.computes();
            starts += usize::from(shares && !shared);
            stops += usize::from(!shares && shared);
            forbidden += usize::from(shared && is_forbidden(&settings, &signals));
            gpu_reasons +=
                decision.gpus.iter().filter(|gpu| matches!(gpu.because, Some(GpuReason::Rests { .. }))).count();
            states.insert(format!("{:?}", decision.state));
            shared = shares;
        }
    }
    assert!(starts > 100, "sharing starts {starts} times");
    assert!(stops > 100, "sharing stops {stops} times");
    assert!(forbidden > 20, "a hard rule ends sharing {forbidden} times");
    assert!(gpu_reasons > 100, "GPUs rest at {gpu_reasons} moments");
    assert_eq!(states.len(), 5, "every state occurs: {states:?}");
}

#[test]
fn settings_that_nobody_checked_share_nothing_by_a_schedule_that_is_not_there() {
    let settings = Settings { mode: Mode::BySchedule, share_cpu: true, ..Settings::default() };
    assert!(settings.validate().is_err(), "they would have been refused");
    let mut signals = Signals::unavailable("a test");
    signals.idle = Reading::Known(Duration::from_secs(86_400));
    let steps: Vec<Step> = (0..100)
        .map(|second| {
            let now = Moment { wall: Timestamp::UNIX_EPOCH, steady: Duration::from_secs(second) };
            Step { now, command: None, signals: signals.clone() }
        })
        .collect();
    for (_, _, decision) in play(&settings, &TimeZone::UTC, &steps) {
        assert_eq!((decision.reason, decision.action), (Reason::OutsideSchedule, Action::Stay));
    }
}

/// The crate is asked some times a second for as long as the computer runs.
#[test]
fn a_decision_is_cheap() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let tree = story().new_tree(&mut runner).expect("a story can be told");
    let (_, steps) = proptest::strategy::ValueTree::current(&tree);
    let windows: Vec<String> =
        (0..28).map(|n| format!("daily {:02}:{:02}-{:02}:{:02}", n % 24, n, n % 24, n + 1)).collect();
    let schedule = Some(windows.join(";").parse().expect("28 windows are a schedule"));
    let settings = Settings { schedule, ..Settings::default() };
    let zone = TimeZone::get("Europe/Berlin").expect("the bundled zones know it");
    let (start, mut count) = (std::time::Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(500) {
        play(&settings, &zone, &steps);
        count += steps.len();
    }
    let each = start.elapsed() / u32::try_from(count).expect("a small number");
    println!("a decision takes {each:?}");
    // Unoptimised, on a busy machine, with the largest schedule.
    assert!(
        each < Duration::from_millis(1),
        "four looks a second cost half a percent of a core: a decision takes {each:?}"
    );
}

#[test]
fn the_first_moment_of_a_machine_that_knows_nothing_shares_nothing() {
    let now = Moment { wall: Timestamp::UNIX_EPOCH, steady: Duration::ZERO };
    let signals = Signals::unavailable("the node has just started");
    let (decision, _) = decide(&Settings::default(), &Memory::default(), now, &TimeZone::UTC, &signals);
    assert_eq!((decision.state, decision.action), (State::Problem, Action::Stay), "GPUs that cannot be seen");
    assert_eq!(decision.unavailable.len(), 8, "every sensor is listed with its reason");
}
