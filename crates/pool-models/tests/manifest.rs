//! Manifests: what they say, who signed them, what they refuse; and plans at the sizes people download.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::collections::HashSet;

use alloy_primitives::{Address, B256, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use pool_models::{
    Content, Manifest, ManifestError, ManifestOptions, ManifestTensor, Model, ModelConfig, ModelFormat, Plan,
    SignedManifest, TensorName, TensorType, Wanted, WeightFile,
};
use pool_types::LayerRange;
use serde_json::{Value, json};
use support::{GgufFile, config, tensors, write_directory};

fn options() -> ManifestOptions {
    ManifestOptions { name: Some("Tiny".to_owned()), piece_bytes: 4096, ..ManifestOptions::default() }
}

fn directory() -> (tempfile::TempDir, Manifest) {
    let folder = tempfile::tempdir().unwrap();
    write_directory(folder.path(), &config(), &tensors());
    let manifest = Manifest::of(folder.path(), &options()).unwrap();
    (folder, manifest)
}

#[test]
fn a_manifest_is_one_text_with_one_hash_and_knows_the_models_id() {
    let (folder, manifest) = directory();
    assert_eq!(manifest.model_id().unwrap(), Model::open(folder.path()).unwrap().id);
    let bytes = manifest.to_bytes();
    let read = Manifest::parse(&bytes).unwrap();
    assert_eq!((&read, read.hash()), (&manifest, manifest.hash()));
    assert_eq!(Manifest::of(folder.path(), &options()).unwrap(), manifest, "the same files give the same manifest");

    let pretty = serde_json::to_vec_pretty(&manifest).unwrap();
    assert!(
        matches!(Manifest::parse(&pretty), Err(ManifestError::NotCanonical)),
        "another text would have another hash"
    );

    // One bit of one weight makes it another model to sign, of the same index.
    let path = folder.path().join("model.safetensors");
    let mut weights = std::fs::read(&path).unwrap();
    let last = weights.len() - 1;
    weights[last] ^= 1;
    std::fs::write(&path, weights).unwrap();
    let other = Manifest::of(folder.path(), &options()).unwrap();
    assert_ne!(other.hash(), manifest.hash());
    assert_eq!(other.model_id().unwrap(), manifest.model_id().unwrap());
    let changed = manifest.tensors.iter().zip(&other.tensors).filter(|(a, b)| a.content != b.content).count();
    assert_eq!(changed, 1, "every other tensor is shared");
}

#[test]
fn a_gguf_file_has_a_manifest_too_and_padding_is_no_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    // Tensors of 256 bytes and more, each at a multiple of 4096: most of the file lies between them.
    let mut file = GgufFile::llama();
    file.align(4096);
    file.tensors.iter_mut().zip(1..).for_each(|((.., data), number)| data.fill(number));
    std::fs::write(&path, file.build()).unwrap();
    let manifest = Manifest::of(&path, &ManifestOptions::default()).unwrap();
    assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest, "f32 epsilons survive their text");
    assert_eq!((manifest.name.as_str(), manifest.format), ("Tiny Llama", ModelFormat::Gguf));
    assert!(manifest.files[0].sha256.is_some(), "zeros between tensors can be put back");
    let lengths: Vec<u64> = file.tensors.iter().map(|(.., data)| data.len() as u64).collect();
    assert_eq!(manifest.tensor_bytes(), lengths.iter().sum::<u64>(), "a tensor is its own bytes and no padding");
    let padded: u64 = lengths.iter().map(|length| length.next_multiple_of(4096)).sum();
    assert!(padded > manifest.tensor_bytes(), "there is padding to be left out");
    let wanted = Wanted::everything(&manifest.config);
    let plan = Plan::new(&manifest, wanted, &|_, _| false);
    assert_eq!(plan.wanted_bytes(), manifest.files[0].header.length + manifest.tensor_bytes(), "nor is it wanted");
}

