use alloy_signer_local::PrivateKeySigner;

use super::*;
use crate::identity::LinkKey;

const NOW: u64 = 1_800_000_000;
const COALITION: CoalitionId = CoalitionId(B256::repeat_byte(7));

struct Member {
    wallet: PrivateKeySigner,
    identity: LinkIdentity,
}

/// A key that does not change from run to run.
fn wallet(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
}

async fn identity_of(wallet: &PrivateKeySigner, expires: u64) -> LinkIdentity {
    let key: LinkKey = LinkIdentity::new_key();
    let delegation = Delegation::sign(wallet, key.address(), COALITION, 0, expires).await.unwrap();
    key.with_delegation(delegation).unwrap()
}

async fn member(n: u8) -> Member {
    let wallet = wallet(n);
    let identity = identity_of(&wallet, NOW + 3600).await;
    Member { wallet, identity }
}

fn context(me: &Member, members: &[&Member]) -> VerifyContext {
    VerifyContext {
        members: members.iter().map(|m| m.wallet.address()).collect(),
        me: me.wallet.address(),
        coalition: COALITION,
        chain: 0,
        epoch: Epoch(3),
        now: NOW,
    }
}

fn sdp(fingerprint: u8) -> String {
    let hex = vec![format!("{fingerprint:02X}"); 32].join(":");
    format!(
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\na=fingerprint:sha-256 {hex}\r\nm=application 9 UDP/DTLS/SCTP *\r\n"
    )
}

fn sign(from: &Member, to: &Member, context: &VerifyContext, sdp: String) -> Description {
    let (to, role) = (to.wallet.address(), DescriptionRole::Offer);
    Description::sign(&from.identity, context, to, role, B256::repeat_byte(9), sdp, 60).unwrap()
}

/// Signs a description again after its fields were changed: an attacker who is a member itself.
fn resign(identity: &LinkIdentity, description: &mut Description) {
    description.signature = identity.sign_hash(&description.hash()).unwrap();
}

#[tokio::test]
async fn an_honest_offer_is_accepted_and_survives_json() {
    let (alice, bob) = (member(1).await, member(2).await);
    let offer = sign(&alice, &bob, &context(&alice, &[&alice, &bob]), sdp(0xAB));
    let read: Description = serde_json::from_str(&serde_json::to_string(&offer).unwrap()).unwrap();
    assert_eq!(read, offer);
    assert_eq!(read.fingerprint, B256::repeat_byte(0xAB));
    verify_offer(&read, &context(&bob, &[&alice, &bob])).unwrap();
}

#[tokio::test]
async fn every_field_is_under_the_signature() {
    let (alice, bob) = (member(1).await, member(2).await);
    let ours = context(&bob, &[&alice, &bob]);
    let offer = sign(&alice, &bob, &context(&alice, &[&alice, &bob]), sdp(1));
    type Tamper = fn(&mut Description);
    let cases: [(&str, Tamper); 9] = [
        ("nonce", |d| d.nonce.0[0] ^= 1),
        ("role", |d| d.role = DescriptionRole::Answer),
        ("expiry", |d| d.expires += 1),
        ("sdp text", |d| d.sdp.push_str("a=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\n")),
        ("fingerprint in both places", |d| {
            d.sdp = sdp(2);
            d.fingerprint = B256::repeat_byte(2);
        }),
        ("signature", |d| d.signature = Bytes::from(vec![1; 65])),
        ("signature cut short", |d| d.signature = d.signature.slice(..64)),
        ("delegation expiry", |d| d.delegation.expires += 1),
        ("delegated key", |d| d.delegation.link_key = Address::repeat_byte(3)),
    ];
    for (what, tamper) in cases {
        let mut bad = offer.clone();
        tamper(&mut bad);
        let error = verify(&bad, &ours).expect_err(what);
        let cryptographic = matches!(error, SignalError::NotTheDelegatedKey | SignalError::DelegationSignature);
        assert!(cryptographic, "{what}: {error} is not about a signature");
    }
}

