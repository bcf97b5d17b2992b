//! The calls of the attachments' service: [`Attachments`].

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use millrace_logic_sdk::Refused;
use millrace_protocol::{
    Code,
    api::{
        AttachmentInfo, AttachmentLink, AttachmentRequest, AttachmentUsage, AttachmentUsageRequest,
        CreateAttachmentRequest, RemoveAttachmentResponse,
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::{
    AttachmentSettings, ID_PREFIX,
    blobs::{BlobError, BlobStore, BlobStream},
    links::Links,
    media::{self, UNKNOWN},
    uploads::{self, Claim, Uploads},
};
use crate::{
    api::{AttachmentsApi, Caller, Principal, unix_ms},
    storage::{
        Store, StoreError,
        attachments::{AttachmentRow, AttachmentState, AttachmentStore, Usage},
    },
};

/// Longest name of a file, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// See the module.
pub struct Attachments {
    pub(super) rows: Arc<dyn AttachmentStore>,
    pub(super) chat: Arc<dyn Store>,
    pub(super) blobs: Arc<dyn BlobStore>,
    pub(super) uploads: Uploads,
    pub(super) settings: AttachmentSettings,
    links: Links,
    uploading: Arc<Semaphore>,
    completing: Semaphore,
    downloading: Arc<Semaphore>,
}

/// A file, or a part of it, on its way to who asked.
pub struct Content {
    /// What it is.
    pub info: AttachmentInfo,
    /// Which bytes; empty when none were asked for.
    pub range: Range<u64>,
    /// A browser may show it in its place.
    pub inline: bool,
    /// The bytes; none when only the headers were asked for.
    pub stream: Option<BlobStream>,
    /// One of the downloads at once, held until the last byte.
    pub permit: OwnedSemaphorePermit,
}

/// Which bytes of a file are wanted, once its size is known. Err: the range does not lie within it.
pub type Wanted = Box<dyn FnOnce(&AttachmentInfo) -> Result<Option<Range<u64>>, Refused> + Send>;

pub(super) fn failed(error: &StoreError) -> Refused {
    tracing::error!(%error, "the attachments' table failed");
    let code = error.code();
    Refused::new(code, code.sentence()).retry_after(1_000)
}

pub(super) fn blob_failed(error: &BlobError) -> Refused {
    tracing::error!(%error, "the files' store failed");
    match error {
        BlobError::NotFound => no_such_file(),
        BlobError::Full(_) => {
            let reason = "No space is left for files at the moment; try again later.";
            Refused::new(Code::OverCapacity, reason).retry_after(60_000)
        }
        BlobError::Failed(_) => Refused::from(Code::Internal).retry_after(1_000),
    }
}

pub(super) fn no_such_file() -> Refused {
    Refused::new(Code::NotFound, "There is no such attachment.")
}

fn busy() -> Refused {
    Refused::new(Code::OverCapacity, "Too many files are being transferred.").retry_after(1_000)
}

impl Attachments {
    /// Files in `blobs`, told of by `rows`; `chat` says who is in which conversation, and `secret`
    /// signs links.
    ///
    /// # Errors
    /// The upload directory cannot be made.
    pub fn new(
        rows: Arc<dyn AttachmentStore>,
        chat: Arc<dyn Store>,
        blobs: Arc<dyn BlobStore>,
        settings: AttachmentSettings,
        secret: &[u8],
    ) -> std::io::Result<Self> {
        let uploads = Uploads::open(
            settings.upload_directory.clone(),
            settings.free_bytes_min,
            settings.stall_timeout,
        )?;
        Ok(Self {
            rows,
            chat,
            blobs,
            uploads,
            links: Links::new(secret),
            uploading: Arc::new(Semaphore::new(settings.uploads_in_flight_max)),
            completing: Semaphore::new(settings.completions_in_flight_max.max(1)),
            downloading: Arc::new(Semaphore::new(settings.downloads_in_flight_max)),
            settings,
        })
    }

    pub(super) fn url(&self, attachment_id: &str) -> String {
        format!("{}/v1/attachments/{attachment_id}/content", self.settings.public_url)
    }

    fn info(&self, row: AttachmentRow) -> AttachmentInfo {
        let complete = row.state == AttachmentState::Complete;
        AttachmentInfo {
            url: self.url(&row.attachment_id),
            attachment_id: row.attachment_id,
            user_id: row.owner_id,
            name: row.name,
            r#type: row.kind,
            size: row.size,
            sha256: row.sha256,
            public: row.public,
            received: row.received,
            complete,
            created_at_ms: row.created_at_ms,
        }
    }

    /// A file that is not being removed.
    pub(super) async fn row(&self, attachment_id: &str) -> Result<AttachmentRow, Refused> {
        if !attachment_id.starts_with(ID_PREFIX) || attachment_id.len() > 64 {
            return Err(no_such_file());
        }
        match self.rows.attachment(attachment_id).await {
            Ok(Some(row)) if row.state != AttachmentState::Removing => Ok(row),
            Ok(_) => Err(no_such_file()),
            Err(error) => Err(failed(&error)),
        }
    }

    /// A file of the caller's, or any of a service's.
    async fn own(&self, caller: &Caller, attachment_id: &str) -> Result<AttachmentRow, Refused> {
        let row = self.row(attachment_id).await?;
        match caller.acting_as(&row.owner_id) {
            Ok(_) => Ok(row),
            // Whose files there are is nobody's business.
            Err(_) => Err(no_such_file()),
        }
    }

    /// Whether a user may read a file.
    pub(super) async fn may_read(
        &self,
        user_id: &str,
        row: &AttachmentRow,
    ) -> Result<bool, Refused> {
        if row.owner_id == user_id {
            return Ok(true);
        }
        if row.state != AttachmentState::Complete {
            return Ok(false);
        }
        if row.public {
            return Ok(true);
        }
        let max = usize::try_from(self.settings.references_max).unwrap_or(usize::MAX);
        let conversations = self.rows.references(&row.attachment_id, max).await;
        let conversations = conversations.map_err(|error| failed(&error))?;
        for conversation_id in &conversations {
            let members = self.chat.members(conversation_id).await;
            let members = members.map_err(|error| failed(&error))?.unwrap_or_default();
            if members.iter().any(|member| &**member == user_id) {
                return Ok(true);
            }
        }
        // Who was in a group keeps what was there until then.
        for conversation_id in &conversations {
            match self.chat.page(user_id, conversation_id, 0, 0, 1, true).await {
                Ok(_) => return Ok(true),
                Err(StoreError::NotMember | StoreError::NotFound) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(false)
    }

    /// A file that the caller may read.
    async fn readable(
        &self,
        caller: &Caller,
        attachment_id: &str,
    ) -> Result<AttachmentRow, Refused> {
        let row = self.row(attachment_id).await?;
        let may = match &caller.principal {
            Principal::Service => true,
            Principal::User(user_id) => self.may_read(user_id, &row).await?,
            Principal::Anybody => false,
        };
        if may { Ok(row) } else { Err(no_such_file()) }
    }

    async fn new_row(
        &self,
        caller: &Caller,
        request: CreateAttachmentRequest,
    ) -> Result<AttachmentRow, Refused> {
        let CreateAttachmentRequest { user_id, name, r#type, size, sha256, public } = request;
        let owner_id = caller.acting_as(if user_id.is_empty() { "me" } else { &user_id })?;
        let bad = |reason: &str| Err(Refused::new(Code::BadRequest, reason));
        if caller.is_service() && user_id.is_empty() {
            return bad("A service says whose file it is: a user_id is needed.");
        }
        if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return bad("A file's name has at most 255 bytes, and no control characters.");
        }
        let kind = if r#type.is_empty() { UNKNOWN.to_owned() } else { r#type.to_ascii_lowercase() };
        if !media::is_media_type(&kind) {
            return bad("The type is no media type such as image/png.");
        }
        if !media::is_allowed(&kind, &self.settings.types_allowed) {
            let reason = format!("Files of type {kind} are not taken here.");
            return Err(Refused::new(Code::BadRequest, reason));
        }
        if size == 0 {
            return bad("The size in bytes is needed; it is at least 1.");
        }
        if size > self.settings.file_bytes_max {
            let max = self.settings.file_bytes_max;
            let reason = format!("The file has {size} bytes; it may have {max}.");
            return Err(Refused::new(Code::TooLarge, reason));
        }
        let sha256 = sha256.to_ascii_lowercase();
        let is_hash = sha256.len() == 64 && sha256.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !(sha256.is_empty() || is_hash) {
            return bad("A sha256 has 64 hexadecimal digits.");
        }
        self.uploads.check_space(size)?;
        let row = AttachmentRow {
            // 122 random bits: an id is not to be guessed.
            attachment_id: format!("{ID_PREFIX}{}", Uuid::new_v4().simple()),
            owner_id,
            name,
            kind,
            size,
            sha256,
            public,
            created_at_ms: unix_ms(),
            ..AttachmentRow::default()
        };
        let quota =
            Usage { files: self.settings.user_files_max, bytes: self.settings.user_bytes_max };
        let created = self.rows.create(row.clone(), quota).await.map_err(|error| failed(&error))?;
        if !created {
            let reason = "There is no room for this file among this user's; remove others first.";
            return Err(Refused::new(Code::OverCapacity, reason));
        }
        Ok(row)
    }

    fn claim(&self, attachment_id: &str) -> Result<Claim, Refused> {
        self.uploads.claim(attachment_id).ok_or_else(|| {
            let reason = "Another part of this file is being received; wait for it to end.";
            Refused::new(Code::OverCapacity, reason).retry_after(1_000)
        })
    }

    /// Ends an upload whose last byte has arrived.
    async fn complete(&self, claim: &Claim, row: &AttachmentRow) -> Result<(), Refused> {
        let _permit = self.completing.acquire().await.map_err(|_| busy())?;
        let attachment_id = &row.attachment_id;
        // A crash between the blob and the row: only the row is missing.
        let sha256 = if !self.uploads.exists(attachment_id).await
            && self.blobs.size(attachment_id).await.map_err(|e| blob_failed(&e))? == Some(row.size)
        {
            row.sha256.clone()
        } else {
            let inspected = self.uploads.inspect(claim, row.size).await;
            let inspected = inspected.map_err(|error| uploads::failed(&error))?;
            let differs = !row.sha256.is_empty() && row.sha256 != inspected.sha256;
            let wrong = match media::check(&row.kind, &inspected.head, &self.settings.types_allowed)
            {
                Ok(()) if differs => Some("What arrived does not have the sha256 declared.".into()),
                Ok(()) => None,
                Err(reason) => Some(reason),
            };
            if let Some(reason) = wrong {
                self.discard(attachment_id, false).await?;
                return Err(Refused::new(Code::BadRequest, reason));
            }
            let file = self.uploads.path(attachment_id);
            let put = self.blobs.put(attachment_id, &file, row.size).await;
            put.map_err(|error| match error {
                // The bucket, say: nothing that the uploader could mend.
                BlobError::NotFound => blob_failed(&BlobError::Failed(error.to_string())),
                error => blob_failed(&error),
            })?;
            inspected.sha256
        };
        let completed = self.rows.complete(attachment_id, &sha256).await;
        if !completed.map_err(|error| failed(&error))? {
            return Err(no_such_file());
        }
        if let Err(error) = self.uploads.remove(attachment_id).await {
            tracing::warn!(%error, attachment_id, "a complete upload was not removed");
        }
        Ok(())
    }

    /// Removes a file and all that is left of it; false when there was none to be removed.
    pub(super) async fn discard(
        &self,
        attachment_id: &str,
        only_unreferred: bool,
    ) -> Result<bool, Refused> {
        let begun = self.rows.begin_removal(attachment_id, only_unreferred).await;
        if begun.map_err(|error| failed(&error))?.is_none() {
            return Ok(false);
        }
        self.blobs.remove(attachment_id).await.map_err(|error| blob_failed(&error))?;
        let removed = self.uploads.remove(attachment_id).await;
        removed.map_err(|error| uploads::failed(&error))?;
        self.rows.end_removal(attachment_id).await.map_err(|error| failed(&error))?;
        Ok(true)
    }

    /// Receives a part of a file, which starts at `offset` (`None`: where the last one ended) and may
    /// have `bytes_max` bytes. The last one completes it, or an empty one after it if that failed.
    ///
    /// # Errors
    /// `bad_request` for a part that does not start where the last one ended, that broke off, or
    /// for a content that is not what was declared (which removes the upload); `over_capacity`
    /// without space or when too many are received at once; `not_found`, `too_large`. What arrived
    /// counts: `received` of [`AttachmentsApi::get_attachment`] says where to go on.
    pub async fn receive<E: std::fmt::Display>(
        &self,
        caller: &Caller,
        attachment_id: &str,
        offset: Option<u64>,
        bytes_max: u64,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<AttachmentInfo, Refused> {
        let _permit = Arc::clone(&self.uploading).try_acquire_owned().map_err(|_| busy())?;
        self.own(caller, attachment_id).await?;
        let claim = self.claim(attachment_id)?;
        // Read again: who had the upload before may have moved it on.
        let mut row = self.own(caller, attachment_id).await?;
        if row.state == AttachmentState::Complete {
            let reason = "This file is complete.";
            return Err(Refused::new(Code::AlreadyExists, reason));
        }
        let offset = offset.unwrap_or(row.received);
        if offset != row.received {
            let reason = format!("The next part starts at byte {}.", row.received);
            return Err(Refused::new(Code::BadRequest, reason));
        }
        let part = self.uploads.write(&claim, offset, bytes_max.min(row.size - offset), body).await;
        row.received += part.written;
        if part.written > 0 {
            let recorded = self.rows.received(attachment_id, row.received).await;
            if !recorded.map_err(|error| failed(&error))? {
                return Err(no_such_file());
            }
        }
        if let Some(refused) = part.failure {
            return Err(refused);
        }
        if row.received == row.size {
            self.complete(&claim, &row).await?;
            row = self.own(caller, attachment_id).await?;
        }
        Ok(self.info(row))
    }

    /// Receives a whole file. Nothing is left of one that did not arrive well.
    ///
    /// # Errors
    /// As [`Attachments::receive`] and [`AttachmentsApi::create_attachment`].
    pub async fn receive_all<E: std::fmt::Display>(
        &self,
        caller: &Caller,
        request: CreateAttachmentRequest,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<AttachmentInfo, Refused> {
        let size = request.size;
        let row = self.new_row(caller, request).await?;
        let received = self.receive(caller, &row.attachment_id, Some(0), size, body).await;
        let refused = match received {
            Ok(info) if info.complete => return Ok(info),
            Ok(info) => {
                let reason = format!("{} of {size} bytes arrived.", info.received);
                Refused::new(Code::BadRequest, reason)
            }
            Err(refused) => refused,
        };
        self.discard(&row.attachment_id, true).await?;
        Err(refused)
    }

    /// A file's bytes, those that are wanted. `link` is the expiry and the signature of a link.
    ///
    /// # Errors
    /// `not_found` for files that are not there or not for the caller, `bad_token` for a link that
    /// is not good (any more), `over_capacity` when too many are downloaded at once.
    pub async fn content(
        &self,
        caller: &Caller,
        attachment_id: &str,
        link: Option<(i64, &str)>,
        with_bytes: bool,
        wanted: Wanted,
    ) -> Result<Content, Refused> {
        let permit = Arc::clone(&self.downloading).try_acquire_owned().map_err(|_| busy())?;
        let row = match link {
            Some((expires_at_ms, signature)) => {
                if !self.links.is_good(attachment_id, expires_at_ms, signature, unix_ms()) {
                    let reason = "This link is not good, or not any more.";
                    return Err(Refused::new(Code::BadToken, reason));
                }
                self.row(attachment_id).await?
            }
            None => self.readable(caller, attachment_id).await?,
        };
        if row.state != AttachmentState::Complete {
            return Err(no_such_file());
        }
        let inline = media::is_shown_inline(&row.kind);
        let info = self.info(row);
        let Some(range) = wanted(&info)? else {
            return Ok(Content { info, range: 0..0, inline, stream: None, permit });
        };
        let stream = match with_bytes && !range.is_empty() {
            true => {
                let stream = self.blobs.read(attachment_id, range.clone()).await;
                Some(stream.map_err(|error| blob_failed(&error))?)
            }
            false => None,
        };
        Ok(Content { info, range, inline, stream, permit })
    }

    /// How long a connection may give or take nothing.
    pub fn stall_timeout(&self) -> std::time::Duration {
        self.settings.stall_timeout
    }
}

#[async_trait]
impl AttachmentsApi for Attachments {
    async fn create_attachment(
        &self,
        caller: &Caller,
        request: CreateAttachmentRequest,
    ) -> Result<AttachmentInfo, Refused> {
        let row = self.new_row(caller, request).await?;
        Ok(self.info(row))
    }

    async fn get_attachment(
        &self,
        caller: &Caller,
        request: AttachmentRequest,
    ) -> Result<AttachmentInfo, Refused> {
        let row = self.readable(caller, &request.attachment_id).await?;
        Ok(self.info(row))
    }

    async fn get_attachment_link(
        &self,
        caller: &Caller,
        request: AttachmentRequest,
    ) -> Result<AttachmentLink, Refused> {
        let row = self.readable(caller, &request.attachment_id).await?;
        if row.state != AttachmentState::Complete {
            return Err(no_such_file());
        }
        let lifetime_ms = i64::try_from(self.settings.link_lifetime.as_millis());
        let expires_at_ms = unix_ms().saturating_add(lifetime_ms.unwrap_or(i64::MAX));
        let query = self.links.query(&row.attachment_id, expires_at_ms);
        let url = format!("{}?{query}", self.url(&row.attachment_id));
        Ok(AttachmentLink { url, expires_at_ms })
    }

    async fn remove_attachment(
        &self,
        caller: &Caller,
        request: AttachmentRequest,
    ) -> Result<RemoveAttachmentResponse, Refused> {
        let attachment_id = request.attachment_id;
        self.own(caller, &attachment_id).await?;
        let _claim = self.claim(&attachment_id)?;
        if !self.discard(&attachment_id, false).await? {
            return Err(no_such_file());
        }
        Ok(RemoveAttachmentResponse::default())
    }

    async fn get_attachment_usage(
        &self,
        caller: &Caller,
        request: AttachmentUsageRequest,
    ) -> Result<AttachmentUsage, Refused> {
        let user_id = caller.acting_as(&request.user_id)?;
        let Usage { files, bytes } =
            self.rows.usage(&user_id).await.map_err(|error| failed(&error))?;
        Ok(AttachmentUsage {
            files,
            files_max: self.settings.user_files_max,
            bytes,
            bytes_max: self.settings.user_bytes_max,
        })
    }
}
