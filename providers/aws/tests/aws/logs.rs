//! What the log of the node may show (O1, O2).

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use crate::harness::{WEST, caller, files, provider, settings, source, these};
use crate::servers::Moto;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
#[ignore = "needs moto: cargo xtask test"]
async fn rule_o1_no_secret_is_logged_at_any_level_and_odd_fields_once() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let _logs = tracing::subscriber::set_default(subscriber);
    let moto = Moto::start().await;
    moto.server.secret(WEST, "db", "canary-value").await;
    moto.server.parameter(WEST, "/p", "canary-parameter").await;
    let objects = "
- {objectName: db, objectType: secretsmanager, backupArn: canary-value}
- {objectName: /p, objectType: ssmparameter}";
    let provider = provider(settings(&moto.server.address));
    let caller = caller("shop", "web");
    let expected = these(&[("db", "canary-value"), ("_p", "canary-parameter")]);
    for _ in 0..2 {
        let source = source(&provider, objects, &[]);
        assert_eq!(files(&*source, &caller).await, expected);
    }
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("aws_"), "the SDK logs, too");
    let token = caller.token.unwrap();
    for secret in ["canary", token.expose(), "SecretAccessKey"] {
        let told: Vec<_> = log.lines().filter(|line| line.contains(secret)).collect();
        assert!(told.is_empty(), "{told:?}");
    }
    let odd = log.matches("means nothing and is ignored").count();
    assert_eq!((odd, log.matches("objects[0].backupArn").count()), (1, 1));
}
