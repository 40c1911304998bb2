//! A D-Bus daemon of a test's own; it stands for the session's and for the system's.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use pool_sense::Surroundings;
use tempfile::TempDir;

use super::{Running, nowhere};

pub(crate) struct PrivateBus {
    _process: Running,
    _folder: TempDir,
    pub(crate) address: String,
}

impl PrivateBus {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // It starts no services: what is not running is not running.
        let configuration = format!(
            "<busconfig><type>session</type><listen>unix:dir={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/><allow own=\"*\"/></policy>\
             </busconfig>",
            folder.path().display()
        );
        let file = folder.path().join("bus.conf");
        fs::write(&file, configuration).expect("it can be written");
        let mut command = Command::new("dbus-daemon");
        command.arg(format!("--config-file={}", file.display())).args(["--nofork", "--print-address=1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("dbus-daemon is installed (make setup)");
        let output = child.stdout.take().expect("its output is a pipe");
        let process = Running(child);
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address).expect("it writes its address");
        Self { _process: process, _folder: folder, address: address.trim().to_owned() }
    }

    /// A machine where only this bus is.
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings { session_bus: Some(self.address.clone()), system_bus: Some(self.address.clone()), ..nowhere() }
    }
}
