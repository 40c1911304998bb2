//! Which of the owner's programs run, and what other processes ask of processor and memory.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use pool_types::Reading;
use sysinfo::{
    CpuRefreshKind, MINIMUM_CPU_UPDATE_INTERVAL, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System,
    UpdateKind,
};

use crate::{
    platform::Processor,
    sensor::{Sensor, because},
    values::Load,
};

/// Linux keeps this many bytes of a process's name.
const KEPT_NAME: usize = 15;

/// What the sensors of processes are told: it may change while they run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    programs: Arc<Mutex<Vec<String>>>,
    own: Arc<Mutex<Vec<u32>>>,
}

impl Told {
    pub(crate) fn set_programs(&self, programs: Vec<String>) {
        *self.programs.lock().unwrap_or_else(PoisonError::into_inner) = programs;
    }

    pub(crate) fn set_own(&self, own: Vec<u32>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }

    pub(crate) fn programs(&self) -> Vec<String> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The processes that are ours, this one among them.
    pub(crate) fn own(&self) -> Vec<u32> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        own.push(std::process::id());
        own
    }
}

/// Tells which of the named programs run, by the name of their executable.
pub(crate) struct Programs {
    told: Told,
    system: Option<System>,
}

impl Programs {
    pub(crate) fn new(told: Told) -> Self {
        Self { told, system: None }
    }
}

impl Sensor<Vec<String>> for Programs {
    fn read(&mut self) -> Reading<Vec<String>> {
        let wanted = self.told.programs();
        if wanted.is_empty() {
            return Reading::Known(Vec::new());
        }
        let system = match open(&mut self.system) {
            Ok(system) => system,
            Err(error) => return Reading::Unavailable(because(&error)),
        };
        let names_only = ProcessRefreshKind::nothing().with_exe(UpdateKind::OnlyIfNotSet).without_tasks();
        if system.refresh_processes_specifics(ProcessesToUpdate::All, true, names_only) == 0 {
            return Reading::unavailable("this system does not list its processes");
        }
        let running: Vec<(String, String)> = (system.processes().values())
            .map(|process| {
                let executable = process.exe().and_then(|path| path.file_name()).unwrap_or_default();
                (executable.to_string_lossy().into_owned(), process.name().to_string_lossy().into_owned())
            })
            .collect();
        let runs = |program: &String| running.iter().any(|(executable, name)| is_program(program, executable, name));
        Reading::Known(wanted.into_iter().filter(runs).collect())
    }
}

/// Whether the process with this executable (empty where it may not be seen) and this name is `program`.
fn is_program(program: &str, executable: &str, name: &str) -> bool {
    if same_name(program, executable) || same_name(program, name) {
        return true;
    }
    // The rest of a long name is cut off; that is all there is of another user's process.
    cfg!(not(windows)) && executable.is_empty() && name.len() == KEPT_NAME && program.starts_with(name)
}

fn same_name(program: &str, found: &str) -> bool {
    if cfg!(windows) {
        let plain = |name: &str| {
            let name = name.to_lowercase();
            name.strip_suffix(".exe").map(str::to_owned).unwrap_or(name)
        };
        return plain(program) == plain(found);
    }
    program == found
}

/// Tells the load of everything but our own processes.
pub(crate) struct LoadOfOthers {
    told: Told,
    system: Option<System>,
    processor: Processor,
}

impl LoadOfOthers {
    pub(crate) fn new(told: Told) -> Self {
        Self { told, system: None, processor: Processor::new() }
    }

    fn refresh(processor: &mut Processor, system: &mut System, own: &[Pid]) -> Reading<f32> {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let ours = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(own), true, ours);
        processor.look(system)
    }
}

