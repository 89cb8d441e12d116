//! The provider at a real OpenBao (`bao.rs`), and at a stand-in for what that does not do
//! (`stand_in.rs`). Tests that need OpenBao are left out by a plain `cargo test`.

#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod auth;
mod bao;
mod conformance;
mod denials;
mod events;
mod given_back;
mod hostile;
mod kv;
mod leases;
mod once;
mod parameters;
mod pki;
mod rabbitmq;
mod stand_in;

use std::collections::BTreeMap;
use std::sync::Arc;

use coffer_provider::{Caller, Parameters, Provider as _, ProviderError, Secret, Source};
use coffer_provider_vault::{Settings, VaultProvider};

/// A provider that may ask these addresses.
fn provider(addresses: &[&str]) -> VaultProvider {
    VaultProvider::new(settings(addresses)).unwrap()
}

fn settings(addresses: &[&str]) -> Settings {
    Settings {
        address: addresses.first().map(|&address| address.to_owned()),
        allowed_addresses: addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect(),
        auth_mount: "jwt".to_owned(),
        ..Settings::default()
    }
}

/// A class of role `app` with these objects.
fn class(objects: &str) -> Parameters {
    with(&[], objects)
}

fn with(parameters: &[(&str, &str)], objects: &str) -> Parameters {
    let mut class: Parameters = BTreeMap::from([
        ("roleName".to_owned(), "app".to_owned()),
        ("objects".to_owned(), objects.to_owned()),
    ]);
    for (name, value) in parameters {
        class.insert((*name).to_owned(), (*value).to_owned());
    }
    class
}

fn source(provider: &VaultProvider, class: &Parameters) -> Arc<dyn Source> {
    match provider.source(class) {
        Ok(source) => source,
        Err(error) => panic!("{error}"),
    }
}

/// All objects of a source.
async fn read(source: &dyn Source, caller: &Caller) -> Vec<Result<Secret, ProviderError>> {
    source.fetch(caller, source.objects()).await
}

/// The only object of a source.
async fn read_one(source: &dyn Source, caller: &Caller) -> Result<Secret, ProviderError> {
    let mut answers = read(source, caller).await;
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

fn good(answer: Result<Secret, ProviderError>) -> Secret {
    answer.unwrap_or_else(|error| panic!("{error} ({:?})", error.detail()))
}

fn bad(answer: Result<Secret, ProviderError>) -> ProviderError {
    answer.err().expect("it must fail")
}

/// The files of a secret as text.
fn files(secret: &Secret) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let files = secret.files.iter();
    files
        .map(|file| (file.name.clone(), text(file.bytes.expose())))
        .collect()
}

/// The one file of a secret as text.
fn text(secret: &Secret) -> String {
    assert_eq!(secret.files.len(), 1);
    String::from_utf8(secret.files[0].bytes.expose().to_vec()).unwrap()
}
