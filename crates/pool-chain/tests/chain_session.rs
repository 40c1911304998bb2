//! A session's money on the real contracts, from the first offer to the last unit.

use alloy_primitives::{Address, B256};
use pool_chain::{
    PoolLedger, StreamMeter, StreamRules, Terms, VoucherStanding, calls,
    events::{Cursor, Event, FollowOptions},
    x402::{Offer, PaymentPolicy, parse_payment, verify_terms_and_sign},
};
use pool_testkit::{ActiveCoalition, LocalChain, OpenSession};
use pool_types::{FlowRate, Usdc, Usdcx};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

fn rate(units: u64) -> FlowRate {
    FlowRate::from_units_per_second(units)
}

/// Pays for a session over x402, each side with what it has.
async fn pay(
    local: &LocalChain,
    coalition: &ActiveCoalition,
    seconds: u64,
) -> anyhow::Result<(Terms, Usdc, OpenSession)> {
    let payer = &local.accounts().payers[0];
    let rules = local.chain().stream_rules().await?;
    assert_eq!(rules, local.book().stream_rules(), "the address book must not promise other rules than the chain has");
    let terms = Terms { max_rate: rate(200), ..local.terms(coalition, 0).await? };
    let price = rules.price(terms.max_rate, seconds).expect("it is a small sum");
    let offer = Offer::of_session(local.book(), terms, price, 120)?;
    let header = offer.to_header("http://127.0.0.1/v1/sessions", "a session");

    let policy = PaymentPolicy {
        most: price,
        highest_rate: terms.max_rate,
        longest: 2 * 24 * 3600,
        orchestrator: Some(terms.orchestrator),
        pool: Some(coalition.gda_pool),
    };
    let now = local.chain().time().await?;
    let paid = verify_terms_and_sign(header.as_bytes(), local.book(), &policy, payer, now, B256::random())?;

    let payment = parse_payment(paid.header.as_bytes())?;
    offer.verify(&payment)?;
    assert_eq!(local.chain().check_voucher(&payment.voucher, 15).await?, VoucherStanding::Unused);
    let call = calls::open(local.book(), &terms, &payment.voucher, FlowRate::ZERO)?;
    let receipt = local.send(&local.accounts().orchestrator, &call).await?;
    Ok((terms, price, OpenSession { terms, vault: paid.vault, voucher: payment.voucher, receipt }))
}

#[tokio::test]
async fn every_unit_that_is_paid_is_streamed_or_refunded() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(3).await?;
    let (orchestrator, payer) = (&local.accounts().orchestrator, &local.accounts().payers[0]);
    let chain = local.chain();
    let before = chain.usdc(payer.address()).await?;

    let (terms, price, session) = pay(&local, &coalition, 1000).await?;
    let vault = session.vault;
    assert_eq!(chain.vault_of(&terms).await?, vault, "the client's address is the factory's");
    let state = chain.vault(vault).await?;
    assert_eq!((state.deployed, state.closed, state.rate), (true, false, FlowRate::ZERO));
    assert_eq!(state.available, price.to_usdcx());

    // Rates at exact seconds: 100 for 300 s, 200 for 50 s, nothing for 150 s, 100 for 100 s.
    let start = chain.time().await? + 100;
    let set = async |at: u64, units: u64| {
        local.control().next_block_at(start + at).await?;
        local.send(orchestrator, &calls::set_rate(vault, rate(units))).await
    };
    let first = set(0, 100).await?;
    let running = chain.vault(vault).await?;
    assert_eq!(running.rate, rate(100));
    assert_eq!(
        running.deposit,
        local.book().stream_rules().buffer(rate(100)).unwrap(),
        "what is locked is what we say"
    );
    let expected = local.book().stream_rules().available_after(price.to_usdcx(), FlowRate::ZERO, rate(100)).unwrap();
    let streamed_since = i128::from(running.at - start) * i128::try_from(rate(100).wei_per_second())?;
    assert_eq!(running.available.wei() + streamed_since, expected.wei());
    let change = set(300, 200).await?;
    set(320, 200).await?;
    let stop = set(350, 0).await?;
    let again = set(500, 100).await?;
    local.control().next_block_at(start + 600).await?;
    let close = local.send(payer, &calls::close(vault)).await?;
    println!(
        "gas: open {} first start {} change {} stop {} start again {} close streaming {}",
        session.receipt.gas_used, first.gas_used, change.gas_used, stop.gas_used, again.gas_used, close.gas_used
    );

    let streamed = rate(100).over(300 + 100).unwrap().checked_add(rate(200).over(50).unwrap()).unwrap();
    let refunded = price.checked_sub(streamed).unwrap();
    let after = chain.usdc(payer.address()).await?;
    assert_eq!(before.checked_sub(streamed), Some(after), "paid = streamed + refunded, to the unit");
    let empty = chain.vault(vault).await?;
    assert!(empty.closed);
    assert_eq!((empty.available, empty.deposit, empty.unwrapped), (Usdcx::ZERO, Usdcx::ZERO, Usdc::ZERO), "dust 0");

    // The same from events alone.
    let mut ledger = PoolLedger::default();
    let mut meter = StreamMeter::default();
    let mut told = Vec::new();
    let mut following = chain.follow(Cursor::at(0), FollowOptions { idle_blocks: 1, ..FollowOptions::default() });
    let last = close.block.number;
    while let Some(update) = following.next().await {
        for logged in &update.events {
            if let Some((_, change)) = logged.event.pool_change() {
                ledger.apply(logged.timestamp, change)?;
            }
            match &logged.event {
                Event::Flow { from, old, new, .. } if *from == vault => {
                    meter.apply(vault, logged.timestamp, *old, *new)?;
                }
                Event::SessionOpened { amount, .. } => told.push(format!("opened {amount}")),
                Event::VaultRate { rate, .. } => told.push(format!("rate {rate}")),
                Event::VaultClosed { by, .. } => assert_eq!(*by, payer.address()),
                Event::VaultRefunded { amount, .. } => told.push(format!("refunded {amount}")),
                _ => {}
            }
        }
        if update.cursor.next() > last {
            break;
        }
    }
    let end = start + 600;
    assert_eq!(meter.streamed(end), Some(streamed.to_usdcx()), "the vault's own events add up");
    assert_eq!(told.first(), Some(&format!("opened {price}")));
    assert_eq!(told.last(), Some(&format!("refunded {refunded}")));
    let mut members = Usdcx::ZERO;
    for operator in &coalition.operators {
        let earned = ledger.earned(operator.address(), end).unwrap();
        let on_chain = chain.received(coalition.gda_pool, operator.address(), last).await?;
        assert_eq!(earned, on_chain, "what we say an operator has earned is what the chain says, to the wei");
        members = members.checked_add(earned).unwrap();
    }
    assert_eq!(members, streamed.to_usdcx(), "everything that was streamed is the operators'");
    assert_eq!(ledger.adjustments(end), Some(Usdcx::ZERO), "nothing was left to rounding");
    Ok(())
}

