//! Requests to a bucket: no redirect is followed (it would receive the session token), every wait has a limit, and no
//! more is read than was requested.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long one answer may take as a whole, unless AWS_TIMEOUT says otherwise.
const TOTAL: Duration = Duration::from_secs(30);

/// How long a list may take with all its pages, and how many it may have; a page has a thousand names.
const LISTING: Duration = Duration::from_secs(30);
const PAGES: usize = 200;

/// Bytes of a file that is asked for without a range, of a range, of a page of a list, and of a refusal.
const WHOLE: usize = 64 << 20;
const RANGE: usize = 1 << 30;
const PAGE: usize = 2 << 20;
const REFUSAL: usize = 64 << 10;

/// Makes clients for `object_store`.
#[derive(Debug)]
pub struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let value = |key: ClientConfigKey| options.get_config_value(&key);
        let is = |key| value(key).is_some_and(|v| ["1", "true", "on", "yes", "y"].contains(&v.to_lowercase().as_str()));
        let duration = |key, default| value(key).and_then(|v| humantime::parse_duration(&v).ok()).unwrap_or(default);
        let failed = |text: &str| object_store::Error::Generic { store: "S3", source: text.into() };
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("pipeline/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(duration(ClientConfigKey::ConnectTimeout, PATIENCE).min(PATIENCE))
            .read_timeout(PATIENCE)
            .timeout(duration(ClientConfigKey::Timeout, TOTAL))
            .https_only(!is(ClientConfigKey::AllowHttp));
        if is(ClientConfigKey::AllowInvalidCertificates) {
            builder = builder.danger_accept_invalid_certs(true);
        }
        if let Some(proxy) = value(ClientConfigKey::ProxyUrl) {
            // The text may have a password.
            let proxy =
                reqwest::Proxy::all(proxy).map_err(|_| failed("AWS_PROXY_URL is not the address of a proxy"))?;
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(|e| failed(&e.to_string()))?;
        Ok(HttpClient::new(Bounded { client, listings: Mutex::default() }))
    }
}

#[derive(Debug)]
struct Bounded {
    client: reqwest::Client,
    /// When a list was begun, and how many of its pages were asked for.
    listings: Mutex<HashMap<String, (Instant, usize)>>,
}

#[async_trait]
impl HttpService for Bounded {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let range = request.headers().get("range").and_then(|r| r.to_str().ok());
        let asked = match request.uri().query().filter(|q| q.contains("list-type=2")) {
            Some(query) => {
                self.count(query)?;
                PAGE
            }
            None => range.map_or(WHOLE, |r| length(r).unwrap_or(WHOLE)).min(RANGE),
        };
        let response = HttpService::call(&self.client, request).await?;
        let (parts, body) = response.into_parts();
        // A server that does not know ranges sends the whole, which is found out before it is read.
        let most = if parts.status.is_success() { asked } else { REFUSAL };
        let body = Limited::new(body, most).map_err(move |e| match e.downcast::<HttpError>() {
            Ok(error) => *error,
            Err(_) => failed(&format!("the server sends more than the {most} bytes that it was asked for")),
        });
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

impl Bounded {
    /// Counts a page of a list.
    fn count(&self, query: &str) -> Result<(), HttpError> {
        let (next, same): (Vec<&str>, Vec<&str>) =
            query.split('&').partition(|parameter| parameter.starts_with("continuation-token="));
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let listing = listings.entry(same.join("&")).or_insert((Instant::now(), 0));
        if next.is_empty() {
            *listing = (Instant::now(), 0);
        }
        listing.1 += 1;
        match listing.1 > PAGES || listing.0.elapsed() > LISTING {
            true => Err(failed(&format!("the list of files does not end; {} pages were read", listing.1 - 1))),
            false => Ok(()),
        }
    }
}

/// An error that another attempt would meet again.
fn failed(text: &str) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, io::Error::other(text.to_string()))
}

/// How many bytes a range asks for: `bytes=0-7`, `bytes=-8`.
fn length(range: &str) -> Option<usize> {
    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end: usize = end.parse().ok()?;
    match start {
        "" => Some(end),
        start => end.checked_sub(start.parse().ok()?)?.checked_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_lengths() {
        assert_eq!(length("bytes=0-7"), Some(8));
        assert_eq!(length("bytes=-8"), Some(8));
        for wrong in ["bytes=8-", "bytes=9-1", "8", "bytes=-", "bytes=0-18446744073709551615"] {
            assert_eq!(length(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_list_without_an_end_is_an_error() {
        let service = Bounded { client: reqwest::Client::new(), listings: Mutex::default() };
        for _ in 0..3 {
            service.count("list-type=2&prefix=a").unwrap();
            (1..PAGES).for_each(|i| service.count(&format!("list-type=2&prefix=a&continuation-token={i}")).unwrap());
            service.count("list-type=2&prefix=b").unwrap();
        }
        let error = service.count("list-type=2&prefix=a&continuation-token=x").unwrap_err().to_string();
        assert!(error.contains("does not end"), "{error}");
    }
}
