//! The side that reads.

use std::net::SocketAddr;
use std::time::Duration;

use pki::tls::{Identity, Trust};
use tokio::time::timeout;

use super::{Have, MAX_MESSAGE, MAX_RANGE, PROTOCOL, Range};
use crate::connections::{Opened, answer, failed};
use crate::controller::Error;
use crate::proto::images::images_client::ImagesClient;
use crate::proto::images::{EndRequest, HaveRequest, Piece, ReadRequest};

/// How long one answer may take, with the wait for its turn.
const ANSWER: Duration = Duration::from_secs(90);

/// One connection with a node that has the image. Clones share it.
#[derive(Debug, Clone)]
pub struct Session {
    pub(super) client: ImagesClient<tonic::transport::Channel>,
}

impl Session {
    /// Connects to the node at `address`.
    ///
    /// # Errors
    /// When nobody answers, or who answers isn't trusted.
    pub async fn open(
        address: SocketAddr,
        trust: &Trust,
        identity: &Identity,
    ) -> Result<Self, Error> {
        let opened = Opened::first(&[address], None, trust, Some(identity)).await?;
        let client = ImagesClient::new(opened.transport)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { client })
    }

    /// The end of the image's file, of at most `max` bytes.
    ///
    /// # Errors
    /// When it isn't there or the session breaks.
    pub async fn end(&mut self, max: usize) -> Result<Vec<u8>, Error> {
        let request = EndRequest { protocol: PROTOCOL };
        let told = answer(ANSWER, self.client.end(request)).await?;
        collect(told, max).await
    }

    /// What the node has of the image whose index has this digest.
    ///
    /// # Errors
    /// When it has another one or the session breaks.
    pub async fn have(&mut self, image: &str) -> Result<Have, Error> {
        let image = image.to_owned();
        let reply = answer(ANSWER, self.client.have(HaveRequest { image })).await?;
        Ok(match reply.all {
            true => Have::All,
            false => Have::Pieces(reply.pieces),
        })
    }

    /// The bytes of a range: as many as were asked for.
    ///
    /// # Errors
    /// When they aren't there or the session breaks.
    pub async fn read(&mut self, range: &Range) -> Result<Vec<u8>, Error> {
        let length = range.length;
        let too_long = || Error::Broken(format!("{length} bytes are more than {MAX_RANGE}"));
        let request = ReadRequest {
            image: range.image.clone(),
            digest: range.digest.clone(),
            offset: range.offset,
            length: u32::try_from(length)
                .ok()
                .filter(|_| length <= MAX_RANGE)
                .ok_or_else(too_long)?,
        };
        let told = answer(ANSWER, self.client.read(request)).await?;
        let bytes = collect(told, length).await?;
        match bytes.len() == length {
            true => Ok(bytes),
            false => Err(Error::Broken(format!(
                "it gave {} bytes of {length}",
                bytes.len()
            ))),
        }
    }
}

async fn collect(mut told: tonic::Streaming<Piece>, max: usize) -> Result<Vec<u8>, Error> {
    let reading = async {
        let mut bytes = Vec::new();
        while let Some(piece) = told.message().await.map_err(failed)? {
            if piece.data.len() > max - bytes.len() {
                return Err(Error::Broken(format!("it gave more than {max} bytes")));
            }
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    };
    let late = |_| {
        Err(Error::Broken(format!(
            "no answer in {} s",
            ANSWER.as_secs()
        )))
    };
    timeout(ANSWER, reading).await.unwrap_or_else(late)
}
