//! `computepool session`: pay for a session, look at it, close it.
//!
//! `open` checks an offer and pays it, `show` looks, `close` ends a session through its orchestrator or straight on the
//! chain; `record` is what the payer keeps, `api` what the orchestrator says, `receipt` what it came to, `live` the
//! line that tells it while it goes on.

mod api;
mod close;
mod live;
mod open;
mod receipt;
mod record;
mod show;

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

pub(crate) use self::{
    api::SessionView,
    close::{close, still_closing},
    live::LiveLine,
    open::{Length, Wish, open},
    receipt::one_line,
    record::{Record, get},
};
use crate::{
    arguments::{SessionCommand, SessionListArguments, SessionTokenArguments},
    table::Table,
};

pub(crate) fn run(command: SessionCommand) -> Result<ExitCode> {
    match command {
        SessionCommand::Open(arguments) => open::run(&arguments),
        SessionCommand::Show(arguments) => show::run(&arguments),
        SessionCommand::Close(arguments) => close::run(&arguments),
        SessionCommand::List(arguments) => list(&arguments),
        SessionCommand::Token(arguments) => token(&arguments),
    }
}

/// The sessions of the wallet, as far as it was told; nobody is asked.
fn list(arguments: &SessionListArguments) -> Result<ExitCode> {
    let records = record::all(&arguments.wallet)?;
    if arguments.json {
        let told = |record: &Record| {
            json!({
                "session": record.session, "standing": record.standing, "amount": record.amount, "vault": record.vault,
                "model": record.model, "network": record.network, "api": record.api,
            })
        };
        println!("{}", json!(records.iter().map(told).collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    if records.is_empty() {
        println!("{} holds no sessions.", arguments.wallet.display());
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["session", "standing", ">paid", "model", "network"]);
    for record in records {
        table.row([
            record.session.to_string(),
            record.standing.text().to_owned(),
            record.amount.to_string(),
            record.model,
            record.network,
        ]);
    }
    print!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// The one command whose purpose is to show a secret.
fn token(arguments: &SessionTokenArguments) -> Result<ExitCode> {
    let record = record::get(&arguments.session.wallet, &arguments.session.id)?;
    let token = record.token()?;
    if arguments.json {
        println!("{}", json!({ "session": record.session, "api": record.api, "token": token }));
    } else {
        println!("{token}");
    }
    Ok(ExitCode::SUCCESS)
}
