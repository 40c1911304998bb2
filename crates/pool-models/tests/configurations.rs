//! Both forms of Hugging Face's configuration, and the defaults of each family, as transformers reads them.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use pool_models::{Activation, Family, ModelConfig, RopeScaling, TensorType};
use serde_json::{Value, json};

fn read(config: Value) -> ModelConfig {
    ModelConfig::from_hugging_face(&config, None).unwrap()
}

fn with(mut config: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn small(family: &str) -> Value {
    json!({"model_type": family, "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2})
}

#[test]
fn the_shapes_of_well_known_models() {
    let llama8 = read(json!({
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    }));
    assert_eq!(llama8.parameters(), 8_030_261_248);
    assert_eq!((llama8.head_dim, llama8.kv_bytes_per_token(32, 2)), (128, 131_072));
    assert_eq!(llama8.eos_tokens, [128001, 128008, 128009]);
    assert_eq!(
        llama8.rope.scaling,
        RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 8192
        }
    );

    let llama70 = read(json!({
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
    }));
    assert_eq!(llama70.parameters(), 70_553_706_496);
    let q4 =
        llama70.estimate_layer_bytes(TensorType::Q4K) as f64 / llama70.estimate_layer_bytes(TensorType::BF16) as f64;
    assert!((q4 - 4.5 / 16.0).abs() < 1e-4, "Q4_K takes 4.5 bits an element, not {}", q4 * 16.0);

    let qwen32 = read(json!({
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
        "rope_theta": 1000000, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "rope_scaling": null,
        "sliding_window": null, "use_sliding_window": false, "max_window_layers": 64, "attention_bias": false,
    }));
    assert_eq!(qwen32.parameters(), 32_762_123_264);
    assert_eq!((qwen32.heads * qwen32.head_dim, qwen32.hidden_size), (8192, 5120), "heads wider than the hidden state");
    assert!(qwen32.qk_norm && !qwen32.qkv_bias);
}

#[test]
fn the_older_form_and_that_of_transformers_5_say_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512});
    let older =
        read(with(small("llama"), json!({"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "bfloat16"})));
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(5e5);
    let newer = read(with(small("llama"), json!({"rope_parameters": parameters, "dtype": "bfloat16"})));
    assert_eq!(older, newer);
    assert_eq!((newer.rope.theta, newer.activation), (5e5, Activation::Bf16));

    let linear = read(with(small("llama"), json!({"rope_scaling": {"type": "linear", "factor": 2.0}})));
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let default = read(with(small("llama"), json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})));
    assert_eq!((default.rope.scaling, default.rope.theta), (RopeScaling::None, 1e6));

    let same = json!({"full_attention": {"rope_type": "default", "rope_theta": 7.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}});
    assert_eq!(read(with(small("qwen3"), json!({"rope_parameters": same}))).rope.theta, 7.0);
    let different = json!({"full_attention": {"rope_type": "default", "rope_theta": 7.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 8.0}});
    let error = ModelConfig::from_hugging_face(&with(small("qwen3"), json!({"rope_parameters": different})), None);
    assert_eq!(error.unwrap_err().to_string(), "different rotary embeddings per layer type are not supported");
}

#[test]
fn each_family_has_its_own_biases_norms_and_defaults() {
    let llama = read(small("llama"));
    assert_eq!((llama.family, llama.head_dim, llama.rope.theta, llama.norm_epsilon), (Family::Llama, 16, 1e4, 1e-6));
    assert!(!llama.qkv_bias && !llama.output_bias && !llama.mlp_bias && !llama.qk_norm && !llama.tied_embeddings);
    let biased =
        read(with(small("llama"), json!({"attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true})));
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias && biased.tied_embeddings);
    let qwen2 = read(small("qwen2"));
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
    let qwen3 = read(small("qwen3"));
    assert!(!qwen3.qkv_bias && qwen3.qk_norm);
    assert_eq!(qwen3.head_dim, 128, "Qwen3's heads are 128 wide unless it says otherwise");
    assert_eq!(read(with(small("qwen3"), json!({"head_dim": null}))).head_dim, 16);
    let mut all_heads = small("llama");
    all_heads.as_object_mut().unwrap().remove("num_key_value_heads");
    assert_eq!(read(all_heads).kv_heads, 4);
    let named = read(with(small("llama"), json!({"model_type": null, "architectures": ["Qwen3ForCausalLM"]})));
    assert_eq!(named.family, Family::Qwen3);
}

#[test]
fn sliding_windows() {
    assert_eq!(read(with(small("llama"), json!({"sliding_window": 8}))).windows, [None; 4], "Llama has none");
    assert_eq!(read(with(small("mistral"), json!({"sliding_window": 8}))).windows, [Some(8); 4]);
    assert_eq!(read(with(small("mistral"), json!({"sliding_window": null}))).windows, [None; 4]);
    assert_eq!(read(small("mistral")).windows, [Some(4096); 4], "Mistral's default");
    let qwen = |more: Value| read(with(with(small("qwen2"), json!({"sliding_window": 8})), more)).windows;
    assert_eq!(qwen(json!({"max_window_layers": 2})), [None; 4], "switched off by default");
    assert_eq!(qwen(json!({"use_sliding_window": true, "max_window_layers": 3})), [None, None, None, Some(8)]);
    assert_eq!(
        qwen(
            json!({"use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]})
        ),
        [Some(8), None, None, Some(8)]
    );
    let short = with(
        small("qwen2"),
        json!({"use_sliding_window": true, "sliding_window": 8, "layer_types": ["full_attention"]}),
    );
    let error = ModelConfig::from_hugging_face(&short, None).unwrap_err();
    assert_eq!(error.to_string(), "`layer_types` lists 1 layers, but the model has 4");
}

#[test]
fn tokens_that_end_an_answer_come_from_both_files() {
    let config = with(small("llama"), json!({"eos_token_id": 2, "bos_token_id": 1}));
    let generation = json!({"eos_token_id": [7, 2, 9], "bos_token_id": 1});
    let read = ModelConfig::from_hugging_face(&config, Some(&generation)).unwrap();
    assert_eq!((read.bos_token, read.eos_tokens), (Some(1), vec![7, 2, 9]));
    let from_generation = ModelConfig::from_hugging_face(&small("qwen2"), Some(&generation)).unwrap();
    assert_eq!(from_generation.bos_token, Some(1));
}
