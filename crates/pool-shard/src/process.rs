//! What the shard asks of its operating system.

use std::io;

/// Asks the kernel to end this process when the one that started it ends, whatever way it ends. The closed
/// control pipe says the same where the kernel cannot.
pub fn end_with_parent() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    }
    Ok(())
}

/// Runs this process, and every thread it starts, on these cores only.
pub fn pin_to(cores: &[usize]) -> io::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    {
        let mut set = nix::sched::CpuSet::new();
        for core in cores {
            set.set(*core)?;
        }
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    Err(io::Error::new(io::ErrorKind::Unsupported, "pinning to cores works on Linux only"))
}

/// Bytes of memory this process holds resident; 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        return pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    }
    #[allow(unreachable_code, reason = "where there is no /proc")]
    0
}

/// CPU seconds this process has used, all threads; 0 where the system does not say.
pub fn cpu_seconds() -> f64 {
    #[cfg(unix)]
    {
        use nix::sys::{resource::UsageWho, time::TimeValLike};
        return nix::sys::resource::getrusage(UsageWho::RUSAGE_SELF)
            .map_or(0.0, |u| (u.user_time().num_microseconds() + u.system_time().num_microseconds()) as f64 / 1e6);
    }
    #[allow(unreachable_code, reason = "where there is no getrusage")]
    0.0
}
