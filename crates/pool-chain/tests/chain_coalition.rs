//! Coalitions on the real registry: what is signed is what is activated, and who served is paid.

use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{SolCall as _, sol};
use pool_chain::{
    Call, PoolLedger, calls,
    contracts::Stage,
    events::{Cursor, Event, FollowOptions},
    operators,
};
use pool_testkit::LocalChain;
use pool_types::{FlowRate, Usdcx};
use tokio::time::timeout;

sol! {
    interface IGift {
        function approve(address spender, uint256 amount) external returns (bool);
        function upgrade(uint256 amount) external;
        function transfer(address to, uint256 amount) external returns (bool);
    }
    interface IGdaForwarder {
        function disconnectPool(address pool, bytes userData) external returns (bool);
    }
}

#[tokio::test]
async fn digests_and_signers_are_the_registrys() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let registry = local.book().registry();
    for count in [1, 2, 7, 16] {
        let label = B256::with_last_byte(count);
        let proposal = local.proposal(count.into(), label, 1).await?;
        assert_eq!(local.chain().proposal_digest(&proposal).await?, proposal.digest(&registry), "{count} members");
    }
    let operator = Address::repeat_byte(0x42);
    let ours = registry.registration_digest(operator, 1_900_000_000);
    assert_eq!(local.chain().registration_digest(operator, 1_900_000_000).await?, ours);

    let proposal = local.proposal(3, B256::with_last_byte(9), 1).await?;
    let refused = local.chain().signers_of(&proposal).await.expect_err("there is no such pool yet").to_string();
    assert!(refused.contains("there is no such pool yet"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_coalition_needs_everybodys_signature() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let state = local.chain().coalition(coalition.proposal.pool).await?.expect("it was activated");
    assert_eq!((state.epoch, state.stage), (1, Stage::Active));
    assert_eq!(state.seats, coalition.proposal.seats);
    assert_eq!(state.orchestrator, local.accounts().orchestrator.address());
    let pool = local.chain().pool(coalition.gda_pool).await?;
    assert_eq!((pool.units, pool.admin), (1_000_000, local.book().contracts.coalition_registry), "no key is the admin");
    for operator in &coalition.operators {
        assert!(local.chain().is_registered(operator.address()).await?);
        let member = local.chain().member(coalition.gda_pool, operator.address()).await?;
        assert!(member.connected, "an operator's balance grows without a transaction of its own");
        assert_eq!(local.chain().native_balance(operator.address()).await?, 0, "and without a coin for gas");
    }

    // The next epoch, with one signature that is another's.
    let mut next = local.proposal(2, B256::ZERO, 2).await?;
    next.pool = coalition.proposal.pool;
    next.seats.reverse();
    let layers: Vec<_> = coalition.proposal.seats.iter().map(|seat| seat.layers).collect();
    next.seats.iter_mut().zip(layers).for_each(|(seat, layers)| seat.layers = layers);
    let digest = next.digest(&local.book().registry());
    let signers = local.chain().signers_of(&next).await?;
    let sign = |key: &PrivateKeySigner| -> Bytes {
        use alloy_signer::SignerSync as _;
        key.sign_hash_sync(&digest).expect("a key in memory signs").as_bytes().into()
    };
    let forged: Vec<Bytes> = signers.iter().map(|_| sign(&local.accounts().stranger)).collect();
    let orchestrator = &local.accounts().orchestrator;
    let call = calls::activate(local.book(), &next, &forged)?;
    let refused = local.send(orchestrator, &call).await.expect_err("nobody signed").to_string();
    assert!(refused.contains("a signature is not that of its signer"), "{refused}");
    let call = calls::activate(local.book(), &next, &forged[1..])?;
    let refused = local.send(orchestrator, &call).await.expect_err("one is missing").to_string();
    assert!(refused.contains("signatures are missing or too many"), "{refused}");
    let again = local.activate(next).await?;
    let state = local.chain().coalition(again.proposal.pool).await?.expect("it was activated");
    assert_eq!((state.epoch, operators(&state.seats)), (2, operators(&again.proposal.seats)));
    Ok(())
}

#[tokio::test]
async fn a_standby_takes_over_while_money_streams_and_everybody_is_paid_for_their_time() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(3).await?;
    let orchestrator = &local.accounts().orchestrator;
    let rate = FlowRate::from_units_per_second(777);
    let session = local.open_session(&coalition, 0, "5".parse()?, rate).await?;
    local.control().advance(100).await?;
    let swap = calls::swap(local.book(), coalition.proposal.pool, 1, 0);
    let swapped = local.send(orchestrator, &swap).await?;
    // What rounding set free goes back to the members with the next rate.
    local.send(orchestrator, &calls::set_rate(session.vault, rate)).await?;
    local.control().advance(200).await?;
    local.send(orchestrator, &calls::set_rate(session.vault, FlowRate::ZERO)).await?;
    let close = local.send(orchestrator, &calls::close(session.vault)).await?;
    println!("gas: activate 3 {} swap while streaming {}", coalition.receipt.gas_used, swapped.gas_used);

    let standby = coalition.proposal.swaps[0].standby;
    let leaver = coalition.proposal.seats[2].operator;
    let mut ledger = PoolLedger::default();
    let mut following = local.chain().follow(Cursor::at(0), FollowOptions { idle_blocks: 1, ..Default::default() });
    let mut swaps = Vec::new();
    while let Some(update) = following.next().await {
        for logged in &update.events {
            if let Some((pool, change)) = logged.event.pool_change() {
                assert_eq!(pool, coalition.gda_pool);
                ledger.apply(logged.timestamp, change)?;
            }
            if let Event::Swapped { from, to, .. } = logged.event {
                swaps.push((from, to));
            }
        }
        if update.cursor.next() > close.block.number {
            break;
        }
    }
    assert_eq!(swaps, [(leaver, standby)]);
    let end = local.chain().block(close.block.number).await?.expect("it is there").timestamp;
    let mut all = Usdcx::ZERO;
    for member in ledger.members().collect::<Vec<_>>() {
        let earned = ledger.earned(member, end).expect("it is after the last event");
        let received = local.chain().received(coalition.gda_pool, member, close.block.number).await?;
        assert_eq!(earned, received, "{member}");
        all = all.checked_add(earned).expect("small sums");
    }
    assert!(ledger.earned(standby, end) > ledger.earned(leaver, end), "200 s against 100");
    let adjustments = ledger.adjustments(end).expect("it is after the last event");
    let registry = local.book().contracts.coalition_registry;
    let at_registry = local.chain().realtime_balance(registry, local.chain().time().await?).await?;
    assert_eq!(adjustments, at_registry.available, "what rounding set free is the registry's, and nobody's else");
    let refund = local.chain().usdc(session.terms.payer).await?;
    let paid = "10000".parse::<pool_types::Usdc>()?.checked_sub(refund).expect("something was streamed");
    assert_eq!(all.checked_add(adjustments), Some(paid.to_usdcx()), "paid = members + adjustments, to the wei");

    // What somebody gives to the registry, anybody may have paid out to the members.
    let book = local.book();
    let giver = &local.accounts().payers[1];
    let call = |what, to, data: Vec<u8>| Call { what, to, data: data.into(), gas_limit: 500_000 };
    let amount = U256::from(3_000_000_000_000_000_001_u128);
    let approve = IGift::approveCall { spender: book.contracts.usdcx, amount: U256::MAX };
    local.send(giver, &call("approve", book.contracts.usdc, approve.abi_encode())).await?;
    local
        .send(giver, &call("wrap", book.contracts.usdcx, IGift::upgradeCall { amount: amount + amount }.abi_encode()))
        .await?;
    let gift = IGift::transferCall { to: registry, amount };
    local.send(giver, &call("give", book.contracts.usdcx, gift.abi_encode())).await?;
    let given = adjustments.checked_add(Usdcx::from_wei(3_000_000_000_000_000_001)).expect("small sums");
    let paid_out =
        local.send(&local.accounts().stranger, &calls::pay_out(local.book(), coalition.proposal.pool)).await?;
    loop {
        let update = timeout(Duration::from_secs(10), following.next()).await?.expect("a follower never gives up");
        for logged in &update.events {
            if let Some((_, change)) = logged.event.pool_change() {
                ledger.apply(logged.timestamp, change)?;
            }
        }
        if update.cursor.next() > paid_out.block.number {
            break;
        }
    }
    println!("gas: pay out {}", paid_out.gas_used);
    let end = local.chain().block(paid_out.block.number).await?.expect("it is there").timestamp;
    let mut after = Usdcx::ZERO;
    for member in ledger.members().collect::<Vec<_>>() {
        let earned = ledger.earned(member, end).expect("it is after the last event");
        assert_eq!(earned, local.chain().received(coalition.gda_pool, member, paid_out.block.number).await?);
        after = after.checked_add(earned).expect("small sums");
    }
    let left = local.chain().realtime_balance(registry, local.chain().time().await?).await?.available;
    assert_eq!(after.checked_add(left), all.checked_add(given));
    assert!(after > all);
    assert!(left < Usdcx::from_wei(1_000_000), "less than a wei for each unit of the pool is left");
    Ok(())
}

