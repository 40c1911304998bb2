//! Mistakes on the command line, wherever money is meant.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]

mod money_support;
mod support;

use std::fs;

use money_support::{folder, money, refused, run, said, text};

#[test]
fn what_cannot_be_meant_is_refused_with_what_to_write_instead() {
    let wrong: &[(&[&str], &str)] = &[
        (&["session", "open", "--model", "tiny"], "--seconds"),
        (&["session", "open", "--seconds", "5", "--tokens", "5"], "cannot be used with"),
        (&["session", "open", "--seconds", "5", "--most", "0.0000001"], "more than 6 digits"),
        (&["session", "open", "--seconds", "5", "--most=-1"], "is not an amount"),
        (&["session", "open", "--seconds", "five"], "invalid digit"),
        (&["session", "open", "--seconds", "5", "--development-account", "20"], "0..20"),
        (&["chat", "--session", "0x1234", "--pay", "hi"], "cannot be used with"),
        (&["chat", "--seconds", "5", "hi"], "--pay"),
        (&["devnet", "fund", "0x12"], "invalid value '0x12'"),
        (&["devnet", "fund", "0x00000000000000000000000000000000000c0FFE", "--coin", "1e18"], "is not an amount"),
        (&["devnet", "time", "advance", "0"], "1..=315360000"),
        (&["devnet", "up", "--block-time", "0"], "1..=3600"),
        (&["verify", "audit"], "<FILE>"),
        (&["verify", "audit", "x", "--from", "http://127.0.0.1:9"], "cannot be used with"),
    ];
    for (words, expected) in wrong {
        let (status, out, errors) = run(words);
        assert_eq!(status, Some(2), "{words:?}: {out}");
        assert!(errors.contains(expected), "{words:?}: {errors}");
    }
}

#[test]
fn mistakes_are_answered_with_one_sentence_that_says_what_to_do() {
    let (_keep, wallet) = folder();
    let kept = ["--wallet", text(&wallet)];
    let account = ["--development-account", "0"];
    let cases: &[(&[&[&str]], &str)] = &[
        (&[&["session", "show", "0x123456"], &kept], "`computepool session list` shows those it holds"),
        (&[&["session", "close", "0x12"], &kept], "at least 4 of its digits"),
        (&[&["session", "close", "0x123456", "--direct"], &kept, &account], "name it with --rpc"),
        (&[&["session", "open", "--seconds", "5"], &kept], "set COMPUTEPOOL_PASSPHRASE"),
        (
            &[&["session", "open", "--seconds", "5", "--api", "http://127.0.0.1:9"], &kept, &account],
            "cannot be reached",
        ),
        (&[&["session", "open", "--seconds", "5", "--network", "galileo"], &kept, &account], "network local only"),
        (&[&["wallet", "--network", "nowhere"], &kept, &["--rpc", "http://127.0.0.1:9"]], "set COMPUTEPOOL_PASSPHRASE"),
        (&[&["wallet", "--rpc", "http://127.0.0.1:9"], &kept, &account], "cannot be reached"),
        (&[&["wallet", "--rpc", "nonsense"], &kept, &account], "is not a URL of HTTP"),
        (&[&["devnet", "time", "show", "--rpc", "http://127.0.0.1:9"]], "cannot be reached"),
        (&[&["verify", "audit", "--from", "http://127.0.0.1:9"]], "cannot be reached"),
        (&[&["chat", "--session", "0x123456", "hi"], &kept], "holds no session 0x123456"),
    ];
    for (words, expected) in cases {
        let errors = refused(&words.concat());
        assert!(errors.contains(expected) && errors.lines().count() == 1, "{words:?}: {errors}");
    }
}

#[test]
fn a_wallet_is_made_on_first_use_and_its_secrets_stay_in_it() {
    let (_keep, wallet) = folder();
    let show = || {
        let mut command = money(&["wallet", "--wallet", text(&wallet)]);
        said(command.env("COMPUTEPOOL_PASSPHRASE", "a long and secret phrase").output().unwrap())
    };
    let (status, address, words) = show();
    assert_eq!(status, Some(0), "{words}");
    assert!(words.contains("A wallet was made in") && words.contains(address.trim()), "{words}");
    assert!(!words.contains("secret phrase"));
    let (_, again, words) = show();
    assert_eq!((again, words.as_str()), (address, ""), "it is made once");
    let key = fs::read_to_string(wallet.join("key.json")).unwrap();
    assert!(key.contains("scrypt") && !key.contains("secret phrase"), "the key is encrypted");
}
