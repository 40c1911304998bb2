//! What is fetched: the assigned layers' bytes, once, whoever shares them.

use pool_models::{Cache, Inspection, Model, Wanted};

use crate::{
    assert_same, fetched,
    models::{self, LAYERS, gguf, manifest, shard, sharded, single},
    server::Server,
};

#[tokio::test(flavor = "multi_thread")]
async fn every_range_of_every_format_costs_its_own_bytes_and_reads_as_the_original() {
    for (format, files) in [("single", single(1)), ("sharded", sharded(2)), ("GGUF", gguf(3))] {
        let (folder, manifest) = manifest(&files);
        let original = Model::open(models::write(folder.path(), &files)).unwrap();
        let server = Server::start(&files).await;
        for length in 1..=LAYERS {
            for start in 0..=LAYERS - length {
                let wanted = shard(&manifest, start, start + length);
                let root = tempfile::tempdir().unwrap();
                let cache = Cache::open(root.path()).unwrap();
                server.forget();
                let ended = fetched(&cache, &manifest, wanted, &[&server]).await;
                assert!(ended.hashed, "every byte was checked against the manifest");
                let cached = Model::open(&ended.path).unwrap();
                let bytes = assert_same(&original, &cached, wanted);
                let served = server.sent("");
                let ratio = served as f64 / bytes as f64;
                assert!(ratio <= 1.02, "{format}, {length} layers from {start}: {ratio} of the layers' bytes");
                assert!(served >= bytes, "nothing comes from nowhere");
                assert!(server.seen().iter().all(|seen| seen.range.is_some()), "every request names its bytes");
                assert!(cached.tokenizer.is_none(), "a shard needs no tokenizer, and got none");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_model_is_checked_as_whole_files_and_speaks() {
    for files in [single(4), sharded(5), gguf(6)] {
        let (folder, manifest) = manifest(&files);
        let original = Model::open(models::write(folder.path(), &files)).unwrap();
        let server = Server::start(&files).await;
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let everything = Wanted::everything(&manifest.config);
        let ended = fetched(&cache, &manifest, everything, &[&server]).await;
        let cached = Model::open(&ended.path).unwrap();
        assert_same(&original, &cached, everything);
        assert_eq!(cached.tokenizer.is_some(), original.tokenizer.is_some());
        assert_eq!(cached.chat_template.is_some(), original.chat_template.is_some());
        let (ours, theirs) = (Inspection::new(&cached), Inspection::new(&original));
        assert_eq!((ours.total_bytes, ours.layers), (theirs.total_bytes, theirs.layers));
        for file in 0..manifest.files.len() {
            assert_eq!(cache.check_file(&manifest, file).unwrap(), Some(true), "it can be put together again");
        }
        let verified = cache.verify(manifest.hash()).unwrap();
        assert_eq!((verified.broken.len(), verified.missing), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_fetches_words_without_weights() {
    let files = single(7);
    let (_folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let ended = fetched(&cache, &manifest, Wanted::words(), &[&server]).await;
    let model = Model::open(&ended.path).unwrap();
    assert!(model.tokenizer.is_some() && model.chat_template.is_some());
    assert_eq!(server.sent(".safetensors"), 0, "no weight was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_and_models_share_what_they_have_in_common() {
    let files = single(8);
    let (_folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    fetched(&cache, &manifest, shard(&manifest, 0, 2), &[&server]).await;
    server.forget();
    let ended = fetched(&cache, &manifest, shard(&manifest, 1, 3), &[&server]).await;
    let layer = pool_models::layer_bytes(Model::open(&ended.path).unwrap().source.as_ref(), 2);
    assert_eq!(server.sent(""), layer, "the layer both have is there already");

    // The same weights under another name and revision are another model, and the same bytes.
    let mut renamed = manifest.clone();
    (renamed.name, renamed.revision) = ("Tiny again".to_owned(), "2".to_owned());
    server.forget();
    let again = fetched(&cache, &renamed, shard(&renamed, 0, 3), &[&server]).await;
    assert_eq!(server.seen().len(), 0, "nothing had to be asked for");
    assert_ne!(again.path, ended.path);
    assert_eq!(Model::open(&again.path).unwrap().name, "Tiny again");

    // Removing one leaves what the other needs.
    cache.remove(manifest.hash()).unwrap();
    let model = Model::open(&again.path).unwrap();
    assert!(
        model
            .source
            .names()
            .into_iter()
            .filter(|name| matches!(name, pool_models::TensorName::Layer(0..3, _)))
            .all(|name| model.source.bytes(name).is_ok())
    );
    drop(model);
    let freed = cache.remove(renamed.hash()).unwrap();
    assert!(freed.0 > 3 * layer, "the last one's removal frees {freed}");
    assert_eq!(cache.used_bytes().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_here_already_is_taken_over_without_a_network() {
    for files in [sharded(9), gguf(10)] {
        let (folder, manifest) = manifest(&files);
        let path = models::write(folder.path(), &files);
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let wanted = shard(&manifest, 1, 3);
        let taken = cache.import(&manifest, &path, wanted).unwrap();
        let model = Model::open(cache.model_path(manifest.hash())).unwrap();
        assert_eq!(assert_same(&Model::open(&path).unwrap(), &model, wanted), taken.0);
        assert_eq!(cache.import(&manifest, &path, wanted).unwrap().0, 0, "it is there now");
    }
}