#[tokio::test]
async fn addresses_are_predicted_as_the_factory_computes_them() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let seed = 20_261_125;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..50 {
        let mut address = || Address::from(random.random::<[u8; 20]>());
        let (payer, orchestrator, pool) = (address(), address(), address());
        let terms = Terms {
            payer,
            orchestrator,
            pool,
            max_rate: rate(random.random_range(0..=Terms::FASTEST.units_per_second())),
            expiry: random.random(),
            session: random.random::<[u8; 32]>().into(),
        };
        assert_eq!(local.chain().vault_of(&terms).await?, terms.vault_in(local.book()), "terms {number}: {terms:?}");
    }
    // And a vault is really deployed there, by anybody, with these terms in its code.
    let coalition = local.activate_coalition(1).await?;
    let terms = local.terms(&coalition, 1).await?;
    local.send(&local.accounts().stranger, &calls::deploy(local.book(), &terms)).await?;
    let code = local.chain().code(terms.vault_in(local.book())).await?;
    assert_eq!(code[code.len() - 192..], terms.encode());
    Ok(())
}

#[tokio::test]
async fn a_stream_that_runs_short_is_stopped_by_anybody_in_time() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let rules: StreamRules = local.book().stream_rules();
    let price = rules.price(rate(100), 60).unwrap();
    let before = local.chain().usdc(local.accounts().payers[0].address()).await?;
    let session = local.open_session(&coalition, 0, price, rate(100)).await?;
    let opened = local.chain().block(session.receipt.block.number).await?.unwrap().timestamp;
    let stop = calls::stop(session.vault);
    let sentinel = &local.accounts().sentinel;

    let state = local.chain().vault(session.vault).await?;
    let last_good = state.running().stop_at(rules.guard).unwrap();
    assert_eq!(last_good, opened + 60, "the useful seconds are those that were sold");
    local.control().next_block_at(last_good).await?;
    let early = local.send(sentinel, &stop).await.expect_err("the stream has its guard left").to_string();
    assert!(early.contains("the stream has money for a while"), "{early}");
    local.control().next_block_at(last_good + 1).await?;
    local.send(sentinel, &stop).await?;

    let stopped = local.chain().vault(session.vault).await?;
    assert_eq!(stopped.rate, FlowRate::ZERO);
    let again = local.send(&local.accounts().orchestrator, &calls::set_rate(session.vault, rate(100))).await;
    let again = again.expect_err("what is left is the reserve").to_string();
    assert!(again.contains("does not last long enough"), "{again}");
    assert!(!rules.may_start(stopped.available, rate(100)), "and we know it before we try");
    local.send(&local.accounts().payers[0], &calls::close(session.vault)).await?;
    let streamed = rate(100).over(61).unwrap();
    let after = local.chain().usdc(local.accounts().payers[0].address()).await?;
    assert_eq!(before.checked_sub(streamed), Some(after), "the reserve came back");
    Ok(())
}

#[tokio::test]
async fn a_top_up_lengthens_a_session_and_late_money_comes_back() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(1).await?;
    let payer = &local.accounts().payers[0];
    let session = local.open_session(&coalition, 0, "0.1".parse()?, FlowRate::ZERO).await?;
    let gift = "0.05".parse::<Usdc>()?;
    local.send(&local.accounts().payers[1], &calls::transfer(local.book(), session.vault, gift)).await?;
    assert_eq!(local.chain().vault(session.vault).await?.unwrapped, gift);
    local.send(&local.accounts().stranger, &calls::fund(session.vault)).await?;
    assert_eq!(local.chain().vault(session.vault).await?.available, "0.15".parse::<Usdc>()?.to_usdcx());

    local.send(&local.accounts().orchestrator, &calls::close(session.vault)).await?;
    let closed = local.chain().usdc(payer.address()).await?;
    local.send(&local.accounts().payers[1], &calls::transfer(local.book(), session.vault, gift)).await?;
    local.send(&local.accounts().stranger, &calls::refund(session.vault)).await?;
    assert_eq!(closed.checked_add(gift), Some(local.chain().usdc(payer.address()).await?));
    Ok(())
}
