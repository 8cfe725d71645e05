//! The requests of JetStream's API that Stockade makes. Each is one message and its answer, under one timeout.

use std::time::{Duration, SystemTime};

use async_nats::{HeaderMap, Message, Request, RequestErrorKind, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::Connection;
use crate::terminal::clean_line;

/// How many messages are asked for at a time. Beyond 1024 the server would not go.
const BATCH: u32 = 256;

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("there is no connection to a NATS server")]
    Down,
    /// No answer came for so long. What was asked for may have happened.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// Nobody answers on this subject: there is no such stream, or JetStream is not running.
    #[error("the store is not there: nothing was ever published, or JetStream is not running")]
    Nobody(String),
    /// The server does not allow it.
    #[error("the server does not allow it: {}", clean_line(.0))]
    Forbidden(String),
    /// JetStream refuses.
    #[error("the server refuses: {}", clean_line(.text))]
    Refused {
        /// Which of its errors it is (`err_code`).
        code: u64,
        /// In its words.
        text: String,
    },
    /// The answer cannot be read.
    #[error("the server's answer cannot be read: {0}")]
    Malformed(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// JetStream's errors that mean something to us (nats-server, server/errors.json).
pub mod code {
    /// There is no message like that.
    pub const NO_MESSAGE: u64 = 10037;
    /// There is no stream of that name.
    pub const NO_STREAM: u64 = 10059;
    /// The last message on the subject is not the expected one.
    pub const WRONG_LAST_SEQUENCE: u64 = 10071;
    /// A stream asks for more room than there is.
    pub const NO_ROOM: u64 = 10047;
    /// The stream is full.
    pub const FULL: u64 = 10077;
}

impl Error {
    fn malformed(what: impl std::fmt::Display) -> Self {
        Self::Malformed(what.to_string())
    }

    /// Whether it is this error of JetStream's.
    pub fn is(&self, code: u64) -> bool {
        matches!(self, Self::Refused { code: own, .. } if *own == code)
    }
}

/// A message as a stream holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Where in the stream it stands.
    pub sequence: u64,
    /// On which subject it was published.
    pub subject: String,
    /// When it was stored, by the server's clock.
    pub at: Option<SystemTime>,
    /// What it holds.
    pub payload: Bytes,
}

/// What JetStream answers that a message was stored, or not.
#[derive(Debug, Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::Refused { code: error.err_code, text: error.description }
    }
}

/// What the leader of a stream answers to `STREAM.MSG.GET`.
#[derive(Debug, Deserialize)]
struct Got {
    error: Option<ApiError>,
    message: Option<GotMessage>,
}

#[derive(Debug, Deserialize)]
struct GotMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
    #[serde(default)]
    time: String,
}

impl Connection {
    /// The last message on a subject, from any replica: it may be behind. `None` if there is none.
    ///
    /// # Errors
    /// If the server gives no answer, or not this one.
    pub async fn last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, Error> {
        // With the subject in the subject of the request, the server's permissions can distinguish who may read what.
        self.direct(&format!("{}.DIRECT.GET.{stream}.{subject}", self.api), Bytes::new()).await
    }

    /// All messages on a subject, which may hold wildcards, from `sequence` on, in their order, from any replica.
    ///
    /// # Errors
    /// If the server gives no answer, or not all of it.
    pub async fn walk(&self, stream: &str, subject: &str, sequence: u64) -> Result<Vec<Stored>, Error> {
        let (mut found, mut from) = (Vec::new(), sequence);
        while let Some(next) = self.batch(stream, subject, from, &mut found).await? {
            from = next;
        }
        Ok(found)
    }

    /// The last message on a subject before a sequence, from any replica; `None` if there is none that is kept.
    ///
    /// # Errors
    /// If the server gives no answer, or not this one.
    pub async fn last_before(&self, stream: &str, subject: &str, sequence: u64) -> Result<Option<Stored>, Error> {
        // 0 would mean: whichever is the last.
        let Some(up_to) = sequence.checked_sub(1).filter(|up_to| *up_to > 0) else { return Ok(None) };
        let mut found = Vec::new();
        self.several(stream, &json!({"multi_last": [subject], "up_to_seq": up_to}), &mut found).await?;
        Ok(found.pop())
    }

