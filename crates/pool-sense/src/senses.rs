//! All sensors together, asked in the background at their intervals.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use pool_types::{ByteSize, Reading};
use thiserror::Error;
use tokio::sync::watch;

use crate::{
    cell::{Cell, Sensed},
    energy::MeteredEnergy,
    gpu::{MemoryHeld, NvidiaGpus},
    input::Seen,
    lane::{Lane, Task},
    platform::{self, Sensors},
    processes::{Found, Programs, Told},
    surroundings::Surroundings,
    values::{Gpus, Idle, Metered, Power},
};

const FULL_SCREEN_EVERY: Duration = Duration::from_secs(1);
const KEPT_AWAKE_EVERY: Duration = Duration::from_secs(2);
const METERED_EVERY: Duration = Duration::from_secs(5);
const PROGRAMS_EVERY: Duration = Duration::from_secs(4);
const POWER_EVERY: Duration = Duration::from_secs(5);
const CPU_ENERGY_EVERY: Duration = Duration::from_secs(5);
const GPUS_EVERY: Duration = Duration::from_secs(2);

/// The longest time between two looks of any source of input, and some more.
const INPUT_STALE_AFTER: Duration = Duration::from_secs(10);

/// What is known of the owner and the machine at one moment. Each value has its own age.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// How long nobody has touched keyboard, mouse or game controller.
    pub input: Sensed<Idle>,
    /// Whether the window in front covers a whole monitor.
    pub full_screen: Sensed<bool>,
    /// Whether a program asks the desktop to stay awake: a film, a presentation, a call.
    pub kept_awake: Sensed<bool>,
    /// Those of the owner's programs that run, as the owner wrote them.
    pub programs: Sensed<Vec<String>>,
    /// Battery or mains.
    pub power: Sensed<Power>,
    /// What the processor has used since it was first looked at, by whomever.
    pub cpu_energy: Sensed<MeteredEnergy>,
    /// Whether traffic costs.
    pub metered: Sensed<Metered>,
    /// NVIDIA's GPUs.
    pub gpus: Sensed<Gpus>,
}

impl Snapshot {
    /// Nothing is known yet.
    pub fn nothing() -> Self {
        Self {
            input: Sensed::never(),
            full_screen: Sensed::never(),
            kept_awake: Sensed::never(),
            programs: Sensed::never(),
            power: Sensed::never(),
            cpu_energy: Sensed::never(),
            metered: Sensed::never(),
            gpus: Sensed::never(),
        }
    }
}

/// What a node wants to know of its owner's presence and its machine's state. No call blocks but
/// [`Presence::gpu_memory_of`].
pub trait Presence: Send + Sync {
    /// What is known now. Cheap: it copies what was read in the background.
    fn snapshot(&self) -> Snapshot;

    /// When the last input was, told anew within 250 ms of the first input after a pause; unavailable while no source
    /// of input works. A source that has just begun to serve tells the latest moment at which an input may have been.
    fn input(&self) -> watch::Receiver<Reading<Instant>>;

    /// The owner's list of programs during which they want to be left alone: names of executables, in any case. They
    /// are looked for at once.
    fn set_programs(&self, programs: Vec<String>);

    /// The processes that are ours besides this one (the shard), so that their load is not taken for others'.
    fn set_own_processes(&self, pids: Vec<u32>);

    /// The GPU memory that a process holds at this moment, on all cards together: asked at once, not read in the
    /// background, so that whoever ends a process can see when its memory is free. Blocks for as long as the driver takes,
    /// about a millisecond; the first call opens the driver.
    ///
    /// A process that is gone holds 0 bytes. So does one that the driver knows by another number, as in a container: who
    /// waits for the memory of a process asks before it ends, too.
    fn gpu_memory_of(&self, pid: u32) -> Reading<ByteSize>;
}

/// Why the senses could not be started.
#[derive(Debug, Error)]
#[error("the thread {name} that reads sensors could not be started")]
pub struct SensesError {
    name: &'static str,
    #[source]
    source: io::Error,
}

/// The last readings.
struct Cells {
    input: Arc<Cell<Seen>>,
    full_screen: Arc<Cell<bool>>,
    kept_awake: Arc<Cell<bool>>,
    programs: Arc<Cell<Found>>,
    power: Arc<Cell<Power>>,
    cpu_energy: Arc<Cell<MeteredEnergy>>,
    metered: Arc<Cell<Metered>>,
    gpus: Arc<Cell<Gpus>>,
}

/// The real sensors. Owns four threads: input, desktop, machine, GPU; each asks its own sensors one after the other,
/// so that one that hangs delays none of the others. Dropping it ends them, within a second each.
pub struct Senses {
    told: Told,
    cells: Cells,
    news: watch::Receiver<Reading<Instant>>,
    gpu_memory: MemoryHeld,
    machine: Lane,
    others: [Lane; 3],
}