#[tokio::test]
async fn a_description_for_another_place_or_time_is_refused() {
    let (alice, bob, carol) = (member(1).await, member(2).await, member(3).await);
    let theirs = context(&alice, &[&alice, &bob]);
    let ours = context(&bob, &[&alice, &bob]);
    let offer = sign(&alice, &bob, &theirs, sdp(1));
    let refused = |d: &Description, c: &VerifyContext| verify(d, c).expect_err("must be refused");

    use SignalError as E;
    assert!(matches!(refused(&offer, &context(&carol, &[&alice, &bob, &carol])), E::NotForMe), "addressed to bob");
    assert!(matches!(refused(&offer, &VerifyContext { me: alice.wallet.address(), ..ours.clone() }), E::NotForMe));
    assert!(matches!(refused(&offer, &context(&bob, &[&bob, &carol])), E::NotAMember(_)), "alice is no member");
    assert!(matches!(refused(&offer, &VerifyContext { epoch: Epoch(4), ..ours.clone() }), E::Epoch { .. }));
    assert!(matches!(refused(&offer, &VerifyContext { chain: 1, ..ours.clone() }), E::Coalition));
    let elsewhere = VerifyContext { coalition: CoalitionId(B256::ZERO), ..ours.clone() };
    assert!(matches!(refused(&offer, &elsewhere), E::Coalition));
    assert!(matches!(refused(&offer, &ours.at(NOW + 60)), E::Expired("description")));
    verify(&offer, &ours.at(NOW + 59)).expect("valid until its last second");

    let mut eternal = offer.clone();
    eternal.expires = NOW + MAX_DESCRIPTION_LIFETIME + 1;
    resign(&alice.identity, &mut eternal);
    assert!(matches!(refused(&eternal, &ours), E::TooLongLived("description")));
}

#[tokio::test]
async fn only_the_key_that_the_wallet_delegated_for_this_coalition_may_sign() {
    let (mut alice, bob, mallory) = (member(1).await, member(2).await, member(4).await);
    let ours = context(&bob, &[&alice, &bob, &mallory]);
    let theirs = context(&alice, &[&alice, &bob, &mallory]);

    let mut forged = sign(&alice, &bob, &theirs, sdp(1));
    resign(&mallory.identity, &mut forged);
    assert!(matches!(verify(&forged, &ours), Err(SignalError::NotTheDelegatedKey)), "signed by another member's key");

    let mut borrowed = sign(&mallory, &bob, &theirs, sdp(1));
    borrowed.from = alice.wallet.address();
    resign(&mallory.identity, &mut borrowed);
    assert!(
        matches!(verify(&borrowed, &ours), Err(SignalError::DelegationScope)),
        "mallory's delegation, alice's name"
    );

    let mut claimed = borrowed.clone();
    claimed.delegation.wallet = alice.wallet.address();
    resign(&mallory.identity, &mut claimed);
    assert!(matches!(verify(&claimed, &ours), Err(SignalError::DelegationSignature)), "alice never signed that");

    alice.identity = identity_of(&alice.wallet, NOW).await;
    let stale = sign(&alice, &bob, &theirs, sdp(1));
    assert!(matches!(verify(&stale, &ours), Err(SignalError::Expired("delegation"))));

    alice.identity = identity_of(&alice.wallet, NOW + MAX_DELEGATION_LIFETIME + 1).await;
    let days = sign(&alice, &bob, &theirs, sdp(1));
    assert!(matches!(verify(&days, &ours), Err(SignalError::TooLongLived("delegation"))));

    let key = LinkIdentity::new_key();
    let elsewhere = Delegation::sign(&alice.wallet, key.address(), CoalitionId(B256::ZERO), 0, NOW + 60).await.unwrap();
    alice.identity = key.with_delegation(elsewhere).unwrap();
    let moved = sign(&alice, &bob, &theirs, sdp(1));
    assert!(matches!(verify(&moved, &ours), Err(SignalError::DelegationScope)), "delegated for another coalition");
}

