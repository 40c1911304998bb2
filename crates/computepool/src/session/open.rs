//! Paying for a session: ask for an offer, check it, keep its terms, pay.

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use alloy_primitives::B256;
use anyhow::{Context, Result, bail};
use pool_chain::{
    AddressBook, Chain, Terms,
    x402::{ClientRefusal, PaymentPolicy, SignedPayment, verify_terms_and_sign},
};
use pool_types::{SessionId, Usdc};
use serde_json::json;

use super::{
    api::{Attempt, SessionView, State},
    record::{Record, Standing},
};
use crate::{api_client::ApiClient, arguments::SessionOpenArguments, network, serving, wallet::Wallet};

/// A session's end may lie so many seconds ahead. Its payer can close it at any time; this is only against nonsense.
const LONGEST: u64 = 30 * 86_400;
/// How long a payment that is on its way is waited for, beyond the orchestrator's own patience.
const OPENING: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(500);

/// How much work to buy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// Seconds of it.
    Seconds(u64),
    /// Tokens of answers, at the measured speed.
    Tokens(u64),
}

/// What to buy.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) model: String,
    pub(crate) length: Length,
    /// The most to pay in.
    pub(crate) most: Usdc,
}

/// A session that was paid and is open.
pub(crate) struct Opened {
    pub(crate) view: SessionView,
    pub(crate) record: Record,
    /// The transaction that opened it.
    pub(crate) transaction: Option<B256>,
}

