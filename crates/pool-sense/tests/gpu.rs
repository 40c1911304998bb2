//! GPUs, through a fake of NVIDIA's library that answers recorded values.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use pool_sense::{Gpu, GpuLoad, MeteredEnergy, Presence, Senses, Surroundings};
use pool_types::{ByteSize, Energy, Reading};
use tempfile::TempDir;

use support::{nowhere, start, wait_for};

/// Our shard in the recordings.
const SHARD: u32 = 4242;

/// Of an RTX 4090 with a game (pid 900), a desktop (pid 700) and our shard on it.
const RECORDED: &str = "\
driver 580.82.07
count 1
0.uuid GPU-8e5f0a51-6f0c-4a0e-9d9c-2f6f8b1f7a10
0.name NVIDIA GeForce RTX 4090
0.memory 25757220864 374931456 9126805504 16255483904
0.compute 4242:12884901888
0.graphics 700:268435456 900:3102146560 4242:12884901888
0.samples 4242:1000:71 900:1000:4 900:2000:23 700:1500:2 31337:1600:4294967295
0.utilisation 96 55
0.temperature 64
0.power 287123
0.energy 91827364550
";

const SAMPLES: &str = "4242:1000:71 900:1000:4 900:2000:23 700:1500:2 31337:1600:4294967295";
const LATER_SAMPLES: &str = "4242:11000:71 900:11000:4 900:12000:23 700:11500:2 31337:11600:4294967295";

/// The library in a folder of its own, so that tests side by side have libraries of their own.
struct FakeNvml {
    folder: TempDir,
    library: PathBuf,
}

impl FakeNvml {
    fn answering(values: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libnvidia-ml.so.1");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-nvml/nvml.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut compile = Command::new(&compiler);
        compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let compiled = compile.output().expect("a C compiler is installed (make setup)");
        assert!(compiled.status.success(), "{compiler}: {}", String::from_utf8_lossy(&compiled.stderr));
        let fake = Self { folder, library };
        fake.answer(values);
        fake
    }

    fn answer(&self, values: &str) {
        // Renamed into place: the library never reads half a file.
        let new = self.folder.path().join("new");
        fs::write(&new, values).unwrap();
        fs::rename(new, self.folder.path().join("libnvidia-ml.so.1.values")).unwrap();
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings { nvml: Some(self.library.clone()), ..nowhere() }
    }
}

fn the_card(senses: &Senses) -> Gpu {
    let gpus = senses.snapshot().gpus.reading;
    let gpus = gpus.known().unwrap_or_else(|| panic!("the driver answers: {gpus}"));
    assert_eq!(gpus.cards.len(), 1, "there is one card");
    gpus.cards[0].clone()
}

fn changed(values: &str, from: &str, to: &str) -> String {
    assert!(values.contains(from), "the recording contains {from}");
    values.replace(from, to)
}

#[test]
fn a_game_and_our_shard_share_a_card() {
    let fake = FakeNvml::answering(RECORDED);
    let senses = Senses::start(&fake.surroundings()).unwrap();
    senses.set_own_processes(vec![SHARD]);
    let expected = |energy: &Reading<MeteredEnergy>| Gpu {
        index: 0,
        uuid: Reading::Known("GPU-8e5f0a51-6f0c-4a0e-9d9c-2f6f8b1f7a10".to_owned()),
        name: Reading::Known("NVIDIA GeForce RTX 4090".to_owned()),
        memory_total: Reading::Known(25_757_220_864),
        memory_used: Reading::Known(16_255_483_904),
        // Listed as computing and as drawing, counted once.
        memory_ours: Reading::Known(12_884_901_888),
        memory_others: Reading::Known(3_370_582_016),
        // The game's newest sample and the desktop's; not ours, and not the driver's nonsense value.
        load: Reading::Known(GpuLoad::Others(25)),
        temperature: Reading::Known(64),
        power_milliwatts: Reading::Known(287_123),
        energy: energy.clone(),
    };
    // The driver tells each sample once: new ones, now that our shard is known.
    assert!(senses.wait_for_first_readings(Duration::from_secs(20)), "the senses answer");
    fake.answer(&changed(RECORDED, SAMPLES, LATER_SAMPLES));
    wait_for(&senses, Duration::from_secs(10), "the recorded card is read", |now| {
        now.gpus.reading.known().is_some_and(|gpus| gpus.cards == [expected(&gpus.cards[0].energy)])
    });
    assert_eq!(senses.snapshot().gpus.reading.known().unwrap().driver_version, "580.82.07");

    // The game pauses: no new samples but ours.
    fake.answer(&changed(RECORDED, SAMPLES, "4242:15000:88"));
    wait_for(&senses, Duration::from_secs(10), "others rest while we work", |now| {
        now.gpus.reading.known().is_some_and(|gpus| gpus.cards[0].load == Reading::Known(GpuLoad::Others(0)))
    });
}

