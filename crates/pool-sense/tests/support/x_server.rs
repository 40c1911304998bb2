//! A real X server without a screen.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use super::Running;

pub(crate) struct XServer {
    process: Running,
    pub(crate) display: String,
}

impl XServer {
    /// Starts one on a free display. `-noreset`: without it the idle counter starts again when the last client leaves.
    pub(crate) fn start() -> Self {
        Self::run(&["-displayfd", "1"]).expect("a display is free")
    }

    /// Starts one on a given display, if that is free.
    pub(crate) fn start_on(display: &str) -> Option<Self> {
        Self::run(&[display, "-displayfd", "1"])
    }

    /// Starts one on a display that stays free when it ends: the servers of other tests take the lowest numbers.
    pub(crate) fn start_on_own_display() -> Self {
        let number = 200 + std::process::id() % 700;
        let started = (number..number + 50).find_map(|number| Self::start_on(&format!(":{number}")));
        started.expect("one of fifty displays is free")
    }

    fn run(arguments: &[&str]) -> Option<Self> {
        let mut command = Command::new("Xvfb");
        command.args(arguments).args(["-noreset", "-nolisten", "tcp", "-screen", "0", "800x600x24"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("Xvfb is installed (make setup)");
        let output = child.stdout.take().expect("its output is a pipe");
        let process = Running(child);
        let mut number = String::new();
        BufReader::new(output).read_line(&mut number).expect("it writes its display's number");
        // It ends without a number where its display is taken.
        (!number.trim().is_empty()).then(|| Self { process, display: format!(":{}", number.trim()) })
    }

    pub(crate) fn xdotool(&self, arguments: &[&str]) {
        let mut command = Command::new("xdotool");
        command.args(arguments).env("DISPLAY", &self.display).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().expect("xdotool is installed (make setup)").success(), "xdotool {arguments:?}");
    }

    /// A window manager on this server.
    pub(crate) fn openbox(&self) -> Running {
        let mut command = Command::new("openbox");
        command.env("DISPLAY", &self.display).env_remove("DBUS_SESSION_BUS_ADDRESS");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().expect("openbox is installed (make setup)"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }
}