#[tokio::test]
async fn a_key_takes_no_delegation_but_its_own() {
    let wallet = wallet(1);
    let other = LinkIdentity::new_key().address();
    let foreign = Delegation::sign(&wallet, other, COALITION, 0, NOW + 60).await.unwrap();
    assert!(matches!(LinkIdentity::new_key().with_delegation(foreign), Err(SignalError::NotTheDelegatedKey)));
    let key = LinkIdentity::new_key();
    let mut unsigned = Delegation::sign(&wallet, key.address(), COALITION, 0, NOW + 60).await.unwrap();
    unsigned.expires += 1;
    assert!(matches!(key.with_delegation(unsigned), Err(SignalError::DelegationSignature)));
}

#[tokio::test]
async fn an_answer_belongs_to_one_offer_of_one_peer() {
    let (alice, bob, carol) = (member(1).await, member(2).await, member(3).await);
    let all = [&alice, &bob, &carol];
    let nonce = B256::repeat_byte(9);
    let answer_of = |who: &Member, role| {
        let to = alice.wallet.address();
        Description::sign(&who.identity, &context(who, &all), to, role, nonce, sdp(1), 60).unwrap()
    };
    let (ours, bobs) = (context(&alice, &all), bob.wallet.address());
    let answer = answer_of(&bob, DescriptionRole::Answer);
    verify_answer(&answer, bobs, nonce, &ours).unwrap();
    assert!(matches!(verify_answer(&answer, bobs, B256::ZERO, &ours), Err(SignalError::NotTheAnswer)));
    let carols = answer_of(&carol, DescriptionRole::Answer);
    assert!(matches!(verify_answer(&carols, bobs, nonce, &ours), Err(SignalError::NotTheAnswer)), "bob was asked");
    let offer = answer_of(&bob, DescriptionRole::Offer);
    assert!(matches!(verify_answer(&offer, bobs, nonce, &ours), Err(SignalError::Role)));
    assert!(matches!(verify_offer(&answer, &ours), Err(SignalError::Role)));
}

#[test]
fn a_second_fingerprint_in_any_spelling_is_refused() {
    let good = sdp(0xAB);
    assert_eq!(only_fingerprint(&good), Some(B256::repeat_byte(0xAB)));
    assert_eq!(only_fingerprint(&good.to_lowercase()), Some(B256::repeat_byte(0xAB)), "hexadecimal in either case");
    let line = good.lines().find(|line| line.starts_with("a=fingerprint")).unwrap();
    for second in [line.to_owned(), line.to_uppercase(), line.replace("sha-256", "sha-1"), " a=fingerprint:x".into()] {
        assert_eq!(only_fingerprint(&format!("{good}{second}\r\n")), None, "{second}");
        assert_eq!(only_fingerprint(&format!("{good}m=x\r{second}")), None, "{second} after a bare return");
    }
    for broken in [good.replace("sha-256", "sha-1"), good.replace("AB:", "AB"), good.replace(line, "")] {
        assert_eq!(only_fingerprint(&broken), None, "{broken}");
    }
    assert_eq!(only_fingerprint(&good.replace("AB:AB\r", "AB\r")), None, "31 bytes");
    assert_eq!(only_fingerprint(&good.replace("AB\r", "AB:AB\r")), None, "33 bytes");
    assert_eq!(only_fingerprint(&good.replace("AB\r", "+1\r")), None, "a sign is not a digit");
}

