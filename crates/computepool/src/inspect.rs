//! `computepool inspect`.

use std::process::ExitCode;

use anyhow::Result;
use pool_models::{Inspection, Model};

use crate::arguments::InspectArguments;

pub(crate) fn run(arguments: &InspectArguments) -> Result<ExitCode> {
    let inspection = Inspection::new(&Model::open(&arguments.model)?);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&inspection)?);
    } else {
        println!("{}", inspection.to_string().trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
