//! Every sentence a person can read, in one table. Wording is reviewed here.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use pool_policy::{
    Action, AfterFinishing, Celsius, Decision, Downloads, Event, Moment, NextEvent, Percent, Problem, Reason, Seconds,
    Sensor, Serving, Shard, State, UnavailableSensor,
};
use pool_types::{ByteSize, LayerRange};

fn shard() -> Shard {
    Shard { model: "Llama-3.1-8B".into(), layers: LayerRange::new(0, 16).expect("sixteen layers") }
}

/// Monday, 4 May 2026, 21:00 in Berlin.
fn now() -> Moment {
    Moment { wall: "2026-05-04T19:00:00Z".parse().expect("a timestamp"), steady: Duration::ZERO }
}

fn decision(reason: Reason, event: Event, then: Option<u64>, earliest: Option<&str>) -> Decision {
    let state = reason.state();
    let serving = (state == State::Earning).then(|| Serving { shard: shard(), coalition: 2, requests: 1 });
    let next = NextEvent {
        event,
        then_shares_after: then.map(Duration::from_secs),
        earliest: earliest.map(|at| at.parse::<Timestamp>().expect("a timestamp")),
    };
    let (action, downloads) = (Action::Stay, Downloads::Run { at_most: None });
    Decision { state, reason, next, action, gpus: Vec::new(), cpu: false, downloads, serving, unavailable: Vec::new() }
}

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").expect("the bundled zones know it")
}

fn say(decision: &Decision) -> String {
    decision.sentence(now(), &berlin()).to_string()
}

