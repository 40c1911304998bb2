//! With one compute thread no pool of workers is started: nothing spins beside the engine.
#![cfg(target_os = "linux")]

use std::{borrow::Cow, sync::Arc};

use pool_engine::{
    Engine, EngineOptions, SequenceId, Step, StepInput,
    synthetic::{SyntheticQuant, SyntheticShape, write_gguf},
};
use pool_models::{Activation, Model};
use pool_types::LayerRange;

#[test]
fn one_compute_thread_starts_no_others() {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read(task.unwrap().path().join("comm"))
                .map_or(Cow::Borrowed("gone"), |name| Cow::Owned(String::from_utf8_lossy(&name).trim().to_owned()))
        };
        let mut names: Vec<Cow<'_, str>> = tasks.map(name).collect();
        names.sort();
        names
    };
    // The only test of its process: the harness's threads wait, and read no environment meanwhile.
    assert_eq!(pool_engine::configure_threads(1), 1);
    let before = threads();
    let folder = tempfile::tempdir().unwrap();
    for quant in [SyntheticQuant::Q8_0, SyntheticQuant::Q4K, SyntheticQuant::F16] {
        let path = folder.path().join("model.gguf");
        write_gguf(&path, &SyntheticShape::tiny(), quant, 1, |_, _| {}).unwrap();
        let model = Model::open(&path).unwrap();
        let options = EngineOptions {
            layers: LayerRange::new(0, 2).unwrap(),
            threads: 1,
            quantise: None,
            wire: Activation::F32,
            kv_tokens: 200,
            max_context: 200,
        };
        let mut engine = Engine::load(Arc::clone(&model.config), model.source.as_ref(), options).unwrap();
        engine.open(SequenceId(1), 200, None).unwrap();
        let prompt: Vec<u32> = (0..150).collect();
        let step = |position, tokens| Step {
            sequence: SequenceId(1),
            position,
            input: StepInput::Tokens(tokens),
            sample: false,
        };
        engine.score(&[step(0, &prompt)]).unwrap();
        engine.score(&[step(150, &[7])]).unwrap();
        assert_eq!(threads(), before, "{quant:?}: prefill and decode run on the caller's thread");
    }
}
