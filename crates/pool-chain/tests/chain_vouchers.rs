//! Each voucher that is not taken: named before anything is sent, refused by the contracts all the same, and free.

use alloy_primitives::{Address, B256, Bytes};
use pool_chain::{Authorization, Call, SignedVoucher, Terms, VoucherCheckError, VoucherStanding, Wanted, calls};
use pool_testkit::{ActiveCoalition, LocalChain};
use pool_types::{FlowRate, Usdc};

struct Scene {
    local: LocalChain,
    coalition: ActiveCoalition,
}

impl Scene {
    async fn set() -> anyhow::Result<Self> {
        let local = LocalChain::start().await?;
        let coalition = local.activate_coalition(1).await?;
        Ok(Self { local, coalition })
    }

    fn price(&self) -> Usdc {
        "0.2".parse().expect("it is an amount")
    }

    async fn terms(&self) -> anyhow::Result<Terms> {
        self.local.terms(&self.coalition, 0).await
    }

    /// A voucher of payer 0 for these terms, with something changed before it is signed.
    async fn voucher(&self, terms: &Terms, change: impl FnOnce(&mut Authorization)) -> anyhow::Result<SignedVoucher> {
        let mut authorization = self.local.voucher(terms, 0, self.price()).await?.authorization;
        change(&mut authorization);
        Ok(authorization.sign(&self.local.book().token(), &self.local.accounts().payers[0])?)
    }

    /// What the whole check says: what needs no chain first, then what does.
    async fn check(&self, terms: &Terms, voucher: &SignedVoucher) -> Result<VoucherStanding, &'static str> {
        let wanted = Wanted {
            token: self.local.book().token(),
            payer: terms.payer,
            pay_to: terms.vault_in(self.local.book()),
            amount: self.price(),
        };
        if let Err(refusal) = voucher.verify(&wanted) {
            return Err(self.local.chain().name_refusal(voucher, refusal).await.code());
        }
        self.local.chain().check_voucher(voucher, 15).await.map_err(|error| match error {
            VoucherCheckError::Refused(refusal) => refusal.code(),
            VoucherCheckError::Chain(error) => panic!("the chain must answer: {error}"),
        })
    }

    fn open(&self, terms: &Terms, voucher: &SignedVoucher) -> anyhow::Result<Call> {
        Ok(calls::open(self.local.book(), terms, voucher, FlowRate::ZERO)?)
    }

    /// That `open` is refused, by simulation and in a block, with `words`, and that nothing is charged.
    async fn refused(&self, terms: &Terms, voucher: &SignedVoucher, words: &str) -> anyhow::Result<()> {
        let (orchestrator, payer) = (&self.local.accounts().orchestrator, self.local.accounts().payers[0].address());
        let before = self.local.chain().usdc(payer).await?;
        let call = self.open(terms, voucher)?;
        let simulated = self.local.chain().simulate(orchestrator.address(), &call).await.expect_err(words).to_string();
        assert!(simulated.contains(words), "simulated: {simulated}, wanted: {words}");
        let sent = self.local.send(orchestrator, &call).await.expect_err(words).to_string();
        assert!(sent.contains(words), "sent: {sent}, wanted: {words}");
        assert_eq!(self.local.chain().usdc(payer).await?, before, "nothing is charged");
        Ok(())
    }
}

#[tokio::test]
async fn times_are_those_of_the_chain() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let terms = scene.terms().await?;
    let now = scene.local.chain().time().await?;

    let expired = scene.voucher(&terms, |voucher| voucher.valid_before = now - 1).await?;
    assert_eq!(scene.check(&terms, &expired).await, Err("expired"));
    scene.refused(&terms, &expired, "expired or is not valid yet").await?;

    let early = scene.voucher(&terms, |voucher| voucher.valid_after = now + 3600).await?;
    assert_eq!(scene.check(&terms, &early).await, Err("not_yet_valid"));
    scene.refused(&terms, &early, "expired or is not valid yet").await?;
    scene.local.control().advance(3700).await?;
    assert_eq!(scene.check(&terms, &early).await, Ok(VoucherStanding::Unused), "its time has come");

    let short = scene.voucher(&terms, |voucher| voucher.valid_before = now + 3700 + 10).await?;
    assert_eq!(scene.check(&terms, &short).await, Err("expired"), "it would end before a block takes it");
    scene.local.send(&scene.local.accounts().orchestrator, &scene.open(&terms, &early)?).await?;
    Ok(())
}

#[tokio::test]
async fn a_voucher_is_good_for_one_session_once() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let (orchestrator, payer) = (&scene.local.accounts().orchestrator, &scene.local.accounts().payers[0]);
    let terms = scene.terms().await?;
    let voucher = scene.voucher(&terms, |_| {}).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Ok(VoucherStanding::Unused));
    scene.local.send(orchestrator, &scene.open(&terms, &voucher)?).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Ok(VoucherStanding::Settled), "its money lies in its vault");

    let other = scene.terms().await?;
    assert_eq!(scene.check(&other, &voucher).await, Err("wrong_recipient"), "another session has another vault");
    scene.refused(&other, &voucher, "does not hold the voucher's money").await?;

    let rate = FlowRate::from_units_per_second(100);
    scene.local.send(orchestrator, &calls::set_rate(terms.vault_in(scene.local.book()), rate)).await?;
    scene.local.control().advance(10).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Err("replayed"), "some of it was used");
    scene.refused(&terms, &voucher, "does not hold the voucher's money").await?;
    scene.local.send(payer, &calls::close(terms.vault_in(scene.local.book()))).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Err("replayed"));
    scene.refused(&terms, &voucher, "the session was closed").await?;

    // A second voucher for a session that is over.
    let late = scene.voucher(&terms, |_| {}).await?;
    assert_eq!(scene.check(&terms, &late).await, Err("closed"));
    scene.refused(&terms, &late, "the session was closed").await?;
    Ok(())
}

