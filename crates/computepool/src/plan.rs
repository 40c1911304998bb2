//! `computepool plan`: placement over cards that need not exist.

use std::{fs, path::Path, process::ExitCode, str::FromStr};

use alloy_primitives::Address;
use anyhow::{Context, Result, bail};
use pool_coalition::placement::{Card, ModelNeeds, Objective, PlacementOptions, place};
use pool_models::{Model, ModelConfig, TensorType, entry_bytes, exit_bytes, layer_bytes};
use pool_types::ByteSize;
use serde_json::json;

use crate::{arguments::PlanArguments, table::Table};

/// GPUs keep keys and values in half precision.
const KV_ELEMENT_BYTES: usize = 2;

/// `8GiB@300GB/s`: memory and memory bandwidth of a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CardArgument {
    memory_bytes: u64,
    bandwidth_bytes_per_s: f64,
}

impl FromStr for CardArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a card; write memory and bandwidth, like 8GiB@300GB/s");
        let (memory, bandwidth) = text.split_once('@').ok_or_else(wrong)?;
        let bandwidth = bandwidth.trim().strip_suffix("/s").ok_or_else(wrong)?;
        let (memory, bandwidth) = (bytes(memory).ok_or_else(wrong)?, bytes(bandwidth).ok_or_else(wrong)?);
        Ok(Self { memory_bytes: memory as u64, bandwidth_bytes_per_s: bandwidth })
    }
}

/// A positive number with a unit: KB, MB, GB, TB in thousands, KiB, MiB, GiB, TiB in 1024s.
fn bytes(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
    ];
    let text = text.trim();
    let (number, unit) = UNITS.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)))?;
    let number: f64 = number.trim().parse().ok()?;
    (number.is_finite() && number > 0.0 && number < 1e9).then_some(number * unit)
}

pub(crate) fn run(arguments: &PlanArguments) -> Result<ExitCode> {
    let kind = tensor_type(&arguments.quant)?;
    let (name, needs) = match (&arguments.shape, &arguments.model) {
        (Some(shape), _) => (shape.name().to_owned(), needs_of_shape(&shape.config()?, kind, arguments.context)),
        (None, Some(path)) if path.extension().is_some_and(|extension| extension == "json") => {
            (path.display().to_string(), needs_of_shape(&read_config(path)?, kind, arguments.context))
        }
        (None, Some(path)) => {
            let model = Model::open(path)?;
            (model.name.clone(), needs_of_model(&model, arguments.context))
        }
        (None, None) => bail!("say which model, or a --shape"),
    };
    let cards: Vec<Card> = arguments
        .cards
        .iter()
        .zip(1u64..)
        .map(|(card, number)| Card::new(address(number), card.memory_bytes, card.bandwidth_bytes_per_s))
        .collect();
    let options = PlacementOptions {
        shards: arguments.shards,
        objective: if arguments.throughput { Objective::Throughput } else { Objective::Latency },
        ..PlacementOptions::default()
    };
    let placement = place(&needs, &cards, &options)?;
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "model": name, "needs": needs, "placement": placement }))?
        );
        return Ok(ExitCode::SUCCESS);
    }
    let total = needs.total_bytes().unwrap_or(u64::MAX);
    println!(
        "{name}: {} layers, {} with {} tokens of cache\n",
        needs.layer_bytes.len(),
        ByteSize(total),
        arguments.context
    );
    let mut table = Table::new(&["card", "layers", ">weights", ">cache", ">of memory", ">work per token", ">hop"]);
    for span in &placement.spans {
        let Some(index) = cards.iter().position(|card| card.id == span.card) else { continue };
        let card = &cards[index];
        let used = (span.weight_bytes + span.kv_bytes) as f64 / card.memory_bytes as f64;
        table.row([
            format!("{} ({}, {:.0} GB/s)", index + 1, ByteSize(card.memory_bytes), card.bandwidth_bytes_per_s / 1e9),
            span.layers.to_string(),
            ByteSize(span.weight_bytes).to_string(),
            ByteSize(span.kv_bytes).to_string(),
            format!("{:.0} %", used * 100.0),
            format!("{:.1} ms", span.stage_seconds * 1e3),
            format!("{:.1} ms", span.hop_seconds * 1e3),
        ]);
    }
    print!("{table}");
    // Cards that do not exist yet have numbers, not addresses.
    let explanation = cards.iter().zip(1..).fold(placement.explanation.clone(), |text, (card, number)| {
        text.replace(&card.id.to_string(), &format!("card {number}"))
    });
    println!("\n{}", explanation.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Stands for the card with this number. Keeps its length when written, so that none is part of another.
fn address(number: u64) -> Address {
    Address::left_padding_from(&number.to_be_bytes())
}

fn read_config(path: &Path) -> Result<ModelConfig> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    ModelConfig::from_hugging_face(&json, None).with_context(|| format!("{} is not usable", path.display()))
}