#[test]
fn every_reason_has_its_words() {
    let card = || "RTX 4090".to_owned();
    let later = Some("2026-05-05T04:00:00Z");
    let hot = |celsius| Reason::GpuHot { gpu: card(), celsius, resumes_at: Celsius(75) };
    let finishing = |requests, then| Reason::Finishing { requests, then };
    let updating = |requests| Reason::Updating { version: "1.2.0".into(), requests };
    let problem =
        Problem { what: "the shard has ended five times".into(), next_action: "Run the check in Settings".into() };
    let because = || "no display is connected".to_owned();
    let disk_full = Reason::DiskFull { wanted: ByteSize(4 << 30), room: ByteSize(1 << 30) };
    let serving = "Serving layers 0-15 of Llama-3.1-8B in a coalition of 2.";
    let table: Vec<(Decision, &str)> = vec![
        (decision(Reason::Away, Event::OwnerReturns, None, None), "Earning: you are away. SERVING"),
        (
            decision(Reason::Gently, Event::OwnerLeaves, None, None),
            "Earning: gently, while you use this computer. SERVING",
        ),
        (
            decision(Reason::WithinSchedule, Event::ScheduleCloses, None, later),
            "Earning: these are the hours you chose. SERVING Sharing goes on until tomorrow 6:00.",
        ),
        (
            decision(Reason::WithinSchedule, Event::SettingsChange, None, None),
            "Earning: these are the hours you chose. SERVING",
        ),
        (
            decision(Reason::ShareNow, Event::ShareNowEnds, None, Some("2026-05-04T20:05:00Z")),
            "Earning: you asked to share now. SERVING Sharing goes on until 22:05.",
        ),
        (
            decision(Reason::ShareNow, Event::OwnerStops, None, None),
            "Earning: you asked to share now. SERVING Sharing goes on until you stop it.",
        ),
        (
            decision(finishing(1, AfterFinishing::Pause), Event::RequestsFinish, None, None),
            "Earning: finishing the last request, then pausing. SERVING No new requests are taken.",
        ),
        (
            decision(finishing(3, AfterFinishing::ScheduleEnds), Event::RequestsFinish, None, None),
            "Earning: finishing the last 3 requests, for the hours you chose are over. SERVING No new requests are taken.",
        ),
        (
            decision(Reason::NoCoalition, Event::CoalitionForms, None, None),
            "Waiting: no coalition needs this computer yet. It takes part when one has a place for it.",
        ),
        (
            decision(Reason::Downloading { shard: shard(), done: Percent(7) }, Event::DownloadEnds, None, None),
            "Waiting: downloading layers 0-15 of Llama-3.1-8B, 7 % done.",
        ),
        (
            decision(
                Reason::DownloadWaits {
                    shard: shard(),
                    done: Percent(7),
                    because: "you paused it; resume it in the list of downloads".into(),
                },
                Event::DownloadEnds,
                None,
                None,
            ),
            "Waiting: the download of layers 0-15 of Llama-3.1-8B waits at 7 %: you paused it; resume it in the list of \
             downloads.",
        ),
        (
            decision(Reason::Loading { shard: shard() }, Event::LoadingEnds, None, None),
            "Waiting: loading layers 0-15 of Llama-3.1-8B.",
        ),
        (
            decision(Reason::Notice { starts_in: Seconds(8) }, Event::SharingStarts, None, None),
            "Waiting: sharing starts in 8 seconds. Choose Not now to put it off.",
        ),
        (
            decision(Reason::Rest, Event::SharingStarts, Some(37), None),
            "Waiting: sharing stopped a moment ago. Sharing resumes in about 40 seconds.",
        ),
        (
            decision(Reason::OwnerHere, Event::OwnerLeaves, Some(310), None),
            "Waiting: you are using this computer. Sharing resumes about 5 minutes after you leave it alone.",
        ),
        (
            decision(Reason::IdleUnavailable { because: because() }, Event::SettingsChange, None, None),
            "Waiting: idle detection unavailable, because no display is connected. Sharing then follows a schedule only, and none is set. Set one in Settings, or choose Share now.",
        ),
        (
            decision(Reason::IdleUnavailable { because: because() }, Event::SharingStarts, Some(200), None),
            "Waiting: idle detection unavailable, because no display is connected. Sharing resumes in about 3 minutes.",
        ),
        (
            decision(Reason::FullScreen, Event::FullScreenCloses, Some(310), None),
            "Waiting: a full-screen application is running. Sharing resumes about 5 minutes after it closes.",
        ),
        (
            decision(Reason::KeptAwake, Event::KeptAwakeEnds, Some(7_300), None),
            "Waiting: a film, a call or a presentation keeps the screen on. Sharing resumes about 2 hours after it ends.",
        ),
        (
            decision(Reason::Program { name: "Blender".into() }, Event::ProgramCloses, Some(0), None),
            "Waiting: Blender is running. Sharing resumes when it closes.",
        ),
        (
            decision(Reason::GpuBusy { gpu: card() }, Event::GpuCalms, Some(40), None),
            "Waiting: another program is using the RTX 4090. Sharing resumes about 40 seconds after it stops.",
        ),
        (
            decision(Reason::GpuMemoryNeeded { gpu: card() }, Event::GpuMemoryIsFree, Some(40), None),
            "Waiting: another program needs the memory of the RTX 4090. Sharing resumes about 40 seconds after it gives the memory back.",
        ),
        (
            decision(hot(Some(Celsius(79))), Event::GpuCools, Some(10), None),
            "Waiting: the RTX 4090 is cooling down, now at 79 °C. Sharing resumes about 10 seconds after it is down to 75 °C.",
        ),
        (
            decision(hot(None), Event::GpuCools, Some(0), None),
            "Waiting: the RTX 4090 was too hot. Sharing resumes when it is down to 75 °C.",
        ),
        (
            decision(Reason::OnBattery, Event::PluggedIn, Some(70), None),
            "Waiting: this computer runs on battery. Sharing resumes about 1 minute after it is plugged in.",
        ),
        (
            decision(Reason::Metered, Event::NetworkUnmetered, Some(10), None),
            "Waiting: the network connection is metered. Sharing resumes about 10 seconds after an unmetered connection is back.",
        ),
        (
            decision(disk_full, Event::DiskHasRoom, Some(10), None),
            "Waiting: the next model needs 4.0 GiB of disk space and may use 1.0 GiB. Raise the disk budget in Settings or remove a model.",
        ),
        (
            decision(Reason::OutsideSchedule, Event::ScheduleOpens, None, Some("2026-05-04T20:00:00Z")),
            "Waiting: these are not the hours you chose. Sharing starts at 22:00.",
        ),
        (
            decision(Reason::OutsideSchedule, Event::ScheduleOpens, None, later),
            "Waiting: these are not the hours you chose. Sharing starts tomorrow at 6:00.",
        ),
        (
            decision(Reason::OutsideSchedule, Event::ScheduleOpens, None, Some("2026-05-08T16:30:00Z")),
            "Waiting: these are not the hours you chose. Sharing starts on Friday at 18:30.",
        ),
        (
            decision(Reason::OutsideSchedule, Event::ScheduleOpens, None, Some("2026-05-11T16:30:00Z")),
            "Waiting: these are not the hours you chose. Sharing starts on 11 May at 18:30.",
        ),
        (
            decision(
                Reason::OwnerPaused { until: Some("2026-05-05T06:00:00Z".parse().unwrap()) },
                Event::PauseEnds,
                None,
                None,
            ),
            "Paused: you paused sharing until tomorrow 8:00.",
        ),
        (
            decision(Reason::OwnerPaused { until: None }, Event::OwnerResumes, None, None),
            "Paused: you paused sharing until you resume it.",
        ),
        (
            decision(Reason::NoGpuChosen, Event::SettingsChange, None, None),
            "Paused: no GPU of this computer is chosen for sharing. Choose one in the menu under GPUs.",
        ),
        (
            decision(Reason::Problem(problem), Event::ProblemSolved, None, None),
            "Problem: the shard has ended five times. Run the check in Settings.",
        ),
        (
            decision(Reason::NoGpu, Event::ProblemSolved, None, None),
            "Problem: this computer has no GPU that can be shared. Sharing the processor can be switched on in Settings.",
        ),
        (
            decision(
                Reason::GpusUnavailable { because: "the driver does not answer".into() },
                Event::ProblemSolved,
                None,
                None,
            ),
            "Problem: the GPUs cannot be looked at, because the driver does not answer. It is tried again all the time; if it stays so, restart the computer.",
        ),
        (
            decision(updating(0), Event::UpdateEnds, None, None),
            "Updating: version 1.2.0 is being installed. Sharing resumes with the new version.",
        ),
        (
            decision(updating(2), Event::UpdateEnds, None, None),
            "Updating: finishing the last 2 requests, then version 1.2.0 is installed. Sharing resumes with the new version.",
        ),
    ];
    let different: Vec<String> = (table.iter())
        .map(|(decision, expected)| (say(decision), expected.replace("SERVING", serving)))
        .filter(|(said, expected)| said != expected)
        .map(|(said, expected)| format!("said:     {said}\nexpected: {expected}"))
        .collect();
    assert!(different.is_empty(), "\n{}\n", different.join("\n\n"));
}

