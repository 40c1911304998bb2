//! What peers, nodes and the orchestrator send.

use std::collections::BTreeSet;

use alloy_primitives::Address;
use bytes::Bytes;
use pool_coalition::{Roster, stand_down::SignedStandDown};
use pool_link::{Description, ReplayGuard, VerifyContext, verify};
use pool_wire::{
    Assembler, Prompt, Token,
    control::{FromShard, ToNode, ToOrchestrator, ToShard, decode, encode},
    frame::{self, Frame},
};
use serde::{Serialize, de::DeserializeOwned};

/// A message of a data channel: frames, put together into bodies, and what those hold.
pub(crate) fn frames(bytes: &[u8]) {
    const LIMIT: usize = 1 << 20;
    let read: Vec<Frame> = frame::parse(Bytes::copy_from_slice(bytes)).map_while(Result::ok).collect();
    let mut rest = bytes;
    let mut assembler = Assembler::new(LIMIT);
    for frame in read {
        let written = frame::message(std::slice::from_ref(&frame));
        assert!(rest.starts_with(&written), "a frame that was read is not the bytes it was read from");
        rest = &rest[written.len()..];
        let Ok(Some(assembled)) = assembler.push(frame) else { continue };
        assert!(assembled.payload.len() <= LIMIT, "a body grew past the limit");
        if let Ok(prompt) = Prompt::parse(assembled.payload.clone()) {
            assert!(!prompt.tokens.is_empty(), "a prompt has tokens");
        }
        let _ = Token::parse(assembled.payload);
    }
}

/// Control messages of every direction, and what a node signs when it leaves.
pub(crate) fn control(bytes: &[u8]) {
    if let Ok(ToOrchestrator::StandDown { statement }) = decode(bytes)
        && let Ok(word) = serde_json::from_str::<SignedStandDown>(&statement)
    {
        let said = word.stand_down;
        let counts_on = |chain| word.verify(said.operator, said.coalition, chain, said.at).is_ok();
        assert!(!(counts_on(said.chain) && counts_on(said.chain.wrapping_add(1))), "a word counts on one chain only");
    }
    read_again::<ToNode>(bytes);
    read_again::<ToOrchestrator>(bytes);
    read_again::<ToShard>(bytes);
    read_again::<FromShard>(bytes);
}

/// What can be read can be written, and reads the same.
fn read_again<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(message) = decode::<T>(bytes) else { return };
    let Ok(written) = encode(&message) else { return };
    let again: T = decode(&written[4..]).expect("our own message is readable");
    assert_eq!(encode(&again).expect("it was written before"), written, "a message changes when it is read again");
}

/// A signed offer or answer, judged by someone it may be meant for.
pub(crate) fn signalling(bytes: &[u8]) {
    let Ok(description) = serde_json::from_slice::<Description>(bytes) else { return };
    let context = VerifyContext {
        members: BTreeSet::from([description.from, description.to, Address::ZERO]),
        me: description.to,
        coalition: description.coalition,
        chain: description.chain,
        epoch: description.epoch,
        now: description.expires.saturating_sub(60),
    };
    if verify(&description, &context).is_ok() {
        let mut guard = ReplayGuard::default();
        assert!(guard.admit(&description, context.now).is_ok(), "a sound description is admitted");
        assert!(guard.admit(&description, context.now).is_err(), "and once only");
    }
}

/// A roster file.
pub(crate) fn roster(bytes: &[u8]) {
    let Ok(roster) = Roster::from_json(bytes) else { return };
    assert!(roster.member(roster.gateway).is_some(), "a roster's gateway is a member");
    let _ = roster.coalition_id();
}