    /// One batch of a walk; where the next one begins, if there is more. (nats-server 2.11, ADR-31)
    async fn batch(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        found: &mut Vec<Stored>,
    ) -> Result<Option<u64>, Error> {
        let body = json!({"seq": from, "batch": BATCH, "next_by_subj": subject});
        Ok(match self.several(stream, &body, found).await? {
            0 => None,
            _ => {
                let last = found.last().map_or(0, |stored| stored.sequence);
                last.checked_add(1).filter(|next| *next > from)
            }
        })
    }

    /// A direct get that is answered with several messages; how many are left.
    async fn several(&self, stream: &str, body: &Json, found: &mut Vec<Stored>) -> Result<u64, Error> {
        if !self.is_up() {
            return Err(Error::Down);
        }
        let inbox = self.client.new_inbox();
        let mut answers = self.subscribe(inbox.clone()).await?;
        let request = format!("{}.DIRECT.GET.{stream}", self.api);
        let mut refused = self.refused.clone();
        refused.mark_unchanged();
        let sent = self.client.publish_with_reply(request.clone(), inbox, body.to_string().into()).await;
        sent.map_err(|error| Error::Other(error.to_string()))?;
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(self.timeout, answers.next()) => answer,
                text = forbidden(&mut refused, &request) => return Err(Error::Forbidden(text)),
            };
            let answer = answer.map_err(|_| Error::TimedOut(self.timeout))?;
            let answer = answer.ok_or_else(|| Error::Other("the connection was closed".to_owned()))?;
            let Some(status) = answer.status else {
                found.push(stored(answer)?);
                continue;
            };
            let header = |name: &str| answer.headers.as_ref()?.get(name)?.as_str().parse::<u64>().ok();
            return match status.as_u16() {
                // The end of the batch, which says how much is left and where this one stopped.
                204 => Ok(header("Nats-Num-Pending").unwrap_or(0)),
                404 => Ok(0),
                503 => Err(Error::Nobody(request)),
                _ => Err(Error::Refused { code: 0, text: answer.description.unwrap_or_else(|| status.to_string()) }),
            };
        }
    }

    async fn direct(&self, request: &str, body: Bytes) -> Result<Option<Stored>, Error> {
        let answer = self.ask(request, None, body).await?;
        match answer.status {
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) if status.as_u16() >= 300 => {
                Err(Error::Refused { code: 0, text: answer.description.unwrap_or_else(|| status.to_string()) })
            }
            _ => stored(answer).map(Some),
        }
    }

    /// The last message on a subject, from the stream's leader: never behind what was acknowledged.
    ///
    /// # Errors
    /// If the server gives no answer, or not this one.
    pub async fn leaders_last(&self, stream: &str, subject: &str) -> Result<Option<Stored>, Error> {
        let body = json!({"last_by_subj": subject}).to_string();
        let answer = self.ask(&format!("{}.STREAM.MSG.GET.{stream}", self.api), None, body.into()).await?;
        let got: Got = serde_json::from_slice(&answer.payload).map_err(Error::malformed)?;
        match (got.error, got.message) {
            (Some(error), _) if error.err_code == code::NO_MESSAGE => Ok(None),
            (Some(error), _) => Err(error.into()),
            (None, None) => Err(Error::malformed("neither a message nor an error")),
            (None, Some(message)) => Ok(Some(Stored {
                sequence: message.seq,
                subject: message.subject,
                at: humantime::parse_rfc3339(&message.time).ok(),
                payload: BASE64.decode(message.data).map_err(Error::malformed)?.into(),
            })),
        }
    }

    /// Stores a message, and waits until the stream has it. With `after`, only if that is the last sequence on the subject
    /// so far (0: there is none), else [`code::WRONG_LAST_SEQUENCE`].
    ///
    /// # Errors
    /// If it was not stored; after [`Error::TimedOut`] it may have been.
    pub async fn store(&self, subject: &str, payload: Bytes, after: Option<u64>) -> Result<u64, Error> {
        let headers = after.map(|sequence| expecting(sequence, None));
        self.acknowledged(subject, headers, payload).await
    }

    /// As [`Connection::store`], only if `after` is the last sequence of all that match `filter`, which may hold wildcards.
    /// (nats-server, pull request 5281)
    ///
    /// # Errors
    /// If it was not stored; after [`Error::TimedOut`] it may have been.
    pub async fn store_after(&self, subject: &str, payload: Bytes, after: u64, filter: &str) -> Result<u64, Error> {
        self.acknowledged(subject, Some(expecting(after, Some(filter))), payload).await
    }

    async fn acknowledged(&self, subject: &str, headers: Option<HeaderMap>, payload: Bytes) -> Result<u64, Error> {
        let answer = self.ask(subject, headers, payload).await?;
        let ack: Ack = serde_json::from_slice(&answer.payload).map_err(Error::malformed)?;
        ack.error.map_or(Ok(ack.seq), |error| Err(error.into()))
    }

    /// Any other request: `endpoint` is what follows `$JS.API.`.
    ///
    /// # Errors
    /// If the server gives no answer, or refuses.
    pub async fn request(&self, endpoint: &str, body: &Json) -> Result<Json, Error> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let answer = self.ask(&format!("{}.{endpoint}", self.api), None, body).await?;
        let answer: Json = serde_json::from_slice(&answer.payload).map_err(Error::malformed)?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(ApiError::deserialize(error).map_or_else(Error::malformed, Error::from)),
        }
    }

    /// One request, one answer. A forbidden one is never answered: that it is shows beside it, and is reported at once.
    async fn ask(&self, subject: &str, headers: Option<HeaderMap>, payload: Bytes) -> Result<Message, Error> {
        // Without a connection it would wait in a queue, and be sent when nobody waits for the answer any more.
        if !self.is_up() {
            return Err(Error::Down);
        }
        let mut request = Request::new().payload(payload);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let mut refused = self.refused.clone();
        refused.mark_unchanged();
        // The library's own timeout covers the answer, but not the way into its queue.
        let answer = tokio::time::timeout(self.timeout, self.client.send_request(subject.to_owned(), request));
        tokio::select! {
            answer = answer => match answer {
                Ok(Ok(message)) => Ok(message),
                Ok(Err(error)) => Err(self.failed(subject, &error)),
                Err(_) => Err(Error::TimedOut(self.timeout)),
            },
            text = forbidden(&mut refused, subject) => Err(Error::Forbidden(text)),
        }
    }

    fn failed(&self, subject: &str, error: &async_nats::RequestError) -> Error {
        match error.kind() {
            RequestErrorKind::TimedOut => Error::TimedOut(self.timeout),
            RequestErrorKind::NoResponders => Error::Nobody(subject.to_owned()),
            _ => Error::Other(error.to_string()),
        }
    }
}

