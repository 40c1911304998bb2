//! What each format calls a tensor.

use crate::source::{LayerTensor, TensorName};

const LAYER: [(LayerTensor, &str, &str); 18] = [
    (LayerTensor::AttentionNorm, "input_layernorm.weight", "attn_norm.weight"),
    (LayerTensor::Query, "self_attn.q_proj.weight", "attn_q.weight"),
    (LayerTensor::Key, "self_attn.k_proj.weight", "attn_k.weight"),
    (LayerTensor::Value, "self_attn.v_proj.weight", "attn_v.weight"),
    (LayerTensor::AttentionOutput, "self_attn.o_proj.weight", "attn_output.weight"),
    (LayerTensor::QueryBias, "self_attn.q_proj.bias", "attn_q.bias"),
    (LayerTensor::KeyBias, "self_attn.k_proj.bias", "attn_k.bias"),
    (LayerTensor::ValueBias, "self_attn.v_proj.bias", "attn_v.bias"),
    (LayerTensor::AttentionOutputBias, "self_attn.o_proj.bias", "attn_output.bias"),
    (LayerTensor::QueryNorm, "self_attn.q_norm.weight", "attn_q_norm.weight"),
    (LayerTensor::KeyNorm, "self_attn.k_norm.weight", "attn_k_norm.weight"),
    (LayerTensor::FeedForwardNorm, "post_attention_layernorm.weight", "ffn_norm.weight"),
    (LayerTensor::Gate, "mlp.gate_proj.weight", "ffn_gate.weight"),
    (LayerTensor::Up, "mlp.up_proj.weight", "ffn_up.weight"),
    (LayerTensor::Down, "mlp.down_proj.weight", "ffn_down.weight"),
    (LayerTensor::GateBias, "mlp.gate_proj.bias", "ffn_gate.bias"),
    (LayerTensor::UpBias, "mlp.up_proj.bias", "ffn_up.bias"),
    (LayerTensor::DownBias, "mlp.down_proj.bias", "ffn_down.bias"),
];

/// Which names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    HuggingFace,
    Gguf,
}

impl Naming {
    /// The file's name for a tensor.
    pub(crate) fn file_name(self, name: TensorName) -> String {
        let fixed = match (name, self) {
            (TensorName::TokenEmbedding, Naming::HuggingFace) => "model.embed_tokens.weight",
            (TensorName::TokenEmbedding, Naming::Gguf) => "token_embd.weight",
            (TensorName::OutputNorm, Naming::HuggingFace) => "model.norm.weight",
            (TensorName::OutputNorm, Naming::Gguf) => "output_norm.weight",
            (TensorName::Output, Naming::HuggingFace) => "lm_head.weight",
            (TensorName::Output, Naming::Gguf) => "output.weight",
            (TensorName::RopeFrequencies, _) => "rope_freqs.weight",
            (TensorName::Layer(layer, tensor), naming) => {
                let row = LAYER.iter().find(|(of, ..)| *of == tensor);
                let (hugging_face, gguf) = row.map_or(("", ""), |(_, hugging_face, gguf)| (hugging_face, gguf));
                return match naming {
                    Naming::HuggingFace => format!("model.layers.{layer}.{hugging_face}"),
                    Naming::Gguf => format!("blk.{layer}.{gguf}"),
                };
            }
        };
        fixed.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_has_a_name_of_its_own_in_both_formats() {
        let mut seen = std::collections::HashSet::new();
        for naming in [Naming::HuggingFace, Naming::Gguf] {
            for (tensor, ..) in LAYER {
                assert!(seen.insert(naming.file_name(TensorName::Layer(7, tensor))), "{tensor:?} shares its name");
            }
        }
        assert_eq!(seen.len(), 36);
        assert!(seen.contains("model.layers.7.mlp.down_proj.weight") && seen.contains("blk.7.ffn_down.weight"));
    }
}
