//! The flags of the providers vault and openbao.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

/// The flags of the providers vault and openbao. They are used as they are: the provider checks them.
#[derive(Args, Clone, Debug, Default)]
pub struct VaultArgs {
    /// The store of classes that name none, as https://vault.example:8200
    #[arg(long, env = "COFFER_VAULT_ADDR")]
    pub vault_addr: Option<String>,

    /// Address that classes may send tokens to, as often as needed; http and addresses of the node only
    /// where they are named here. Without any: every https address but those
    #[arg(long, env = "COFFER_VAULT_ADDRESS", value_delimiter = ',')]
    pub vault_address: Vec<String>,

    /// IP address of the node, for a driver that does not see its interfaces: classes may not send tokens there
    #[arg(long, env = "COFFER_NODE_ADDRESSES", value_delimiter = ',')]
    pub node_addresses: Vec<IpAddr>,

    /// Namespace of classes that name none
    #[arg(long, env = "COFFER_VAULT_NAMESPACE")]
    pub vault_namespace: Option<String>,

    /// Auth mount of classes that name none; kubernetes if not given
    #[arg(long, env = "COFFER_VAULT_MOUNT")]
    pub vault_mount: Option<String>,

    /// Audience of classes that name none; vault or openbao, as the provider, if not given
    #[arg(long, env = "COFFER_VAULT_AUDIENCE")]
    pub vault_audience: Option<String>,

    /// Namespace that classes may use, with all below it; without any, all of them
    #[arg(long, env = "COFFER_VAULT_ALLOWED_NAMESPACE", value_delimiter = ',')]
    pub vault_allowed_namespace: Vec<String>,

    /// Mount that classes may read from; without any, all of them
    #[arg(long, env = "COFFER_VAULT_ALLOWED_MOUNT", value_delimiter = ',')]
    pub vault_allowed_mount: Vec<String>,

    /// PEM file with the CA of stores; without it, the roots of the image
    #[arg(long, env = "COFFER_VAULT_TLS_CA_CERT")]
    pub vault_tls_ca_cert: Option<PathBuf>,

    /// PEM file that classes may name as their CA
    #[arg(long, env = "COFFER_VAULT_CA_FILE", value_delimiter = ',')]
    pub vault_ca_file: Vec<PathBuf>,

    /// PEM file with the certificate of the driver, for stores that ask it who it is
    #[arg(
        long,
        env = "COFFER_VAULT_TLS_CLIENT_CERT",
        requires = "vault_tls_client_key"
    )]
    pub vault_tls_client_cert: Option<PathBuf>,

    /// PEM file with the key of that certificate
    #[arg(
        long,
        env = "COFFER_VAULT_TLS_CLIENT_KEY",
        requires = "vault_tls_client_cert"
    )]
    pub vault_tls_client_key: Option<PathBuf>,

    /// File with the key of the versions in status objects, the data of the Secret vault-csi-provider-hmac-key:
    /// versions are those of vault-csi-provider. Without it they are the store's own
    #[arg(long, env = "COFFER_VAULT_VERSION_KEY_FILE")]
    pub vault_version_key_file: Option<PathBuf>,

    /// Has stores tell of changes of KV secrets: Vault Enterprise, with a policy for sys/events/subscribe/kv*.
    /// They are in the volumes at once then, and looked at in each interval all the same; with the
    /// strategy Watch of a class, only every ten minutes
    #[arg(long, env = "COFFER_VAULT_EVENTS")]
    pub vault_events: bool,

    /// File with a key of the cluster, for versions of what has none in its store: the same on every node, and
    /// telling nothing of the content. Without it, such versions are the process's own
    #[arg(long, env = "COFFER_CLUSTER_KEY_FILE")]
    pub cluster_key_file: Option<PathBuf>,

    /// Lets classes switch off the verification of certificates
    #[arg(long, env = "COFFER_ALLOW_INSECURE_TLS")]
    pub allow_insecure_tls: bool,
}
