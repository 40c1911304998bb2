//! How soon a thread gets a core on a busy machine.

use std::{io, time::Duration};

/// How long a turn on a core the links' thread asks for: the least that Linux grants.
const SHORT_TURN: Duration = Duration::from_micros(100);

/// Asks that this thread, which must answer peers within a second, runs as soon as it has something to do, for a short
/// turn, before others have ended their long ones. Threads it starts inherit that; those that compute undo it with
/// [`ordinary`].
///
/// On Linux 6.12 and later this is the slice of the EEVDF scheduler (`sched_setattr(2)`), which needs no rights and
/// takes no processor time from anybody. Elsewhere nothing happens. Lowering the priority of the threads that compute
/// (`nice`) was tried instead: with 40 busy processes on their core it lost more links than doing nothing.
pub fn short() -> io::Result<()> {
    ask_for(SHORT_TURN)
}

/// Undoes [`short`] for this thread.
pub fn ordinary() -> io::Result<()> {
    ask_for(Duration::ZERO)
}

#[cfg(target_os = "linux")]
fn ask_for(turn: Duration) -> io::Result<()> {
    let mut attributes = SchedulerAttributes::of_this_thread()?;
    // Another policy was somebody's decision.
    if attributes.policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.runtime = turn.as_nanos() as u64;
    attributes.set()
}

#[cfg(not(target_os = "linux"))]
fn ask_for(_: Duration) -> io::Result<()> {
    Ok(())
}

/// `struct sched_attr` in its first version, which every kernel takes.
#[cfg(target_os = "linux")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of an ordinary thread: its slice in nanoseconds; 0 sets the default.
    runtime: u64,
    deadline: u64,
    period: u64,
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "std has no sched_setattr(2)")]
impl SchedulerAttributes {
    const SIZE: u32 = size_of::<Self>() as u32;

    fn of_this_thread() -> io::Result<Self> {
        let mut attributes = Self::default();
        // SAFETY: 0 is the calling thread; the kernel writes at most the given size, that of `attributes`, which lives.
        let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, Self::SIZE, 0) };
        if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
    }

    fn set(mut self) -> io::Result<()> {
        self.size = Self::SIZE;
        // SAFETY: 0 is the calling thread; the kernel reads `size` bytes of `self`, which lives.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const self, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_links_thread_asks_for_short_turns_and_the_engine_it_starts_does_not() {
        let turn = || SchedulerAttributes::of_this_thread().unwrap().runtime;
        let before = SchedulerAttributes::of_this_thread().unwrap();
        short().unwrap();
        let links = SchedulerAttributes::of_this_thread().unwrap();
        let engine = std::thread::spawn(move || {
            ordinary().unwrap();
            turn()
        });
        let engine = engine.join().unwrap();
        assert_eq!((links.policy, links.nice), (before.policy, before.nice), "nothing else is touched");
        // Kernels before 6.12 (and threads of another policy) say 0 throughout.
        if before.runtime != 0 {
            assert_eq!(links.runtime, SHORT_TURN.as_nanos() as u64);
            assert!(engine > links.runtime, "the engine computes in ordinary turns: {engine} ns");
        } else {
            eprintln!("this kernel has no turns of a thread's own: not checked");
        }
    }
}
