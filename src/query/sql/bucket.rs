//! A run in an object store with the S3 interface.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::prelude::SessionContext;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use url::Url;

use super::requests::Connector;
use selfrepair_core::untrusted::without_panic;

/// Variables that name a server.
const SERVERS: [&str; 6] = [
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_METADATA_ENDPOINT",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Variables that are never shown.
const SECRETS: [&str; 3] = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_TOKEN"];

/// Variables that become a part of a request's head or of a host's name.
const WORDS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"];

pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// `s3://bucket/prefix`, without a slash at its end.
    url: String,
    prefix: Path,
    /// The server did not answer; it is not asked again for what can be done without.
    is_lost: AtomicBool,
    /// What was read, so that the records of a run are fetched once and not with every table.
    read: Mutex<BTreeMap<String, Option<Vec<u8>>>>,
}

impl Bucket {
    /// Credentials, region and endpoint are those of the environment, as other programs read them.
    ///
    /// # Errors
    /// If the address or the environment is not what S3 can be asked with.
    pub fn open(url: &str) -> Result<Self> {
        let (name, prefix) = parts(url)?;
        check_environment(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))?;
        let url = format!("s3://{name}{}{prefix}", if prefix.is_empty() { "" } else { "/" });
        without_panic(|| {
            let parsed =
                ListingTableUrl::parse(format!("{url}/")).with_context(|| format!("{url} is not understood"))?;
            let builder = AmazonS3Builder::from_env().with_bucket_name(&name).with_retry(patience());
            let store = builder.with_http_connector(Connector).build().map_err(|e| help(&url, &e))?;
            let prefix = parsed.prefix().clone();
            Ok(Self {
                store: Arc::new(store),
                prefix,
                url: url.clone(),
                is_lost: AtomicBool::new(false),
                read: Mutex::default(),
            })
        })
        .with_context(|| format!("cannot set up {url}"))
    }

    pub fn register(&self, context: &SessionContext) -> Result<()> {
        let place = ListingTableUrl::parse(&self.url)?.object_store();
        context.register_object_store(place.as_ref(), self.store.clone());
        Ok(())
    }

    pub async fn tables(&self) -> Result<BTreeSet<String>> {
        let folders = self.list("tables").await?.common_prefixes;
        let names = folders.iter().filter_map(|p| p.filename()).filter(|name| is_a_name(name));
        Ok(names.map(str::to_string).collect())
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of a table's folder, and its Parquet files.
    pub async fn table(&self, name: &str) -> Result<(String, Vec<String>)> {
        let files = self.list(&format!("tables/{name}")).await?.objects;
        let is_read = |p: &&Path| p.extension() == Some("parquet") && p.filename().is_some_and(is_a_name);
        let files = files.iter().map(|f| &f.location).filter(is_read);
        let names = files.filter_map(|p| p.filename().map(str::to_string)).collect();
        Ok((format!("{}/tables/{name}/", self.url), names))
    }

    /// Bytes of a table's files but some.
    pub async fn size(&self, name: &str, but: &[String]) -> Result<u64> {
        let files = self.list(&format!("tables/{name}")).await?.objects;
        let counts = |file: &&ObjectMeta| file.location.filename().is_none_or(|name| !but.iter().any(|b| b == name));
        Ok(files.iter().filter(counts).fold(0, |sum, file| sum.saturating_add(file.size)))
    }

    pub async fn read(&self, relative: &str) -> Option<Vec<u8>> {
        let known = self.read.lock().unwrap_or_else(PoisonError::into_inner).get(relative).cloned();
        if let Some(known) = known {
            return known;
        }
        let bytes = self.fetch(relative).await;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(relative.to_string(), bytes.clone());
        bytes
    }

    async fn fetch(&self, relative: &str) -> Option<Vec<u8>> {
        if self.is_lost.load(Relaxed) {
            return None;
        }
        let path = self.path(relative);
        let bytes = guarded(async { Ok(async { self.store.get(&path).await?.bytes().await }.await) });
        match bytes.await {
            Ok(Ok(bytes)) => Some(bytes.to_vec()),
            Ok(Err(object_store::Error::NotFound { .. })) => None,
            _ => {
                self.is_lost.store(true, Relaxed);
                None
            }
        }
    }

    async fn list(&self, relative: &str) -> Result<ListResult> {
        let path = self.path(relative);
        let list = async { self.store.list_with_delimiter(Some(&path)).await.map_err(|e| help(&self.url, &e)) };
        guarded(list).await.with_context(|| format!("cannot list {}/{relative}", self.url))
    }

    fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }
}

/// The bucket and the prefix of `s3://bucket/prefix`.
fn parts(url: &str) -> Result<(String, String)> {
    const EXPECTED: &str = "expected s3://bucket/prefix";
    let rest = url.split_once("://").map_or("", |(_, rest)| rest).trim_end_matches('/');
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    ensure!(!bucket.is_empty(), "the address s3:// names no bucket; {EXPECTED}");
    ensure!(
        !bucket.contains('@'),
        "the address of a bucket holds a user or a password; leave them out and set AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY"
    );
    let is_bucket = bucket.len() <= 255
        && bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
        && bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !bucket.contains("..");
    ensure!(is_bucket, "`{bucket}` in s3://{bucket} is not the name of a bucket; {EXPECTED}");
    for part in prefix.split('/').filter(|_| !prefix.is_empty()) {
        ensure!(
            is_a_name(part) && part != "." && part != "..",
            "`{part}` in s3://{bucket}/{prefix} cannot be a part of a prefix: it is empty, a dot, or has one of ? # * [ ] {{ }} \\ \
             or a control character; {EXPECTED}"
        );
    }
    Ok((bucket.to_string(), prefix.to_string()))
}

