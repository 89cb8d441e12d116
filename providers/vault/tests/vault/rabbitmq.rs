//! The server whose users OpenBao's RabbitMQ engine makes: it sees every user come and go.

use std::time::Duration;

use serde_json::json;

use crate::bao::Bao;
use crate::stand_in::{Say, StandIn};

/// Enables the engine at `rabbitmq`, with the role `app`. Leases have these lives.
pub(crate) async fn enable_rabbitmq(bao: &Bao, ttl: &str, max_ttl: &str) -> StandIn {
    let users = StandIn::start(|seen| match seen.method.as_str() {
        "GET" => Say::Json(200, json!([])),
        _ => Say::status(204, "", ""),
    })
    .await;
    bao.put("sys/mounts/rabbitmq", json!({"type": "rabbitmq"}))
        .await;
    let connection = json!({"connection_uri": users.url(), "username": "a", "password": "b"});
    bao.put("rabbitmq/config/connection", connection).await;
    let lease = json!({"ttl": ttl, "max_ttl": max_ttl});
    bao.put("rabbitmq/config/lease", lease).await;
    let vhosts = r#"{"/":{"write":".*","read":".*"}}"#;
    bao.put("rabbitmq/roles/app", json!({"vhosts": vhosts}))
        .await;
    users.asked();
    users
}

/// How many users were made, and how many were ended again.
pub(crate) fn made_and_ended(users: &StandIn) -> (usize, usize) {
    let seen = users.seen();
    let count = |method: &str| {
        let users = seen
            .iter()
            .filter(|seen| seen.path.starts_with("/api/users/"));
        users.filter(|seen| seen.method == method).count()
    };
    (count("PUT"), count("DELETE"))
}

/// How many users there are.
pub(crate) fn alive(users: &StandIn) -> usize {
    let (made, ended) = made_and_ended(users);
    made - ended
}

/// Waits until there are so many users.
pub(crate) async fn until_alive(users: &StandIn, expected: usize) {
    for _ in 0..600 {
        if alive(users) == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} users are there, not {expected}", alive(users));
}
