//! HTTP as far as these tests need it: one request for each connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came in, or goes out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            ..Self::default()
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(header, _)| header.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// The operation of AWS that it asks for, or its path.
    pub(crate) fn operation(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let form = body.strip_prefix("Action=");
        let action = form.and_then(|form| form.split('&').next());
        let target = self.header("x-amz-target");
        let target = target.and_then(|target| target.split('.').next_back());
        target.or(action).unwrap_or(&self.path).to_owned()
    }

    /// Reads one request; `None` where nobody sends one.
    pub(crate) async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let mut lines = text.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        let mut request = Self {
            method: first.next()?.to_owned(),
            path: first.next()?.to_owned(),
            headers: lines.filter_map(header).collect(),
            body: bytes.split_off(head + 4),
        };
        let length = request.header("content-length").unwrap_or("0");
        let length: usize = length.parse().ok()?;
        while request.body.len() < length {
            if stream.read_buf(&mut request.body).await.ok()? == 0 {
                return None;
            }
        }
        Some(request)
    }

    /// Sends it, and gives the whole answer as it came.
    pub(crate) async fn send(&self, address: &str) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address).await?;
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            let ours = ["connection", "content-length"];
            if !ours.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
                head += &format!("{name}: {value}\r\n");
            }
        }
        if self.header("host").is_none() {
            head += &format!("host: {address}\r\n");
        }
        let length = self.body.len();
        head += &format!("connection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&self.body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    /// Sends it, and gives status and body.
    pub(crate) async fn ask(&self, address: &str) -> std::io::Result<(u16, Vec<u8>)> {
        let answer = self.send(address).await?;
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let head = head.ok_or(std::io::ErrorKind::InvalidData)?;
        let text = String::from_utf8_lossy(&answer[..head]);
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.ok_or(std::io::ErrorKind::InvalidData)?;
        Ok((status, answer[head + 4..].to_vec()))
    }
}

/// Waits until a server answers.
pub(crate) async fn wait_for(address: &str, path: &str) {
    for _ in 0..1200 {
        if Request::new("GET", path).ask(address).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server at {address} did not start within a minute");
}
