//! What a hop between two processes costs, measured by `pool-link`'s example `hop`.

use std::{env, fmt, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::report::Summary;
use crate::table::Table;

/// Half a round trip of 16 KiB shall take at most this long.
const BOUND_MS: f64 = 0.5;

/// Several runs of the example.
#[derive(Debug, Serialize)]
pub(crate) struct Hop {
    pub(crate) webrtc: Carrier,
    pub(crate) tcp: Carrier,
    /// WebRTC's bulk throughput over TCP's, run by run.
    pub(crate) bulk_ratio: Summary,
    pub(crate) bound_ms: f64,
    pub(crate) runs: usize,
}

/// One way to carry messages. Every figure is one of each run.
#[derive(Debug, Serialize)]
pub(crate) struct Carrier {
    pub(crate) half_round_trip_p50_ms: Summary,
    pub(crate) half_round_trip_p99_ms: Summary,
    pub(crate) processor_us_per_message: Summary,
    pub(crate) bulk_mib_per_s: Summary,
}

/// What the example prints.
#[derive(Debug, Deserialize)]
struct Printed {
    webrtc: PrintedCarrier,
    tcp: PrintedCarrier,
}

#[derive(Debug, Deserialize)]
struct PrintedCarrier {
    half_round_trip_ms: Percentiles,
    processor_us_per_message: f64,
    bulk_mib_per_s: f64,
}

#[derive(Debug, Deserialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
}

/// The example beside this program, where Cargo builds it.
pub(crate) fn program() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find this program's own file")?;
    let program = own.with_file_name("examples").join(format!("hop{}", env::consts::EXE_SUFFIX));
    if !program.is_file() {
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        bail!("its program is not built: cargo build{release} -p pool-link --example hop");
    }
    Ok(program)
}

/// Runs the example `runs` times.
pub(crate) async fn measure(runs: usize) -> Result<Hop> {
    let program = program()?;
    let mut printed = Vec::new();
    for _ in 0..runs {
        let mut command = Command::new(&program);
        command.args(["--messages", "2000", "--bulk-mib", "64"]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("cannot start {}", program.display()))?;
        if !output.status.success() {
            bail!("{} failed ({})", program.display(), output.status);
        }
        printed.push(read(&output.stdout)?);
    }
    Ok(Hop::new(&printed))
}

fn read(json: &[u8]) -> Result<Printed> {
    serde_json::from_slice(json).context("the example prints something else than its figures")
}

impl Hop {
    fn new(printed: &[Printed]) -> Self {
        let carrier = |which: fn(&Printed) -> &PrintedCarrier| {
            let summary = |value: fn(&PrintedCarrier) -> f64| Summary::of(printed.iter().map(|p| value(which(p))));
            Carrier {
                half_round_trip_p50_ms: summary(|c| c.half_round_trip_ms.p50),
                half_round_trip_p99_ms: summary(|c| c.half_round_trip_ms.p99),
                processor_us_per_message: summary(|c| c.processor_us_per_message),
                bulk_mib_per_s: summary(|c| c.bulk_mib_per_s),
            }
        };
        let bulk = |printed: &Printed| printed.webrtc.bulk_mib_per_s / printed.tcp.bulk_mib_per_s;
        Self {
            webrtc: carrier(|printed| &printed.webrtc),
            tcp: carrier(|printed| &printed.tcp),
            bulk_ratio: Summary::of(printed.iter().map(bulk)),
            bound_ms: BOUND_MS,
            runs: printed.len(),
        }
    }

    pub(crate) fn verdict(&self) -> String {
        let holds = self.webrtc.half_round_trip_p50_ms.median <= self.bound_ms;
        format!("at most {} ms: {}", self.bound_ms, if holds { "yes" } else { "no" })
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table =
            Table::new(&["over", ">p50", ">least", ">most", ">p99", ">µs of processor a message", ">bulk MiB/s"]);
        for (name, carrier) in [("WebRTC", &self.webrtc), ("TCP", &self.tcp)] {
            let Summary { median, min, max } = carrier.half_round_trip_p50_ms;
            let times = [median, min, max, carrier.half_round_trip_p99_ms.median].map(|ms| format!("{ms:.3} ms"));
            let rest = [carrier.processor_us_per_message.median, carrier.bulk_mib_per_s.median];
            table.row([name.to_owned()].into_iter().chain(times).chain(rest.map(|number| format!("{number:.0}"))));
        }
        write!(f, "{table}")?;
        let ratio = self.bulk_ratio.median;
        writeln!(f, "  {}; bulk {ratio:.3} of TCP's ({} runs)", self.verdict(), self.runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_figures_are_read_and_summed_up() {
        let run = |p50: f64| {
            let carrier = format!(
                r#"{{"half_round_trip_ms":{{"p50":{p50},"p99":1.5}},"processor_us_per_message":90.1,"bulk_mib_per_s":50.0}}"#
            );
            read(format!(r#"{{"message_bytes":16384,"tcp":{carrier},"webrtc":{carrier}}}"#).as_bytes()).unwrap()
        };
        let hop = Hop::new(&[run(0.3), run(0.2), run(0.9)]);
        assert_eq!(hop.webrtc.half_round_trip_p50_ms, Summary { median: 0.3, min: 0.2, max: 0.9 });
        assert_eq!((hop.bulk_ratio.median, hop.verdict().as_str()), (1.0, "at most 0.5 ms: yes"));
        assert!(read(b"{}").is_err());
    }
}
