//! The safetensors format (<https://github.com/huggingface/safetensors>): a length, a JSON header, then the tensors.
//! Written here because Hugging Face's loader asks for the `format` entry, which candle's writer leaves out.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Var};
use half::f16;
use serde_json::{Map, Value, json};

/// The bytes of a file with all weights in f16.
pub(crate) fn to_f16_file(weights: &BTreeMap<String, Var>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut data: Vec<u8> = vec![];
    for (name, var) in weights {
        let tensor = var.as_tensor().to_dtype(DType::F16)?.flatten_all()?;
        let values: Vec<f16> = tensor.to_vec1().with_context(|| format!("reading {name}"))?;
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({ "dtype": "F16", "shape": var.dims(), "data_offsets": [begin, data.len()] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).context("writing the header")?;
    // The tensors begin at a multiple of eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn candle_reads_what_is_written() {
        let var = Var::from_vec(vec![1.0f32, -2.5, 0.125, 4.0], (2, 2), &Device::Cpu).unwrap();
        let file = to_f16_file(&BTreeMap::from([("a.weight".to_owned(), var)])).unwrap();
        let read = candle_core::safetensors::load_buffer(&file, &Device::Cpu).unwrap();
        let values = read["a.weight"].to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values, [[1.0, -2.5], [0.125, 4.0]]);
    }
}
