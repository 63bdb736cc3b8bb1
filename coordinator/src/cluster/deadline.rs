//! `grpc-timeout`: a client says how long it waits for an answer, and for the end of a stream. tonic ends answers
//! itself, as CANCELLED, and streams never.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::errors;

const HEADER: &str = "grpc-timeout";

/// The time that a request gives itself. `None` without one, or with one that is not understood.
pub(super) fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // As the protocol says.
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

pub(super) fn exceeded() -> Status {
    Status::deadline_exceeded("the deadline that the request has set itself is over")
}

/// An answer that ends at its deadline, and holds something until it has ended.
pub(super) struct Bounded<Held> {
    body: Option<Body>,
    deadline: Option<Pin<Box<Sleep>>>,
    _held: Held,
}

impl<Held: Send + Unpin + 'static> Bounded<Held> {
    pub(super) fn body(body: Body, rest: Option<Duration>, held: Held) -> Body {
        let deadline = rest.map(|rest| Box::pin(sleep(rest)));
        Body::new(Self { body: Some(body), deadline, _held: held })
    }
}

impl<Held: Unpin> http_body::Body for Bounded<Held> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // First: a body that always has more to say is to end as well.
        let is_over = this
            .deadline
            .as_mut()
            .is_some_and(|deadline| deadline.as_mut().poll(context).is_ready());
        if !is_over {
            return Pin::new(body).poll_frame(context);
        }
        this.body = None;
        // What a stream ends with.
        let mut trailers = HeaderMap::new();
        let said = errors::described(exceeded()).add_header(&mut trailers);
        Poll::Ready(Some(said.map(|()| Frame::trailers(trailers))))
    }

    /// A refusal is nothing but headers, and clients have to see that.
    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tonic::Code;

    use super::*;

    fn parsed(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, text.parse().expect("it is a header"));
        of(&headers)
    }

    #[test]
    fn a_deadline_is_a_number_with_a_unit() {
        assert_eq!(parsed("1500m"), Some(Duration::from_millis(1_500)));
        assert_eq!(parsed("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parsed("99999999S"), Some(Duration::from_secs(99_999_999)));
        for wrong in ["", "m", "5", "-1S", "5x", "123456789S", "1.5S"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_always_has_more_ends_at_its_deadline() {
        struct Ready;
        impl http_body::Body for Ready {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"more")))))
            }
        }
        let mut body = Bounded::body(Body::new(Ready), Some(Duration::from_secs(3)), ());
        let mut next = async || {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            frame.await.map(|frame| frame.expect("a frame").is_trailers())
        };
        assert_eq!(next().await, Some(false));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!((next().await, next().await), (Some(true), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_goes_on_ends_at_its_deadline_and_lets_go_of_what_it_held() {
        struct Endless;
        impl http_body::Body for Endless {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Pending
            }
        }
        let held = std::sync::Arc::new(());
        let rest = Some(Duration::from_secs(3));
        let mut body = Bounded::body(Body::new(Endless), rest, std::sync::Arc::clone(&held));
        let began = tokio::time::Instant::now();
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let trailers = frame.expect("an end").expect("a frame").into_trailers();
        let status = Status::from_header_map(&trailers.expect("trailers")).expect("a status");
        assert_eq!((status.code(), began.elapsed().as_secs()), (Code::DeadlineExceeded, 3));
        let end = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        assert!(end.is_none());
        drop(body);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
