//! A server that does what no stand-in for AWS can: be out of order.

use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http::Request;

/// What becomes of a request.
pub(crate) enum Reply {
    /// An answer with a status, headers and a body.
    Answer(u16, Vec<(&'static str, &'static str)>, String),
    /// Whatever the server at this address says.
    Forward(String),
    /// Nothing, ever.
    Hang,
    /// The end of the connection.
    Close,
}

impl Reply {
    /// An error in the protocol of Secrets Manager and SSM.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"__type":"{code}","message":"{message}"}}"#);
        Self::Answer(
            status,
            vec![("content-type", "application/x-amz-json-1.1")],
            body,
        )
    }

    /// An error in the protocol of STS.
    pub(crate) fn sts_error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
             <RequestId>0815</RequestId></ErrorResponse>"
        );
        Self::Answer(status, vec![("content-type", "text/xml")], body)
    }

    /// A secret, as Secrets Manager gives it.
    pub(crate) fn secret(name: &str, value: &str) -> Self {
        let body = format!(
            r#"{{"ARN":"arn:aws:secretsmanager:us-west-2:123456789012:secret:{name}-AbCdEf","Name":"{name}","SecretString":"{value}","VersionId":"7b1a4d3e-0c4b-4c39-9d5c-2f8f1b1d7a10"}}"#
        );
        Self::Answer(200, vec![], body)
    }

    pub(crate) fn throttle() -> Self {
        Self::error(400, "ThrottlingException", "Rate exceeded")
    }

    pub(crate) fn broken() -> Self {
        Self::error(500, "InternalServiceError", "oh")
    }
}

/// Answers on a port of its own until it is dropped.
pub(crate) struct Stub {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Stub {
    /// `reply` is asked with the region (the first part of the path) and the request.
    pub(crate) async fn start(
        reply: impl Fn(&str, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let (reply, sees) = (Arc::new(reply), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (reply, sees) = (reply.clone(), sees.clone());
                tokio::spawn(async move {
                    let Some(request) = Request::read(&mut stream).await else {
                        return;
                    };
                    sees.lock().unwrap().push(request.clone());
                    let region = request.path.split('/').nth(1).unwrap_or_default();
                    let answer = match reply(region, &request) {
                        Reply::Answer(status, headers, body) => {
                            let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\n");
                            for (name, value) in headers {
                                head += &format!("{name}: {value}\r\n");
                            }
                            let length = body.len();
                            format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
                        }
                        Reply::Forward(to) => {
                            let path = "/".to_owned();
                            let request = Request { path, ..request };
                            request.send(&to).await.unwrap_or_default()
                        }
                        Reply::Hang => std::future::pending().await,
                        Reply::Close => return,
                    };
                    // Whoever asked may be gone.
                    let _ = stream.write_all(&answer).await;
                });
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How often an operation was asked for in a region.
    pub(crate) fn count(&self, region: &str, operation: &str) -> usize {
        let seen = self.seen();
        let is_it = |request: &&Request| {
            request.path.split('/').nth(1) == Some(region) && request.operation() == operation
        };
        seen.iter().filter(is_it).count()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}