/// Microseconds since 1970, some centuries from now.
const FUTURE: &str = "9000000000000000";

#[test]
fn what_a_driver_makes_up_is_no_load() {
    let nonsense = format!("31337:{FUTURE}:40 0:2500:50 555:0:60");
    let samples = |samples: &str| changed(RECORDED, SAMPLES, &format!("{samples} {nonsense}"));
    let fake = FakeNvml::answering(&samples(SAMPLES));
    let senses = start(&fake.surroundings());
    let load = |expected: GpuLoad, reason: &str| {
        wait_for(&senses, Duration::from_secs(10), reason, |now| {
            now.gpus.reading.known().is_some_and(|gpus| gpus.cards[0].load == Reading::Known(expected))
        });
    };
    // Ours is not known to be ours here: the game's 23, the desktop's 2, the shard's 71.
    assert_eq!(the_card(&senses).load, Reading::Known(GpuLoad::Others(96)), "samples from nowhere do not count");
    fake.answer(&samples("900:12000:31"));
    load(GpuLoad::Others(31), "and their times do not hide the samples that follow");
    fake.answer(&changed(RECORDED, SAMPLES, &nonsense).replace("0.utilisation 96", "0.utilisation 64"));
    load(GpuLoad::Whole(64), "where all samples are made up, the whole card's load is what is known");
}

/// The card's energy, once it is as wanted.
fn energy(senses: &Senses, reason: &str, wanted: impl Fn(&MeteredEnergy) -> bool) -> MeteredEnergy {
    let of = |card: &Gpu| card.energy.known().copied();
    let now = wait_for(senses, Duration::from_secs(15), reason, |now| {
        now.gpus.reading.known().and_then(|gpus| of(&gpus.cards[0])).is_some_and(|energy| wanted(&energy))
    });
    of(&now.gpus.reading.known().unwrap().cards[0]).unwrap()
}

#[test]
fn a_cards_energy_is_what_its_counter_counted_since_we_looked() {
    let counter = |millijoules: u64| changed(RECORDED, "0.energy 91827364550", &format!("0.energy {millijoules}"));
    let fake = FakeNvml::answering(RECORDED);
    let senses = start(&fake.surroundings());
    let first = energy(&senses, "the counter is read", |_| true);
    assert_eq!(first.used, Energy(0), "what was used before is not ours to count");
    fake.answer(&counter(91_827_364_550 + 600_000));
    let second = energy(&senses, "600 J were used", |energy| energy.used == Energy(600_000));
    assert!(second.measured >= Duration::from_secs(1) && second.not_measured.is_zero(), "{second:?}");
    // The driver is loaded again, and its counter begins at nothing.
    fake.answer(&counter(5_000));
    let third = energy(&senses, "a step is not measured", |energy| !energy.not_measured.is_zero());
    assert_eq!(third.used, Energy(600_000), "nothing earlier is lost, and nothing is made up");
    fake.answer(&counter(305_000));
    energy(&senses, "300 J more", |energy| energy.used == Energy(900_000));
}

#[test]
fn a_card_without_a_counter_is_measured_by_its_power() {
    let values = changed(RECORDED, "0.energy 91827364550", "0.energy error 3");
    let fake = FakeNvml::answering(&values);
    let senses = start(&fake.surroundings());
    let three_looks = Duration::from_secs(4);
    let energy = energy(&senses, "it is looked at again", |energy| energy.measured >= three_looks);
    let expected = 287_123 * energy.measured.as_nanos() / 1_000_000_000;
    assert_eq!(u128::from(energy.used.0), expected, "287 W for as long as it was measured: {energy:?}");

    fake.answer(&changed(&values, "0.power 287123", "0.power error 3"));
    let silent = |now: &pool_sense::Snapshot| now.gpus.reading.known().unwrap().cards[0].energy.known().is_none();
    let now = wait_for(&senses, Duration::from_secs(10), "it tells neither", silent);
    let told = now.gpus.reading.known().unwrap().cards[0].energy.to_string();
    assert_eq!(told, "unavailable, because this card does not tell it");
}

#[test]
fn the_memory_of_a_process_is_told_at_once() {
    let second = RECORDED.lines().filter(|line| line.starts_with("0.")).map(|line| format!("1{}\n", &line[1..]));
    let both = changed(RECORDED, "count 1", "count 2") + &second.collect::<String>();
    let fake = FakeNvml::answering(RECORDED);
    let senses = start(&fake.surroundings());
    assert_eq!(senses.gpu_memory_of(SHARD), Reading::Known(ByteSize(12_884_901_888)), "listed twice, held once");
    assert_eq!(senses.gpu_memory_of(123), Reading::Known(ByteSize(0)), "a process that uses no GPU");
    fake.answer(&both);
    assert_eq!(senses.gpu_memory_of(SHARD), Reading::Known(ByteSize(2 * 12_884_901_888)), "on both cards");
    // The shard has ended; the sensor that reads in the background does not know it yet.
    fake.answer(&both.replace("4242:12884901888", ""));
    assert_eq!(senses.gpu_memory_of(SHARD), Reading::Known(ByteSize(0)), "nobody waits for the next interval");

    let began = Instant::now();
    (0..100).for_each(|_| assert!(senses.gpu_memory_of(SHARD).known().is_some()));
    let each = began.elapsed() / 100;
    assert!(each < Duration::from_millis(10), "it may be asked every ten milliseconds, each took {each:?}");

    fake.answer(&changed(RECORDED, "0.compute 4242:12884901888", "0.compute 4242:-"));
    let told = senses.gpu_memory_of(SHARD).to_string();
    assert_eq!(told, "unavailable, because the driver does not tell memory per program", "as under Windows");
    let told = start(&nowhere()).gpu_memory_of(SHARD).to_string();
    assert_eq!(told, "unavailable, because no NVIDIA driver is installed");
}