#[tokio::test]
async fn a_description_is_bounded() {
    let (alice, bob) = (member(1).await, member(2).await);
    let ours = context(&alice, &[&alice, &bob]);
    let long = format!("{}{}", sdp(1), "a=x\r\n".repeat(MAX_SDP / 5));
    let (to, role) = (bob.wallet.address(), DescriptionRole::Offer);
    let refused = Description::sign(&alice.identity, &ours, to, role, B256::ZERO, long.clone(), 60);
    assert!(matches!(refused, Err(SignalError::SdpLength(_))));
    let mut offer = sign(&alice, &bob, &ours, sdp(1));
    offer.sdp = long;
    resign(&alice.identity, &mut offer);
    assert!(matches!(verify(&offer, &context(&bob, &[&alice, &bob])), Err(SignalError::SdpLength(_))));
}

#[tokio::test]
async fn an_offer_is_good_once_and_the_memory_of_it_is_bounded() {
    let (alice, bob) = (member(1).await, member(2).await);
    let mut offer = sign(&alice, &bob, &context(&alice, &[&alice, &bob]), sdp(1));
    let mut guard = ReplayGuard::default();
    guard.admit(&offer, NOW).unwrap();
    assert!(matches!(guard.admit(&offer, NOW + 1), Err(SignalError::Replayed)));
    for n in 1..ReplayGuard::CAPACITY {
        offer.nonce = B256::left_padding_from(&n.to_be_bytes());
        guard.admit(&offer, NOW).unwrap();
    }
    offer.nonce = B256::ZERO;
    assert!(matches!(guard.admit(&offer, NOW), Err(SignalError::TooMany)), "full of live offers");
    guard.admit(&offer, offer.expires).expect("expired offers make room");
}

#[test]
fn any_wallet_can_recompute_what_it_signs() {
    // EIP-712 by hand, from nothing but its text and our documentation.
    let word = |bytes: &[u8]| B256::left_padding_from(bytes);
    let hash = |words: &[B256]| keccak256(words.iter().flat_map(|word| word.0).collect::<Vec<_>>());
    let domain = hash(&[
        keccak256("EIP712Domain(string name,string version,uint256 chainId)"),
        keccak256("ComputePool"),
        keccak256("1"),
        word(&16602u64.to_be_bytes()),
    ]);
    let signed = |fields: &[B256]| keccak256([&[0x19, 0x01], &domain.0[..], &hash(fields).0[..]].concat());

    let delegation = Delegation {
        wallet: Address::repeat_byte(1),
        link_key: Address::repeat_byte(2),
        coalition: COALITION,
        chain: 16602,
        expires: NOW,
        signature: Bytes::new(),
    };
    let delegated = signed(&[
        keccak256("LinkDelegation(string scope,address wallet,address linkKey,bytes32 coalition,uint64 expires)"),
        keccak256("links and receipts"),
        word(&[1; 20]),
        word(&[2; 20]),
        COALITION.0,
        word(&NOW.to_be_bytes()),
    ]);
    assert_eq!(delegation.hash(), delegated);

    let description = Description {
        coalition: COALITION,
        chain: 16602,
        epoch: Epoch(3),
        from: Address::repeat_byte(1),
        to: Address::repeat_byte(4),
        role: DescriptionRole::Answer,
        nonce: B256::repeat_byte(9),
        sdp: sdp(0xAB),
        fingerprint: B256::repeat_byte(0xAB),
        expires: NOW,
        delegation,
        signature: Bytes::new(),
    };
    let types = "LinkDescription(bytes32 coalition,uint64 epoch,address from,address to,string role,bytes32 nonce,\
                 bytes32 sdp,bytes32 fingerprint,uint64 expires,bytes32 delegation)";
    let described = signed(&[
        keccak256(types),
        COALITION.0,
        word(&[3]),
        word(&[1; 20]),
        word(&[4; 20]),
        keccak256("answer"),
        B256::repeat_byte(9),
        keccak256(sdp(0xAB)),
        B256::repeat_byte(0xAB),
        word(&NOW.to_be_bytes()),
        delegated,
    ]);
    assert_eq!(description.hash(), described);
}
