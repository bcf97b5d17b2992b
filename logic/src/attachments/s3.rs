//! Files in a bucket of a server that speaks the S3 protocol: Amazon's, MinIO, Ceph, Garage …
//!
//! A large file is sent in parts, a few at once, so no file is ever whole in memory. A file that
//! could not be sent to its end is aborted, and the bucket never shows it.

use std::{io, ops::Range, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, RetryConfig, WriteMultipart,
    aws::AmazonS3Builder, path::Path as Key,
};
use tokio::io::AsyncReadExt as _;

use super::blobs::{BlobError, BlobStore, BlobStream};

/// Bytes of one part; the protocol asks for 5 MiB at least, and allows 10,000 parts.
const PART_BYTES: usize = 8 << 20;

/// Parts of one file on their way at once.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// Attempts after the first, and how long they may take together: somebody waits for the answer.
const RETRIES_MAX: usize = 3;

/// See [`RETRIES_MAX`].
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// Where the bucket is. `Default` is Amazon's, with credentials from the environment.
#[derive(Clone, Default)]
pub struct S3Settings {
    /// The bucket; it must be there.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The server's URL; empty: Amazon's.
    pub endpoint: String,
    /// What the keys begin with; empty: nothing.
    pub prefix: String,
    /// The access key; empty: from the environment or the machine's role.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// Speak without TLS if the endpoint says so.
    pub allow_http: bool,
}

/// See the module.
pub struct S3Blobs {
    bucket: Arc<dyn ObjectStore>,
    prefix: String,
}

impl S3Blobs {
    /// Files in a bucket. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// Settings that do not fit together: a sentence.
    pub fn new(settings: &S3Settings) -> Result<Self, String> {
        let mut builder = match settings.access_key_id.is_empty() {
            true => AmazonS3Builder::from_env(),
            false => AmazonS3Builder::new()
                .with_access_key_id(&settings.access_key_id)
                .with_secret_access_key(&settings.secret_access_key),
        };
        builder = builder
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_allow_http(settings.allow_http)
            .with_retry(RetryConfig {
                max_retries: RETRIES_MAX,
                retry_timeout: RETRY_TIMEOUT,
                ..RetryConfig::default()
            });
        if !settings.endpoint.is_empty() {
            builder = builder.with_endpoint(&settings.endpoint);
        }
        let bucket = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { bucket: Arc::new(bucket), prefix: settings.prefix.clone() })
    }

    fn key(&self, key: &str) -> Key {
        Key::from(format!("{}{key}", self.prefix))
    }
}

fn failed(error: Error) -> BlobError {
    match error {
        Error::NotFound { .. } => BlobError::NotFound,
        error => BlobError::Failed(error.to_string()),
    }
}

/// Sends a file part by part.
async fn send(upload: &mut WriteMultipart, file: &mut tokio::fs::File) -> Result<(), BlobError> {
    loop {
        upload.wait_for_capacity(PARTS_IN_FLIGHT_MAX).await.map_err(failed)?;
        let mut chunk = Vec::with_capacity(PART_BYTES);
        (&mut *file).take(PART_BYTES as u64).read_to_end(&mut chunk).await?;
        if chunk.is_empty() {
            return Ok(());
        }
        upload.put(Bytes::from(chunk));
    }
}

#[async_trait]
impl BlobStore for S3Blobs {
    async fn put(&self, key: &str, file: &Path, size: u64) -> Result<(), BlobError> {
        let key = self.key(key);
        let mut file = tokio::fs::File::open(file).await?;
        if size <= PART_BYTES as u64 {
            let mut content = Vec::with_capacity(size as usize);
            file.read_to_end(&mut content).await?;
            self.bucket.put(&key, content.into()).await.map_err(failed)?;
            return Ok(());
        }
        let upload = self.bucket.put_multipart(&key).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        match send(&mut upload, &mut file).await {
            Ok(()) => upload.finish().await.map(|_put| ()).map_err(failed),
            Err(error) => {
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%error, "parts of a file that was not sent stay in the bucket");
                }
                Err(error)
            }
        }
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, BlobError> {
        match self.bucket.head(&self.key(key)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<BlobStream, BlobError> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = self.bucket.get_opts(&self.key(key), options).await.map_err(failed)?;
        Ok(found.into_stream().map_err(io::Error::other).boxed())
    }

    async fn remove(&self, key: &str) -> Result<(), BlobError> {
        match self.bucket.delete(&self.key(key)).await {
            Err(error) if !matches!(error, Error::NotFound { .. }) => Err(failed(error)),
            _ => Ok(()),
        }
    }
}