#[test]
fn a_driver_that_does_not_tell_programs_apart_says_so() {
    let values = changed(RECORDED, "0.samples 4242:1000:71", "0.samples error 3");
    let values = changed(&values, "0.compute 4242:12884901888", "0.compute 4242:-");
    let fake = FakeNvml::answering(&values);
    let senses = Senses::start(&fake.surroundings()).unwrap();
    senses.set_own_processes(vec![SHARD]);
    let whole = Reading::Known(GpuLoad::Whole(96));
    wait_for(&senses, Duration::from_secs(10), "the whole load is told as such", |now| {
        now.gpus
            .reading
            .known()
            .is_some_and(|gpus| gpus.cards[0].load == whole && gpus.cards[0].memory_ours.known().is_none())
    });
    let card = the_card(&senses);
    let why = "unavailable, because the driver does not tell memory per program";
    assert_eq!(card.memory_ours.to_string(), why, "as under Windows");
    assert_eq!(card.memory_others.to_string(), why, "what is ours is unknown, so others' is too");
    assert_eq!(card.memory_used, Reading::Known(16_255_483_904), "the sum is known all the same");
}

#[test]
fn a_card_that_falls_off_the_bus_says_so_and_the_other_goes_on() {
    let second = RECORDED.lines().filter(|line| line.starts_with("0.")).map(|line| format!("1{}\n", &line[1..]));
    let both = changed(RECORDED, "count 1", "count 2") + &second.collect::<String>();
    let fake = FakeNvml::answering(&both);
    let senses = start(&fake.surroundings());
    let cards = senses.snapshot().gpus.reading.known().unwrap().cards.clone();
    assert!(cards.len() == 2 && cards[1].temperature == Reading::Known(64), "both answer: {cards:?}");

    let lost = both.lines().map(|line| match line.starts_with("1.") {
        true => format!("{} error 15\n", line.split(' ').next().unwrap()),
        false => format!("{line}\n"),
    });
    fake.answer(&(lost.collect::<String>() + "1.handle error 15\n"));
    let now = wait_for(&senses, Duration::from_secs(10), "the second card is lost", |now| {
        now.gpus.reading.known().is_some_and(|gpus| gpus.cards[1].temperature.known().is_none())
    });
    let cards = &now.gpus.reading.known().unwrap().cards;
    let told = cards[1].temperature.to_string();
    assert!(told.contains("has stopped answering"), "what happened and what helps: {told}");
    assert_eq!(cards[0].temperature, Reading::Known(64), "the first card does not suffer");

    fake.answer(&both);
    wait_for(&senses, Duration::from_secs(10), "it is back after a reset", |now| {
        now.gpus.reading.known().is_some_and(|gpus| gpus.cards[1].temperature == Reading::Known(64))
    });
}

#[test]
fn what_a_user_may_not_see_is_unavailable_on_its_own() {
    let values = changed(RECORDED, "0.compute 4242:12884901888", "0.compute error 4");
    let values = changed(&values, "0.power 287123", "0.power error 4");
    let fake = FakeNvml::answering(&values);
    let card = the_card(&start(&fake.surroundings()));
    assert_eq!(card.memory_others.to_string(), "unavailable, because this user may not ask for it");
    assert_eq!(card.power_milliwatts.to_string(), "unavailable, because this user may not ask for it");
    assert_eq!(card.temperature, Reading::Known(64), "the rest is told");
}

#[test]
fn no_driver_an_idle_driver_and_an_updated_driver_are_told_apart() {
    let told = |surroundings: &Surroundings| start(surroundings).snapshot().gpus.reading.to_string();
    assert_eq!(told(&nowhere()), "unavailable, because no NVIDIA driver is installed");
    let asleep = FakeNvml::answering("init error 9\n");
    let why = "unavailable, because the NVIDIA driver is installed but not running";
    assert_eq!(told(&asleep.surroundings()), why);
    let updated = FakeNvml::answering("init error 18\n");
    let told = told(&updated.surroundings());
    assert!(told.contains("works again after a restart of the computer"), "the next step is named: {told}");
}
