//! A run that lies in an object store with S3's interface.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::prelude::SessionContext;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, ListResult, ObjectStore, ObjectStoreExt, RetryConfig};

pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    /// `s3://bucket/prefix`, without a slash at its end.
    url: String,
    prefix: Path,
}

impl Bucket {
    /// Credentials, region and endpoint are those of the environment, as other programs read them.
    pub fn open(url: &str) -> Result<Self> {
        let url = url.trim_end_matches('/').to_string();
        let parsed = ListingTableUrl::parse(format!("{url}/")).with_context(|| format!("{url} is not understood"))?;
        let name = url["s3://".len()..].split('/').next().unwrap_or_default();
        let store = AmazonS3Builder::from_env().with_bucket_name(name).with_retry(patience()).build();
        let store = store.map_err(|e| help(&url, &e))?;
        Ok(Self { store: Arc::new(store), prefix: parsed.prefix().clone(), url })
    }

    pub fn register(&self, context: &SessionContext) -> Result<()> {
        let place = ListingTableUrl::parse(&self.url)?.object_store();
        context.register_object_store(place.as_ref(), self.store.clone());
        Ok(())
    }

    pub async fn tables(&self) -> Result<BTreeSet<String>> {
        let folders = self.list("tables").await?.common_prefixes;
        Ok(folders.iter().filter_map(|p| p.filename().map(str::to_string)).collect())
    }

    pub async fn table(&self, name: &str) -> Result<(String, String)> {
        let files = self.list(&format!("tables/{name}")).await?.objects;
        let first = files.into_iter().map(|f| f.location).filter(|p| p.extension() == Some("parquet")).min();
        let first = first.with_context(|| format!("{}/tables/{name} has no files; has the run finished?", self.url))?;
        let folder = format!("{}/tables/{name}", self.url);
        let first = format!("{folder}/{}", first.filename().unwrap_or_default());
        Ok((folder, first))
    }

    pub async fn size(&self, name: &str) -> Result<u64> {
        Ok(self.list(&format!("tables/{name}")).await?.objects.iter().map(|f| f.size).sum())
    }

    pub async fn read(&self, relative: &str) -> Option<Vec<u8>> {
        let object = self.store.get(&self.path(relative)).await.ok()?;
        Some(object.bytes().await.ok()?.to_vec())
    }

    async fn list(&self, relative: &str) -> Result<ListResult> {
        self.store.list_with_delimiter(Some(&self.path(relative))).await.map_err(|e| help(&self.url, &e))
    }

    fn path(&self, relative: &str) -> Path {
        relative.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }
}

/// A person waits for the answer.
fn patience() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(20), backoff: BackoffConfig::default() }
}

fn help(url: &str, error: &object_store::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "cannot read {url}: {error}\nThe environment says how to reach it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
         (or AWS_SKIP_SIGNATURE=true for what is public), AWS_REGION, and for another store than Amazon's AWS_ENDPOINT \
         (and AWS_ALLOW_HTTP=true if that is http://)"
    )
}
