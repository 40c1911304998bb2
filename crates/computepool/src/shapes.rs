//! The configurations of well-known models, as their publishers wrote them (the fields that make the shape).

use anyhow::Result;
use clap::ValueEnum;
use pool_models::ModelConfig;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    #[value(name = "llama-3-8b")]
    Llama3_8b,
    #[value(name = "llama-3-70b")]
    Llama3_70b,
    #[value(name = "qwen3-32b")]
    Qwen3_32b,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::Llama3_8b => "Llama-3-8B",
            Shape::Llama3_70b => "Llama-3-70B",
            Shape::Qwen3_32b => "Qwen3-32B",
        }
    }

    pub(crate) fn config(self) -> Result<ModelConfig> {
        Ok(ModelConfig::from_hugging_face(&self.json(), None)?)
    }

    fn json(self) -> Value {
        match self {
            Shape::Llama3_8b => json!({
                "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
                "tie_word_embeddings": false,
            }),
            Shape::Llama3_70b => json!({
                "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
                "rope_theta": 500000.0, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
                "tie_word_embeddings": false,
            }),
            Shape::Qwen3_32b => json!({
                "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
                "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
                "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
                "torch_dtype": "bfloat16", "tie_word_embeddings": false,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_have_the_published_number_of_parameters() {
        let billions = |shape: Shape| (shape.config().unwrap().parameters() as f64 / 1e8).round() / 10.0;
        assert_eq!(billions(Shape::Llama3_8b), 8.0);
        assert_eq!(billions(Shape::Llama3_70b), 70.6);
        assert_eq!(billions(Shape::Qwen3_32b), 32.8);
    }
}
