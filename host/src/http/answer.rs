//! Creates responses that the server sends in place of its service.

use crate::authority::{authority, is_trusted};
use background_tasks::ShutdownSignal;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// The accepted host names, in addition to `localhost` and IP addresses. `None` means that all host names are accepted.
pub(super) type HostNames = Option<Vec<String>>;

/// A status, and a message for the person who reads the response.
pub(super) type Refusal = (StatusCode, &'static str);

const BODY_TIMED_OUT: Refusal = (StatusCode::REQUEST_TIMEOUT, "the body of the request did not arrive in time\n");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const INVALID_HOST: Refusal = (StatusCode::BAD_REQUEST, "the request needs exactly one valid `Host` header\n");
const UNKNOWN_HOST: Refusal = (
    StatusCode::MISDIRECTED_REQUEST,
    "unknown host: use localhost, an IP address, or a host name that this server is configured to accept\n",
);

/// Checks the host name to which a request was sent.
pub(super) fn check_host<B>(request: &Request<B>, names: &HostNames) -> Result<(), Refusal> {
    let hosts = request.headers().get_all(HOST).iter().count();
    // HTTP/1.0 does not require `Host`. An attack by DNS rebinding uses a browser, and browsers do not send HTTP/1.0.
    if hosts == 0 && request.version() == Version::HTTP_10 {
        return Ok(());
    }
    let authority = authority(request).filter(|_| hosts == 1).ok_or(INVALID_HOST)?;
    let trusted = names.as_ref().is_none_or(|names| is_trusted(&authority, names));
    if trusted { Ok(()) } else { Err(UNKNOWN_HOST) }
}

/// Returns the response of the service, or the server's own response if the request was refused or its body arrived too slowly. `timed_out`
/// says whether the body arrived too slowly.
pub(super) async fn answer<F, B, E>(
    called: Result<F, Refusal>,
    timed_out: Arc<AtomicBool>,
    signal: ShutdownSignal,
) -> Result<Response<Answer<B>>, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    let result = match called {
        Ok(response) => response.await,
        Err(refusal) => return Ok(refuse(refusal)),
    };
    let timed_out = timed_out.load(Ordering::Relaxed);
    match result {
        Ok(mut response) => {
            let status = response.status();
            if timed_out && (status.is_client_error() || status.is_server_error()) {
                *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
            }
            if timed_out || signal.is_triggered() {
                response.headers_mut().entry(CONNECTION).or_insert(CLOSE);
            }
            Ok(response.map(|body| Answer::Service { body }))
        }
        Err(_) if timed_out => Ok(refuse(BODY_TIMED_OUT)),
        Err(error) => Err(error),
    }
}

/// Returns a response that closes the connection.
fn refuse<B>((status, text): Refusal) -> Response<Answer<B>> {
    let mut response = Response::new(Answer::Refusal { text: Bytes::from_static(text.as_bytes()) });
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CONNECTION, CLOSE);
    response
}

pin_project! {
    /// The body of a response from the service, or the message of the server if it refuses the request.
    #[project = AnswerProjection]
    pub(super) enum Answer<B> {
        Service { #[pin] body: B },
        Refusal { text: Bytes },
    }
}

impl<B: Body<Data = Bytes>> Body for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project() {
            AnswerProjection::Service { body } => body.poll_frame(cx),
            AnswerProjection::Refusal { text } if text.is_empty() => Poll::Ready(None),
            AnswerProjection::Refusal { text } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Service { body } => body.is_end_stream(),
            Self::Refusal { text } => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Service { body } => body.size_hint(),
            Self::Refusal { text } => SizeHint::with_exact(text.len() as u64),
        }
    }
}