impl Senses {
    /// Starts reading; does not wait for the first readings.
    pub fn start(surroundings: &Surroundings) -> Result<Self, SensesError> {
        let told = Told::default();
        let cells = Cells {
            input: Arc::new(Cell::new(INPUT_STALE_AFTER)),
            full_screen: cell(FULL_SCREEN_EVERY),
            kept_awake: cell(KEPT_AWAKE_EVERY),
            programs: cell(PROGRAMS_EVERY),
            power: cell(POWER_EVERY),
            cpu_energy: cell(CPU_ENERGY_EVERY),
            metered: cell(METERED_EVERY),
            gpus: cell(GPUS_EVERY),
        };
        let Sensors { input, full_screen, kept_awake, metered, power, cpu_energy } = platform::sensors(surroundings);
        let (news_sender, news) = watch::channel(Reading::unavailable("it has not been read yet"));
        let seen = cells.input.clone();
        let input = Lane::start("sense-input", move |calls| input.follow(&seen, &news_sender, calls));
        let desktop = vec![
            Task::new(FULL_SCREEN_EVERY, full_screen, cells.full_screen.clone()),
            Task::new(KEPT_AWAKE_EVERY, kept_awake, cells.kept_awake.clone()),
            Task::new(METERED_EVERY, metered, cells.metered.clone()),
        ];
        let machine = vec![
            Task::new(POWER_EVERY, power, cells.power.clone()),
            Task::new(CPU_ENERGY_EVERY, cpu_energy, cells.cpu_energy.clone()),
            Task::new(PROGRAMS_EVERY, Box::new(Programs::new(told.clone())), cells.programs.clone()),
        ];
        let gpus = NvidiaGpus::new(surroundings.nvml.clone(), told.clone());
        let gpus = vec![Task::new(GPUS_EVERY, Box::new(gpus), cells.gpus.clone())];
        let of_tasks = |name, tasks| Lane::of_tasks(name, tasks).map_err(|source| SensesError { name, source });
        let machine = of_tasks("sense-machine", machine)?;
        let input = input.map_err(|source| SensesError { name: "sense-input", source })?;
        let others = [input, of_tasks("sense-desktop", desktop)?, of_tasks("sense-gpu", gpus)?];
        let gpu_memory = MemoryHeld::new(surroundings.nvml.clone());
        Ok(Self { told, cells, news, gpu_memory, machine, others })
    }

    /// Blocks until every sensor was read once and the programs that were told by then were looked for, or for
    /// `at_most`; says whether they were. Whoever decides by a snapshot waits for this first: a machine of which nothing
    /// is known yet is not one whose sensors fail.
    pub fn wait_for_first_readings(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let Cells { input, full_screen, kept_awake, programs, power, cpu_energy, metered, gpus } = &self.cells;
        let wanted = self.told.programs();
        loop {
            let session = input.was_read() && full_screen.was_read() && kept_awake.was_read();
            let found = programs.get(Instant::now()).reading;
            let machine = power.was_read()
                && cpu_energy.was_read()
                && programs.was_read()
                && found.known().is_none_or(|found| found.looked_for == wanted);
            if session && machine && metered.was_read() && gpus.was_read() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Presence for Senses {
    fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let idle = |(last, source): Seen| Idle { idle_for: last.idle_for(now), source };
        Snapshot {
            input: self.cells.input.get(now).map(idle),
            full_screen: self.cells.full_screen.get(now),
            kept_awake: self.cells.kept_awake.get(now),
            programs: self.cells.programs.get(now).map(|found| found.run),
            power: self.cells.power.get(now),
            cpu_energy: self.cells.cpu_energy.get(now),
            metered: self.cells.metered.get(now),
            gpus: self.cells.gpus.get(now),
        }
    }

    fn input(&self) -> watch::Receiver<Reading<Instant>> {
        self.news.clone()
    }

    fn set_programs(&self, programs: Vec<String>) {
        if self.told.set_programs(programs) {
            self.machine.look_at_once();
        }
    }

    fn set_own_processes(&self, pids: Vec<u32>) {
        self.told.set_own(pids);
    }

    fn gpu_memory_of(&self, pid: u32) -> Reading<ByteSize> {
        self.gpu_memory.by(pid)
    }
}

impl Drop for Senses {
    fn drop(&mut self) {
        // All are asked first, so that they end side by side.
        self.others.iter().chain([&self.machine]).for_each(Lane::ask_to_end);
    }
}

/// Three missed readings are a sensor that hangs.
fn cell<T: Clone>(every: Duration) -> Arc<Cell<T>> {
    Arc::new(Cell::new(every * 3 + Duration::from_secs(2)))
}

/// A presence that is given: for tests of whoever decides by it.
pub struct FixedPresence {
    snapshot: Mutex<Snapshot>,
    news: watch::Sender<Reading<Instant>>,
    told: Told,
    gpu_memory: Mutex<HashMap<u32, Reading<ByteSize>>>,
}

impl FixedPresence {
    /// Tells `snapshot` until another is set.
    pub fn new(snapshot: Snapshot) -> Self {
        let (news, _) = watch::channel(Reading::unavailable("no input was told"));
        Self { snapshot: Mutex::new(snapshot), news, told: Told::default(), gpu_memory: Mutex::default() }
    }

    /// Tells `snapshot` from now on.
    pub fn set(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The programs that are looked for.
    pub fn programs(&self) -> Vec<String> {
        self.told.programs()
    }

    /// The process holds this GPU memory from now on. Of one that was never told, it is unavailable.
    pub fn set_gpu_memory_of(&self, pid: u32, held: Reading<ByteSize>) {
        self.gpu_memory.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, held);
    }

    /// Somebody touches the keyboard at `at`.
    pub fn touch(&self, at: Instant) {
        self.news.send_replace(Reading::Known(at));
    }
}

impl Presence for FixedPresence {
    fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn input(&self) -> watch::Receiver<Reading<Instant>> {
        self.news.subscribe()
    }

    fn set_programs(&self, programs: Vec<String>) {
        self.told.set_programs(programs);
    }

    fn set_own_processes(&self, pids: Vec<u32>) {
        self.told.set_own(pids);
    }

    fn gpu_memory_of(&self, pid: u32) -> Reading<ByteSize> {
        let told = self.gpu_memory.lock().unwrap_or_else(PoisonError::into_inner).get(&pid).cloned();
        told.unwrap_or_else(|| Reading::unavailable("no GPU memory was told"))
    }
}
