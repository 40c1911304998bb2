//! NVIDIA's GPUs through NVML, the management library that comes with the driver; it is opened at run time.

mod driver;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nvml_wrapper::{
    Device, Nvml, enum_wrappers::device::TemperatureSensor, enums::device::UsedGpuMemory, error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use pool_types::{ByteSize, Energy, Reading};

use self::driver::{Driver, Errors, is_for_ever, why_no_driver};
use crate::{
    energy::{EnergyMeter, EnergyReading, MeteredEnergy},
    processes::Told,
    sensor::Sensor,
    values::{Gpu, GpuLoad, Gpus},
};

/// How far a sample's time may lie ahead of our clock, which may have been set back a little since.
const CLOCKS_APART: Duration = Duration::from_secs(1);

/// Power that was looked at less often says nothing of the time between: five looks were missed.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// Cards whose energy is counted, those that were taken out while we ran among them.
const MOST_METERS: usize = 64;

/// Asks NVML.
pub(crate) struct NvidiaGpus {
    driver: Driver,
    told: Told,
    /// Per card, the driver's time of the newest sample that was looked at.
    seen: HashMap<u32, u64>,
    /// Per card, by its name for life.
    meters: HashMap<String, EnergyMeter>,
}

impl NvidiaGpus {
    pub(crate) fn new(library: Option<PathBuf>, told: Told) -> Self {
        Self { driver: Driver::new(library), told, seen: HashMap::new(), meters: HashMap::new() }
    }

    /// What a card says.
    fn look(&mut self, index: u32, device: &Device<'_>, errors: &mut Errors) -> Gpu {
        let own = self.told.own();
        let memory = device.memory_info().map_err(|error| errors.note(&error));
        let memory_total = from(memory.as_ref().map(|memory| memory.total).map_err(Clone::clone));
        let used = memory.map(|memory| memory.used);
        let ours = memory_of(device, &own, errors);
        let others = match (&used, &ours) {
            (Ok(used), Ok(ours)) => Ok(used.saturating_sub(*ours)),
            (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
        };
        let uuid = device.uuid().map_err(|error| errors.note(&error));
        let power = device.power_usage();
        Gpu {
            index,
            name: from(device.name().map_err(|error| errors.note(&error))),
            memory_total,
            memory_used: from(used),
            memory_ours: from(ours),
            memory_others: from(others),
            load: from(self.load(index, device, &own, errors)),
            temperature: from(device.temperature(TemperatureSensor::Gpu).map_err(|error| errors.note(&error))),
            energy: from(self.energy(&uuid, device, &power, errors)),
            power_milliwatts: from(power.map_err(|error| errors.note(&error))),
            uuid: from(uuid),
        }
    }

    /// The work of others where the driver tells programs apart, all work otherwise.
    fn load(&mut self, index: u32, device: &Device<'_>, own: &[u32], errors: &mut Errors) -> Result<GpuLoad, String> {
        let latest_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + CLOCKS_APART;
        let is_past = |time: u64| time > 0 && Duration::from_micros(time) <= latest_time;
        let last_seen = self.seen.get(&index).copied().filter(|time| is_past(*time));
        let samples = match device.process_utilization_stats(last_seen) {
            Ok(samples) => samples,
            // Nobody has worked since.
            Err(NvmlError::NotFound) => return Ok(GpuLoad::Others(0)),
            Err(error) if is_for_ever(&error) => return whole_load(device, errors),
            Err(error) => return Err(errors.note(&error)),
        };
        // Some drivers fill places of which they know nothing with whatever lay there.
        let is_told = |pid: u32, time: u64, percent: u32| pid != 0 && percent <= 100 && is_past(time);
        // Each program's newest sample.
        let mut newest: HashMap<u32, (u64, u32)> = HashMap::new();
        for sample in samples.iter().filter(|sample| is_told(sample.pid, sample.timestamp, sample.sm_util)) {
            let latest = newest.entry(sample.pid).or_insert((sample.timestamp, sample.sm_util));
            if sample.timestamp >= latest.0 {
                *latest = (sample.timestamp, sample.sm_util);
            }
        }
        let Some(latest) = newest.values().map(|(time, _)| *time).max() else {
            return if samples.is_empty() { Ok(GpuLoad::Others(0)) } else { whole_load(device, errors) };
        };
        self.seen.insert(index, latest);
        let others = newest.iter().filter(|(pid, _)| !own.contains(pid)).map(|(_, (_, percent))| percent);
        Ok(GpuLoad::Others(percent(others.sum())))
    }

    /// What the card has used since it was first looked at. One that has a counter is never taken by its power, also
    /// when the counter fails once: two measures of one time would be counted twice.
    fn energy(
        &mut self,
        uuid: &Result<String, String>,
        device: &Device<'_>,
        power: &Result<u32, NvmlError>,
        errors: &mut Errors,
    ) -> Result<MeteredEnergy, String> {
        let uuid = uuid.as_ref().map_err(Clone::clone)?;
        let reading = match (device.total_energy_consumption(), power) {
            (Ok(counter), _) => EnergyReading::Counter(Energy(counter)),
            (Err(error), Ok(milliwatts)) if is_for_ever(&error) => EnergyReading::Power { milliwatts: *milliwatts },
            (Err(error), _) => return Err(errors.note(&error)),
        };
        if !self.meters.contains_key(uuid) && self.meters.len() >= MOST_METERS {
            return Err("too many cards have come and gone to count each one's energy".to_owned());
        }
        let meter = self.meters.entry(uuid.clone()).or_insert_with(|| EnergyMeter::new(LONGEST_GAP));
        meter.count(Instant::now(), reading);
        Ok(meter.total())
    }
}

impl Sensor<Gpus> for NvidiaGpus {
    fn read(&mut self) -> Reading<Gpus> {
        let nvml = match self.driver.take() {
            Ok(nvml) => nvml,
            Err(reason) => return Reading::Unavailable(reason),
        };
        let all = nvml.sys_driver_version().and_then(|version| Ok((version, nvml.device_count()?)));
        let (driver_version, count) = match all {
            Ok(all) => all,
            Err(error) => return Reading::Unavailable(why_no_driver(&error)),
        };
        let mut errors = Errors::default();
        let look = |index| match nvml.device_by_index(index) {
            Ok(device) => self.look(index, &device, &mut errors),
            Err(error) => silent_card(index, &errors.note(&error)),
        };
        let cards = (0..count).map(look).collect();
        if !errors.must_reopen() {
            self.driver.keep(nvml);
        }
        Reading::Known(Gpus { driver_version, cards })
    }
}

/// Asks at once what memory a process holds, beside the sensor that looks at its own pace.
pub(crate) struct MemoryHeld(Mutex<Driver>);

impl MemoryHeld {
    pub(crate) fn new(library: Option<PathBuf>) -> Self {
        Self(Mutex::new(Driver::new(library)))
    }

