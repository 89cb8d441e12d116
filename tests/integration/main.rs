//! The driver through its front door: the real binary, a real socket, a real tmpfs; the kubelet is
//! played. What needs a store that misbehaves runs the driver in this process with a scripted one.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test says what is wrong by failing"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test that starts itself again is told so in a variable"
)]

mod api_server;
mod attributes;
mod audit;
#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "aws")]
#[allow(dead_code, reason = "the tests of the provider need more of it")]
#[path = "../../providers/aws/tests/aws/servers.rs"]
mod aws_servers;
#[cfg(feature = "aws")]
#[allow(dead_code, reason = "the tests of the provider need more of it")]
#[path = "../../providers/aws/tests/aws/stub.rs"]
mod aws_stub;
mod bad_input;
#[allow(dead_code, reason = "the tests of the provider need more of it")]
#[path = "../../providers/vault/tests/vault/bao.rs"]
mod bao;
mod budget;
mod doctor;
mod events;
mod fake_api_server;
mod following;
mod handover;
mod harness;
#[cfg(feature = "aws")]
#[path = "../../providers/aws/tests/aws/http.rs"]
mod http;
mod identities;
mod labels;
mod lifecycle;
mod limits;
mod many;
mod moving_over;
mod plugins;
mod privileges;
mod publish;
#[allow(dead_code, reason = "the tests of the provider need more of it")]
#[path = "../../providers/vault/tests/vault/rabbitmq.rs"]
mod rabbitmq;
mod redaction;
mod render;
mod republish;
mod rotation;
mod scripted;
mod secrets_server;
mod served;
mod soak;
mod socket;
#[allow(dead_code, reason = "the tests of the provider need more of it")]
#[path = "../../providers/vault/tests/vault/stand_in.rs"]
mod stand_in;
mod statuses;
mod stuck_files;
mod superset;
mod sync;
mod vault;
mod vault_counted;
mod vault_hostile;
mod vault_identities;
mod vault_outage;
