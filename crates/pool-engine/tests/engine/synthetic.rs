//! The synthetic model file opens like a downloaded one and computes without trouble.

use std::sync::Arc;

use pool_engine::{
    Engine, EngineOptions, SamplerSetup, SequenceId, Step, StepInput, StepOutput,
    synthetic::{SyntheticQuant, SyntheticShape, write_gguf},
};
use pool_models::{Activation, Model};
use pool_types::{LayerRange, Sampling};

#[test]
fn a_synthetic_file_is_served_through_two_shards_in_f16() {
    let folder = tempfile::tempdir().unwrap();
    for quant in [SyntheticQuant::Q8_0, SyntheticQuant::Q4K, SyntheticQuant::F16] {
        let path = folder.path().join("synthetic.gguf");
        let shape = SyntheticShape { tied_embeddings: quant == SyntheticQuant::F16, ..SyntheticShape::tiny() };
        write_gguf(&path, &shape, quant, 3, |_, _| {}).unwrap();
        let model = Model::open(&path).unwrap();
        let tokenizer = model.tokenizer.clone().unwrap();
        let prompt = tokenizer.encode("Hi, ComputePool!", true).unwrap();
        assert_eq!(prompt.len(), 1 + 16, "the beginning token and one token a byte");
        assert_eq!(model.config.tied_embeddings, shape.tied_embeddings);

        let mut engines: Vec<Engine> = [LayerRange::new(0, 1).unwrap(), LayerRange::new(1, 2).unwrap()]
            .into_iter()
            .map(|layers| {
                let options = EngineOptions {
                    layers,
                    threads: 1,
                    quantise: None,
                    wire: Activation::F16,
                    kv_tokens: 100,
                    max_context: 100,
                };
                let mut engine = Engine::load(Arc::clone(&model.config), model.source.as_ref(), options).unwrap();
                let setup = SamplerSetup { sampling: Sampling::default(), prompt: prompt.clone() };
                engine.open(SequenceId(1), 60, Some(setup)).unwrap();
                engine
            })
            .collect();
        let mut input = prompt;
        let mut position = 0;
        for _ in 0..20 {
            let step = Step { sequence: SequenceId(1), position, input: StepInput::Tokens(&input), sample: false };
            let StepOutput::Hidden(data) = engines[0].advance(&[step]).unwrap().remove(0) else { panic!("hidden") };
            let hidden = StepInput::Hidden { rows: input.len(), dtype: Activation::F16, data: &data };
            let step = Step { sequence: SequenceId(1), position, input: hidden, sample: true };
            let StepOutput::Token(choice) = engines[1].advance(&[step]).unwrap().remove(0) else { panic!("token") };
            position += input.len();
            input = vec![choice.token];
        }
    }
}
