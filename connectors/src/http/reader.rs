//! Page after page, with every guard against an API that never ends.

use std::collections::HashSet;
use std::sync::Arc;

use super::pagination::{PageRequest, Progress};
use super::resource::Resource;
use crate::records::Json;
use crate::{ConnectorError, ErrorKind};

/// Reads the pages of one resource in order.
pub(super) struct Reader {
    resource: Arc<Resource>,
    since: Option<String>,
    progress: Progress,
    /// Hashes of the cursors and links asked for by this reader. One that comes a second time
    /// would lead round for ever.
    asked: HashSet<[u8; 32]>,
}

pub(super) struct Page {
    pub(super) records: Vec<Json>,
    /// Behind this page.
    pub(super) progress: Progress,
    /// For messages.
    pub(super) label: String,
}

impl Reader {
    /// From the first page, or from `progress`.
    pub(super) fn new(
        resource: Arc<Resource>,
        since: Option<String>,
        progress: Option<Progress>,
    ) -> Self {
        let progress = progress.unwrap_or_else(|| Progress {
            next: Some(resource.pager.first()),
            pages: 0,
            last_page: None,
        });
        Self { resource, since, progress, asked: HashSet::new() }
    }

    /// `None` at the end. The reader must not be used after an error.
    pub(super) async fn next_page(&mut self) -> Result<Option<Page>, ConnectorError> {
        let Some(request) = self.progress.next.clone() else { return Ok(None) };
        let number = self.progress.pages + 1;
        if number > self.resource.max_pages {
            return Err(self.error(format!(
                "{} has more than {} pages: raise `max_pages` if that is right, else the \
                 pagination never ends",
                self.resource.label(),
                self.resource.max_pages
            )));
        }
        self.asked.insert(request_hash(&request));
        let page = self.resource.fetch_page(&request, number, self.since.as_deref()).await?;
        let hash = records_hash(&page.records);
        if hash.is_some() && hash == self.progress.last_page {
            return Err(self.error(format!(
                "{}: this page has the same {} records as the page before: the API repeats itself \
                 for ever; check that it understands the parameters of `pagination`",
                page.label,
                page.records.len()
            )));
        }
        if let Some(next) = &page.next
            && self.asked.contains(&request_hash(next))
        {
            return Err(self.error(format!(
                "{}: the next page is {next}, which has been read before: the API leads round for \
                 ever; check `pagination`",
                page.label
            )));
        }
        if number == 1
            && page.next.is_none()
            && let Some(probe) = self.resource.pager.probe(&request, page.records.len() as u64)
        {
            self.confirm_end(&probe, page.records.len(), hash.as_deref()).await?;
        }
        self.progress = Progress { next: page.next, pages: number, last_page: hash };
        Ok(Some(Page { records: page.records, progress: self.progress.clone(), label: page.label }))
    }

    /// Makes sure that nothing follows a first page that was smaller than asked for. An API that
    /// refuses the request, ignores its parameters or gives nothing has nothing more.
    async fn confirm_end(
        &self,
        probe: &PageRequest,
        received: usize,
        first_page: Option<&str>,
    ) -> Result<(), ConnectorError> {
        let page = match self.resource.fetch_page(probe, 2, self.since.as_deref()).await {
            Ok(page) => page,
            Err(error) if error.is_retryable() || error.kind == ErrorKind::Denied => {
                return Err(error);
            }
            Err(_) => return Ok(()),
        };
        let hash = records_hash(&page.records);
        if hash.is_none() || hash.as_deref() == first_page {
            return Ok(());
        }
        Err(ConnectorError::config(format!(
            "{}: the API gave {received} records where {} were asked for, and has more: it limits \
             its pages; ask for {received} a page (`limit` or `page_size`)",
            page.label,
            self.resource.pager.page_size().unwrap_or_default(),
        )))
    }

    fn error(&self, message: String) -> ConnectorError {
        self.resource.api.error(ErrorKind::Data, message)
    }
}

fn request_hash(request: &PageRequest) -> [u8; 32] {
    let text = match request {
        PageRequest::First => "f".to_owned(),
        PageRequest::Cursor(cursor) => format!("c{cursor}"),
        PageRequest::Link(link) => format!("l{link}"),
        PageRequest::Number(number) => format!("n{number}"),
        PageRequest::Offset(offset) => format!("o{offset}"),
    };
    *blake3::hash(text.as_bytes()).as_bytes()
}

/// Of the records only: the cursor beside them may change while they repeat. `None` without any.
fn records_hash(records: &[Json]) -> Option<String> {
    if records.is_empty() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    for record in records {
        hasher.update(record.to_string().as_bytes());
        hasher.update(b"\n");
    }
    Some(hasher.finalize().to_hex()[..32].to_owned())
}
