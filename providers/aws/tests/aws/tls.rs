//! Whom a token is sent to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coffer_provider::ErrorKind;
use coffer_provider_aws::Settings;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::harness::{caller, certificate, error, provider, settings, source};

#[tokio::test]
async fn rule_s5_a_server_that_nobody_vouches_for_is_not_sent_a_token() {
    let own = certificate("127.0.0.1");
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = Arc::new(AtomicUsize::new(0));
    let sent = bytes.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = tls.accept(stream).await {
                let mut buffer = [0; 1024];
                sent.fetch_add(
                    stream.read(&mut buffer).await.unwrap_or(0),
                    Ordering::SeqCst,
                );
            }
        }
    });
    for (roots, is_sent) in [(certificate("127.0.0.1"), false), (own, true)] {
        let mut settings = Settings {
            roots: roots.cert.pem().into_bytes(),
            ..settings("nowhere.example")
        };
        settings.endpoints.sts = Some(format!("https://{address}"));
        let object = "- {objectName: db, objectType: secretsmanager}";
        let error = error(
            &*source(&provider(settings), object, &[]),
            &caller("shop", "web"),
        )
        .await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        assert_eq!(text.contains("certificate"), !is_sent, "{text}");
        assert_eq!(bytes.load(Ordering::SeqCst) > 0, is_sent);
    }
}
