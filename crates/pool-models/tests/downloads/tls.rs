//! Secure connections: a host whose certificate holds, and one whose does not.

use std::sync::Arc;

use pool_models::{Cache, DownloadState, Mirror, Model, Wanted};
use tokio::{io::copy_bidirectional, net::TcpListener, net::TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer},
};

use crate::{
    assert_same, download, kill,
    models::{manifest, shard, single},
    server::Server,
    start,
};

/// Puts a secure entrance before a server; returns its port and its certificate.
async fn entrance(server: &Server) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), server.address());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut secure = acceptor.accept(stream).await?;
                copy_bidirectional(&mut secure, &mut TcpStream::connect(behind).await?).await
            });
        }
    });
    (port, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_a_certificate_that_nobody_vouches_for_is_not_trusted() {
    let files = single(400);
    let (_folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let (port, _) = entrance(&server).await;
    let root = tempfile::tempdir().unwrap();
    let downloads = start(&Cache::open(root.path()).unwrap());
    let mut wish = download(&manifest, shard(&manifest, 0, 1), &[]);
    wish.mirrors = vec![Mirror::new(&format!("https://localhost:{port}/models/tiny")).unwrap()];
    let id = downloads.add(wish).await.unwrap();
    let ended = downloads.ended(id).await.unwrap();
    let expected = format!(
        "localhost:{port} shows a certificate that does not hold; check the date and time of this computer, or choose another host"
    );
    assert_eq!((ended.state, ended.message), (DownloadState::Failed, Some(expected)));
    assert!(server.seen().is_empty(), "not a request was made");
}

/// The system's own list of who is trusted is replaced by the one certificate, for the process that downloads.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_a_good_certificate_is_used_over_a_secure_connection() {
    let files = single(401);
    let (folder, manifest) = manifest(&files);
    let server = Server::start(&files).await;
    let (port, certificate) = entrance(&server).await;
    let root = tempfile::tempdir().unwrap();
    let cache = Cache::open(root.path().join("cache")).unwrap();
    cache.add(&manifest, None).unwrap();
    let trusted = root.path().join("trusted.pem");
    std::fs::write(&trusted, certificate).unwrap();
    let mut command = kill::command(&cache, &manifest, &format!("https://localhost:{port}/models/tiny"));
    command.env("SSL_CERT_FILE", &trusted).env_remove("SSL_CERT_DIR");
    let ended = tokio::task::spawn_blocking(move || command.status()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(77), "it gets done");
    let everything = Wanted::everything(&manifest.config);
    let cached = Model::open(cache.model_path(manifest.hash())).unwrap();
    assert_same(&Model::open(folder.path()).unwrap(), &cached, everything);
}
