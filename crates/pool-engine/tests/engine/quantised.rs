//! Weights that stay quantised compute what their dequantised values would, as near as kernels that
//! quantise activations to 8 bits can.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use pool_engine::{Quantise, SequenceId};
use pool_models::{Activation, ModelConfig, TensorName, TensorType};

use crate::model::{
    MemorySource, cut, entry, gap, llama, memory, open_all, random_weights, score_batch, score_chain, source, tokens,
};

/// Rows of whole super-blocks of 256, as K-quants need them.
fn wide() -> ModelConfig {
    ModelConfig {
        vocab_size: 96,
        hidden_size: 256,
        intermediate_size: 512,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        layers: 3,
        windows: vec![None; 3],
        ..llama()
    }
}

const KINDS: [(TensorType, GgmlDType); 10] = [
    (TensorType::Q4_0, GgmlDType::Q4_0),
    (TensorType::Q4_1, GgmlDType::Q4_1),
    (TensorType::Q5_0, GgmlDType::Q5_0),
    (TensorType::Q5_1, GgmlDType::Q5_1),
    (TensorType::Q8_0, GgmlDType::Q8_0),
    (TensorType::Q2K, GgmlDType::Q2K),
    (TensorType::Q3K, GgmlDType::Q3K),
    (TensorType::Q4K, GgmlDType::Q4K),
    (TensorType::Q5K, GgmlDType::Q5K),
    (TensorType::Q6K, GgmlDType::Q6K),
];

/// The same weights twice: in blocks, and as the f32 values that the blocks stand for.
fn both(config: &ModelConfig, kind: TensorType, dtype: GgmlDType, seed: u64) -> (MemorySource, MemorySource) {
    let mut weights = random_weights(config, seed);
    let mut quantised = source(&weights, TensorType::F32).tensors;
    for (name, (shape, values)) in &mut weights {
        if shape.len() == 2 {
            let tensor = Tensor::from_slice(values, (shape[0], shape[1]), &Device::Cpu).unwrap();
            let blocks = QTensor::quantize(&tensor, dtype).unwrap();
            *values = blocks.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let bytes = blocks.data().unwrap().to_vec();
            quantised.insert(*name, entry(format!("{name:?}"), kind, shape.clone(), bytes));
        }
    }
    (memory(quantised), source(&weights, TensorType::F32))
}

#[test]
fn every_block_type_agrees_with_its_dequantised_values() {
    let config = wide();
    let id = SequenceId(1);
    for (kind, dtype) in KINDS {
        let (blocks, floats) = both(&config, kind, dtype, 9);
        let tokens = tokens(&config, 9, 50);
        let mut logits = Vec::new();
        for source in [&floats, &blocks] {
            let mut engines = cut(&config, source, 2, Activation::F32, None).unwrap();
            open_all(&mut engines, id, 50);
            let mut all = score_chain(&mut engines, id, 0, &tokens[..40]);
            (40..50).for_each(|at| all.extend(score_chain(&mut engines, id, at, &tokens[at..=at])));
            logits.push(all);
        }
        let largest = logits[0].iter().fold(0f32, |m, l| m.max(l.abs()));
        let gap = gap(&logits[1], &logits[0]);
        assert!(gap < 0.05 * largest, "{kind:?}: logits differ by {gap} of {largest}");
    }
}

#[test]
fn quantised_weights_take_quantised_memory_and_split_like_any_others() {
    let config = wide();
    let (blocks, floats) = both(&config, TensorType::Q5K, GgmlDType::Q5K, 2);
    let in_blocks = &cut(&config, &blocks, 1, Activation::F32, None).unwrap()[0];
    let in_floats = &cut(&config, &floats, 1, Activation::F32, None).unwrap()[0];
    let ratio = in_blocks.footprint().weight_bytes as f64 / in_floats.footprint().weight_bytes as f64;
    assert!((0.17..0.19).contains(&ratio), "Q5_K is 5.5 bits of 32, the ratio is {ratio}");

    let tokens = tokens(&config, 2, 30);
    let mut logits = Vec::new();
    for parts in [1, 3] {
        let mut engines = cut(&config, &blocks, parts, Activation::F32, None).unwrap();
        open_all(&mut engines, SequenceId(1), 30);
        logits.push(score_chain(&mut engines, SequenceId(1), 0, &tokens));
    }
    assert!(gap(&logits[0], &logits[1]) <= 1e-5, "the split changes {}", gap(&logits[0], &logits[1]));
}

#[test]
fn quantising_at_load_is_close_to_the_weights_it_was_given() {
    let config = ModelConfig { tied_embeddings: true, ..wide() };
    let source = source(&random_weights(&config, 4), TensorType::BF16);
    let tokens = tokens(&config, 4, 40);
    let mut logits = Vec::new();
    for quantise in [None, Some(Quantise::Q8_0)] {
        let mut engines = cut(&config, &source, 2, Activation::F32, quantise).unwrap();
        open_all(&mut engines, SequenceId(1), 40);
        logits.push(score_chain(&mut engines, SequenceId(1), 0, &tokens));
    }
    let largest = logits[0].iter().fold(0f32, |m, l| m.max(l.abs()));
    assert!(gap(&logits[1], &logits[0]) < 0.05 * largest, "{} of {largest}", gap(&logits[1], &logits[0]));
}

#[test]
fn blocks_from_memory_of_any_alignment_load() {
    let config = wide();
    let (blocks, _) = both(&config, TensorType::Q8_0, GgmlDType::Q8_0, 3);
    struct Shifted(MemorySource);
    impl pool_models::TensorSource for Shifted {
        fn info(&self, name: TensorName) -> Option<&pool_models::TensorInfo> {
            self.0.info(name)
        }
        fn bytes(&self, name: TensorName) -> Result<std::borrow::Cow<'_, [u8]>, pool_models::TensorError> {
            // One byte off any alignment, as in a safetensors file.
            let (_, bytes) = &self.0.tensors[&name];
            let shifted: &'static [u8] = Box::leak([&[0u8], bytes.as_slice()].concat().into_boxed_slice());
            Ok(std::borrow::Cow::Borrowed(&shifted[1..]))
        }
        fn bytes_read(&self) -> u64 {
            0
        }
        fn names(&self) -> Vec<TensorName> {
            self.0.names()
        }
        fn files(&self) -> Vec<String> {
            self.0.files()
        }
    }
    let options = crate::model::options(&config, crate::model::whole(&config));
    let config = std::sync::Arc::new(config);
    let shifted = Shifted(blocks);
    let mut engine = [pool_engine::Engine::load(config.clone(), &shifted, options.clone()).unwrap()];
    let mut straight = [pool_engine::Engine::load(config, &shifted.0, options).unwrap()];
    let run: [(SequenceId, usize, &[u32]); 1] = [(SequenceId(1), 0, &[1, 2, 3])];
    open_all(&mut engine, SequenceId(1), 10);
    open_all(&mut straight, SequenceId(1), 10);
    assert_eq!(score_batch(&mut engine, &run), score_batch(&mut straight, &run));
}
