//! Reads what other executors keep.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tonic::transport::Channel;

use super::ticket::FileTicket;
use crate::address;
use crate::tls::TlsFiles;
use crate::wire::with_causes;

const LONGEST_CONNECT: Duration = Duration::from_secs(2);
/// A peer that does not answer a ping within the timeout is gone, whatever the network says.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// What a peer may send of one stream before it is read.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Of all streams of a connection together: no bound, the greatest that HTTP/2 knows. Whoever merges streams reads one of
/// them while others wait full; with a window that some streams can fill, the one that is to be read gets nothing.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// A batch may be a single row of many megabytes.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// Connections to other executors, one each.
#[derive(Debug)]
pub(crate) struct FlightClients {
    tls: Option<TlsFiles>,
    /// Where the connections are kept: not on the threads of who reads, which may compute while a peer waits for the
    /// answer to its ping.
    threads: Handle,
    channels: Mutex<HashMap<String, Channel>>,
}

impl FlightClients {
    /// With connections on the threads of who calls this.
    pub(crate) fn new(tls: Option<TlsFiles>) -> Self {
        Self { tls, threads: Handle::current(), channels: Mutex::default() }
    }

    /// The batches of a file; the text says why they cannot be had.
    pub(crate) async fn read(
        &self,
        url: &str,
        ticket: &FileTicket,
    ) -> Result<BoxStream<'static, Result<RecordBatch, String>>, String> {
        let channel = self.channel(url)?;
        let mut client =
            FlightServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let response = client.do_get(ticket.encode()).await.map_err(|status| {
            // The certificates may be others now.
            self.channels().remove(url);
            describe(&status)
        })?;
        let data = response.into_inner().map_err(FlightError::from);
        let batches = FlightRecordBatchStream::new_from_flight_data(data);
        Ok(batches
            .map_err(|error| match &error {
                FlightError::Tonic(status) => describe(status),
                other => with_causes(other),
            })
            .boxed())
    }

    fn channel(&self, url: &str) -> Result<Channel, String> {
        let mut channels = self.channels();
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let _threads = self.threads.enter();
        let channel = address::node_endpoint(url, self.tls.as_ref())?
            .connect_timeout(LONGEST_CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        channels.insert(url.to_owned(), channel.clone());
        Ok(channel)
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        _ => with_causes(status),
    }
}
