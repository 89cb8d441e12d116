//! What the administrator decides.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::arn;

/// Settings of the provider.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The certificates to trust, in PEM. There is no default: what a process trusts is said.
    pub roots: Vec<u8>,
    /// The region for classes that name none; without it, it is the node's.
    pub region: Option<String>,
    /// Audiences that a ServiceAccount may name for its tokens (`eks.amazonaws.com/audience`) instead of
    /// `sts.amazonaws.com`.
    pub audiences: Vec<String>,
    /// Addresses that are not AWS's own.
    pub endpoints: Endpoints,
    /// The addresses of the EKS Pod Identity agent.
    pub pod_identity: PodIdentityAgent,
    /// Use the endpoints that are validated by FIPS.
    pub fips: bool,
    /// The longest that a connection may take to come about.
    pub connect_timeout: Duration,
    /// The longest that one request may take.
    pub timeout: Duration,
}

impl Settings {
    /// The defaults, with these certificates in PEM.
    #[must_use]
    pub fn new(roots: Vec<u8>) -> Self {
        Self {
            roots,
            region: None,
            audiences: Vec::new(),
            endpoints: Endpoints::default(),
            pod_identity: PodIdentityAgent::default(),
            fips: false,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(10),
        }
    }

    pub(crate) fn check(&self) -> Result<(), InvalidSettings> {
        if !self.region.iter().all(|region| arn::is_region(region)) {
            return Err(InvalidSettings::new(
                "region",
                "is not the name of a region",
            ));
        }
        let Endpoints {
            secrets_manager,
            parameter_store,
            sts,
        } = &self.endpoints;
        let PodIdentityAgent { ipv4, ipv6 } = &self.pod_identity;
        let addresses = [secrets_manager, parameter_store, sts];
        for address in addresses.into_iter().flatten().chain([ipv4, ipv6]) {
            if !address.starts_with("https://") && !address.starts_with("http://") {
                let problem = format!("{address} must start with https:// or http://");
                return Err(InvalidSettings::new("endpoint", &problem));
            }
        }
        Ok(())
    }

    /// The certificates that can be used: the SDK panics for one that cannot.
    pub(crate) fn checked_roots(&self) -> Result<Vec<u8>, InvalidSettings> {
        let mut store = RootCertStore::empty();
        let mut pem = String::new();
        for certificate in CertificateDer::pem_slice_iter(&self.roots).flatten() {
            if store.add(certificate.clone()).is_ok() {
                let text = STANDARD.encode(&certificate);
                pem += &format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
            }
        }
        if store.is_empty() {
            let problem =
                "there is no certificate in it to trust: AWS could not be told from anybody else";
            return Err(InvalidSettings::new("roots", problem));
        }
        Ok(pem.into_bytes())
    }
}

/// Addresses of services instead of AWS's own, for a private network: `{region}` stands for the region.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Of Secrets Manager.
    pub secrets_manager: Option<String>,
    /// Of Parameter Store (SSM).
    pub parameter_store: Option<String>,
    /// Of the Security Token Service.
    pub sts: Option<String>,
}

/// Where the EKS Pod Identity agent of the node listens.
#[derive(Clone, Debug)]
pub struct PodIdentityAgent {
    /// By IPv4.
    pub ipv4: String,
    /// By IPv6.
    pub ipv6: String,
}

impl Default for PodIdentityAgent {
    fn default() -> Self {
        Self {
            ipv4: "http://169.254.170.23".to_owned(),
            ipv6: "http://[fd00:ec2::23]".to_owned(),
        }
    }
}

/// Settings that cannot be.
#[derive(Debug)]
pub struct InvalidSettings(String);

impl InvalidSettings {
    pub(crate) fn new(setting: &str, problem: &str) -> Self {
        Self(format!("{setting} of the AWS provider: {problem}"))
    }
}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for InvalidSettings {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_are_named() {
        let good = || Settings::new(Vec::new());
        assert!(good().check().is_ok());
        let region = Settings {
            region: Some("us west".into()),
            ..good()
        };
        let mut endpoint = good();
        endpoint.endpoints.sts = Some("sts.example".into());
        for (settings, says) in [(region, "region of"), (endpoint, "endpoint of")] {
            let error = settings.check().expect_err(says).to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }

    #[test]
    fn without_a_certificate_nobody_is_trusted() {
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for roots in ["", "no PEM", broken] {
            let error = Settings::new(roots.into())
                .checked_roots()
                .expect_err(roots);
            assert!(error.to_string().starts_with("roots of"), "{error}");
        }
    }
}