#[tokio::test]
async fn a_member_who_is_not_connected_is_paid_by_anybodys_claim() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(2).await?;
    let member = coalition.operators[0].address();
    // Its own wish, and its own transaction: the registry had connected it.
    let forwarder = local.book().contracts.others["gdaForwarder"];
    let data = IGdaForwarder::disconnectPoolCall { pool: coalition.gda_pool, userData: Bytes::new() }.abi_encode();
    let leave = Call { what: "disconnect", to: forwarder, data: data.into(), gas_limit: 1_000_000 };
    local.control().fund(member, 1_000_000_000_000_000_000, Default::default()).await?;
    local.send(&coalition.operators[0], &leave).await?;
    assert!(!local.chain().member(coalition.gda_pool, member).await?.connected);

    let rate = FlowRate::from_units_per_second(100);
    let session = local.open_session(&coalition, 0, "1".parse()?, rate).await?;
    local.control().advance(100).await?;
    let stop = local.send(&local.accounts().orchestrator, &calls::stop(session.vault)).await?;
    let waiting = local.chain().member(coalition.gda_pool, member).await?.claimable;
    assert_eq!(waiting, local.chain().received(coalition.gda_pool, member, stop.block.number).await?);
    assert!(waiting > Usdcx::ZERO);
    let claim = local.send(&local.accounts().stranger, &calls::claim_all(coalition.gda_pool, member)).await?;
    println!("gas: claim {} of {}", claim.gas_used, calls::gas::CLAIM);
    assert!(claim.gas_used * 5 / 4 <= calls::gas::CLAIM);
    assert_eq!(local.chain().member(coalition.gda_pool, member).await?.claimable, Usdcx::ZERO);
    let balance = local.chain().realtime_balance(member, local.chain().time().await?).await?;
    assert_eq!(balance.available, waiting);

    // And it takes it out as USDC.
    let whole = waiting.whole_usdc();
    let unwrap = calls::unwrap_to(local.book(), member, whole);
    local.send(&coalition.operators[0], &unwrap).await?;
    assert_eq!(local.chain().usdc(member).await?, whole);
    Ok(())
}