impl Sensor<Load> for LoadOfOthers {
    /// The first reading takes [`MINIMUM_CPU_UPDATE_INTERVAL`]: a load is the difference of two looks.
    fn read(&mut self) -> Reading<Load> {
        let own: Vec<Pid> = self.told.own().into_iter().map(Pid::from_u32).collect();
        let is_first = self.system.is_none();
        let system = match open(&mut self.system) {
            Ok(system) => system,
            Err(error) => return Reading::Unavailable(because(&error)),
        };
        if is_first {
            // The cores are counted; their use is looked at below.
            system.refresh_cpu_specifics(CpuRefreshKind::nothing());
            // Not worth telling: it is the use since the machine was started.
            let _ = Self::refresh(&mut self.processor, system, &own);
            thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
        }
        let cpu_all = match Self::refresh(&mut self.processor, system, &own) {
            Reading::Known(percent) => percent,
            Reading::Unavailable(reason) => return Reading::Unavailable(reason),
        };
        let cores = system.cpus().len();
        if cores == 0 || system.total_memory() == 0 {
            return Reading::unavailable("this system does not tell its load");
        }
        let ours: Vec<_> = own.iter().filter_map(|pid| system.process(*pid)).collect();
        let cpu_ours = ours.iter().map(|process| process.cpu_usage()).sum::<f32>() / cores as f32;
        let cpu_others = (cpu_all - cpu_ours).clamp(0.0, 100.0).round();
        let memory_ours: u64 = ours.iter().map(|process| process.memory()).sum();
        Reading::Known(Load {
            cpu_others_percent: cpu_others as u8,
            memory_total: system.total_memory(),
            memory_available: system.available_memory(),
            memory_others: system.used_memory().saturating_sub(memory_ours),
        })
    }
}

fn open(system: &mut Option<System>) -> Result<&mut System, sysinfo::Error> {
    match system {
        Some(system) => Ok(system),
        none => Ok(none.insert(System::new()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_executable() {
        assert!(is_program("blender", "blender", "blender"), "the executable's name");
        assert!(is_program("game.exe", "wine64-preloader", "game.exe"), "a Windows game under wine keeps its name");
        assert!(!is_program("blend", "blender", "blender"), "a part of a name is another program");
        if cfg!(not(windows)) {
            assert!(!is_program("Blender", "blender", "blender"), "names differ by case here");
            let (program, kept) = ("a-program-with-a-long-name", "a-program-with-");
            assert!(is_program(program, "", kept), "another user's process shows only 15 bytes");
            assert!(
                !is_program(program, "a-program-with-another-name", kept),
                "where the executable is seen, it decides"
            );
        } else {
            assert!(is_program("Blender", "blender.exe", "blender.exe"), "names are the same in any case here");
        }
    }

    #[test]
    fn the_tests_own_program_runs_and_an_invented_one_does_not() {
        let here = std::env::current_exe().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap().to_owned();
        let told = Told::default();
        let mut programs = Programs::new(told.clone());
        assert_eq!(programs.read(), Reading::Known(Vec::new()), "nothing is asked for");
        told.set_programs(vec!["no-such-program".to_owned(), here.clone()]);
        assert_eq!(programs.read(), Reading::Known(vec![here]), "this test is a running program");
    }

    #[test]
    fn our_own_work_is_not_the_load_of_others() {
        let told = Told::default();
        let mut load = LoadOfOthers::new(told);
        let read = |load: &mut LoadOfOthers| load.read().known().copied().expect("this system tells its load");
        let first = read(&mut load);
        assert!(first.memory_others > 0 && first.memory_others < first.memory_total, "{first:?}");
        assert!(first.memory_available <= first.memory_total, "{first:?}");
        // A quarter of a gigabyte of ours, touched: others' memory does not grow by it.
        let ours = vec![1u8; 256 << 20];
        thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
        let second = read(&mut load);
        std::hint::black_box(&ours);
        let grown = second.memory_others.saturating_sub(first.memory_others);
        assert!(grown < 200 << 20, "our own 256 MiB are not others', grew by {} MiB", grown >> 20);
        assert!(second.cpu_others_percent <= 100, "{second:?}");
    }
}
