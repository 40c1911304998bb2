//! Real models by their shape, on real cards.
//!
//! Layer sizes are reckoned from the published configurations with 4.5 bits a weight (Q4_K) and 6.5625 bits for the
//! head (Q6_K), as llama.cpp's Q4_K_S files have it; the cache is f16.

use super::super::*;

const GIB: u64 = 1 << 30;

struct Shape {
    layers: usize,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    feed_forward: u64,
    vocabulary: u64,
}

impl Shape {
    fn needs(&self, context_tokens: u64) -> ModelNeeds {
        let attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        let layer = attention + 3 * self.hidden * self.feed_forward;
        ModelNeeds {
            layer_bytes: vec![layer * 9 / 16; self.layers],
            entry_bytes: self.vocabulary * self.hidden * 9 / 16,
            exit_bytes: self.vocabulary * self.hidden * 105 / 128,
            kv_bytes_per_token_per_layer: 2 * self.kv_heads * self.head_dim * 2,
            hidden_bytes: self.hidden * 2,
            context_tokens,
            head_weight: 1.0,
        }
    }
}

pub(super) fn llama_8b(context_tokens: u64) -> ModelNeeds {
    let shape = Shape {
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 14336,
        vocabulary: 128_256,
    };
    shape.needs(context_tokens)
}

pub(super) fn llama_70b(context_tokens: u64) -> ModelNeeds {
    let shape = Shape {
        layers: 80,
        hidden: 8192,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 28672,
        vocabulary: 128_256,
    };
    shape.needs(context_tokens)
}

pub(super) fn llama_405b(context_tokens: u64) -> ModelNeeds {
    let shape = Shape {
        layers: 126,
        hidden: 16384,
        heads: 128,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 53248,
        vocabulary: 128_256,
    };
    shape.needs(context_tokens)
}

fn qwen3_32b(context_tokens: u64) -> ModelNeeds {
    let shape = Shape {
        layers: 64,
        hidden: 5120,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 25600,
        vocabulary: 151_936,
    };
    shape.needs(context_tokens)
}

fn cards(kinds: &[(u64, f64)]) -> Vec<Card> {
    let make = |(n, (gib, bandwidth)): (usize, &(u64, f64))| {
        Card::new(Address::with_last_byte(n as u8 + 1), gib * GIB, *bandwidth)
    };
    kinds.iter().enumerate().map(make).collect()
}

fn layout(placement: &Placement) -> Vec<String> {
    placement.spans.iter().map(|span| format!("{} on {}", span.layers, span.card.0[19])).collect()
}

#[test]
fn llama_8b_needs_no_second_card_of_8_gb_but_splits_evenly_when_told() {
    let (model, cards) = (llama_8b(8192), cards(&[(8, 448e9), (8, 448e9)]));
    assert_eq!(model.total_bytes().map(|b| b * 10 / GIB), Some(53), "about 5.3 GiB with 8,192 tokens of cache");
    let free = place(&model, &cards, &PlacementOptions::default()).expect("it fits");
    assert_eq!(layout(&free), ["0-31 on 1"]);
    assert_eq!(free.standbys.len(), 1, "the second card stands by");
    let forced = PlacementOptions { shards: Some(2), ..PlacementOptions::default() };
    let split = place(&model, &cards, &forced).expect("it fits twice");
    assert_eq!(layout(&split), ["0-16 on 1", "17-31 on 2"], "the head weighs as much as two or three layers");
    assert!(split.seconds_per_token > free.seconds_per_token, "the hops are not free");
    assert!(
        split.bottleneck_seconds < 0.55 * free.bottleneck_seconds,
        "two requests in flight nearly double the tokens"
    );
}

#[test]
fn llama_70b_takes_two_of_three_24_gb_cards_for_one_user_and_all_three_for_many() {
    let (model, cards) = (llama_70b(8192), cards(&[(24, 1008e9), (24, 1008e9), (24, 1008e9)]));
    let quick = place(&model, &cards, &PlacementOptions::default()).expect("two cards hold it");
    assert_eq!(quick.spans.len(), 2, "a third hop would only cost time\n{}", quick.explanation);
    assert_eq!(quick.standbys.len(), 1, "the third card stands by for one of the two");
    let busy = PlacementOptions { objective: Objective::Throughput, ..PlacementOptions::default() };
    let busy = place(&model, &cards, &busy).expect("three cards hold it");
    assert_eq!(layout(&busy), ["0-26 on 1", "27-53 on 2", "54-79 on 3"]);
    let (shortest, longest) =
        (busy.spans.iter()).map(|s| s.stage_seconds).fold((f64::MAX, 0.0f64), |(a, b), s| (a.min(s), b.max(s)));
    assert!(longest / shortest < 1.05, "the stages are even: {shortest} to {longest}");
}

#[test]
fn qwen3_32b_with_a_long_context_fills_the_fast_card_first() {
    let mixed = [(12, 360e9), (16, 448e9), (24, 1008e9)];
    let short = place(&qwen3_32b(8192), &cards(&mixed), &PlacementOptions::default()).expect("the largest holds it");
    assert_eq!(layout(&short), ["0-63 on 3"], "with 8,192 tokens the 24 GB card serves alone");
    let model = qwen3_32b(32_768);
    let long = place(&model, &cards(&mixed), &PlacementOptions::default()).expect("two of them hold it");
    assert_eq!(long.spans.len(), 2, "{}", long.explanation);
    let fast = long.spans.iter().find(|span| span.card.0[19] == 3).expect("the fast card is used");
    let layer = (fast.weight_bytes + fast.kv_bytes) / u64::from(fast.layers.len());
    assert!(
        fast.weight_bytes + fast.kv_bytes + layer > 24 * GIB - GIB,
        "and is filled: every layer elsewhere takes twice as long"
    );
    let busy = PlacementOptions { objective: Objective::Throughput, ..PlacementOptions::default() };
    let busy = place(&model, &cards(&mixed), &busy).expect("three hold it");
    let held = |n: u8| busy.spans.iter().find(|s| s.card.0[19] == n).map_or(0, |s| s.layers.len());
    assert_eq!(busy.spans.len(), 3, "{}", busy.explanation);
    assert!(held(3) > held(2) && held(2) > held(1), "layers follow speed: {} {} {}", held(1), held(2), held(3));
}
