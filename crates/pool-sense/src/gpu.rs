//! NVIDIA's GPUs through NVML, the management library that comes with the driver; it is opened at run time.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use nvml_wrapper::{
    Device, Nvml, enum_wrappers::device::TemperatureSensor, enums::device::UsedGpuMemory, error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use pool_types::Reading;

use crate::{
    processes::Told,
    sensor::{Sensor, because},
    values::{Gpu, GpuLoad, Gpus},
};

/// Where there is no driver, it is looked for again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Asks NVML.
pub(crate) struct NvidiaGpus {
    library: Option<PathBuf>,
    told: Told,
    nvml: Option<Nvml>,
    /// Why there is no driver, and until when that is believed.
    absent: Option<(String, Instant)>,
    /// Per card, the driver's time of the newest sample that was looked at.
    seen: HashMap<u32, u64>,
}

impl NvidiaGpus {
    pub(crate) fn new(library: Option<PathBuf>, told: Told) -> Self {
        Self { library, told, nvml: None, absent: None, seen: HashMap::new() }
    }

    fn open(&self) -> Result<Nvml, NvmlError> {
        let mut builder = Nvml::builder();
        if let Some(library) = &self.library {
            builder.lib_path(library.as_os_str());
        }
        builder.init()
    }
}

impl Sensor<Gpus> for NvidiaGpus {
    fn read(&mut self) -> Reading<Gpus> {
        let now = Instant::now();
        if let Some((reason, until)) = &self.absent
            && now < *until
        {
            return Reading::Unavailable(reason.clone());
        }
        let nvml = match self.nvml.take().map_or_else(|| self.open(), Ok) {
            Ok(nvml) => nvml,
            Err(error) => {
                let reason = why_no_driver(&error);
                self.absent = Some((reason.clone(), now + TRY_AGAIN));
                return Reading::Unavailable(reason);
            }
        };
        self.absent = None;
        let mut must_reopen = false;
        let all = nvml.sys_driver_version().and_then(|version| Ok((version, nvml.device_count()?)));
        let (driver_version, count) = match all {
            Ok(all) => all,
            // The library is closed here and opened again at the next reading.
            Err(error) => return Reading::Unavailable(why_no_driver(&error)),
        };
        let own = self.told.own();
        let mut cards = Vec::new();
        for index in 0..count {
            let card = match nvml.device_by_index(index) {
                Ok(device) => look(index, &device, &own, &mut self.seen),
                Err(error) => silent_card(index, &why(&error), needs_reopening(&error)),
            };
            must_reopen |= card.1;
            cards.push(card.0);
        }
        if !must_reopen {
            self.nvml = Some(nvml);
        }
        Reading::Known(Gpus { driver_version, cards })
    }
}