#[tokio::test]
async fn a_stranger_who_is_first_does_no_harm() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let stranger = &scene.local.accounts().stranger;
    let terms = scene.terms().await?;
    let voucher = scene.voucher(&terms, |_| {}).await?;
    scene.local.send(stranger, &calls::settle(scene.local.book(), &voucher)?).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Ok(VoucherStanding::Settled));
    scene.local.send(stranger, &calls::deploy(scene.local.book(), &terms)).await?;
    scene.local.send(stranger, &calls::fund(terms.vault_in(scene.local.book()))).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Ok(VoucherStanding::Settled));
    scene.local.send(&scene.local.accounts().orchestrator, &scene.open(&terms, &voucher)?).await?;
    let vault = scene.local.chain().vault(terms.vault_in(scene.local.book())).await?;
    assert_eq!(vault.available, scene.price().to_usdcx());
    Ok(())
}

#[tokio::test]
async fn a_cancelled_voucher_and_an_empty_pocket_are_told_apart_from_a_used_one() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let payer = &scene.local.accounts().payers[0];
    let terms = scene.terms().await?;
    let voucher = scene.voucher(&terms, |_| {}).await?;
    let cancel = calls::cancel(scene.local.book(), payer, voucher.authorization.nonce)?;
    scene.local.send(&scene.local.accounts().stranger, &cancel).await?;
    assert_eq!(scene.check(&terms, &voucher).await, Err("cancelled"));
    scene.refused(&terms, &voucher, "does not hold the voucher's money").await?;

    let poor = scene.voucher(&terms, |_| {}).await?;
    let all = scene.local.chain().usdc(payer.address()).await?;
    let keep = Usdc::from_units(100)?;
    let elsewhere = scene.local.accounts().stranger.address();
    let away = calls::transfer(scene.local.book(), elsewhere, all.checked_sub(keep).unwrap());
    scene.local.send(payer, &away).await?;
    assert_eq!(scene.check(&terms, &poor).await, Err("insufficient_balance"));
    scene.refused(&terms, &poor, "does not have enough USDC").await?;
    Ok(())
}

#[tokio::test]
async fn signatures_that_are_not_the_payers_are_refused() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let terms = scene.terms().await?;
    let payer = &scene.local.accounts().payers[0];

    let mut token = scene.local.book().token();
    token.chain_id = 1;
    let authorization = scene.voucher(&terms, |_| {}).await?.authorization;
    let elsewhere = authorization.sign(&token, payer)?;
    assert_eq!(scene.check(&terms, &elsewhere).await, Err("bad_signature"), "signed for another chain");
    scene.refused(&terms, &elsewhere, "signature is not its payer's").await?;

    let stranger = authorization.sign(&scene.local.book().token(), &scene.local.accounts().stranger)?;
    assert_eq!(scene.check(&terms, &stranger).await, Err("bad_signature"));
    scene.refused(&terms, &stranger, "signature is not its payer's").await?;

    let mut dearer = scene.voucher(&terms, |_| {}).await?;
    dearer.authorization.value = "0.3".parse()?;
    assert_eq!(scene.check(&terms, &dearer).await, Err("wrong_amount"));
    scene.refused(&terms, &dearer, "signature is not its payer's").await?;

    let thief = scene.voucher(&terms, |voucher| voucher.to = Address::repeat_byte(0xee)).await?;
    assert_eq!(scene.check(&terms, &thief).await, Err("wrong_recipient"));
    scene.refused(&terms, &thief, "signature is not its payer's").await?;

    // A contract at the payer's address: whatever it would say of a signature (EIP-1271), we do not ask it yet.
    let mut wallet = terms;
    wallet.payer = Address::repeat_byte(0x77);
    scene.local.control().set_code(wallet.payer, &Bytes::from_static(&[0x5f, 0x5f, 0xf3])).await?;
    let mut signed = scene.voucher(&wallet, |voucher| voucher.nonce = B256::random()).await?;
    signed.authorization.from = wallet.payer;
    assert_eq!(scene.check(&wallet, &signed).await, Err("smart_wallet_not_supported"));
    signed.signature = [signed.signature.as_ref(), &[0x64, 0x92].repeat(16)].concat().into();
    assert_eq!(scene.check(&wallet, &signed).await, Err("smart_wallet_not_supported"), "EIP-6492");
    assert!(calls::open(scene.local.book(), &wallet, &signed, FlowRate::ZERO).is_err(), "there is no call for it");
    Ok(())
}
