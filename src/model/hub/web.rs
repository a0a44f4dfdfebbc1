//! HTTP requests to the hub and its stores: where the token is sent, timeouts, and limits on length.
//!
//! Redirects are followed here, not by the HTTP library. The token is sent to the hub's own scheme, host and port, and
//! not again once a chain of redirects has left it. Every wait has a limit: a server that is silent, slower than
//! [`SLOWEST`], or redirects without end gives an error.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, SendBody};
use url::Url;

use super::settings;
use selfrepair_core::plain::visible;
use selfrepair_core::untrusted::without_panic;
use selfrepair_core::{interrupt, progress};

/// As many redirects are followed.
const REDIRECTS: usize = 5;

/// Bytes a second below which a server counts as stuck.
const SLOWEST: u64 = 1000;

/// How often a request is sent before the server is given up.
pub const ATTEMPTS: u32 = 4;

/// How long a question that is sent may be thought about.
pub const QUESTION: Duration = Duration::from_secs(20);

/// The longest that an answer which is no file may take as a whole.
pub const TOTAL: Duration = Duration::from_secs(45);

/// The longest JSON that is read: in memory it takes many times as much.
const LONGEST_TEXT: u64 = 16 << 20;

/// What the hub says of a file, wherever it then sends us for the bytes.
pub const IDENTITY: [&str; 4] = ["x-repo-commit", "x-linked-etag", "etag", "x-linked-size"];

/// A hub, and who may be told what.
pub struct Web {
    pub endpoint: Url,
    token: Option<String>,
    agent: Agent,
    patience: Duration,
}

/// A request that had no answer, or one that cannot be used.
#[derive(Debug)]
pub struct Failure {
    /// The server's status, if it is that which cannot be used.
    pub status: Option<u16>,
    /// Never with the token in it.
    pub text: String,
    pub again: Again,
}

/// Whether the same request may succeed in a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    Never,
    /// If this one brought something: the server is stuck.
    AfterProgress,
    Soon,
}

/// An answer with any status that is no redirect.
pub struct Answer {
    pub response: Response<Body>,
    /// What the hub itself said on the way ([`IDENTITY`]).
    pub hub: HeaderMap,
}

