//! NVIDIA's driver: is it there, does it still answer, and in plain words why not.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use nvml_wrapper::{Nvml, error::NvmlError};

use crate::sensor::because;

/// Where there is no driver, it is looked for again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// NVML, opened when it is first asked for.
pub(super) struct Driver {
    library: Option<PathBuf>,
    nvml: Option<Nvml>,
    /// Why there is no driver, and until when that is believed.
    absent: Option<(String, Instant)>,
}

impl Driver {
    pub(super) fn new(library: Option<PathBuf>) -> Self {
        Self { library, nvml: None, absent: None }
    }

    /// Takes the library, or says why there is none. Whoever finds that it still answers gives it back by
    /// [`Driver::keep`]; otherwise it is closed, and opened anew the next time.
    pub(super) fn take(&mut self) -> Result<Nvml, String> {
        let now = Instant::now();
        if let Some((reason, until)) = &self.absent
            && now < *until
        {
            return Err(reason.clone());
        }
        let nvml = self.nvml.take().map_or_else(|| self.open(), Ok);
        self.absent = nvml.as_ref().err().map(|error| (why_no_driver(error), now + TRY_AGAIN));
        nvml.map_err(|error| why_no_driver(&error))
    }

    pub(super) fn keep(&mut self, nvml: Nvml) {
        self.nvml = Some(nvml);
    }

    fn open(&self) -> Result<Nvml, NvmlError> {
        let mut builder = Nvml::builder();
        if let Some(library) = &self.library {
            builder.lib_path(library.as_os_str());
        }
        builder.init()
    }
}

/// Puts errors into words, and remembers whether the library must be opened anew.
#[derive(Default)]
pub(super) struct Errors {
    must_reopen: bool,
}

impl Errors {
    pub(super) fn note(&mut self, error: &NvmlError) -> String {
        self.must_reopen |= matches!(
            error,
            NvmlError::Uninitialized | NvmlError::GpuLost | NvmlError::DriverNotLoaded | NvmlError::ResetRequired
        );
        why(error)
    }

    pub(super) fn must_reopen(&self) -> bool {
        self.must_reopen
    }
}

/// Whether a card or a driver never tells it, rather than only not this time.
pub(super) fn is_for_ever(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
    )
}

pub(super) fn why_no_driver(error: &NvmlError) -> String {
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
