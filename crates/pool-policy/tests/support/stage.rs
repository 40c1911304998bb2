//! Plays a script: clocks, sensors, and a node that does what it is told.

use std::time::Duration;

use jiff::{Timestamp, civil::DateTime};
use pool_policy::{
    Action, Activity, Celsius, Command, Decision, Disk, Downloads, Gpu, GpuId, Memory, Moment, Percent, Problem,
    Seconds, Settings, Shard, Signals, Term, decide,
};
use pool_types::{ByteSize, LayerRange, Reading};

use super::script::{Line, Script, Wrong, duration};

/// What a card of this size needs for its shard.
const SHARD_MEMORY: u64 = 6 << 30;
/// A time that is not reached in so many looks was mistyped.
const MOST_LOOKS: usize = 200_000;

pub(crate) struct Stage<'a> {
    script: &'a Script,
    now: Moment,
    signals: Signals,
    typing: bool,
    /// What others leave us of each GPU's memory.
    vram: Vec<Reading<ByteSize>>,
    /// What the node finds when it may share.
    coalition: String,
    requests: u32,
    memory: Memory,
    /// The same, written down and read back again and again.
    twin: Memory,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(script: &'a Script) -> Self {
        let gpu = |(id, name): &(String, String)| Gpu {
            id: GpuId(id.clone()),
            name: name.clone(),
            busy: Reading::Known(Percent(0)),
            memory_free: Reading::Known(ByteSize(0)),
            memory_ours: ByteSize(0),
            memory_needed: ByteSize(SHARD_MEMORY),
            temperature: Reading::Known(Celsius(50)),
        };
        let signals = Signals {
            idle: Reading::Known(Duration::ZERO),
            full_screen: Reading::Known(false),
            kept_awake: Reading::Known(false),
            programs: Reading::Known(Vec::new()),
            on_battery: Reading::Known(false),
            metered: Reading::Known(false),
            disk: Reading::Known(roomy()),
            gpus: Reading::Known(script.gpus.iter().map(gpu).collect()),
            problem: None,
            updating: None,
            activity: Activity::Nothing,
        };
        let wall = script.zone.to_timestamp(script.begin).expect("the beginning is a time of this zone");
        Self {
            script,
            now: Moment { wall, steady: Duration::from_secs(1_000) },
            signals,
            typing: false,
            vram: vec![Reading::Known(ByteSize(24 << 30)); script.gpus.len()],
            coalition: "yes".into(),
            requests: 1,
            memory: Memory::default(),
            twin: Memory::default(),
        }
    }

    pub(crate) fn play(mut self, script: &Script) -> Result<(), Wrong> {
        let mut before: Option<&Line> = None;
        for line in &script.lines {
            if let Some(before) = before {
                self.hold(before, Some(&line.time))?;
            }
            let wrong = |what: String| Wrong { line: line.number, what };
            for change in &line.changes {
                self.change(change).ok_or_else(|| wrong(format!("`{change}` is not a change that is known")))?;
            }
            if !self.shows(&line.time) {
                return Err(wrong(format!("the clock shows {} and the line says {}", self.shown(), line.time)));
            }
            let written = serde_json::to_string(&self.twin).expect("a memory can be written down");
            self.twin = serde_json::from_str(&written).expect("and read back");
            self.look(line)?;
            before = Some(line);
        }
        before.map_or(Ok(()), |last| self.hold(last, None))
    }

    /// Goes on to the time of the next line; everything until then must be as `line` says.
    fn hold(&mut self, line: &Line, next: Option<&str>) -> Result<(), Wrong> {
        let ends = line.lasts.map(|lasts| self.now.steady + lasts);
        for _ in 0..MOST_LOOKS {
            self.pass(self.script.tick);
            match (ends, next) {
                (Some(ends), _) if self.now.steady >= ends => return Ok(()),
                (None, Some(next)) if self.shows(next) => return Ok(()),
                (None, None) => return Ok(()),
                _ => self.look(line)?,
            }
        }
        Err(Wrong { line: line.number, what: "the time of the next line never comes".into() })
    }

    fn pass(&mut self, time: Duration) {
        self.now = Moment { wall: self.now.wall + time, steady: self.now.steady + time };
        if let (Reading::Known(idle), false) = (&mut self.signals.idle, self.typing) {
            *idle += time;
        }
    }

    fn look(&mut self, line: &Line) -> Result<(), Wrong> {
        self.fill_gpus();
        let (settings, zone) = (&self.script.settings, &self.script.zone);
        let (decision, memory) = decide(settings, &self.memory, self.now, zone, &self.signals);
        let (twin, twin_memory) = decide(settings, &self.twin, self.now, zone, &self.signals);
        (self.memory, self.twin) = (memory, twin_memory);
        let wrong = |what: String| {
            let sentence = decision.sentence(self.now, zone);
            let got = format!("{:?} {} {:?}", decision.state, kind(&decision), decision.action);
            Wrong { line: line.number, what: format!("at {} {what}\n  decided: {got}\n  {sentence}", self.shown()) }
        };
        if twin != decision {
            return Err(wrong(format!("a memory that was written down and read back decides otherwise: {twin:?}")));
        }
        let sentence = decision.sentence(self.now, zone).to_string();
        let well_formed = sentence.starts_with(&format!("{}: ", decision.state)) && sentence.ends_with('.');
        if !well_formed || sentence.contains(['!', '\n']) || decision.reason.state() != decision.state {
            return Err(wrong("the sentence is not one that a person should read".into()));
        }
        for (position, word) in line.expected.iter().enumerate() {
            let holds = match position {
                0 => decision.state.to_string().eq_ignore_ascii_case(word),
                1 => kind(&decision) == *word,
                _ => self.expects(word, &decision).ok_or_else(|| wrong(format!("`{word}` is not known")))?,
            };
            if !holds {
                return Err(wrong(format!("expected: {}", line.expected.join(" "))));
            }
        }
        if let Some(says) = line.says.as_ref().filter(|says| **says != sentence) {
            return Err(wrong(format!("expected: {says}")));
        }
        self.obey(decision.action);
        Ok(())
    }

    fn expects(&self, word: &str, decision: &Decision) -> Option<bool> {
        Some(match word.split_once('=') {
            None => {
                let known = ["stay", "share", "gently", "drain", "yield"].contains(&word);
                known.then(|| action(decision.action) == word)?
            }
            Some(("gpus", expected)) => {
                let used: Vec<&str> =
                    decision.gpus.iter().filter(|gpu| gpu.may_use).map(|gpu| gpu.id.0.as_str()).collect();
                used.join(",") == expected.trim_matches('-')
            }
            Some(("downloads", expected)) => match decision.downloads {
                Downloads::Run { .. } => expected == "run",
                Downloads::Wait(wait) => serde_json::to_value(wait).is_ok_and(|name| name == expected),
            },
            Some(("cap", expected)) => match decision.downloads {
                Downloads::Run { at_most } => at_most.map_or("-".into(), |cap| cap.0.to_string()) == expected,
                Downloads::Wait(_) => false,
            },
            Some(("duty", expected)) => match decision.action {
                Action::Share => expected == "100",
                Action::ShareGently(Percent(duty)) | Action::Drain(Percent(duty)) => duty.to_string() == expected,
                Action::Stay | Action::Yield => expected == "0",
            },
            Some(("starts", expected)) => decision.next.earliest.is_some_and(|at| self.reads(at).ends_with(expected)),
            Some(_) => return None,
        })
    }

    /// The node of these scenarios: it finds a coalition within a second and lets go within another.
    fn obey(&mut self, action: Action) {
        let shard =
            Shard { model: "Llama-3.1-8B".into(), layers: LayerRange::new(0, 16).expect("sixteen layers are a range") };
        self.signals.activity = match (action, self.coalition.as_str()) {
            (Action::Drain(_), _) => return,
            (Action::Stay | Action::Yield, _) | (_, "no") => Activity::Nothing,
            (_, now @ ("downloading" | "stalled")) => {
                let waits = (now == "stalled").then(|| "the host cannot be reached".to_owned());
                Activity::Downloading { shard, done: ByteSize(40), size: ByteSize(100), waits }
            }
            (_, "loading") => Activity::Loading(shard),
            _ => Activity::Serving { shard, coalition: 2, requests: self.requests },
        };
    }

    /// What our own shard holds is not free, and is ours.
    fn fill_gpus(&mut self) {
        let holds = matches!(self.signals.activity, Activity::Loading(_) | Activity::Serving { .. });
        let ours = if holds { SHARD_MEMORY } else { 0 };
        if let Activity::Serving { requests, .. } = &mut self.signals.activity {
            *requests = self.requests;
        }
        let Reading::Known(gpus) = &mut self.signals.gpus else { return };
        for (gpu, vram) in gpus.iter_mut().zip(&self.vram) {
            gpu.memory_ours = ByteSize(ours);
            gpu.memory_free = vram.clone().map(|left| ByteSize(left.0.saturating_sub(ours)));
        }
    }

    fn change(&mut self, change: &str) -> Option<()> {
        if let Some(command) = change.strip_prefix('!') {
            return self.command(command);
        }
        match change.split_once('=').unwrap_or((change, "")) {
            ("typing", "") => (self.typing, self.signals.idle) = (true, Reading::Known(Duration::ZERO)),
            ("input", "") => (self.typing, self.signals.idle) = (false, Reading::Known(Duration::ZERO)),
            ("idle", length) => (self.typing, self.signals.idle) = (false, reading(length, duration)?),
            ("screen", what) => {
                let is = |expected: &'static str| reading(what, |what| Some(what == expected));
                if !["film", "kept-on", "free", "unavailable"].contains(&what) {
                    return None;
                }
                (self.signals.full_screen, self.signals.kept_awake) = (is("film")?, is("kept-on")?);
            }
            ("program", name) => {
                let running = if name == "none" { Vec::new() } else { vec![name.to_owned()] };
                self.signals.programs = reading(name, |_| Some(running))?;
            }
            ("power", source) => {
                self.signals.on_battery = reading(source, |source| match source {
                    "battery" => Some(true),
                    "mains" => Some(false),
                    _ => None,
                })?;
            }
            ("metered", answer) => self.signals.metered = reading(answer, yes_or_no)?,
            ("disk", room) => {
                self.signals.disk = reading(room, |room| match room {
                    "ok" => Some(roomy()),
                    "tight" => Some(Disk { free: ByteSize(12 << 30), wanted: ByteSize(4 << 30), ..roomy() }),
                    "full" => Some(Disk { models: ByteSize(49 << 30), wanted: ByteSize(4 << 30), ..roomy() }),
                    _ => None,
                })?;
            }
            ("problem", "none") => self.signals.problem = None,
            ("problem", "driver") => {
                let what = "the NVIDIA driver is too old (version 580 or newer is needed)".into();
                self.signals.problem = Some(Problem { what, next_action: "Install the newest driver".into() });
            }
            ("update", version) => self.signals.updating = (version != "none").then(|| version.to_owned()),
            ("requests", count) => self.requests = count.parse().ok()?,
            ("coalition", what) => self.coalition = what.to_owned(),
            ("gpus", "unavailable") => self.signals.gpus = Reading::unavailable("the driver does not answer"),
            ("gpus", "none") => self.signals.gpus = Reading::Known(Vec::new()),
            ("clock", by) => {
                let length = duration(by.get(1..)?)?;
                self.now.wall = if by.starts_with('-') { self.now.wall - length } else { self.now.wall + length };
            }
            ("asleep", length) => self.now.wall += duration(length)?,
            ("stalled", length) => self.pass(duration(length)?),
            ("restart", "") => {
                self.now.steady = Duration::ZERO;
                self.signals.activity = Activity::Nothing;
            }
            (sensor, value) => self.change_gpu(sensor, value)?,
        }
        Some(())
    }

    fn change_gpu(&mut self, sensor: &str, value: &str) -> Option<()> {
        let (sensor, id) = sensor.split_once('.').unwrap_or((sensor, &self.script.gpus[0].0));
        let position = self.script.gpus.iter().position(|(known, _)| known == id)?;
        let Reading::Known(gpus) = &mut self.signals.gpus else { return None };
        match sensor {
            "gpu" => gpus[position].busy = reading(value, |value| value.strip_suffix('%')?.parse().ok().map(Percent))?,
            "temp" => gpus[position].temperature = reading(value, |value| value.parse().ok().map(Celsius))?,
            "vram" => {
                let gibibytes = |value: &str| value.strip_suffix('G')?.parse::<u64>().ok();
                self.vram[position] = reading(value, |value| Some(ByteSize(gibibytes(value)? << 30)))?;
            }
            _ => return None,
        }
        Some(())
    }

    fn command(&mut self, command: &str) -> Option<()> {
        let term = |term: &str| match term {
            "" => Some(Term::UntilTold),
            "tomorrow" => Some(Term::UntilTomorrow),
            length => Some(Term::For(Seconds::covering(duration(length)?))),
        };
        let command = match command.split_once('=').unwrap_or((command, "")) {
            ("pause", length) => Command::Pause(term(length)?),
            ("share", length) => Command::ShareNow(term(length)?),
            ("finish", "") => Command::FinishThenPause,
            ("resume", "") => Command::Resume,
            ("not-now", "") => Command::NotNow,
            _ => return None,
        };
        let (settings, zone): (&Settings, _) = (&self.script.settings, &self.script.zone);
        self.memory = self.memory.obey(command, settings, self.now, zone);
        self.twin = self.twin.obey(command, settings, self.now, zone);
        Some(())
    }

    fn shown(&self) -> String {
        self.reads(self.now.wall)
    }

    fn reads(&self, at: Timestamp) -> String {
        let shown: DateTime = self.script.zone.to_datetime(at);
        shown.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    fn shows(&self, time: &str) -> bool {
        self.shown().ends_with(time)
    }
}

/// A value that is written down, or that the sensor has none; `None` if it is not understood.
fn reading<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Reading<T>> {
    match text {
        "unavailable" => Some(Reading::unavailable("no session is open")),
        text => parse(text).map(Reading::Known),
    }
}

fn yes_or_no(text: &str) -> Option<bool> {
    match text {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn roomy() -> Disk {
    Disk { models: ByteSize(10 << 30), free: ByteSize(500 << 30), wanted: ByteSize(0) }
}

fn kind(decision: &Decision) -> String {
    let value = serde_json::to_value(&decision.reason).expect("a reason can be written down");
    value["kind"].as_str().expect("a reason has a kind").to_owned()
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Stay => "stay",
        Action::Share => "share",
        Action::ShareGently(_) => "gently",
        Action::Drain(_) => "drain",
        Action::Yield => "yield",
    }
}
