//! A streamed object as a multipart upload.
//!
//! Pieces are collected into parts; while one part travels the next is filled, so a sink holds two
//! parts at most. What fits one part is sent by a plain put. A service takes 10,000 parts and at
//! least 5 MiB each but the last: parts double every [`PARTS_PER_SIZE`], which gives 496 GiB.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::task::JoinHandle;

use super::errors::error;
use crate::store::error::cause;
use crate::store::{ObjectKey, ObjectSink, Result, StoreError};

const FIRST_PART: usize = 8 << 20;
const PARTS_PER_SIZE: usize = 2000;
const MAX_PARTS: usize = 10_000;

pub(super) struct RemoteSink {
    client: Arc<AmazonS3>,
    key: ObjectKey,
    path: Path,
    pieces: Vec<Bytes>,
    collected: usize,
    parts: usize,
    upload: Option<Box<dyn MultipartUpload>>,
    travelling: Option<JoinHandle<object_store::Result<()>>>,
}

impl RemoteSink {
    pub(super) fn new(client: Arc<AmazonS3>, key: ObjectKey, path: Path) -> Self {
        let (pieces, collected, parts) = (Vec::new(), 0, 0);
        Self { client, key, path, pieces, collected, parts, upload: None, travelling: None }
    }

    fn part_size(&self) -> usize {
        FIRST_PART << (self.parts / PARTS_PER_SIZE)
    }

    /// Starts the part that was collected, after the one before it has arrived.
    async fn send_part(&mut self) -> Result<()> {
        if self.parts == MAX_PARTS {
            return Err(StoreError::invalid(&self.key, "it is too large for this kind of store"));
        }
        self.arrived().await?;
        if self.upload.is_none() {
            let upload = self.client.put_multipart(&self.path).await;
            self.upload = Some(upload.map_err(|e| error(&self.key, e))?);
        }
        let Some(upload) = &mut self.upload else { return Ok(()) };
        self.collected = 0;
        let part: PutPayload = std::mem::take(&mut self.pieces).into_iter().collect();
        self.parts += 1;
        self.travelling = Some(tokio::spawn(upload.put_part(part)));
        Ok(())
    }

    async fn arrived(&mut self) -> Result<()> {
        // Stays in place while it is awaited: a caller that gives up must not lose it.
        let Some(part) = &mut self.travelling else { return Ok(()) };
        let done = part.await;
        self.travelling = None;
        match done {
            Ok(sent) => sent.map_err(|e| error(&self.key, e)),
            Err(e) => Err(StoreError::Failed { subject: (&self.key).into(), source: cause(e) }),
        }
    }
}

#[async_trait]
impl ObjectSink for RemoteSink {
    async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.part_size() - self.collected;
            let piece = bytes.split_to(room.min(bytes.len()));
            self.collected += piece.len();
            self.pieces.push(piece);
            if self.collected == self.part_size() {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        if self.upload.is_none() {
            let body: PutPayload = std::mem::take(&mut self.pieces).into_iter().collect();
            let put = self.client.put(&self.path, body).await;
            return put.map(drop).map_err(|e| error(&self.key, e));
        }
        if self.collected > 0 {
            self.send_part().await?;
        }
        self.arrived().await?;
        let Some(upload) = &mut self.upload else { return Ok(()) };
        upload.complete().await.map_err(|e| error(&self.key, e))?;
        self.upload = None;
        Ok(())
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        if let Some(part) = self.travelling.take() {
            part.abort();
        }
        match self.upload.take() {
            Some(mut upload) => upload.abort().await.map_err(|e| error(&self.key, e)),
            None => Ok(()),
        }
    }
}

/// An upload that nobody completes is invisible, but costs room until it is aborted.
impl Drop for RemoteSink {
    fn drop(&mut self) {
        if let Some(part) = self.travelling.take() {
            part.abort();
        }
        let (Some(mut upload), Ok(runtime)) =
            (self.upload.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            if let Err(e) = upload.abort().await {
                tracing::warn!(error = %e, "an unfinished upload stays in the store");
            }
        });
    }
}
