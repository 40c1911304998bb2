//! Days in the life of a computer, one readable file each: `tests/scenarios/*.txt`. What the files may say is written at
//! [`script`]; [`stage`] plays them, second by second, with a node that does what it is told.
//!
//! Every file is played twice at once: with a memory that stays in place, and with one that is written down and read back
//! at every line, as if the app had been restarted there. Both must decide the same.

#[path = "support/script.rs"]
mod script;
#[path = "support/stage.rs"]
mod stage;

use std::{fs, path::Path};

use script::Script;
use stage::Stage;

#[test]
fn every_scenario_goes_as_it_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = (fs::read_dir(&folder).expect("the scenarios lie beside this test"))
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 15, "only {} scenarios were found in {}", files.len(), folder.display());

    let mut different = Vec::new();
    for path in files {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("scenarios are UTF-8");
        let played = Script::parse(&text).and_then(|script| Stage::new(&script).play(&script));
        if let Err(error) = played {
            different.push(format!("tests/scenarios/{name}:{error}"));
        }
    }
    assert!(different.is_empty(), "\n\n{}\n", different.join("\n\n"));
}

/// The test above only means something if it can tell a wrong expectation from a right one.
#[test]
fn a_wrong_expectation_is_found_where_it_stands() {
    let play = |expected: &str| {
        let text = format!(
            "zone UTC\nbegin 2026-05-04 12:00:00\n12:00:00 +5s typing -> waiting owner-here\n12:00:05 +9s idle=6m -> {expected}"
        );
        Script::parse(&text).and_then(|script| Stage::new(&script).play(&script)).map_err(|error| error.to_string())
    };
    play("waiting notice stay").expect("nine seconds of notice");
    for (wrong, why) in [
        ("waiting owner-here", "another reason"),
        ("paused notice", "another state"),
        ("waiting notice yield", "another action"),
        ("waiting notice gpus=A", "no GPU is used yet"),
        ("waiting notice downloads=metered", "downloads run"),
        ("waiting notice cap=1048576", "downloads take what they can"),
        ("waiting notice duty=30", "nothing computes"),
        ("waiting notice starts=12:00:16", "it starts a second earlier"),
        ("waiting notice says \"Waiting.\"", "another sentence"),
    ] {
        let error = play(wrong).expect_err(why);
        assert!(error.starts_with("4: "), "line 4 is named: {error}");
    }
    let ten = "zone UTC\nbegin 2026-05-04 12:00:00\n12:00:00 +11s idle=6m -> waiting notice";
    let error = Script::parse(ten).and_then(|script| Stage::new(&script).play(&script)).unwrap_err().to_string();
    assert!(error.contains("12:00:10"), "a line holds for every second that it names: {error}");
    let gap = "zone UTC\nbegin 2026-05-04 12:00:00\n12:00:00 +2s idle=6m -> waiting notice\n12:00:04 -> waiting notice";
    let error = Script::parse(gap).and_then(|script| Stage::new(&script).play(&script)).unwrap_err().to_string();
    assert!(error.contains("12:00:02"), "a second about which nothing is said is a mistake: {error}");
}