#[test]
fn only_the_owners_signature_over_this_manifest_counts() {
    let (_folder, manifest) = directory();
    let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap();
    let sign = |hash: B256| key.sign_hash_sync(&hash).map(|signature| signature.as_bytes().to_vec());
    let signed = SignedManifest::sign(&manifest, 16_602, sign).unwrap();
    signed.check(&manifest, key.address()).unwrap();
    let read: SignedManifest = serde_json::from_slice(&serde_json::to_vec(&signed).unwrap()).unwrap();
    assert_eq!(read, signed);

    let stranger = Address::repeat_byte(9);
    let error = signed.check(&manifest, stranger).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the manifest is signed by {}, not by the pool's owner {stranger}", key.address())
    );
    let mut other = manifest.clone();
    other.revision = "2".to_owned();
    assert!(matches!(signed.check(&other, key.address()), Err(ManifestError::Signature)), "it is for another manifest");
    let elsewhere = SignedManifest { chain: 1, ..signed.clone() };
    assert!(elsewhere.check(&manifest, key.address()).is_err(), "a signature for one chain is none for another");
    let broken = SignedManifest { signature: vec![1; 64].into(), ..signed };
    assert!(matches!(broken.check(&manifest, key.address()), Err(ManifestError::Signature)));
}

/// What a manifest says after a change to its JSON.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let (_folder, manifest) = directory();
    let mut value = serde_json::to_value(&manifest).unwrap();
    change(&mut value);
    Manifest::parse(&serde_json::to_vec(&value).unwrap()).unwrap_err().to_string()
}

#[test]
fn a_manifest_that_breaks_a_rule_is_refused_with_one_sentence() {
    assert!(Manifest::parse(b"").is_err());
    assert_eq!(refused(|m| m["version"] = json!(2)), "the manifest has form 2; this version reads form 1");
    for path in ["../model.safetensors", "/etc/passwd", "a/../../b", "C:\\x", "a//b", "", "."] {
        let said = refused(|m| m["files"][0]["path"] = json!(path));
        assert!(said.contains("which is not inside the model's folder"), "{path:?}: {said}");
    }
    let said = refused(|m| m["words"][0]["path"] = json!("../../.ssh/config"));
    assert!(said.contains("which is not inside the model's folder"), "{said}");
    assert_eq!(
        refused(|m| m["piece_bytes"] = json!(5000)),
        "the manifest cuts tensors into pieces of 5000 bytes; a power of two from 4096 to 67108864 is allowed"
    );
    assert_eq!(refused(|m| m["files"] = json!([])), "the manifest lists 0 files; 1 to 4096 are allowed");
    let said = refused(|m| m["tensors"][0]["offset"] = json!(u64::MAX));
    assert_eq!(said, "tensor `lm_head.weight` does not lie inside its file");
    let said = refused(|m| m["tensors"][0]["offset"] = json!(0));
    assert_eq!(said, "tensor `lm_head.weight` does not lie inside its file", "the header is no tensor's");
    let said = refused(|m| m["tensors"][0]["file"] = json!(1));
    assert_eq!(said, "tensor `lm_head.weight` does not lie inside its file");
    let said = refused(|m| m["tensors"][0]["shape"] = json!([96, 65]));
    assert_eq!(said, "tensor `lm_head.weight` of type F32 and shape [96, 65] cannot take 24576 bytes");
    let said = refused(|m| m["tensors"][1]["offset"] = m["tensors"][0]["offset"].clone());
    assert!(said.contains("overlap"), "{said}");
    let said = refused(|m| m["tensors"][1]["name"] = m["tensors"][0]["name"].clone());
    assert_eq!(said, "`lm_head.weight` stands in the manifest twice");
    let said = refused(|m| m["tensors"][0]["content"]["pieces"] = json!("0x"));
    assert!(said.ends_with("does not have one hash for each of its pieces"), "hashed in part is not hashed: {said}");
    let said = refused(|m| m["tensors"][0]["content"]["key"] = json!(B256::ZERO));
    assert_eq!(said, "the hash of `lm_head.weight` does not follow from the hashes of its pieces");
    let said = refused(|m| m["tensors"][0]["content"]["length"] = json!(u64::MAX));
    assert!(said.starts_with("the manifest cuts its tensors into 4503599627370"), "{said}");
    let said = refused(|m| m["config"]["hidden_size"] = json!(0));
    assert!(said.starts_with("the manifest's configuration cannot be used: "), "{said}");
    let said = refused(|m| m["config"]["layers"] = json!(1));
    assert!(said.starts_with("the manifest's configuration cannot be used: "), "{said}");
    let said = refused(|m| drop(m["tensors"].as_array_mut().unwrap().remove(0)));
    assert_eq!(
        said,
        "the manifest does not describe a whole model: the model has no tensor `lm_head.weight`, which its configuration asks for"
    );
    let said = refused(|m| m["surprise"] = json!(1));
    assert!(said.starts_with("the manifest cannot be read: unknown field `surprise`"), "{said}");
}