/// What a card says, and whether the library must be opened anew before it is asked again.
fn look(index: u32, device: &Device<'_>, own: &[u32], seen: &mut HashMap<u32, u64>) -> (Gpu, bool) {
    let mut must_reopen = false;
    let mut note = |error: NvmlError| {
        must_reopen |= needs_reopening(&error);
        why(&error)
    };
    let memory = device.memory_info().map_err(&mut note);
    let memory_total = from(memory.as_ref().map(|memory| memory.total).map_err(Clone::clone));
    let used = memory.map(|memory| memory.used);
    let ours = memory_of(device, own, &mut note);
    let others = match (&used, &ours) {
        (Ok(used), Ok(ours)) => Ok(used.saturating_sub(*ours)),
        (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
    };
    let gpu = Gpu {
        index,
        uuid: from(device.uuid().map_err(&mut note)),
        name: from(device.name().map_err(&mut note)),
        memory_total,
        memory_used: from(used),
        memory_ours: from(ours),
        memory_others: from(others),
        load: from(load(index, device, own, seen, &mut note)),
        temperature: from(device.temperature(TemperatureSensor::Gpu).map_err(&mut note)),
        power_milliwatts: from(device.power_usage().map_err(&mut note)),
        energy_millijoules: from(device.total_energy_consumption().map_err(&mut note)),
    };
    (gpu, must_reopen)
}

/// Bytes that `own` processes use. A process that computes and draws is in both lists with the same bytes.
fn memory_of(device: &Device<'_>, own: &[u32], note: &mut impl FnMut(NvmlError) -> String) -> Result<u64, String> {
    let mut bytes: HashMap<u32, u64> = HashMap::new();
    let lists = [device.running_compute_processes(), device.running_graphics_processes()];
    for process in lists.into_iter().collect::<Result<Vec<Vec<ProcessInfo>>, _>>().map_err(note)?.concat() {
        if own.contains(&process.pid) {
            let UsedGpuMemory::Used(used) = process.used_gpu_memory else {
                return Err("the driver does not tell memory per program".to_owned());
            };
            let most = bytes.entry(process.pid).or_default();
            *most = used.max(*most);
        }
    }
    Ok(bytes.into_values().sum())
}

/// The work of others where the driver tells programs apart, all work otherwise.
fn load(
    index: u32,
    device: &Device<'_>,
    own: &[u32],
    seen: &mut HashMap<u32, u64>,
    note: &mut impl FnMut(NvmlError) -> String,
) -> Result<GpuLoad, String> {
    let last_seen = seen.get(&index).copied();
    let samples = match device.process_utilization_stats(last_seen) {
        Ok(samples) => samples,
        // Nobody has worked since.
        Err(NvmlError::NotFound) => Vec::new(),
        Err(NvmlError::NotSupported | NvmlError::NoPermission | NvmlError::FailedToLoadSymbol(_)) => {
            let whole = device.utilization_rates().map_err(note)?;
            return Ok(GpuLoad::Whole(percent(whole.gpu)));
        }
        Err(error) => return Err(note(error)),
    };
    // Each program's newest sample; some drivers put values above 100 where they know nothing.
    let mut newest: HashMap<u32, (u64, u32)> = HashMap::new();
    for sample in samples.iter().filter(|sample| sample.sm_util <= 100) {
        let latest = newest.entry(sample.pid).or_insert((sample.timestamp, sample.sm_util));
        if sample.timestamp >= latest.0 {
            *latest = (sample.timestamp, sample.sm_util);
        }
    }
    if let Some(latest) = samples.iter().map(|sample| sample.timestamp).max() {
        seen.insert(index, latest);
    }
    let others = newest.iter().filter(|(pid, _)| !own.contains(pid)).map(|(_, (_, percent))| percent);
    Ok(GpuLoad::Others(percent(others.sum())))
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

fn silent_card(index: u32, reason: &str, must_reopen: bool) -> (Gpu, bool) {
    fn silent<T>(reason: &str) -> Reading<T> {
        Reading::unavailable(reason)
    }
    let gpu = Gpu {
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
        energy_millijoules: silent(reason),
    };
    (gpu, must_reopen)
}

fn needs_reopening(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::Uninitialized | NvmlError::GpuLost | NvmlError::DriverNotLoaded | NvmlError::ResetRequired
    )
}

fn why_no_driver(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => "no NVIDIA driver is installed".to_owned(),
        NvmlError::DriverNotLoaded => "the NVIDIA driver is installed but not running".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver was updated while it ran; it works again after a restart of the computer".to_owned()
        }
        NvmlError::NoPermission => "this user may not ask the NVIDIA driver".to_owned(),
        other => format!("the NVIDIA driver gives no answer: {}", because(other)),
    }
}

fn why(error: &NvmlError) -> String {
    match error {
        NvmlError::NotSupported => "this card does not tell it".to_owned(),
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "this NVIDIA driver is too old to tell it".to_owned()
        }
        NvmlError::GpuLost => {
            "the card has stopped answering; it works again after a restart of the computer".to_owned()
        }
        NvmlError::ResetRequired => "the card must be reset before it works again".to_owned(),
        NvmlError::NoPermission => "this user may not ask for it".to_owned(),
        other => because(other),
    }
}
