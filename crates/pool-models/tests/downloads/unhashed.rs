//! A plain host without a manifest: planned from headers, shown as unverified.

use std::time::Duration;

use alloy_primitives::hex;
use pool_models::{
    Cache, DownloadState, HostError, ManifestError, Mirror, Model, RemoteModel, SignedManifest, SigningError, Wanted,
};
use sha2::{Digest, Sha256};

use crate::{
    assert_same, fetch, fetched,
    models::{self, gguf, shard, sharded, single},
    server::Server,
    start,
};

async fn survey(server: &Server, model: &RemoteModel) -> pool_models::Manifest {
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    downloads.survey(&Mirror::new(&server.url()).unwrap(), model).await.unwrap()
}

fn remote(files: &models::Files) -> RemoteModel {
    match files.as_slice() {
        [(path, _)] => RemoteModel::Gguf { path: path.clone() },
        _ => RemoteModel::Folder { name: "Tiny".to_owned() },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_planned_from_headers_and_said_to_be_unverified() {
    for files in [single(20), sharded(21), gguf(22)] {
        let folder = tempfile::tempdir().unwrap();
        let original = Model::open(models::write(folder.path(), &files)).unwrap();
        let server = Server::start(&files).await;
        let manifest = survey(&server, &remote(&files)).await;
        assert!(!manifest.is_hashed());
        let refused = SignedManifest::sign(&manifest, 0, |_| Ok::<_, std::io::Error>(vec![0; 65])).unwrap_err();
        assert!(matches!(refused, SigningError::Manifest(ManifestError::NotHashed)), "nobody vouches for nothing");
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let wanted = shard(&manifest, 1, 3);
        let ended = fetched(&cache, &manifest, wanted, &[&server]).await;
        assert!(!ended.hashed && ended.to_string().contains("not verified by a manifest"), "{ended}");
        assert_same(&original, &Model::open(&ended.path).unwrap(), wanted);
        let [listed] = cache.list().unwrap().try_into().unwrap();
        assert!(!listed.hashed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_is_checked_against_the_hash_the_host_publishes() {
    let files = gguf(23);
    let server = Server::start(&files).await;
    let mut hash = Sha256::new();
    hash.update(&files[0].1);
    server.behave(|conduct| conduct.linked_etag = Some(hex::encode(hash.finalize())));
    let manifest = survey(&server, &remote(&files)).await;
    let everything = Wanted::everything(&manifest.config);
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    fetched(&cache, &manifest, everything, &[&server]).await;

    // Bytes that changed on the way, which only the whole file's hash can tell.
    let at = manifest.tensors[5].offset;
    server.behave(|conduct| conduct.corrupt = Some(("tiny.gguf".to_owned(), at + 10..at + 11)));
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path()).unwrap();
    let ended = fetch(&cache, &manifest, everything, &[&server]).await;
    assert_eq!(ended.state, DownloadState::Failed);
    assert_eq!(
        ended.message.as_deref(),
        Some(
            "tiny.gguf does not have the hash that was published for it; its parts were thrown away, start the download anew or choose another host"
        )
    );
    server.behave(|conduct| conduct.corrupt = None);
    fetched(&cache, &manifest, everything, &[&server]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_after_the_headers_were_read_is_noticed_at_once() {
    for no_etag in [false, true] {
        let files = single(24);
        let server = Server::start(&files).await;
        server.behave(|conduct| conduct.no_etag = no_etag);
        let manifest = survey(&server, &remote(&files)).await;
        server.behave(|conduct| conduct.change_after = Some(0));
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let ended = fetch(&cache, &manifest, shard(&manifest, 0, 1), &[&server]).await;
        let message = ended.message.unwrap_or_default();
        let expected = format!(
            "the file model.safetensors on {} has changed since the download began; start the download anew, or choose another host",
            server.address()
        );
        assert_eq!((ended.state, message), (DownloadState::Failed, expected), "by its date where it has no tag");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_bounded_and_a_host_without_the_model_says_so() {
    let mut files = single(25);
    let (_, weights) = files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap();
    weights[..8].copy_from_slice(&(90u64 << 20).to_le_bytes());
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    let mirror = Mirror::new(&server.url()).unwrap();
    let folder = RemoteModel::Folder { name: "Tiny".to_owned() };
    let error = downloads.survey(&mirror, &folder).await.unwrap_err();
    assert!(error.to_string().contains("is cut short: its header needs"), "{error}");
    let sent = server.sent("model.safetensors");
    assert!(sent <= 2 << 20, "{sent} bytes were read of a header that cannot be");

    // A file that is said to be long enough for such a header: it is refused before any more of it is read.
    server.behave(|conduct| conduct.wrong_total = 200 << 20);
    server.forget();
    let error = downloads.survey(&mirror, &folder).await.unwrap_err();
    let expected = format!(
        "model.safetensors on {} is larger than the 64.0 MiB that such a file may have; choose another model",
        server.address()
    );
    assert_eq!(error.to_string(), expected);
    let asked = server.seen().iter().filter(|seen| seen.path.ends_with("model.safetensors")).count();
    assert_eq!(asked, 1, "no second request was made for it");
    server.behave(|conduct| conduct.wrong_total = 0);

    let missing = RemoteModel::Gguf { path: "other.gguf".to_owned() };
    let error = downloads.survey(&mirror, &missing).await.unwrap_err();
    let expected = HostError::NotFound { host: server.address().to_string(), path: "other.gguf".to_owned() };
    assert_eq!(error.to_string(), expected.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_survey_ends_whatever_a_host_does_with_its_answers() {
    let files = single(26);
    let server = Server::start(&files).await;
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    let mirror = Mirror::new(&server.url()).unwrap();
    let folder = RemoteModel::Folder { name: "Tiny".to_owned() };
    let gguf_server = Server::start(&gguf(27)).await;
    let gguf_mirror = Mirror::new(&gguf_server.url()).unwrap();
    let gguf_file = RemoteModel::Gguf { path: "tiny.gguf".to_owned() };
    let survey = |mirror: Mirror, model: RemoteModel| {
        let downloads = downloads.clone();
        async move {
            let surveyed = tokio::time::timeout(Duration::from_secs(20), downloads.survey(&mirror, &model)).await;
            surveyed.expect("a survey does not go on for ever").unwrap_err().to_string()
        }
    };

    // Answers that are always shorter than what was asked for, and say so.
    gguf_server.behave(|conduct| conduct.most = Some(600));
    let said = survey(gguf_mirror.clone(), gguf_file.clone()).await;
    assert!(said.contains("(only 600 bytes)"), "{said}");
    assert!(gguf_server.seen().len() <= 2, "{} requests", gguf_server.seen().len());

    // The same of a small file, which would pass for all of it.
    server.behave(|conduct| conduct.most = Some(20));
    let said = survey(mirror.clone(), folder.clone()).await;
    assert!(said.contains("another part of config.json than was asked for (only 20 bytes)"), "{said}");
    server.behave(|conduct| conduct.most = None);

    // Answers that never fall silent and never come to their end: headers and small files alike.
    gguf_server.behave(|conduct| (conduct.most, conduct.trickle) = (None, true));
    let said = survey(gguf_mirror, gguf_file).await;
    assert!(said.contains("has sent nothing worth mentioning"), "{said}");
    server.behave(|conduct| conduct.trickle = true);
    let said = survey(mirror, folder).await;
    assert!(said.contains("has sent nothing worth mentioning"), "{said}");
}
