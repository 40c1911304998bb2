//! A placement in plain sentences.

use std::fmt::Write;

use pool_types::ByteSize;

use super::{Placement, cut::Seated};

/// One line per fact: the whole, each span, each standby, what was turned down.
pub(super) fn explain(placement: &Placement, needed: u64, other: Option<&Seated>, left_out: usize) -> String {
    let spans = &placement.spans;
    let mut text = match spans.len() {
        1 => format!("One card holds the whole model ({}).", ByteSize(needed)),
        n => format!("{n} shards hold the model ({}).", ByteSize(needed)),
    };
    // Writing to a String cannot fail.
    for span in spans {
        let (weights, cache) = (ByteSize(span.weight_bytes), ByteSize(span.kv_bytes));
        let _ = write!(
            text,
            "\nLayers {} on {}: {weights} of weights, {cache} of KV cache, {:.2} ms a token",
            span.layers,
            span.card,
            span.stage_seconds * 1e3
        );
        if span.startup_seconds >= 1.0 {
            let _ = write!(text, ", after about {:.0} s to fetch and load them", span.startup_seconds);
        }
        if spans.len() > 1 {
            let _ = write!(text, ", then {:.2} ms to the next shard", span.hop_seconds * 1e3);
        }
        text.push('.');
    }
    for standby in &placement.standbys {
        let layers = spans.get(standby.span).map(|span| span.layers.to_string()).unwrap_or_default();
        let _ = write!(
            text,
            "\n{} stands by for layers {layers} ({:.2} ms a token there).",
            standby.card,
            standby.stage_seconds * 1e3
        );
    }
    let (alone, busy) = (1.0 / placement.seconds_per_token, 1.0 / placement.bottleneck_seconds);
    let _ = write!(text, "\nPredicted: {alone:.1} tokens/s for one request");
    if spans.len() > 1 {
        let _ = write!(text, ", {busy:.1} tokens/s together with {} in flight", spans.len());
    }
    text.push('.');
    if let Some(other) = other {
        let turned_down = match other.order.len() {
            1 => "One card alone".to_owned(),
            n => format!("A split over {n} cards"),
        };
        let _ = write!(text, "\n{turned_down} would take {:.2} ms a token.", other.score.token_seconds * 1e3);
    }
    match left_out {
        0 => {}
        1 => text.push_str("\n1 card was left out: too little memory for one layer, or no usable measurements."),
        n => {
            let _ =
                write!(text, "\n{n} cards were left out: too little memory for one layer, or no usable measurements.");
        }
    }
    text
}
