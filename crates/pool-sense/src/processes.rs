//! Which of the owner's programs run.

use std::{
    ffi::{OsStr, OsString},
    sync::{Arc, Mutex, PoisonError},
};

use pool_types::Reading;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::sensor::{Sensor, because};

/// Linux keeps this many bytes of a process's name.
const KEPT_NAME: usize = 15;

/// What the sensors of processes are told: it may change while they run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    programs: Arc<Mutex<Vec<String>>>,
    own: Arc<Mutex<Vec<u32>>>,
}

impl Told {
    /// Says whether they are others than before.
    pub(crate) fn set_programs(&self, programs: Vec<String>) -> bool {
        let mut told = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *told != programs;
        *told = programs;
        changed
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

/// Which programs run of those that were looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) looked_for: Vec<String>,
    pub(crate) run: Vec<String>,
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

impl Sensor<Found> for Programs {
    fn read(&mut self) -> Reading<Found> {
        let looked_for = self.told.programs();
        if looked_for.is_empty() {
            return Reading::Known(Found::default());
        }
        let system = match open(&mut self.system) {
            Ok(system) => system,
            Err(error) => return Reading::Unavailable(because(&error)),
        };
        // Always: a launcher becomes the game that it starts, under the number that it has.
        let names_only = ProcessRefreshKind::nothing().with_exe(UpdateKind::Always).without_tasks();
        if system.refresh_processes_specifics(ProcessesToUpdate::All, true, names_only) == 0 {
            return Reading::unavailable("this system does not list its processes");
        }
        let running: Vec<(OsString, OsString)> = (system.processes().values())
            .map(|process| {
                let executable = process.exe().and_then(|path| path.file_name()).unwrap_or_default();
                (executable.to_owned(), process.name().to_owned())
            })
            .collect();
        let runs = |program: &&String| running.iter().any(|(executable, name)| is_program(program, executable, name));
        let run = looked_for.iter().filter(runs).cloned().collect();
        Reading::Known(Found { looked_for, run })
    }
}

/// Whether the process with this executable (empty where it may not be seen) and this name is `program`. People write
/// `Blender` where the file is called `blender`: case does not matter.
fn is_program(program: &str, executable: &OsStr, name: &OsStr) -> bool {
    let (program, found) = (plain(program), [executable, name].map(|found| plain(&found.to_string_lossy())));
    if found.contains(&program) {
        return true;
    }
    // The rest of a long name is cut off, perhaps within a letter; that is all there is of another user's process.
    let is_cut = cfg!(not(windows)) && executable.is_empty() && name.len() == KEPT_NAME;
    is_cut && program.starts_with(found[1].trim_end_matches(char::REPLACEMENT_CHARACTER))
}

/// A name as names are compared.
fn plain(name: &str) -> String {
    let name = name.to_lowercase();
    match name.strip_suffix(".exe") {
        Some(stem) if cfg!(windows) => stem.to_owned(),
        _ => name,
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

    fn is(program: &str, executable: &str, name: &str) -> bool {
        is_program(program, OsStr::new(executable), OsStr::new(name))
    }

    #[test]
    fn programs_are_known_by_their_executable_in_any_case() {
        assert!(is("blender", "blender", "blender"), "the executable's name");
        assert!(is("Blender", "blender", "blender"), "as people write it");
        assert!(is("steam", "Steam", "Steam"), "and as some files are called");
        assert!(is("game.exe", "wine64-preloader", "Game.exe"), "a Windows game under wine keeps its name");
        assert!(!is("blend", "blender", "blender"), "a part of a name is another program");
        if cfg!(windows) {
            assert!(is("Blender", "blender.exe", "blender.exe"), "nobody writes the ending");
        } else {
            let (program, kept) = ("A-Program-with-a-long-name", "a-program-with-");
            assert!(is(program, "", kept), "another user's process shows only 15 bytes");
            assert!(!is(program, "", "a-program-with"), "a name of 14 bytes is not cut off");
            assert!(!is(program, "a-program-with-another-name", kept), "where the executable is seen, it decides");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_the_kernel_cut_within_a_letter_is_known() {
        use std::os::unix::ffi::OsStrExt;
        let program = "Blumenwiesen-Käfer";
        let kept = OsStr::from_bytes(&program.as_bytes()[..KEPT_NAME]);
        assert!(std::str::from_utf8(kept.as_bytes()).is_err(), "the fifteenth byte is half of a letter");
        assert!(is_program("blumenwiesen-käfer", OsStr::new(""), kept));
    }

    #[test]
    fn the_tests_own_program_runs_and_an_invented_one_does_not() {
        let here = std::env::current_exe().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap().to_owned();
        let told = Told::default();
        let mut programs = Programs::new(told.clone());
        assert_eq!(programs.read(), Reading::Known(Found::default()), "nothing is asked for");
        let looked_for = vec!["no-such-program".to_owned(), here.clone()];
        told.set_programs(looked_for.clone());
        assert_eq!(programs.read(), Reading::Known(Found { looked_for, run: vec![here] }), "this test is running");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_launcher_that_becomes_the_game_is_known_as_the_game() {
        use std::{
            fs,
            io::Write,
            process::{Command, Stdio},
            thread,
            time::{Duration, Instant},
        };
        let folder = tempfile::tempdir().unwrap();
        let game = folder.path().join("a-game-with-a-name-of-its-own");
        fs::copy("/bin/sleep", &game).unwrap();
        let mut launcher = Command::new("/bin/sh");
        launcher.args(["-c", "read begin; exec \"$0\" 60"]).arg(&game).stdin(Stdio::piped());
        let mut launcher = launcher.spawn().unwrap();
        let told = Told::default();
        told.set_programs(vec!["a-game-with-a-name-of-its-own".to_owned()]);
        let mut programs = Programs::new(told);
        let mut runs = || programs.read().known().expect("this system lists its processes").run.len();
        assert_eq!(runs(), 0, "the launcher runs and not yet the game");
        launcher.stdin.take().unwrap().write_all(b"begin\n").unwrap();
        let began = Instant::now();
        while runs() == 0 && began.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(20));
        }
        let seen = runs();
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        assert_eq!(seen, 1, "the same process is now the game");
    }
}