impl Web {
    pub fn new(token: Option<String>) -> Result<Self> {
        let patience = settings::patience()?;
        let some = Some(patience);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("pipeline/", env!("CARGO_PKG_VERSION")))
            // A compressed answer has another length than the file.
            .accept_encoding("identity")
            .timeout_resolve(some)
            .timeout_connect(some)
            .timeout_send_request(some)
            .timeout_recv_response(some)
            .timeout_per_read(some)
            .timeout_per_write(some);
        let agent = without_panic(|| Ok(config.build().new_agent()))?;
        Ok(Self { endpoint: settings::endpoint()?, token, agent, patience })
    }

    /// An address below the hub's. `path` is what stands in an address: see [`encoded`].
    pub fn at_hub(&self, path: &str) -> Result<Url> {
        let base = self.endpoint.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/{path}")).map_err(|e| anyhow!("{base}/{path} is not an address: {e}"))
    }

    /// Whether an address has the hub's own scheme, host and port.
    pub fn is_at_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Asks for a file or a part of it, following redirects.
    pub fn get(&self, url: &Url, range: Option<&str>) -> Result<Answer, Failure> {
        let (mut at, mut at_hub, mut hub) = (url.clone(), true, HeaderMap::new());
        for _ in 0..=REDIRECTS {
            at_hub &= self.is_at_hub(&at);
            let response = self.call(|| {
                let mut request = self.agent.get(at.as_str());
                if let Some(token) = self.token.as_ref().filter(|_| at_hub) {
                    request = request.header("authorization", format!("Bearer {token}"));
                }
                range.iter().fold(request, |r, range| r.header("range", *range)).call()
            })?;
            if at_hub {
                let said = IDENTITY.iter().filter_map(|&name| Some((name, response.headers().get(name)?.clone())));
                said.for_each(|(name, value)| drop(hub.insert(name, value)));
            }
            if !is_redirect(&response) {
                return Ok(Answer { response, hub });
            }
            at = self.target(&at, &response)?;
        }
        Err(Failure::lasting(format!("the hub redirects more than {REDIRECTS} times")))
    }

    /// Sends a text and waits so long for the answer. The token goes along if that is wanted and the address is the hub's.
    pub fn post(
        &self,
        url: &Url,
        content_type: &str,
        accept: &str,
        text: &str,
        wait: Duration,
        with_token: bool,
    ) -> Result<Response<Body>, Failure> {
        let response = self.call(|| {
            let mut request = self.agent.post(url.as_str()).header("accept", accept).content_type(content_type);
            if let Some(token) = self.token.as_ref().filter(|_| with_token && self.is_at_hub(url)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let config = request.config().timeout_send_body(self.to_send(text.len() as u64));
            config.timeout_recv_response(Some(wait.max(self.patience))).build().send(text)
        })?;
        self.not_elsewhere(url, response)
    }

    /// Stores `size` bytes. The token never goes along: the address is the permission.
    pub fn put(
        &self,
        url: &Url,
        headers: &[(String, String)],
        bytes: &mut dyn Read,
        size: u64,
    ) -> Result<Response<Body>, Failure> {
        let response = self.call(|| {
            let request = headers.iter().fold(self.agent.put(url.as_str()), |r, (k, v)| r.header(k, v));
            let request = request.header("content-length", size.to_string());
            let config = request.config().timeout_send_body(self.to_send(size)).timeout_recv_response(Some(TOTAL));
            config.build().send(SendBody::from_reader(bytes))
        })?;
        self.not_elsewhere(url, response)
    }

    /// How long sending may take, at ten times the slowest that is read.
    fn to_send(&self, size: u64) -> Option<Duration> {
        Some(TOTAL.min(3 * self.patience) + Duration::from_secs(size / (10 * SLOWEST)))
    }

    fn call(&self, send: impl FnOnce() -> Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, Failure> {
        let began = Instant::now();
        match without_panic(|| Ok(send())) {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failure(&error, began.elapsed())),
            Err(_) => Err(Failure::lasting("the answer is malformed".into())),
        }
    }

    /// What went wrong, as a user can understand it.
    fn failure(&self, error: &ureq::Error, waited: Duration) -> Failure {
        let silent = || Failure::stuck(format!("no answer within {} s", waited.as_secs().max(1)));
        match error {
            ureq::Error::Timeout(ureq::Timeout::SendBody | ureq::Timeout::PerWrite) => {
                Failure::stuck("the server receives too slowly".into())
            }
            ureq::Error::Timeout(_) => silent(),
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => silent(),
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                Failure { again: Again::Soon, ..Failure::lasting(self.without_token(&error.to_string())) }
            }
            _ => Failure::lasting(self.without_token(&error.to_string())),
        }
    }

    /// Where a redirect leads.
    fn target(&self, at: &Url, response: &Response<Body>) -> Result<Url, Failure> {
        let status = response.status().as_u16();
        let location = response.headers().get("location").and_then(|l| std::str::from_utf8(l.as_bytes()).ok());
        let location = location.ok_or_else(|| {
            Failure::lasting(format!("the server answers {status} (moved) and does not say where to (no Location)"))
        })?;
        let url = at.join(location).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        let mut url = url.ok_or_else(|| {
            Failure::lasting(format!(
                "the server redirects ({status}) to an invalid \
            address"
            ))
        })?;
        if at.scheme() == "https" && url.scheme() != "https" {
            let host = url.host_str().unwrap_or_default();
            return Err(Failure::lasting(format!(
                "the server redirects to {host} without encryption, which is refused"
            )));
        }
        // Whose they are is not known; they are sent to nobody.
        url.set_username("").ok();
        url.set_password(None).ok();
        Ok(url)
    }

    /// What is sent is sent to one address: an answer from another one says nothing about it.
    fn not_elsewhere(&self, at: &Url, response: Response<Body>) -> Result<Response<Body>, Failure> {
        if !is_redirect(&response) {
            return Ok(response);
        }
        let to = self.target(at, &response)?;
        let to = self.without_token(&format!("{}{}", to.origin().ascii_serialization(), to.path()));
        Err(Failure::lasting(format!(
            "the server redirects to {to}, which is not followed; name that place instead (HF_ENDPOINT, hf:owner/name)"
        )))
    }

    /// A reader of an answer's body that ends with an error when the server gets stuck.
    pub fn body(&self, response: Response<Body>) -> Paced<impl Read> {
        Paced::new(response.into_body().into_reader(), self.patience, None)
    }

    /// The whole of a short answer.
    pub fn text(&self, response: Response<Body>, longest: u64) -> Result<Vec<u8>, Failure> {
        let until = Instant::now() + TOTAL;
        let mut reader = Paced::new(response.into_body().into_reader(), self.patience, Some(until)).take(longest + 1);
        let mut bytes = Vec::new();
        let read = without_panic(|| Ok(reader.read_to_end(&mut bytes)));
        match read {
            Ok(Ok(_)) if bytes.len() as u64 > longest => {
                Err(Failure::lasting(format!("the answer is longer than {}", progress::bytes(longest))))
            }
            Ok(Ok(_)) => Ok(bytes),
            Ok(Err(e)) => Err(self.broken(&e)),
            Err(_) => Err(Failure::lasting("the answer is malformed".into())),
        }
    }

    /// JSON of at most [`LONGEST_TEXT`].
    pub fn json<T: serde::de::DeserializeOwned>(&self, response: Response<Body>) -> Result<T, Failure> {
        let text = self.text(response, LONGEST_TEXT)?;
        serde_json::from_slice(&text)
            .map_err(|e| Failure::lasting(self.without_token(&format!("the answer is not what a hub says ({e})"))))
    }

    /// A body that ended too early.
    pub fn broken(&self, error: &io::Error) -> Failure {
        match error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>()) {
            Some(error) => self.failure(error, self.patience),
            None if error.kind() == io::ErrorKind::TimedOut => Failure::stuck(error.to_string()),
            None => Failure { again: Again::Soon, ..Failure::lasting(self.without_token(&error.to_string())) },
        }
    }

    /// Sends until there is an answer that is not the server's own error, a few times.
    pub fn persist<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
        status: impl Fn(&T) -> u16,
    ) -> Result<T, Failure> {
        let mut number = 1;
        loop {
            let answer = attempt();
            let failed = match &answer {
                Ok(answer) if status(answer) < 500 && status(answer) != 429 => None,
                Ok(answer) => Some(format!("the server answers {}", status(answer))),
                Err(failure) if failure.again != Again::Soon => None,
                Err(failure) => Some(failure.text.clone()),
            };
            match failed.filter(|_| number < ATTEMPTS) {
                Some(text) => pause(what, &text, number)?,
                None => return answer,
            }
            number += 1;
        }
    }

    pub fn without_token(&self, text: &str) -> String {
        match &self.token {
            Some(token) => text.replace(token.as_str(), "…"),
            None => text.to_string(),
        }
    }
}

