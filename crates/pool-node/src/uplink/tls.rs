//! Whose certificates an orchestrator at `wss://` may show.

use std::sync::Arc;

use rustls::{ClientConfig, crypto::ring};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_tungstenite::Connector;

use crate::config::NodeError;

/// The certificates that this machine trusts. On Linux `SSL_CERT_FILE` may name others, for a pool with its own
/// authority.
///
/// The cryptography is named here: the dependencies bring two kinds, and rustls does not choose between them.
pub(crate) fn system_trust() -> Result<Connector, NodeError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(NodeError::Certificates)?;
    let config = builder.with_platform_verifier().map_err(NodeError::Certificates)?.with_no_client_auth();
    Ok(Connector::Rustls(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use alloy_primitives::{Address, B256};
    use alloy_signer_local::PrivateKeySigner;
    use futures::{SinkExt, StreamExt};
    use pool_types::{Holdings, ModelId};
    use pool_wire::control::{CONTROL_VERSION, Capabilities, ToNode, ToOrchestrator, decode, to_text};
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer},
    };
    use tokio::{net::TcpListener, sync::watch, time::timeout};
    use tokio_rustls::TlsAcceptor;
    use tokio_tungstenite::{accept_async, tungstenite::Message};

    use super::*;
    use crate::uplink::{Introduction, Uplink, UplinkEvent, endpoint};

    /// An orchestrator behind TLS for `localhost`: it registers whoever comes. Returns its certificate.
    async fn orchestrator() -> (SocketAddr, CertificateDer<'static>) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let Ok(mut socket) = accept_async(stream).await else { continue };
                let challenge = ToNode::Challenge { version: CONTROL_VERSION, nonce: B256::repeat_byte(7) };
                socket.send(Message::text(to_text(&challenge).unwrap())).await.unwrap();
                let Some(Ok(Message::Text(text))) = socket.next().await else { continue };
                let first: ToOrchestrator = decode(text.as_bytes()).unwrap();
                assert!(matches!(first, ToOrchestrator::Register(_)), "a node begins by registering");
                let welcome = ToNode::Registered { gateway: Address::ZERO };
                socket.send(Message::text(to_text(&welcome).unwrap())).await.unwrap();
                while socket.next().await.is_some_and(|message| message.is_ok()) {}
            }
        });
        (address, certificate)
    }

    fn uplink(address: &str, trust: Connector) -> Uplink {
        let introduction = Introduction {
            wallet: PrivateKeySigner::random(),
            name: "node".to_owned(),
            capabilities: Capabilities {
                device: "cpu".to_owned(),
                memory_bytes: 1 << 30,
                bandwidth_bytes_per_second: 1 << 30,
                threads: 1,
                uplink_bytes_per_second: None,
            },
            model: ModelId(B256::ZERO),
            holds: watch::channel(Holdings::default()).1,
        };
        Uplink::start(endpoint(address).unwrap(), trust, introduction)
    }

    fn trusting(certificate: CertificateDer<'static>) -> Connector {
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Connector::Rustls(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    #[tokio::test]
    async fn a_node_registers_over_tls_with_an_orchestrator_whose_certificate_counts_and_with_no_other() {
        let (address, certificate) = orchestrator().await;
        let by_name = format!("wss://localhost:{}", address.port());

        let mut registered = uplink(&by_name, trusting(certificate.clone()));
        let first = timeout(Duration::from_secs(5), registered.events.recv()).await.expect("it registers in time");
        assert!(matches!(first, Some(UplinkEvent::Up)), "a certificate that counts is taken");

        let mut stranger = uplink(&by_name, system_trust().unwrap());
        let another_name = format!("wss://127.0.0.1:{}", address.port());
        let mut misnamed = uplink(&another_name, trusting(certificate));
        let refused = timeout(Duration::from_secs(2), async {
            tokio::select! { _ = stranger.events.recv() => "unknown", _ = misnamed.events.recv() => "misnamed" }
        });
        assert!(refused.await.is_err(), "neither an unknown certificate nor one for another name registers");
    }
}
