//! Any settings, any signals, and stories that are made of them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pool_policy::{
    Activity, Celsius, Command, Disk, Gpu, GpuChoice, GpuId, Mode, Moment, Percent, Problem, Seconds, Settings, Shard,
    Signals, Term,
};
use pool_types::{ByteSize, LayerRange, Reading};
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) now: Moment,
    pub(crate) command: Option<Command>,
    pub(crate) signals: Signals,
}

pub(crate) fn any_settings() -> impl Strategy<Value = Settings> {
    let schedule = prop_oneof![
        3 => Just(None),
        1 => Just(Some("daily 00:00-24:00")),
        1 => Just(Some("daily 22:00-12:10; Mon 12:20-13:00")),
    ];
    let numbers = (10_u32..120, 0_u32..30, 10_u32..90, 0_u32..60, 1_u32..10, 1_u32..40);
    let mode = prop_oneof![Just(Mode::WhenAway), Just(Mode::Gently), Just(Mode::BySchedule)];
    let gpus = prop_oneof![4 => Just(GpuChoice::All), 1 => Just(GpuChoice::Only([GpuId("B".into())].into()))];
    let switches = (any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    let duty = (5_u8..=100, 5_u8..=100);
    (mode, schedule, numbers, gpus, switches, duty).prop_map(|(mode, schedule, numbers, gpus, switches, duty)| {
        let (start_after, notice, rest, finish, busy_for, calm_for) = numbers;
        let (wait_for_full_screen, share_on_battery, share_on_metered, share_cpu) = switches;
        let schedule = schedule.map(|text| text.parse().expect("a schedule"));
        let settings = Settings {
            mode: if schedule.is_none() && mode == Mode::BySchedule { Mode::WhenAway } else { mode },
            schedule,
            start_after: Seconds(start_after),
            notice: Seconds(notice),
            rest_after_stop: Seconds(rest),
            finish_within: Seconds(finish),
            gpu_busy_for: Seconds(busy_for),
            gpu_calm_for: Seconds(calm_for),
            wait_for_programs: vec!["Blender".into()],
            wait_for_full_screen,
            share_on_battery,
            share_on_metered,
            share_cpu,
            gpus,
            duty_when_away: Percent(duty.0),
            duty_beside_owner: Percent(duty.1),
            ..Settings::default()
        };
        settings.validate().expect("generated settings are valid");
        settings
    })
}

/// Mostly what a quiet machine says, now and then something else, sometimes nothing.
fn rarely<T: Clone + std::fmt::Debug + 'static>(
    usual: T,
    odd: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Reading<T>> {
    prop_oneof![
        24 => Just(Reading::Known(usual)),
        3 => odd.prop_map(Reading::Known),
        1 => Just(Reading::unavailable("its sensor is broken")),
    ]
    .boxed()
}

fn any_gpu(id: &'static str, name: &'static str) -> impl Strategy<Value = Gpu> {
    let readings = (
        rarely(Percent(0), (0_u8..=100).prop_map(Percent)),
        rarely(ByteSize(20 << 30), (0_u64..12 << 30).prop_map(ByteSize)),
        rarely(Celsius(50), (40_i16..110).prop_map(Celsius)),
        prop::sample::select(vec![0_u64, 6 << 30]),
    );
    readings.prop_map(move |(busy, memory_free, temperature, ours)| Gpu {
        id: GpuId(id.into()),
        name: name.into(),
        busy,
        memory_free,
        memory_ours: ByteSize(ours),
        memory_needed: ByteSize(6 << 30),
        temperature,
    })
}

fn any_activity() -> impl Strategy<Value = Activity> {
    let shard = Shard { model: "Llama-3.1-8B".into(), layers: LayerRange::new(0, 16).expect("a range") };
    let (downloading, loading) = (shard.clone(), shard.clone());
    prop_oneof![
        1 => Just(Activity::Nothing),
        1 => (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(move |(done, size, waits)| Activity::Downloading {
            shard: downloading.clone(),
            done: ByteSize(done),
            size: ByteSize(size),
            waits: waits.then(|| "the host cannot be reached".to_owned()),
        }),
        1 => Just(Activity::Loading(loading)),
        4 => (1_u32..5, 0_u32..4).prop_map(move |(coalition, requests)| Activity::Serving {
            shard: shard.clone(),
            coalition,
            requests,
        }),
    ]
}

pub(crate) fn any_signals() -> impl Strategy<Value = Signals> {
    let idle = prop_oneof![
        4 => (0_u64..400).prop_map(|seconds| Reading::Known(Duration::from_secs(seconds))),
        20 => Just(Reading::Known(Duration::from_secs(3_600))),
        2 => Just(Reading::unavailable("no session is open")),
        1 => Just(Reading::Known(Duration::MAX)),
    ];
    let person = (
        idle,
        rarely(false, Just(true)),
        rarely(false, Just(true)),
        rarely(Vec::new(), Just(vec!["blender".to_owned()])),
    );
    let disk = Disk { models: ByteSize(0), free: ByteSize(500 << 30), wanted: ByteSize(0) };
    let machine = (
        rarely(false, Just(true)),
        rarely(false, Just(true)),
        rarely(
            disk,
            any::<(u64, u64, u64)>().prop_map(|(models, free, wanted)| Disk {
                models: ByteSize(models),
                free: ByteSize(free),
                wanted: ByteSize(wanted),
            }),
        ),
    );
    let gpus = prop_oneof![
        30 => (any_gpu("A", "RTX 4090"), any_gpu("B", "RTX 3060")).prop_map(|(a, b)| Reading::Known(vec![a, b])),
        10 => any_gpu("A", "RTX 4090").prop_map(|a| Reading::Known(vec![a])),
        1 => Just(Reading::Known(Vec::new())),
        1 => Just(Reading::unavailable("the driver does not answer")),
    ];
    let rest = (prop::bool::weighted(0.02), prop::bool::weighted(0.02), any_activity());
    (person, machine, gpus, rest).prop_map(|(person, machine, gpus, rest)| {
        let (idle, full_screen, kept_awake, programs) = person;
        let (on_battery, metered, disk) = machine;
        let (problem, updating, activity) = rest;
        let what = "the shard ends again and again".to_owned();
        let problem = problem.then(|| Problem { what, next_action: "Restart the computer".into() });
        let updating = updating.then(|| "1.2.0".to_owned());
        Signals {
            idle,
            full_screen,
            kept_awake,
            programs,
            on_battery,
            metered,
            disk,
            gpus,
            problem,
            updating,
            activity,
        }
    })
}

fn any_command() -> impl Strategy<Value = Command> {
    let term = || {
        prop_oneof![(0_u32..200).prop_map(|s| Term::For(Seconds(s))), Just(Term::UntilTomorrow), Just(Term::UntilTold)]
    };
    prop_oneof![
        1 => term().prop_map(Command::Pause),
        2 => Just(Command::FinishThenPause),
        3 => term().prop_map(Command::ShareNow),
        3 => Just(Command::Resume),
        1 => Just(Command::NotNow),
    ]
}

/// Moments at both ends of time.
pub(crate) fn any_moment() -> impl Strategy<Value = Moment> {
    let wall = prop_oneof![
        Just(Timestamp::MIN),
        Just(Timestamp::MAX),
        (0_i64..4_000_000_000).prop_map(|second| Timestamp::from_second(second).expect("a timestamp")),
    ];
    let steady = prop_oneof![Just(Duration::MAX), (0_u64..1_000_000).prop_map(Duration::from_millis)];
    (wall, steady).prop_map(|(wall, steady)| Moment { wall, steady })
}

/// Stretches of one to ninety seconds in which the signals stay, looked at every one to five seconds; now and then a
/// command. Begins on a Monday at noon.
pub(crate) fn story() -> impl Strategy<Value = (Settings, Vec<Step>)> {
    let stretch = (any_signals(), prop::option::weighted(0.08, any_command()), 1_u64..90, 200_u64..5_000);
    (any_settings(), prop::collection::vec(stretch, 1..24)).prop_map(|(settings, stretches)| {
        let noon = Timestamp::from_second(1_777_896_000).expect("a timestamp");
        let (mut steps, mut passed) = (Vec::new(), Duration::ZERO);
        for (signals, command, seconds, every) in stretches {
            let ends = passed + Duration::from_secs(seconds);
            let mut command = command;
            while passed < ends {
                let wall = noon + SignedDuration::try_from(passed).expect("a short time");
                let now = Moment { wall, steady: passed };
                steps.push(Step { now, command: command.take(), signals: signals.clone() });
                passed += Duration::from_millis(every);
            }
        }
        (settings, steps)
    })
}
