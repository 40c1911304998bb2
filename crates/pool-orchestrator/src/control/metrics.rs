//! Prometheus text (exposition format 0.0.4) of what the orchestrator knows.

use std::fmt::Write;

use pool_wire::control::{LinkReport, ShardStats};

use super::view::{CoalitionView, MemberView, Stage};
use crate::dataplane::DataPlaneCounters;

/// The text of `GET /metrics`.
pub(crate) fn render(
    view: &CoalitionView,
    counters: &DataPlaneCounters,
    gateway_links: &[(String, LinkReport)],
) -> String {
    let mut text = Text::default();
    text.family("computepool_sequences", "gauge", "Completions that run now.");
    text.sample(&[], counters.live as f64);
    text.family("computepool_queue_waiting", "gauge", "Requests that wait for room in the KV cache.");
    text.sample(&[], counters.waiting as f64);
    text.family("computepool_requests_started_total", "counter", "Completions begun.");
    text.sample(&[], counters.started as f64);
    text.family("computepool_requests_total", "counter", "Completions ended, by outcome.");
    for (outcome, count) in
        [("finished", counters.finished), ("failed", counters.failed), ("cancelled", counters.cancelled)]
    {
        text.sample(&[("outcome", outcome)], count as f64);
    }
    text.family("computepool_tokens_total", "counter", "Tokens sent to clients.");
    text.sample(&[], counters.tokens as f64);

    text.family("computepool_coalition_epoch", "gauge", "Membership generation; 0 without a coalition.");
    text.sample(&[], view.epoch.map_or(0.0, |epoch| epoch.0 as f64));
    text.family("computepool_coalition_state", "gauge", "1 for the state that the coalition is in.");
    for (state, name) in [
        (Stage::Waiting, "waiting"),
        (Stage::Loading, "loading"),
        (Stage::Linking, "linking"),
        (Stage::Active, "active"),
    ] {
        text.sample(&[("state", name)], f64::from(u8::from(view.state == state)));
    }
    text.family("computepool_nodes_connected", "gauge", "Nodes with a connection.");
    text.sample(&[], view.connected.len() as f64);

    shards(&mut text, &view.members);
    links(&mut text, view, gateway_links);
    text.0
}

fn shards(text: &mut Text, members: &[MemberView]) {
    type Figure = fn(&ShardStats) -> f64;
    let figures: [(&str, &str, &str, Figure); 9] = [
        ("computepool_shard_sequences", "gauge", "Requests that hold cache on the shard.", |s| f64::from(s.sequences)),
        ("computepool_shard_kv_reserved_tokens", "gauge", "Tokens of KV cache reserved.", |s| s.kv_reserved as f64),
        ("computepool_shard_batches_total", "counter", "Batches computed.", |s| s.batches as f64),
        ("computepool_shard_rows_total", "counter", "Rows (tokens) computed.", |s| s.rows as f64),
        ("computepool_shard_tokens_total", "counter", "Tokens sampled.", |s| s.tokens as f64),
        ("computepool_shard_dropped_frames_total", "counter", "Frames dropped.", |s| s.dropped_frames as f64),
        ("computepool_shard_busy_seconds_total", "counter", "Seconds spent computing.", |s| s.busy_seconds),
        ("computepool_shard_cpu_seconds_total", "counter", "CPU seconds of the process.", |s| s.cpu_seconds),
        ("computepool_shard_resident_bytes", "gauge", "Resident memory of the process.", |s| s.resident_bytes as f64),
    ];
    for (name, kind, help, figure) in figures {
        text.family(name, kind, help);
        for member in members {
            if let Some(stats) = &member.stats {
                let layers = member.layers.to_string();
                text.sample(&[("node", &member.name), ("layers", &layers)], figure(stats));
            }
        }
    }
    text.family("computepool_shard_read_bytes", "gauge", "Tensor bytes read from the model's files.");
    for member in members {
        if let Some(footprint) = &member.footprint {
            text.sample(&[("node", &member.name)], footprint.bytes_read as f64);
        }
    }
}

fn links(text: &mut Text, view: &CoalitionView, gateway_links: &[(String, LinkReport)]) {
    text.family("computepool_link_sent_bytes_total", "counter", "Bytes sent over a link, by lane.");
    for link in &view.links {
        for (lane, bytes) in [("act", link.hidden_bytes), ("ctl", link.token_bytes)] {
            text.sample(&[("from", &link.from), ("to", &link.to), ("lane", lane)], bytes as f64);
        }
    }
    for (peer, report) in gateway_links {
        for (lane, bytes) in [("act", report.act_bytes_sent), ("ctl", report.ctl_bytes_sent)] {
            text.sample(&[("from", "gateway"), ("to", peer), ("lane", lane)], bytes as f64);
        }
    }
    text.family("computepool_link_round_trip_seconds", "gauge", "Round trip of heartbeats over a link.");
    let mut quantiles = |from: &str, to: &str, p50: Option<u64>, p99: Option<u64>| {
        for (quantile, micros) in [("0.5", p50), ("0.99", p99)] {
            if let Some(micros) = micros {
                text.sample(&[("from", from), ("to", to), ("quantile", quantile)], micros as f64 / 1e6);
            }
        }
    };
    for link in &view.links {
        quantiles(&link.from, &link.to, link.round_trip_p50_micros, link.round_trip_p99_micros);
    }
    for (peer, report) in gateway_links {
        quantiles("gateway", peer, report.round_trip_p50_micros, report.round_trip_p99_micros);
    }
}

#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(self.1);
        for (i, (label, content)) in labels.iter().enumerate() {
            let content = content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{content}\"", if i == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_sample_and_names_are_escaped() {
        let counters = DataPlaneCounters { live: 3, tokens: 41, ..DataPlaneCounters::default() };
        let report = LinkReport {
            peer: Default::default(),
            act_bytes_sent: 0,
            act_bytes_received: 0,
            ctl_bytes_sent: 77,
            ctl_bytes_received: 5,
            round_trip_p50_micros: Some(250),
            round_trip_p99_micros: None,
        };
        let text = render(&CoalitionView::default(), &counters, &[("desk \"A\"\\".to_owned(), report)]);
        for line in text.lines() {
            let sample = line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok());
            assert!(line.starts_with("# ") || sample, "{line:?}");
        }
        assert!(text.contains("computepool_sequences 3\n"), "{text}");
        assert!(text.contains("computepool_requests_total{outcome=\"finished\"} 0\n"), "{text}");
        assert!(text.contains(r#"{from="gateway",to="desk \"A\"\\",lane="ctl"} 77"#), "{text}");
        assert!(text.contains(r#"quantile="0.5"} 0.00025"#), "{text}");
        assert!(text.contains("computepool_coalition_state{state=\"waiting\"} 1\n"), "{text}");
    }
}
