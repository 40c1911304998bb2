//! Looking at a session.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::Result;
use serde_json::json;

use super::{
    api::SessionView,
    live::line,
    receipt,
    record::{self, Record},
};
use crate::{api_client::ApiClient, arguments::SessionShowArguments, serving, table::Table, when::utc};

/// How often a session is looked at.
const EACH: Duration = Duration::from_secs(1);

/// `computepool session show`.
pub(super) fn run(arguments: &SessionShowArguments) -> Result<ExitCode> {
    let record = record::get(&arguments.session.wallet, &arguments.session.id)?;
    let api = client(&record)?;
    serving::runtime(1)?.block_on(async {
        loop {
            let view = api.session(record.session).await?;
            match (arguments.json, arguments.watch) {
                (true, _) => println!("{}", json!(view)),
                (false, true) => println!("{}", line(&view)),
                (false, false) => print!("{}", words(&view)),
            }
            if !arguments.watch || view.state.is_over() {
                return Ok(ExitCode::SUCCESS);
            }
            tokio::time::sleep(EACH).await;
        }
    })
}

/// A client that shows the session's token.
pub(super) fn client(record: &Record) -> Result<ApiClient> {
    ApiClient::new(&record.api, Some(record.token()?.to_owned()))
}

fn words(view: &SessionView) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<9}{value}");
    };
    say("session", view.id.to_string());
    match &view.reason {
        Some(reason) => say("state", format!("{}: {reason}", view.state.text())),
        None => say("state", view.state.text().to_owned()),
    }
    say("model", view.model.clone());
    say("vault", view.vault.to_string());
    say("paid", format!("{} USDC, of which {} USDC always come back", view.paid, view.returned));
    say("rate", format!("{} USDC while a request runs, and for {} s after", view.rate, view.linger_seconds));
    say("time", format!("{} s bought, {} s left, until {}", view.seconds, view.seconds_left, utc(view.terms.expiry)));
    say("requests", view.requests.to_string());
    if let Some(stream) = &view.stream {
        let streamed = stream.streamed.whole_usdc();
        say("streamed", format!("{streamed} USDC by {}, now {} USDC", utc(stream.at), stream.rate));
        let mut operators = Table::new(&["operator", ">share", ">received"]);
        for part in &stream.operators {
            let share = f64::from(part.units) / 1e4;
            operators.row([
                part.operator.to_string(),
                format!("{share:.2} %"),
                format!("{} USDC", part.received.whole_usdc()),
            ]);
        }
        let _ = write!(text, "{operators}");
    }
    if let Some(receipt) = &view.receipt {
        text.push_str(&receipt::words(receipt));
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use alloy_primitives::{Address, B256};
    use pool_chain::Terms;
    use pool_types::{FlowRate, SessionId, Usdcx};

    use super::*;
    use crate::session::api::{OperatorView, State, StreamView};

    pub(crate) fn view() -> SessionView {
        let rate = FlowRate::from_units_per_second(100);
        let operator = |byte: u8, units: u32| OperatorView {
            operator: Address::repeat_byte(byte),
            units,
            received: Usdcx::from_wei(2_000_000_000_000_000 / 1_000_000 * i128::from(units)),
        };
        SessionView {
            id: SessionId(B256::repeat_byte(4)),
            token: Some("cps_secret".to_owned()),
            state: State::Open,
            reason: None,
            model: "tiny".to_owned(),
            payer: Address::repeat_byte(1),
            vault: Address::repeat_byte(5),
            terms: Terms {
                payer: Address::repeat_byte(1),
                orchestrator: Address::repeat_byte(2),
                pool: Address::repeat_byte(3),
                max_rate: rate,
                expiry: 1_798_761_599,
                session: B256::repeat_byte(4),
            },
            paid: "0.103".parse().unwrap(),
            returned: "0.073".parse().unwrap(),
            rate,
            linger_seconds: 5,
            seconds: 300,
            seconds_left: 280,
            requests: 1,
            stream: Some(StreamView {
                at: 1_798_700_000,
                rate,
                streamed: "0.002".parse::<pool_types::Usdc>().unwrap().to_usdcx(),
                operators: vec![operator(0x11, 750_000), operator(0x22, 250_000)],
            }),
            receipt: None,
            created: 1_798_690_000,
        }
    }

    #[test]
    fn a_session_is_shown_with_who_receives_what() {
        insta::assert_snapshot!(words(&view()), @r"
        session  0x0404040404040404040404040404040404040404040404040404040404040404
        state    open
        model    tiny
        vault    0x0505050505050505050505050505050505050505
        paid     0.103000 USDC, of which 0.073000 USDC always come back
        rate     0.000100/s USDC while a request runs, and for 5 s after
        time     300 s bought, 280 s left, until 2026-12-31 23:59:59 UTC
        requests 1
        streamed 0.002000 USDC by 2026-12-31 06:53:20 UTC, now 0.000100/s USDC
          operator                                      share       received
          0x1111111111111111111111111111111111111111  75.00 %  0.001500 USDC
          0x2222222222222222222222222222222222222222  25.00 %  0.000500 USDC
        ");
    }

    #[test]
    fn no_form_of_a_session_shows_its_token() {
        assert!(!json!(view()).to_string().contains("cps_"), "as JSON");
        assert!(!words(&view()).contains("cps_"), "in words");
    }
}