fn needs_of_shape(config: &ModelConfig, kind: TensorType, context_tokens: u64) -> ModelNeeds {
    ModelNeeds {
        layer_bytes: vec![config.estimate_layer_bytes(kind); config.layers as usize],
        entry_bytes: config.estimate_entry_bytes(kind),
        exit_bytes: config.estimate_exit_bytes(kind),
        kv_bytes_per_token_per_layer: config.kv_bytes_per_token(1, KV_ELEMENT_BYTES),
        hidden_bytes: (config.hidden_size * config.activation.size()) as u64,
        context_tokens,
        ..ModelNeeds::default()
    }
}

fn needs_of_model(model: &Model, context_tokens: u64) -> ModelNeeds {
    let (config, source) = (&model.config, &*model.source);
    ModelNeeds {
        layer_bytes: (0..config.layers).map(|layer| layer_bytes(source, layer)).collect(),
        entry_bytes: entry_bytes(source),
        exit_bytes: exit_bytes(source),
        kv_bytes_per_token_per_layer: config.kv_bytes_per_token(1, KV_ELEMENT_BYTES),
        hidden_bytes: (config.hidden_size * config.activation.size()) as u64,
        context_tokens,
        ..ModelNeeds::default()
    }
}

fn tensor_type(name: &str) -> Result<TensorType> {
    const TYPES: [TensorType; 8] = [
        TensorType::F32,
        TensorType::F16,
        TensorType::BF16,
        TensorType::Q4_0,
        TensorType::Q4K,
        TensorType::Q5K,
        TensorType::Q6K,
        TensorType::Q8_0,
    ];
    let found = TYPES.into_iter().find(|kind| kind.to_string().eq_ignore_ascii_case(name));
    let names: Vec<String> = TYPES.iter().map(|kind| kind.to_string().to_lowercase()).collect();
    found.with_context(|| format!("`{name}` is not a type of weights; one of {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::Shape;

    #[test]
    fn cards_are_read_with_their_units_and_nonsense_is_refused() {
        let card: CardArgument = "8GiB@300GB/s".parse().unwrap();
        assert_eq!((card.memory_bytes, card.bandwidth_bytes_per_s), (8 << 30, 300e9));
        assert_eq!("1.5 GB @ 90 GiB/s".parse::<CardArgument>().unwrap().memory_bytes, 1_500_000_000);
        for wrong in ["", "8", "8GiB", "8GiB@300", "-8GiB@300GB/s", "NaNGiB@300GB/s", "8GiB@300GB", "GiB@GB/s"] {
            assert!(wrong.parse::<CardArgument>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn well_known_shapes_land_on_plausible_cards() {
        let plan = |shape: Shape, cards: &[&str]| {
            let needs = needs_of_shape(&shape.config().unwrap(), TensorType::Q4K, 8192);
            let cards: Vec<Card> = cards
                .iter()
                .zip(1u64..)
                .map(|(card, number)| {
                    let card: CardArgument = card.parse().unwrap();
                    Card::new(address(number), card.memory_bytes, card.bandwidth_bytes_per_s)
                })
                .collect();
            place(&needs, &cards, &PlacementOptions::default())
        };
        let small = plan(Shape::Llama3_8b, &["8GiB@300GB/s", "8GiB@300GB/s"]).unwrap();
        assert!(!small.spans.is_empty());
        let large = plan(Shape::Llama3_70b, &["24GiB@900GB/s", "24GiB@900GB/s"]).unwrap();
        assert_eq!(large.spans.len(), 2, "40 GB of weights need both cards");
        assert!(plan(Shape::Llama3_70b, &["24GiB@900GB/s"]).is_err(), "one card cannot hold it");
        let middle = plan(Shape::Qwen3_32b, &["12GiB@360GB/s", "12GiB@360GB/s", "12GiB@360GB/s"]).unwrap();
        assert!(middle.spans.len() >= 2, "{}", middle.explanation);
    }
}