#[test]
fn a_manifest_without_hashes_cannot_ask_for_more_than_anybody_can_keep_account_of() {
    let (_folder, mut manifest) = directory();
    manifest.files[0].header.pieces.clear();
    manifest.tensors.iter_mut().for_each(|tensor| tensor.content.pieces.clear());
    manifest.words.iter_mut().for_each(|word| word.content.pieces.clear());
    Manifest::parse(&manifest.to_bytes()).unwrap();

    // A tensor of an unknown type may have any length, so that its pieces are all that bounds it.
    let file =
        WeightFile { path: "b".to_owned(), length: u64::MAX, sha256: None, etag: None, header: Content::of(&[], 4096) };
    manifest.files.push(file);
    let content = |length| Content { key: B256::repeat_byte(5), length, pieces: Vec::new() };
    let (name, kind) = ("odd".to_owned(), "IQ9".to_owned());
    manifest.tensors.push(ManifestTensor { name, kind, shape: vec![1], file: 1, offset: 0, content: content(4096) });
    manifest.validate().unwrap();
    for (length, allowed) in
        [(4096 * (Manifest::MOST_PIECES / 2), true), (4096 * Manifest::MOST_PIECES, false), (u64::MAX, false)]
    {
        manifest.tensors.last_mut().unwrap().content = content(length);
        match manifest.validate() {
            Ok(()) => assert!(allowed, "{length} bytes in pieces of 4096"),
            Err(error) => assert!(!allowed && matches!(error, ManifestError::ManyPieces(_)), "{length}: {error}"),
        }
    }

    // Two places of one name would share their bytes.
    let last = manifest.tensors.last_mut().unwrap();
    last.content = content(4096);
    let mut other = last.clone();
    (other.name, other.offset) = ("odder".to_owned(), 4096);
    manifest.tensors.push(other);
    assert!(matches!(manifest.validate(), Err(ManifestError::Collision(_))));
}

/// The manifest of a published shape, with made-up hashes: tensors in the order in which files have them.
fn published(config: ModelConfig, kind: TensorType, alignment: u64) -> Manifest {
    let piece = Manifest::PIECE_BYTES;
    let header = Content::of(&vec![0; 60_000], piece);
    let mut at = header.length.next_multiple_of(alignment);
    let name = |place: TensorName| match place {
        TensorName::TokenEmbedding => "model.embed_tokens.weight".to_owned(),
        TensorName::OutputNorm => "model.norm.weight".to_owned(),
        TensorName::Layer(layer, tensor) => {
            use pool_models::LayerTensor as L;
            let part = match tensor {
                L::AttentionNorm => "input_layernorm",
                L::Query => "self_attn.q_proj",
                L::Key => "self_attn.k_proj",
                L::Value => "self_attn.v_proj",
                L::AttentionOutput => "self_attn.o_proj",
                L::FeedForwardNorm => "post_attention_layernorm",
                L::Gate => "mlp.gate_proj",
                L::Up => "mlp.up_proj",
                L::Down => "mlp.down_proj",
                other => panic!("{other:?} is not in a Llama"),
            };
            format!("model.layers.{layer}.{part}.weight")
        }
        _ => "lm_head.weight".to_owned(),
    };
    let mut listed = Vec::new();
    for (place, shape) in config.tensors() {
        let kind = if shape.len() == 1 { TensorType::F32 } else { kind };
        let shape: Vec<u64> = shape.into_iter().map(|n| n as u64).collect();
        let length = kind.byte_length(shape.iter().product()).unwrap();
        // No two tensors are the same content.
        let first = listed.len() as u64 * 1_000_000;
        let pieces = (0..length.div_ceil(u64::from(piece))).map(|n| B256::from(U256::from(first + n))).collect();
        let content = Content::of_pieces(length, piece, pieces);
        listed.push(ManifestTensor { name: name(place), kind: kind.to_string(), shape, file: 0, offset: at, content });
        at = (at + length).next_multiple_of(alignment);
    }
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let file = WeightFile { path: "model.safetensors".to_owned(), length: at, sha256: None, etag: None, header };
    let manifest = Manifest {
        version: Manifest::VERSION,
        name: "published".to_owned(),
        revision: String::new(),
        format: ModelFormat::Safetensors,
        piece_bytes: piece,
        config,
        files: vec![file],
        tensors: listed,
        words: Vec::new(),
    };
    manifest.validate().unwrap();
    manifest
}