/// Headers that say what the last sequence must be, on the message's own subject or on those that match a filter.
fn expecting(sequence: u64, filter: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string().as_str());
    if let Some(filter) = filter {
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", filter);
    }
    headers
}

/// Waits until the server says that this subject is forbidden to us.
async fn forbidden(refused: &mut watch::Receiver<String>, subject: &str) -> String {
    let quoted = format!("\"{subject}\"");
    loop {
        // The connection is gone, and with it the server that could refuse: the answer will say so.
        if refused.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let text = refused.borrow_and_update().clone();
        if text.contains(&quoted) {
            return text;
        }
    }
}

/// Reads an answer to a direct get: the message itself, and headers that say where it stands.
fn stored(answer: Message) -> Result<Stored, Error> {
    let headers = answer.headers.unwrap_or_default();
    let header = |name: &str| headers.get(name).map(|value| value.as_str());
    let sequence = header("Nats-Sequence").and_then(|text| text.parse().ok());
    Ok(Stored {
        sequence: sequence.ok_or_else(|| Error::malformed("a message without its sequence"))?,
        subject: header("Nats-Subject").unwrap_or_default().to_owned(),
        at: header("Nats-Time-Stamp").and_then(|text| humantime::parse_rfc3339(text).ok()),
        payload: answer.payload,
    })
}
