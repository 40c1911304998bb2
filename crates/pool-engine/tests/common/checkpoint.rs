//! A Hugging Face directory as its owner would download it: `config.json` and one or several safetensors files.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};

use super::{
    fixture::Fixture,
    weights::{self, Storage},
};

/// Writes `fixture` as a checkpoint into `folder`, an existing directory.
pub(crate) fn write(fixture: &Fixture, folder: &Path) {
    fs::write(folder.join("config.json"), fixture.config.to_string()).unwrap();
    let tensors = fixture.expanded_tensors();
    if fixture.files == 1 {
        fs::write(folder.join("model.safetensors"), safetensors(fixture, &tensors)).unwrap();
        return;
    }
    // Tensors go round the files in turn, so that a layer's lie in several of them.
    let mut weight_map = BTreeMap::new();
    let mut total = 0;
    for file in 0..fixture.files {
        let name = format!("model-{:05}-of-{:05}.safetensors", file + 1, fixture.files);
        let own: Vec<_> = tensors.iter().skip(file).step_by(fixture.files).cloned().collect();
        let bytes = safetensors(fixture, &own);
        total += bytes.len();
        weight_map.extend(own.into_iter().map(|(tensor, _)| (tensor, name.clone())));
        fs::write(folder.join(name), bytes).unwrap();
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A safetensors file: header length, header as JSON padded with spaces to 8 bytes, data.
fn safetensors(fixture: &Fixture, tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let dtype = match fixture.storage {
        Storage::F32 => "F32",
        Storage::F16 => "F16",
        Storage::Bf16 => "BF16",
    };
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let start = data.len();
        data.extend(weights::tensor(fixture.expectations.seed, name, shape, fixture.storage));
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}
