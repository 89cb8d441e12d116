//! A store that does as a test says, and counts. It also stands before OpenBao to count there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn is_login(&self) -> bool {
        self.path.ends_with("/login")
    }
}

/// What to do with a request.
pub(crate) enum Say {
    Json(u16, Value),
    /// A whole answer, head and all.
    Raw(String),
    /// A body without an end.
    Endless,
    /// A byte now and then.
    Trickle,
    /// A head without an end.
    EndlessHead,
    Silence,
    /// The same, after a while.
    Late(Duration, Box<Say>),
    /// What another server says.
    Forward(SocketAddr),
    /// A WebSocket with what is sent from now on, each a text; it is broken off by an empty one.
    Events(broadcast::Sender<String>),
}

impl Say {
    pub(crate) fn status(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::Raw(format!(
            "HTTP/1.1 {status} As Said\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ))
    }

    /// A login that succeeds.
    pub(crate) fn token() -> Self {
        Self::Json(
            200,
            json!({"auth": {"client_token": "s.canary", "lease_duration": 3600, "renewable": true, "token_type": "service"}}),
        )
    }
}

pub(crate) struct StandIn {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

type Handler = Arc<dyn Fn(&Seen) -> Say + Send + Sync>;

impl StandIn {
    pub(crate) async fn start(say: impl Fn(&Seen) -> Say + Send + Sync + 'static) -> Self {
        Self::start_with(None, say).await
    }

    /// Logs everybody in, and says this to all that comes after it.
    pub(crate) async fn after_login(say: impl Fn(&Seen) -> Say + Send + Sync + 'static) -> Self {
        Self::start(move |seen| match seen.is_login() {
            true => Say::token(),
            false => say(seen),
        })
        .await
    }

    /// Stands before another server and counts.
    pub(crate) async fn before(server: SocketAddr) -> Self {
        Self::start(move |_| Say::Forward(server)).await
    }

    pub(crate) async fn start_with(
        tls: Option<TlsAcceptor>,
        say: impl Fn(&Seen) -> Say + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let log = seen.clone();
        let say: Handler = Arc::new(say);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, say, tls) = (log.clone(), say.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &log, &say).await,
                        Some(tls) => {
                            let stream = tls.accept(stream).await?;
                            serve(stream, &log, &say).await
                        }
                    }
                });
            }
        });
        Self {
            address,
            scheme,
            seen,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The store's token of the last request.
    pub(crate) fn last_token(&self) -> String {
        self.seen().last().unwrap().headers["x-vault-token"].clone()
    }

    /// What was asked for since the last time, as `METHOD path`.
    pub(crate) fn asked(&self) -> Vec<String> {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.iter()
            .map(|seen| format!("{} {}", seen.method, seen.path))
            .collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    log: &Mutex<Vec<Seen>>,
    say: &Handler,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = request(&mut stream).await? {
        log.lock().unwrap().push(seen.clone());
        let mut said = say(&seen);
        while let Say::Late(wait, late) = said {
            tokio::time::sleep(wait).await;
            said = *late;
        }
        match said {
            Say::Late(..) => unreachable!("it was waited for"),
            Say::Json(status, body) => {
                let Say::Raw(answer) = Say::status(status, "", &body.to_string()) else {
                    unreachable!("a status is raw")
                };
                stream.write_all(answer.as_bytes()).await?;
            }
            Say::Raw(answer) => stream.write_all(answer.as_bytes()).await?,
            Say::Endless => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await?;
                let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk).await?;
                    stream.flush().await?;
                }
            }
            Say::Trickle => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    .await?;
                loop {
                    stream.write_all(b" ").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Say::EndlessHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                loop {
                    stream.write_all(b"a: b\r\n").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Say::Silence => std::future::pending().await,
            Say::Events(events) => return tell(stream, &seen, events.subscribe()).await,
            Say::Forward(server) => {
                let answer = ask(server, &seen).await?;
                stream.write_all(&answer).await?;
                // It ends with the connection.
                stream.flush().await?;
                return stream.shutdown().await;
            }
        }
        stream.flush().await?;
    }
    Ok(())
}

/// Says in frames what comes (RFC 6455), and does not look at what is said in return.
async fn tell(
    mut stream: BufReader<impl AsyncRead + AsyncWrite + Unpin>,
    seen: &Seen,
    mut events: broadcast::Receiver<String>,
) -> std::io::Result<()> {
    let understood = format!(
        "{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11",
        seen.headers["sec-websocket-key"]
    );
    let accept = digest(&SHA1_FOR_LEGACY_USE_ONLY, understood.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        STANDARD.encode(accept)
    );
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    while let Ok(text) = events.recv().await {
        if text.is_empty() {
            break;
        }
        let mut frame = vec![0x81];
        match text.len() {
            length @ ..126 => frame.push(length as u8),
            length @ ..0x10000 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(text.as_bytes());
        stream.write_all(&frame).await?;
        stream.flush().await?;
    }
    stream.shutdown().await
}

async fn request(
    stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>,
) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Seen {
        method,
        path,
        headers,
        body,
    }))
}

/// Asks another server, in HTTP/1.0 so that its answer ends with the connection.
pub(crate) async fn ask(server: SocketAddr, seen: &Seen) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut head = format!("{} {} HTTP/1.0\r\n", seen.method, seen.path);
    for (name, value) in &seen.headers {
        if name != "connection" && name != "content-length" {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", seen.body.len()));
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&seen.body).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}