/// Whether a name means itself in an address that is read as one.
fn is_a_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_control() || "/\\?#*[]{}".contains(c))
}

/// That what the environment says can be used. Values are not shown: they may be secret, or be a password's place.
fn check_environment(variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    for name in SERVERS {
        let Some(value) = variable(name) else { continue };
        ensure!(!value.is_empty(), "{name} is empty; unset it, or set it to https://host or http://host:port");
        let url = Url::parse(&value).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        let url = url.with_context(|| {
            let shown = if value.contains('@') { String::new() } else { format!(" = \"{value}\"") };
            format!("{name}{shown} is not the address of a server; expected https://host or http://host:port")
        })?;
        ensure!(
            url.username().is_empty() && url.password().is_none(),
            "{name} holds a user or a password; leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        );
    }
    for name in WORDS.iter().chain(&SECRETS) {
        let value = variable(name).unwrap_or_default();
        let is_sent_as_it_is = value.bytes().all(|b| b.is_ascii_graphic());
        ensure!(is_sent_as_it_is, "{name} has a space, a line break or a character that cannot be sent; set it again");
    }
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        let Some(value) = variable(name) else { continue };
        let is_region = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        ensure!(is_region, "{name} = \"{value}\" is not the name of a region; expected something like us-east-1");
    }
    Ok(())
}

/// Awaits what a library makes of a server's answers. Where it panics on them, that is an error like any other.
async fn guarded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    poll_fn(|cx| without_panic(|| Ok(work.as_mut().poll(cx))).unwrap_or_else(|e| Poll::Ready(Err(e)))).await
}

/// A person waits for the answer.
fn patience() -> RetryConfig {
    RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(15), backoff: BackoffConfig::default() }
}

fn help(url: &str, error: &object_store::Error) -> anyhow::Error {
    let mut text: String = error.to_string().chars().take(2000).collect();
    for secret in SECRETS.iter().filter_map(|name| std::env::var(name).ok()).filter(|s| !s.is_empty()) {
        text = text.replace(&secret, "(secret)");
    }
    anyhow!(
        "cannot read {url}: {text}\nThe environment says how to reach it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
         (or AWS_SKIP_SIGNATURE=true for what is public), AWS_REGION, and for another store than Amazon's AWS_ENDPOINT \
         (and AWS_ALLOW_HTTP=true if that is http://)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_any_form_are_understood_or_refused() {
        assert_eq!(parts("s3://b/of mine/tiny/").unwrap(), ("b".into(), "of mine/tiny".into()));
        assert_eq!(parts("s3://b").unwrap(), ("b".into(), String::new()));
        for wrong in [
            "s3://",
            "s3:///",
            "s3:///x",
            "s3://a b",
            "s3://b/../x",
            "s3://b/./x",
            "s3://b//x",
            "s3://b/x?y",
            "s3://b/x#y",
            "s3://b/*",
            "s3://b/[x]",
            "s3://b/\u{1b}x",
            "s3://é",
            "s3://a..b",
            "s3://-b",
            "s3://b:80/x",
            "s3://[::1]/x",
            "s3",
        ] {
            assert!(parts(wrong).is_err(), "{wrong}");
        }
        let error = parts("s3://user:hidden@b/x").unwrap_err().to_string();
        assert!(!error.contains("hidden") && error.contains("AWS_ACCESS_KEY_ID"), "{error}");
    }

    #[test]
    fn an_environment_that_cannot_be_used_is_named_and_its_secrets_are_not() {
        let check = |name: &str, value: &str| {
            check_environment(|n| (n == name).then(|| value.to_string())).map_err(|e| e.to_string())
        };
        for (name, value) in [
            ("AWS_ENDPOINT", ""),
            ("AWS_ENDPOINT", "localhost:9000"),
            ("AWS_ENDPOINT_URL", "host"),
            ("AWS_ENDPOINT_URL_S3", "http://"),
            ("AWS_ENDPOINT", "http://user:hidden@host:9000"),
            ("AWS_ENDPOINT", "user:hidden@host:9000"),
            ("AWS_ENDPOINT", "http://hidden@host"),
            ("AWS_ENDPOINT", "ftp://host"),
            ("AWS_SESSION_TOKEN", "hidden\nx: y"),
            ("AWS_SECRET_ACCESS_KEY", "hidden\u{e9}"),
            ("AWS_ACCESS_KEY_ID", "a b"),
            ("AWS_REGION", ""),
            ("AWS_REGION", "x/y"),
        ] {
            let error = check(name, value).unwrap_err();
            assert!(error.contains(name) && !error.contains("hidden"), "{error}");
        }
        for (name, value) in
            [("AWS_ENDPOINT", "http://localhost:9000"), ("AWS_REGION", "eu-1"), ("AWS_SECRET_ACCESS_KEY", "a+/=")]
        {
            check(name, value).unwrap();
        }
    }
}
