//! What was typed for the provider aws.

use std::path::PathBuf;

use clap::Args;

/// The flags of the provider aws. They are used as they are: the provider checks them.
#[derive(Args, Clone, Debug, Default)]
pub struct AwsArgs {
    /// Region of classes that name none; without it, the one in the node's label
    /// topology.kubernetes.io/region
    #[arg(long, env = "COFFER_AWS_REGION")]
    pub aws_region: Option<String>,

    /// Use the endpoints that are validated by FIPS
    #[arg(long, env = "COFFER_AWS_FIPS")]
    pub aws_fips: bool,

    /// Audience that ServiceAccounts may name in their annotation eks.amazonaws.com/audience, as often as
    /// needed. Their tokens for it are sent to STS and to nobody else
    #[arg(long, env = "COFFER_AWS_AUDIENCE", value_delimiter = ',')]
    pub aws_audience: Vec<String>,

    /// Address of Secrets Manager instead of AWS's own; {region} stands for the region
    #[arg(long, env = "COFFER_AWS_ENDPOINT_SECRETSMANAGER")]
    pub aws_endpoint_secretsmanager: Option<String>,

    /// Address of Parameter Store instead of AWS's own; {region} stands for the region
    #[arg(long, env = "COFFER_AWS_ENDPOINT_SSM")]
    pub aws_endpoint_ssm: Option<String>,

    /// Address of STS instead of AWS's own; {region} stands for the region
    #[arg(long, env = "COFFER_AWS_ENDPOINT_STS")]
    pub aws_endpoint_sts: Option<String>,

    /// Address of the EKS Pod Identity agent by IPv4, if it is not http://169.254.170.23
    #[arg(long, env = "COFFER_AWS_POD_IDENTITY_IPV4")]
    pub aws_pod_identity_ipv4: Option<String>,

    /// Address of the EKS Pod Identity agent by IPv6, if it is not http://[fd00:ec2::23]
    #[arg(long, env = "COFFER_AWS_POD_IDENTITY_IPV6")]
    pub aws_pod_identity_ipv6: Option<String>,

    /// PEM file with the CAs that AWS's endpoints are trusted by; without it, the roots of the image
    #[arg(long, env = "COFFER_CA_FILE")]
    pub ca_file: Option<PathBuf>,
}