    pub(crate) fn by(&self, pid: u32) -> Reading<ByteSize> {
        let mut driver = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nvml = match driver.take() {
            Ok(nvml) => nvml,
            Err(reason) => return Reading::Unavailable(reason),
        };
        let mut errors = Errors::default();
        let held = memory_on_all_cards(&nvml, pid, &mut errors);
        if !errors.must_reopen() {
            driver.keep(nvml);
        }
        from(held.map(ByteSize))
    }
}

fn memory_on_all_cards(nvml: &Nvml, pid: u32, errors: &mut Errors) -> Result<u64, String> {
    let count = nvml.device_count().map_err(|error| errors.note(&error))?;
    let on_card = |index| {
        let device = nvml.device_by_index(index).map_err(|error| errors.note(&error))?;
        memory_of(&device, &[pid], errors)
    };
    (0..count).map(on_card).sum()
}

/// Bytes that these processes use. A process that computes and draws is in both lists with the same bytes.
fn memory_of(device: &Device<'_>, pids: &[u32], errors: &mut Errors) -> Result<u64, String> {
    let mut bytes: HashMap<u32, u64> = HashMap::new();
    let lists = [device.running_compute_processes(), device.running_graphics_processes()];
    let lists = lists.into_iter().collect::<Result<Vec<Vec<ProcessInfo>>, _>>();
    for process in lists.map_err(|error| errors.note(&error))?.concat() {
        if pids.contains(&process.pid) {
            let UsedGpuMemory::Used(used) = process.used_gpu_memory else {
                return Err("the driver does not tell memory per program".to_owned());
            };
            let most = bytes.entry(process.pid).or_default();
            *most = used.max(*most);
        }
    }
    Ok(bytes.into_values().sum())
}

fn whole_load(device: &Device<'_>, errors: &mut Errors) -> Result<GpuLoad, String> {
    let whole = device.utilization_rates().map_err(|error| errors.note(&error))?;
    Ok(GpuLoad::Whole(percent(whole.gpu)))
}

fn percent(value: u32) -> u8 {
    value.min(100) as u8
}

fn from<T>(result: Result<T, String>) -> Reading<T> {
    match result {
        Ok(value) => Reading::Known(value),
        Err(reason) => Reading::Unavailable(reason),
    }
}

fn silent_card(index: u32, reason: &str) -> Gpu {
    fn silent<T>(reason: &str) -> Reading<T> {
        Reading::unavailable(reason)
    }
    Gpu {
        index,
        uuid: silent(reason),
        name: silent(reason),
        memory_total: silent(reason),
        memory_used: silent(reason),
        memory_ours: silent(reason),
        memory_others: silent(reason),
        load: silent(reason),
        temperature: silent(reason),
        power_milliwatts: silent(reason),
        energy: silent(reason),
    }
}