/// `computepool session open`.
pub(super) fn run(arguments: &SessionOpenArguments) -> Result<ExitCode> {
    let wallet = Wallet::open(&arguments.wallet, &arguments.chain.network)?;
    let opened = serving::runtime(1)?.block_on(async {
        let book = network::book(&arguments.chain)?;
        let chain = network::chain(&arguments.chain).await?;
        let api = ApiClient::new(&arguments.api, None)?;
        let model = match &arguments.model {
            Some(model) => model.clone(),
            None => api.first_model().await?,
        };
        let length = match (arguments.seconds, arguments.tokens) {
            (Some(seconds), _) => Length::Seconds(seconds),
            (None, tokens) => Length::Tokens(tokens.unwrap_or_default()),
        };
        let wish = Wish { model, length, most: arguments.most };
        open(&api, &wallet, &book, chain.as_ref(), &wish).await
    })?;
    if arguments.json {
        let Opened { view, transaction, .. } = &opened;
        println!("{}", json!({ "session": view, "transaction": transaction, "api": opened.record.api }));
    } else {
        print!("{}", words(&opened.view));
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens a session. The record is on disk before the payment leaves.
pub(crate) async fn open(
    api: &ApiClient,
    wallet: &Wallet,
    book: &AddressBook,
    chain: Option<&Chain>,
    wish: &Wish,
) -> Result<Opened> {
    let asked = match wish.length {
        Length::Seconds(seconds) => json!({ "model": wish.model, "payer": wallet.address(), "seconds": seconds }),
        Length::Tokens(tokens) => json!({ "model": wish.model, "payer": wallet.address(), "tokens": tokens }),
    };
    let offer = match api.open_session(&asked, None).await? {
        Attempt::Offer { header, .. } => header,
        Attempt::Opened { .. } => bail!("the endpoint opened a session without being paid: nothing was paid"),
    };
    let payment = sign(&offer, wallet, book, wish, now(chain).await?)?;
    if let Some(chain) = chain {
        expect_money(chain, wallet, payment.amount).await?;
    }
    let mut record = Record {
        session: SessionId(payment.terms.session),
        api: api.base().to_owned(),
        network: book.network.clone(),
        model: wish.model.clone(),
        vault: payment.vault,
        terms: payment.terms,
        amount: payment.amount,
        valid_before: payment.valid_before,
        standing: Standing::Paid,
        token: None,
    };
    record.save(&wallet.folder)?;
    let id = record.session;
    let answer = api.open_session(&asked, Some(&payment.header)).await.with_context(|| {
        format!(
            "the payment for the session {id} was sent, and no session came of it. Its voucher ends within minutes; \
             what reached the vault comes back with `computepool session close --direct {id}`"
        )
    })?;
    let (view, settlement) = match answer {
        Attempt::Opened { session, settlement } => (*session, settlement),
        Attempt::Offer { message, .. } => {
            record.standing = Standing::Refused;
            record.save(&wallet.folder)?;
            bail!("the payment was refused: {message}");
        }
    };
    if (view.id, view.vault, view.payer) != (id, record.vault, wallet.address()) {
        bail!(
            "the endpoint opened another session than the one that was paid; `computepool session close --direct {id}` \
             brings the money back"
        );
    }
    record.token.clone_from(&view.token);
    record.standing = Standing::Open;
    record.save(&wallet.folder)?;
    let view = until_open(&record, view).await?;
    Ok(Opened { view, record, transaction: settlement.and_then(|settlement| settlement.transaction) })
}

/// Signs an offer that is what was wanted. Nothing has left this machine when it refuses.
fn sign(offer: &[u8], wallet: &Wallet, book: &AddressBook, wish: &Wish, now: u64) -> Result<SignedPayment> {
    // The rate is bounded by what it makes of the money: see below.
    let policy = PaymentPolicy {
        most: wish.most,
        highest_rate: Terms::FASTEST,
        longest: LONGEST,
        orchestrator: None,
        pool: None,
    };
    let payment = match verify_terms_and_sign(offer, book, &policy, &wallet.key, now, B256::random()) {
        Ok(payment) => payment,
        Err(refusal @ ClientRefusal::TooDear { .. }) => bail!("nothing was paid: {refusal}; --most allows more"),
        Err(refusal) => bail!("nothing was paid: {refusal}"),
    };
    if let Length::Seconds(wanted) = wish.length {
        let lasts = book.stream_rules().useful_seconds(payment.amount.to_usdcx(), payment.terms.max_rate);
        if lasts < wanted {
            bail!(
                "nothing was paid: at the offer's rate of {} its {} USDC would last {lasts} s, not the {wanted} s that \
                 were asked for",
                payment.terms.max_rate,
                payment.amount
            );
        }
    }
    Ok(payment)
}

/// The chain's time where it can be asked, and this machine's where not.
async fn now(chain: Option<&Chain>) -> Result<u64> {
    match chain {
        Some(chain) => Ok(chain.time().await?),
        None => Ok(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
    }
}

async fn expect_money(chain: &Chain, wallet: &Wallet, amount: Usdc) -> Result<()> {
    let (payer, has) = (wallet.address(), chain.usdc(wallet.address()).await?);
    if has >= amount {
        return Ok(());
    }
    let advice = match chain.book().network.as_str() {
        "local" => format!("`computepool devnet fund {payer}` gives it some"),
        _ => "send it some".to_owned(),
    };
    bail!("nothing was paid: the session takes {amount} USDC, and {payer} has {has}; {advice}")
}

/// Waits for a session whose transaction takes long.
async fn until_open(record: &Record, mut view: SessionView) -> Result<SessionView> {
    let id = record.session;
    if view.state == State::Opening {
        let api = ApiClient::new(&record.api, Some(record.token()?.to_owned()))?;
        let wait = async {
            while view.state == State::Opening {
                tokio::time::sleep(LOOK).await;
                view = api.session(id).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(OPENING, wait).await.map_err(|_| {
            anyhow::anyhow!(
                "the session {id} was paid and is still being opened; `computepool session show {id}` tells when it is"
            )
        })??;
    }
    match (view.state, &view.reason) {
        (State::Open, _) => Ok(view),
        (_, Some(reason)) => bail!("the session {id} was not opened: {reason}"),
        (state, None) => bail!("the session {id} was not opened: it is {}", state.text()),
    }
}

fn words(view: &SessionView) -> String {
    let SessionView { id, vault, paid, returned, rate, linger_seconds, seconds, .. } = view;
    let mut text = String::new();
    let lines = [
        ("session", id.to_string()),
        ("vault", vault.to_string()),
        ("paid", format!("{paid} USDC, of which {returned} USDC always come back")),
        ("rate", format!("{rate} USDC while a request runs, and for {linger_seconds} s after the last")),
        ("time", format!("{seconds} s")),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<9}{value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use alloy_primitives::Address;
    use pool_chain::x402::Offer;
    use pool_types::FlowRate;

    use super::*;
    use crate::{arguments::WalletArguments, session::show::tests::view};

    const NOW: u64 = 1_790_000_000;

    fn wallet() -> Wallet {
        let arguments =
            WalletArguments { wallet: "nowhere".into(), passphrase_file: None, development_account: Some(3) };
        Wallet::open(&arguments, "local").unwrap()
    }

    fn book() -> AddressBook {
        AddressBook::from_json(include_bytes!("../../../../contracts/addresses/local.json")).unwrap()
    }

    fn offer(rate: u64, amount: &str) -> Vec<u8> {
        let terms = Terms {
            payer: wallet().address(),
            orchestrator: Address::repeat_byte(2),
            pool: Address::repeat_byte(3),
            max_rate: FlowRate::from_units_per_second(rate),
            expiry: NOW + 86_400,
            session: B256::repeat_byte(4),
        };
        let offer = Offer::of_session(&book(), terms, amount.parse().unwrap(), 300).unwrap();
        offer.to_header("http://127.0.0.1:8080/v1/sessions", "a session").into_bytes()
    }

    fn wish(length: Length) -> Wish {
        Wish { model: "tiny".to_owned(), length, most: "0.5".parse().unwrap() }
    }

    fn refused(offer: &[u8], wish: &Wish) -> String {
        sign(offer, &wallet(), &book(), wish, NOW).unwrap_err().to_string()
    }

    #[test]
    fn an_offer_is_paid_only_if_it_holds_what_was_asked_for() {
        // 300 s of work, 600 s of buffer, 120 s of guard.
        let good = sign(&offer(100, "0.102"), &wallet(), &book(), &wish(Length::Seconds(300)), NOW).unwrap();
        assert_eq!((good.amount.units(), good.valid_before), (102_000, NOW + 300));
        assert_eq!(good.vault, good.terms.vault_in(&book()));

        let hasty = refused(&offer(101, "0.102"), &wish(Length::Seconds(300)));
        assert_eq!(
            hasty,
            "nothing was paid: at the offer's rate of 0.000101/s its 0.102000 USDC would last 289 s, not the 300 s that \
             were asked for"
        );
        let dear = refused(&offer(1000, "0.6"), &wish(Length::Tokens(10)));
        assert_eq!(
            dear,
            "nothing was paid: the offer asks for 0.600000 USDC; at most 0.500000 USDC were allowed; --most allows more"
        );
        let nonsense = refused(b"e30=", &wish(Length::Seconds(300)));
        assert!(nonsense.starts_with("nothing was paid: the server's answer holds no x402 offer"), "{nonsense}");
    }

    #[test]
    fn what_was_bought_is_told_in_words() {
        insta::assert_snapshot!(words(&view()), @r"
        session  0x0404040404040404040404040404040404040404040404040404040404040404
        vault    0x0505050505050505050505050505050505050505
        paid     0.103000 USDC, of which 0.073000 USDC always come back
        rate     0.000100/s USDC while a request runs, and for 5 s after the last
        time     300 s
        ");
    }
}
