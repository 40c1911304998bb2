//! Two shards on one core that others want, too: nobody is given up for lost, and the answer is right.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as it must be")]
#![cfg(target_os = "linux")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};
use serde_json::{Value, json};
use support::{Files, PATIENCE, Up, model::Shape};

/// How many want the core beside the shards.
const CROWD: usize = 4;
/// The crowd leaves after this, whatever happens.
const LONGEST: Duration = Duration::from_secs(20);

/// Threads that do nothing on one core, as hard as they can.
struct Crowd {
    over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Crowd {
    fn on(core: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Instant::now() + LONGEST;
        let work = |over: Arc<AtomicBool>| {
            move || {
                let mut only = CpuSet::new();
                only.set(core).unwrap();
                sched_setaffinity(Pid::from_raw(0), &only).unwrap();
                while !over.load(Ordering::Relaxed) && Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..CROWD).map(|_| thread::spawn(work(over.clone()))).collect();
        Self { over, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Continues a prompt of 2,000 tokens; every byte is a token of this model.
async fn continued(url: &str) -> String {
    let prompt: String = "who is still there when everybody wants the same core? ".chars().cycle().take(2000).collect();
    let body = json!({ "model": "noise", "prompt": prompt, "max_tokens": 12, "temperature": 0 });
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let answer = client.post(format!("{url}/completions")).json(&body).send().await.unwrap();
    let status = answer.status();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(status.as_u16(), 200, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 12, "{answer}");
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

async fn epoch(url: &str) -> u64 {
    support::coalition(url).await["epoch"].as_u64().expect("a coalition has its epoch")
}

#[tokio::test]
async fn on_a_crowded_core_no_link_is_lost_and_the_answer_is_right() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let core = (0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap()).expect("a core to run on");
    let files = Files::with(Shape { layers: 4, hidden: 256, ..Shape::default() });
    let cores = format!("{core},{core}");
    let up = Up::start(files.up_command().args(["--shards", "2", "--cpus", &cores]));
    let alone = continued(&up.url).await;
    let before = epoch(&up.url).await;

    let crowd = Crowd::on(core);
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < 6 && (rounds == 0 || began.elapsed() < LONGEST / 2) {
        assert_eq!(continued(&up.url).await, alone, "token for token what an idle machine says");
        rounds += 1;
    }
    drop(crowd);
    eprintln!("{rounds} prompts of 2,000 tokens beside {CROWD} busy threads in {:?}", began.elapsed());
    assert_eq!(epoch(&up.url).await, before, "no link was lost: the coalition is still the first one");
    up.stop(Signal::SIGTERM);
}