#[tokio::test]
async fn an_announced_end_comes_after_its_notice() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let coalition = local.activate_coalition(1).await?;
    let orchestrator = &local.accounts().orchestrator;
    let pool = coalition.proposal.pool;
    local.send(orchestrator, &calls::drain(local.book(), pool, 1)).await?;
    let dissolve = calls::dissolve(local.book(), pool, 1);
    let early = local.send(orchestrator, &dissolve).await.expect_err("the notice runs").to_string();
    assert!(early.contains("not over yet"), "{early}");
    local.control().advance(30 * 24 * 3600).await?;
    local.send(&local.accounts().stranger, &dissolve).await?;
    let state = local.chain().coalition(pool).await?.expect("it is known");
    assert_eq!(state.stage, Stage::Dissolved);
    assert_eq!(local.chain().coalition(B256::ZERO).await?, None);
    Ok(())
}

#[tokio::test]
async fn every_gas_limit_has_a_reserve() -> anyhow::Result<()> {
    let local = LocalChain::start().await?;
    let mut measured: Vec<(String, u64, u64)> = Vec::new();
    let coalition = local.activate_coalition(16).await?;
    let signers = 18;
    let limit = calls::gas::ACTIVATE + calls::gas::ACTIVATE_EACH * signers;
    measured.push(("activate 16".into(), coalition.receipt.gas_used, limit.min(calls::gas::MOST)));
    let orchestrator = &local.accounts().orchestrator;
    let rate = FlowRate::from_units_per_second(100);
    let mut note = |what: &str, used: u64, limit: u64| measured.push((what.to_owned(), used, limit));

    let session = local.open_session(&coalition, 0, "1".parse()?, rate).await?;
    note("open and start", session.receipt.gas_used, calls::gas::OPEN_AND_START);
    let idle = local.open_session(&coalition, 1, "1".parse()?, FlowRate::ZERO).await?;
    note("open", idle.receipt.gas_used, calls::gas::OPEN);
    let book = local.book();
    let pool = coalition.proposal.pool;
    for call in [
        calls::set_rate(idle.vault, rate),
        calls::set_rate(idle.vault, FlowRate::from_units_per_second(200)),
        calls::swap(book, pool, 1, 0),
        calls::set_rate(idle.vault, FlowRate::ZERO),
        calls::stop(session.vault),
        calls::set_rate(session.vault, rate),
        calls::close(session.vault),
        calls::close(idle.vault),
        calls::create_pool(book, orchestrator.address(), B256::repeat_byte(1)),
        calls::register(book),
        calls::connect(book, pool, vec![coalition.operators[0].address()]),
        calls::drain(book, pool, 1),
        calls::transfer(book, session.vault, Default::default()),
    ] {
        let receipt = local.send(orchestrator, &call).await?;
        note(call.what, receipt.gas_used, call.gas_limit);
    }

    // A new epoch in which four members leave and four others join.
    let mut next = coalition.proposal.clone();
    next.epoch = 2;
    next.swaps.clear();
    for (seat, operator) in next.seats.iter_mut().zip(&local.accounts().operators[4..]) {
        seat.operator = operator.address();
    }
    for operator in &local.accounts().operators[17..] {
        use alloy_signer::SignerSync as _;
        let deadline = next.expiry;
        let digest = book.registry().registration_digest(operator.address(), deadline);
        let signature = operator.sign_hash_sync(&digest)?.as_bytes();
        let call = calls::register_for(book, operator.address(), deadline, &signature)?;
        let receipt = local.send(orchestrator, &call).await?;
        note(call.what, receipt.gas_used, call.gas_limit);
    }
    let again = local.activate(next).await?;
    let limit = calls::gas::ACTIVATE + calls::gas::ACTIVATE_EACH * 22;
    note("activate 16, 4 of them new", again.receipt.gas_used, limit.min(calls::gas::MOST));
    for (what, used, limit) in measured {
        println!("{what:45} {used:>9} of {limit:>9}");
        assert!(used * 5 / 4 <= limit, "{what} used {used} of {limit}: less than a fifth is left");
    }
    Ok(())
}
