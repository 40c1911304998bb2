//! `computepool downloads`.

use std::{convert::Infallible, path::Path, process::ExitCode, time::Duration};

use alloy_primitives::B256;
use anyhow::Result;
use pool_api::{DownloadCommand, DownloadsView, ModelView};
use pool_types::ByteSize;
use reqwest::Method;
use serde_json::json;

use super::{NOTHING, interface};
use crate::{arguments::OwnerDownloadsArguments, serving, table::Table};

/// Where the list is changed.
pub(super) const COMMANDS: &str = "downloads/commands";

/// How often it is asked how far a verification is.
const LOOK: Duration = Duration::from_secs(1);

/// Changes the list as asked, and prints it.
pub(crate) fn downloads(arguments: &OwnerDownloadsArguments) -> Result<ExitCode> {
    let state = &arguments.state;
    serving::runtime(1)?.block_on(async {
        let list: DownloadsView = match command(arguments) {
            Some(command @ DownloadCommand::Verify { model }) => {
                let verified = interface(state, Method::POST, COMMANDS, Some(&command));
                let watching = watch(state, model);
                tokio::select! {
                    verified = verified => verified?,
                    never = watching => match never {},
                }
            }
            Some(command) => interface(state, Method::POST, COMMANDS, Some(&command)).await?,
            None => interface(state, Method::GET, "downloads", NOTHING).await?,
        };
        let models: Vec<ModelView> = interface(state, Method::GET, "models", NOTHING).await?;
        if let Some(found) = &list.found {
            eprintln!("{found}");
        }
        if arguments.json {
            println!("{}", json!({ "downloads": list, "models": models }));
        } else {
            show(&list, &models);
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn command(arguments: &OwnerDownloadsArguments) -> Option<DownloadCommand> {
    let change = &arguments.change;
    let of_download = [
        change.pause.map(|id| DownloadCommand::Pause { id }),
        change.resume.map(|id| DownloadCommand::Resume { id }),
        change.first.map(|id| DownloadCommand::First { id }),
        change.cancel.map(|id| DownloadCommand::Cancel { id }),
        change.verify.map(|model| DownloadCommand::Verify { model }),
        change.remove.map(|model| DownloadCommand::Remove { model }),
    ];
    of_download.into_iter().flatten().next()
}

/// Says on standard error how far a verification is, which takes as long as the disk takes to read the model.
async fn watch(state: &Path, model: B256) -> Infallible {
    let mut said = None;
    loop {
        tokio::time::sleep(LOOK).await;
        // Where it cannot be asked, the verification itself says why.
        let Ok(list) = interface::<DownloadsView>(state, Method::GET, "downloads", NOTHING).await else { continue };
        let line = list.checking.into_iter().find(|checking| checking.model == model).map(|checking| checking.line);
        if let Some(line) = line.filter(|line| said.as_ref() != Some(line)) {
            eprintln!("{line}");
            said = Some(line);
        }
    }
}

fn show(list: &DownloadsView, models: &[ModelView]) {
    if let Some(problem) = &list.problem {
        println!("{problem}");
    }
    if list.downloads.is_empty() {
        println!("Nothing is being fetched.");
    }
    for download in &list.downloads {
        println!("{}  {}", download.id, download.line);
    }
    for checking in &list.checking {
        println!("{}", checking.line);
    }
    for stranded in &list.stranded {
        println!("of {}: {}", stranded.model, stranded.reason);
    }
    let disk = &list.disk;
    let most = disk.budget.map(|most| format!(" of {}", ByteSize(most))).unwrap_or_default();
    let free = disk.free.map(|free| format!(", {} free on the disk", ByteSize(free))).unwrap_or_default();
    println!("Models take {}{most}{free}.", ByteSize(disk.used));
    if models.is_empty() {
        return;
    }
    let mut table = Table::new(&["model", "name", ">here", ">of", "layers", "verified", ""]);
    for model in models {
        let verified = if model.verified { "yes" } else { "no" };
        let note = model.broken.clone().or_else(|| model.in_use.then(|| "in use".to_owned()));
        table.row([
            model.model.to_string(),
            model.name.clone(),
            ByteSize(model.cached).to_string(),
            ByteSize(model.total).to_string(),
            model.assigned.join(", "),
            verified.to_owned(),
            note.unwrap_or_default(),
        ]);
    }
    print!("{table}");
}
