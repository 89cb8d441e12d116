//! Whom a store has to prove to be.

use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// The certificates that a class trusts instead of the machine's.
#[derive(Clone)]
pub(crate) struct Ca {
    roots: Arc<RootCertStore>,
    fingerprint: String,
}

impl Ca {
    /// Reads one or more certificates. The problem completes a sentence about where they stand.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, &'static str> {
        const PROBLEM: &str = "must be PEM with at least one certificate";
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| PROBLEM)?;
            roots.add(certificate).map_err(|_| PROBLEM)?;
        }
        if roots.is_empty() {
            return Err(PROBLEM);
        }
        Ok(Self {
            roots: Arc::new(roots),
            fingerprint: hex(digest(&SHA256, pem).as_ref()),
        })
    }
}

/// Who the driver is to a store that asks.
pub(crate) struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Client {
    /// Reads a certificate and its key. The problem completes a sentence about the certificate's file.
    pub(crate) fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, &'static str> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let client = Self {
            chain: chain.map_err(|_| "must be PEM with a certificate")?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(|_| "must have a key that is PEM")?,
        };
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        // Sooner than at the first request somebody is there to see that they are not a pair.
        CertifiedKey::from_der(client.chain.clone(), client.key.clone_key(), &provider)
            .map_err(|_| "must be a certificate with its own key")?;
        Ok(client)
    }
}

/// How a class wants the store's certificate looked at.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// The machine's roots where there is none.
    pub(crate) ca: Option<Ca>,
    /// The name in the certificate, where it is not the one in the address.
    pub(crate) server_name: Option<String>,
    /// Nothing is looked at.
    pub(crate) insecure: bool,
    /// What is shown where the store asks. It depends on the address alone.
    pub(crate) client: Option<Arc<Client>>,
}

impl Tls {
    /// The same text for the same trust, empty for what everybody has.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = String::new();
        if let Some(ca) = &self.ca {
            text.push_str(" ca=");
            text.push_str(&ca.fingerprint);
        }
        if let Some(name) = &self.server_name {
            text.push_str(" server-name=");
            text.push_str(name);
        }
        if self.insecure {
            text.push_str(" insecure");
        }
        text
    }

    /// What it comes to. `Err` says what is wrong with the machine.
    pub(crate) fn config(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = if self.insecure {
            let anybody = Arc::new(Anybody(provider));
            builder
                .dangerous()
                .with_custom_certificate_verifier(anybody)
        } else {
            let roots = match &self.ca {
                Some(ca) => ca.roots.clone(),
                None => machine_roots()?,
            };
            builder.with_root_certificates(roots)
        };
        match &self.client {
            None => Ok(builder.with_no_client_auth()),
            Some(client) => builder
                .with_client_auth_cert(client.chain.clone(), client.key.clone_key())
                .map_err(|error| error.to_string()),
        }
    }
}

fn machine_roots() -> Result<Arc<RootCertStore>, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this machine has no CA certificates".to_owned());
    }
    Ok(Arc::new(roots))
}

/// The administrator's `allow_insecure_tls`: believes every certificate. What is signed with it is
/// still checked, so that whoever answers at least has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
