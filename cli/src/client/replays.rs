//! Sends mended rows to a cluster, a part after the other.

use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weir_proto::v1::dead_letters_client::DeadLettersClient;
use weir_proto::v1::replay_request::Part;
use weir_proto::v1::{ReplayRequest, ReplayStart, SubmitResponse};

use super::access::Line;
use super::{Client, MAX_MESSAGE_BYTES, Result};

/// Of one message.
const PART_BYTES: usize = 256 << 10;

impl Client {
    /// Starts no second run when it is repeated: the request has an id.
    pub(crate) async fn replay(
        &mut self,
        start: ReplayStart,
        rows: Option<PathBuf>,
    ) -> Result<SubmitResponse> {
        self.call(move |line| {
            let parts = parts(start.clone(), rows.clone());
            async move { dead_letters(line).replay(parts).await }
        })
        .await
    }
}

/// What cannot be read is missing: the cluster counts the bytes.
fn parts(start: ReplayStart, rows: Option<PathBuf>) -> ReceiverStream<ReplayRequest> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let start = ReplayRequest { part: Some(Part::Start(start)) };
        if sender.send(start).await.is_ok()
            && let Some(rows) = rows
        {
            let _ = send_rows(&rows, &sender).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn send_rows(path: &Path, sender: &mpsc::Sender<ReplayRequest>) -> std::io::Result<()> {
    let mut file = tokio::fs::File::open(path).await?;
    loop {
        let mut part = vec![0; PART_BYTES];
        let length = file.read(&mut part).await?;
        part.truncate(length);
        let rows = ReplayRequest { part: Some(Part::Rows(part)) };
        if length == 0 || sender.send(rows).await.is_err() {
            return Ok(());
        }
    }
}

fn dead_letters(line: Line) -> DeadLettersClient<Line> {
    DeadLettersClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
