//! `computepool earnings`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use pool_api::{EarningsView, Period, ShiftStatus, ShiftView};
use reqwest::Method;
use serde_json::json;

use super::{NOTHING, interface, runs};
use crate::{arguments::OwnerEarningsArguments, serving, table::Table, when::utc};

/// Prints what a running node has earned.
pub(crate) fn earnings(arguments: &OwnerEarningsArguments) -> Result<ExitCode> {
    if !runs(&arguments.state)? {
        bail!("no node runs with {}: start it, so that it can follow the chain", arguments.state.display());
    }
    serving::runtime(1)?.block_on(async {
        let earnings: EarningsView = interface(&arguments.state, Method::GET, "earnings", NOTHING).await?;
        let what = format!("shifts?last={}", arguments.last);
        let shifts: Vec<ShiftView> = interface(&arguments.state, Method::GET, &what, NOTHING).await?;
        if arguments.json {
            println!("{}", json!({ "earnings": earnings, "shifts": shifts }));
        } else {
            show(&earnings, &shifts);
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn show(earnings: &EarningsView, shifts: &[ShiftView]) {
    match &earnings.network {
        None => println!("This node follows no chain (--rpc): it serves without payment."),
        Some(network) => {
            let kind = if earnings.test_money { ", play money" } else { "" };
            let (earned, rate) = (short(&earnings.earned), short(&earnings.rate));
            println!("{earned} USDCx earned in all ({network}{kind}), {rate} a second now.");
        }
    }
    if let Some(trouble) = &earnings.trouble {
        println!("What follows is what was known before: {trouble}.");
    }
    match (&earnings.differs, earnings.reconciled_until) {
        (Some(difference), _) => println!("The chain's books differ by {difference} USDCx: unreconciled."),
        (None, Some(at)) => println!("The chain's own books agreed to the wei at {}.", utc(at)),
        (None, None) => {}
    }
    let mut table = Table::new(&["", ">gross", ">cost", ">net", ">served", ">tokens", ">kWh", ">measured"]);
    for (name, period) in [("today", &earnings.today), ("7 days", &earnings.week), ("30 days", &earnings.month)] {
        table.row([vec![name.to_owned()], cells(period)].concat());
    }
    print!("{table}");
    if earnings.today.cost.is_none() {
        println!("Costs are counted once the setting electricity_price is set.");
    }
    if shifts.is_empty() {
        println!("No shift yet.");
        return;
    }
    let headings =
        ["shift", "began", "layers", ">gross", ">cost", ">net", ">served", ">tokens", ">kWh", ">measured", "status"];
    let mut table = Table::new(&headings);
    for shift in shifts {
        let first = vec![shift.id.to_string(), utc(shift.began / 1000), shift.layers.clone()];
        table.row([first, cells(&shift.books), vec![status(shift).to_owned()]].concat());
    }
    print!("{table}");
}

fn cells(period: &Period) -> Vec<String> {
    let amount = |amount: &Option<String>| amount.as_deref().map_or_else(|| "-".to_owned(), short);
    let part = (100 * period.measured)
        .checked_div(period.served)
        .map_or_else(|| "-".to_owned(), |part| format!("{} %", part.min(100)));
    let kilowatt_hours = format!("{}.{:03}", period.watt_hours / 1000, period.watt_hours % 1000);
    let served = format!("{}:{:02}:{:02}", period.served / 3600, period.served / 60 % 60, period.served % 60);
    vec![
        short(&period.gross),
        amount(&period.cost),
        amount(&period.net),
        served,
        period.tokens.to_string(),
        kilowatt_hours,
        part,
    ]
}

/// An amount to the sixth decimal, cut.
fn short(amount: &str) -> String {
    amount.split_once('.').map_or_else(
        || amount.to_owned(),
        |(whole, decimals)| format!("{whole}.{}", decimals.chars().take(6).collect::<String>()),
    )
}

fn status(shift: &ShiftView) -> &'static str {
    match shift.status {
        ShiftStatus::Streaming => "streaming",
        ShiftStatus::Idle => "running",
        ShiftStatus::Stopped => "stopped",
        ShiftStatus::Reconciled => "reconciled",
        ShiftStatus::Unreconciled => "unreconciled",
        ShiftStatus::Unpaid => "unpaid",
    }
}
