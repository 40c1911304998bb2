use thiserror::Error;

/// The architectures that can be served, as messages list them.
pub const SUPPORTED: &str = "llama, mistral, qwen2, qwen3";

/// Why a configuration cannot be used. Each message is one sentence for the person who chose the model.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConfigError {
    /// The configuration is not an object.
    #[error("the configuration is not a JSON object")]
    NotAnObject,
    /// No architecture is named.
    #[error("the configuration names no architecture (`model_type` is missing)")]
    NoArchitecture,
    /// The engine has no such architecture.
    #[error("architecture `{0}` is not supported; supported are {SUPPORTED}")]
    Architecture(String),
    /// A value is missing.
    #[error("`{0}` is missing")]
    Missing(String),
    /// A value has another type than it should.
    #[error("`{field}` should be {expected}")]
    Type {
        /// The setting.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A number outside of what any real model has.
    #[error("`{field}` is {value}, which is outside {least}..={most}")]
    Range {
        /// The setting.
        field: &'static str,
        /// What it says.
        value: u64,
        /// The least accepted.
        least: u64,
        /// The most accepted.
        most: u64,
    },
    /// A number that no formula can use.
    #[error("`{field}` is {value}, which is not usable")]
    Number {
        /// The setting.
        field: &'static str,
        /// What it says.
        value: f64,
    },
    /// Grouped-query attention needs whole groups.
    #[error("{heads} attention heads cannot share {kv_heads} key/value heads evenly")]
    HeadGroups {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
    },
    /// Rotation turns pairs of elements.
    #[error("the head dimension {0} is odd, but rotary embedding turns pairs")]
    OddHead(usize),
    /// The hidden size is given per head only, and does not divide.
    #[error("hidden size {hidden_size} is not a multiple of {heads} heads, and no head dimension is given")]
    HeadSize {
        /// Width of a hidden state.
        hidden_size: usize,
        /// Query heads.
        heads: usize,
    },
    /// A stretching of the rotary frequencies that the engine has not.
    #[error("rope scaling `{0}` is not supported; supported are linear and llama3")]
    RopeScaling(String),
    /// Rotary embeddings that differ from layer to layer.
    #[error("different rotary embeddings per layer type are not supported")]
    RopePerLayer,
    /// Something else of the architecture that the engine has not.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// `layer_types` and the number of layers disagree.
    #[error("`layer_types` lists {listed} layers, but the model has {layers}")]
    LayerTypes {
        /// How many are listed.
        listed: usize,
        /// How many there are.
        layers: u32,
    },
}
