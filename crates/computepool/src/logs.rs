//! Where the log goes: JSON into a file of bounded size, and the important part in words on standard error.

use std::{
    fs::{File, OpenOptions, rename},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use tracing_subscriber::{EnvFilter, Layer, filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// A file that reached this is renamed to `.1`, replacing the one before.
const MAX_FILE: u64 = 16 << 20;
/// Libraries speak of their own workings below this level.
const FILE_FILTER: &str = "info,webrtc=error,rtc=error,hyper=warn,sqlx=warn,tungstenite=warn,alloy_pubsub=off,\
                           alloy_transport_ws=off";

/// Sets both up. `RUST_LOG` replaces the level on standard error.
pub(crate) fn start(file: Option<&Path>, verbose: u8) -> io::Result<()> {
    let own = match verbose {
        0 => "warn,webrtc=error,rtc=error,alloy_pubsub=off,alloy_transport_ws=off",
        1 => "info,webrtc=warn,rtc=warn,alloy_pubsub=off,alloy_transport_ws=off",
        _ => "debug,webrtc=info,rtc=info,hyper=info,sqlx=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(own));
    let words = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0)
        .with_filter(filter);
    let json = match file {
        Some(path) => {
            let file = Mutex::new(RotatingFile::open(path)?);
            let layer = fmt::layer().json().flatten_event(true).with_writer(file);
            Some(layer.with_filter(EnvFilter::new(FILE_FILTER)))
        }
        None => None,
    };
    // A second call (tests run several commands in one process) keeps the first one's log.
    let _ = tracing_subscriber::registry().with(words.with_filter(LevelFilter::TRACE)).with(json).try_init();
    Ok(())
}

struct RotatingFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl RotatingFile {
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length })
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length >= MAX_FILE {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            rename(&self.path, &old)?;
            *self = Self::open(&self.path)?;
        }
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_never_grows_beyond_two_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        let mut log = RotatingFile::open(&path).unwrap();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..70 {
            log.write_all(&line).unwrap();
        }
        let files: Vec<u64> =
            std::fs::read_dir(&directory).unwrap().flatten().map(|f| f.metadata().unwrap().len()).collect();
        assert_eq!(files.len(), 2, "the log and the one before");
        assert!(files.iter().all(|length| *length <= MAX_FILE + (1 << 20)), "{files:?}");
    }
}