fn llama(hidden: u64, feed: u64, layers: u64, heads: u64) -> ModelConfig {
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": feed, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 128_256, "rope_theta": 500_000.0,
        "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
    });
    ModelConfig::from_hugging_face(&config, None).unwrap()
}

#[test]
fn at_published_sizes_a_shard_fetches_its_layers_and_nothing_else() {
    for (config, kind, alignment) in [
        (llama(4096, 14_336, 32, 32), TensorType::BF16, 1),
        (llama(4096, 14_336, 32, 32), TensorType::Q4K, 32),
        (llama(8192, 28_672, 80, 64), TensorType::BF16, 1),
        (llama(8192, 28_672, 80, 64), TensorType::Q4K, 4096),
    ] {
        let manifest = published(config, kind, alignment);
        let all = manifest.config.layers;
        for (start, end) in [(0, 1), (7, 8), (all - 1, all), (0, all / 2), (all / 2, all), (3, 17), (0, all)] {
            let wanted = Wanted::shard(LayerRange::new(start, end).unwrap(), &manifest.config);
            let plan = Plan::new(&manifest, wanted, &|_, _| false);
            let layers: u64 = (manifest.tensors.iter())
                .filter(|tensor| {
                    let layer = tensor
                        .name
                        .strip_prefix("model.layers.")
                        .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
                    match layer {
                        Some(layer) => (start..end).contains(&layer),
                        None if tensor.name == "model.embed_tokens.weight" => start == 0,
                        None => end == all,
                    }
                })
                .map(|tensor| tensor.content.length)
                .sum();
            assert_eq!(plan.wanted_bytes(), layers, "exactly the tensors of layers {start}..{end}");
            let ratio = plan.fetched_bytes() as f64 / layers as f64;
            assert!((1.0..=1.02).contains(&ratio), "{ratio} of the layers' bytes travel for {start}..{end}");
            let mut pieces = HashSet::new();
            for run in &plan.runs {
                assert!(run.end() - run.start() <= 64 << 20, "one request is never too long to try again");
                assert!(run.pieces.windows(2).all(|pair| pair[0].end() <= pair[1].start));
                assert!(run.pieces.iter().all(|piece| pieces.insert((piece.item, piece.piece))), "each piece once");
            }
            let expected: u64 =
                plan.items.iter().map(|item| u64::from(item.content.piece_count(manifest.piece_bytes))).sum();
            assert_eq!(pieces.len() as u64, expected);
            let requests = plan.runs.len() as u64;
            assert!(
                requests <= layers / (24 << 20) + 4,
                "{requests} requests for {layers} bytes: neighbours go together"
            );
        }
    }
}

#[test]
fn what_is_there_is_not_planned_again() {
    let manifest = published(llama(4096, 14_336, 32, 32), TensorType::BF16, 1);
    let wanted = Wanted::shard(LayerRange::new(0, 2).unwrap(), &manifest.config);
    let whole = Plan::new(&manifest, wanted, &|_, _| false);
    let even = Plan::new(&manifest, wanted, &|_, piece| piece % 2 == 1);
    assert!(even.missing_bytes() < whole.missing_bytes() && even.wanted_bytes() == whole.wanted_bytes());
    let nothing = Plan::new(&manifest, wanted, &|_, _| true);
    assert_eq!((nothing.runs.len(), nothing.fetched_bytes(), nothing.missing_bytes()), (0, 0, 0));
}

#[test]
fn a_tied_head_is_fetched_by_both_ends_and_stored_once() {
    let mut tied = llama(4096, 14_336, 32, 32);
    tied.tied_embeddings = true;
    let manifest = published(tied, TensorType::BF16, 1);
    let names = |wanted| -> Vec<String> { manifest.items(wanted).into_iter().map(|item| item.name).collect() };
    let embedding = "model.embed_tokens.weight".to_owned();
    for (start, end, has) in [(0, 16, true), (16, 32, true), (8, 16, false), (0, 32, true)] {
        let names = names(Wanted::shard(LayerRange::new(start, end).unwrap(), &manifest.config));
        assert_eq!(names.iter().filter(|name| **name == embedding).count(), usize::from(has), "{start}..{end}");
    }
}