#[test]
fn a_member_that_serves_alone_is_told_so_and_headless_machines_say_what_they_lack() {
    let mut alone = decision(Reason::Away, Event::OwnerReturns, None, None);
    alone.serving = Some(Serving { shard: shard(), coalition: 1, requests: 0 });
    assert_eq!(say(&alone), "Earning: you are away. Serving layers 0-15 of Llama-3.1-8B alone.");

    let mut headless = decision(Reason::OutsideSchedule, Event::ScheduleOpens, None, Some("2026-05-04T20:00:00Z"));
    let because = "nobody is logged in".to_owned();
    headless.unavailable = vec![UnavailableSensor { sensor: Sensor::Idle, gpu: None, because }];
    let expected = "Waiting: these are not the hours you chose. Sharing starts at 22:00. Idle detection unavailable, because nobody is logged in: the schedule alone decides.";
    assert_eq!(say(&headless), expected);
}

#[test]
fn the_row_of_the_tray_is_the_reason_alone() {
    let row = |reason| decision(reason, Event::OwnerReturns, None, None).sentence(now(), &berlin()).row();
    assert_eq!(row(Reason::Away), "You are away");
    assert_eq!(row(Reason::Program { name: "éditeur".into() }), "Éditeur is running");
}

#[test]
fn the_decision_log_gets_a_line_for_a_change_and_none_for_a_countdown() {
    let notice =
        |starts_in| decision(Reason::Notice { starts_in: Seconds(starts_in) }, Event::SharingStarts, None, None);
    assert!(!notice(8).is_transition_from(&notice(9)), "a countdown is no transition");
    assert!(decision(Reason::Rest, Event::SharingStarts, None, None).is_transition_from(&notice(9)));
    let mut shares = notice(9);
    shares.action = Action::Share;
    assert!(shares.is_transition_from(&notice(9)), "what the node does has changed");
}