/// Tells the user and waits before the next attempt; `number` is that of the attempt that failed.
pub fn pause(what: &str, text: &str, number: u32) -> Result<(), Failure> {
    let text = visible(text);
    progress::line("hub", &format!("{what}: {text}; trying again ({} of {ATTEMPTS})", number + 1));
    // In steps, so that Ctrl-C is heard.
    for _ in 0..(3 << number.min(6)) {
        interrupt::check().map_err(|_| Failure::lasting("interrupted".into()))?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl Failure {
    /// One that the same request would meet again.
    pub fn lasting(text: String) -> Self {
        Self { status: None, text, again: Again::Never }
    }

    /// The server sends, or takes, nothing or next to nothing.
    pub fn stuck(text: String) -> Self {
        Self { again: Again::AfterProgress, ..Self::lasting(text) }
    }

    pub fn of_status(status: u16) -> Self {
        let again = if status >= 500 || status == 429 { Again::Soon } else { Again::Never };
        Self { status: Some(status), text: format!("the server answers {status}"), again }
    }
}

fn is_redirect(response: &Response<Body>) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A name as it stands in an address; slashes stay.
pub fn encoded(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Reads what a server sends as long as it sends something worth waiting for.
pub struct Paced<R> {
    inner: R,
    patience: Duration,
    /// When all of it must be there.
    until: Option<Instant>,
    /// When the present stretch began, and what came since.
    since: Instant,
    bytes: u64,
}

impl<R: Read> Paced<R> {
    fn new(inner: R, patience: Duration, until: Option<Instant>) -> Self {
        Self { inner, patience, until, since: Instant::now(), bytes: 0 }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        let stretch = self.since.elapsed();
        if read > 0 && stretch >= self.patience {
            if self.bytes < SLOWEST * stretch.as_secs() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server sends less than 1 kB per second"));
            }
            (self.since, self.bytes) = (Instant::now(), 0);
        }
        if read > 0 && self.until.is_some_and(|until| Instant::now() > until) {
            let text = format!("the answer is not complete after {} s", TOTAL.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte a time, each after a while.
    struct Drip(Duration);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(self.0);
            buffer[0] = b'x';
            Ok(1)
        }
    }

    #[test]
    fn a_body_that_drips_is_an_error_and_not_a_wait() {
        let mut reader = Paced::new(Drip(Duration::from_millis(50)), Duration::from_secs(1), None);
        let began = Instant::now();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("less than 1 kB per second"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn an_answer_that_does_not_end_is_an_error() {
        let until = Some(Instant::now() + Duration::from_millis(100));
        let mut reader = Paced::new(io::repeat(0), Duration::from_secs(10), until);
        assert!(io::copy(&mut reader, &mut io::sink()).unwrap_err().to_string().contains("not complete"));
    }

    fn web(endpoint: &str) -> Web {
        Web { endpoint: Url::parse(endpoint).unwrap(), ..Web::new(Some("hf_secret".into())).unwrap() }
    }

    #[test]
    fn another_scheme_host_or_port_is_another_place() {
        let web = web("https://hub.example/below");
        let is_at_hub = |url: &str| web.is_at_hub(&Url::parse(url).unwrap());
        assert!(is_at_hub("https://hub.example/api") && is_at_hub("https://hub.example:443/api"));
        for elsewhere in
            ["http://hub.example/", "https://hub.example:8443/", "https://hub.example.evil/", "https://x@evil/"]
        {
            assert!(!is_at_hub(elsewhere), "{elsewhere}");
        }
        assert_eq!(web.at_hub("api/x").unwrap().as_str(), "https://hub.example/below/api/x");
    }

    #[test]
    fn redirects_lose_no_encryption_and_carry_no_password() {
        let at = Url::parse("https://hub.example/a/b").unwrap();
        let web = web("https://hub.example");
        let target = |location: &str| {
            let answer = Response::builder().status(302).header("location", location).body(Body::builder().data(""));
            web.target(&at, &answer.unwrap()).map(String::from).map_err(|f| f.text)
        };
        assert_eq!(target("/c?d").unwrap(), "https://hub.example/c?d");
        assert_eq!(target("//other/c").unwrap(), "https://other/c");
        assert_eq!(target("https://me:password@other/c").unwrap(), "https://other/c");
        assert!(target("http://other/c").unwrap_err().contains("without encryption"));
        for none in ["ftp://other/c", "javascript:x", "https://", "http://["] {
            assert!(target(none).unwrap_err().contains("invalid address"), "{none}");
        }
    }

    #[test]
    fn names_are_encoded_and_stay_below_their_folder() {
        assert_eq!(encoded("data/train-00.parquet"), "data/train-00.parquet");
        assert_eq!(encoded("a b?c#d%e"), "a%20b%3Fc%23d%25e");
        assert_eq!(encoded("é\n"), "%C3%A9%0A");
    }
}
