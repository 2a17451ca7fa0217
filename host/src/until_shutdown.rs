use background_tasks::{Guard, Registry, ShutdownSignal};
use futures_lite::Stream;
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

pin_project! {
    /// Makes a stream, a body or an upgraded connection end when shutdown starts. The registry counts it as in flight until this wrapper is
    /// dropped.
    ///
    /// A stream of events does not end on its own. Without this wrapper, the drain waits until the client disconnects or the grace period
    /// expires. An upgraded connection, such as a WebSocket, belongs to no request. Without this wrapper, the drain does not wait for it,
    /// and the connection breaks when the process exits.
    ///
    /// | the value | after the signal | required |
    /// | --- | --- | --- |
    /// | a [`Stream`]: server-sent events, the messages of a WebSocket | the next item is `None` | |
    /// | a [`Body`] | the next frame is `None`, which ends the response without an error. The response must not have a header `Content-Length`. | |
    /// | hyper's `Read`, such as `hyper::upgrade::Upgraded` | a read returns the end of the input. Writes still work, so that the protocol can close the connection properly. | the feature `http` |
    ///
    /// For tokio's traits, wrap the value in `hyper_util::rt::TokioIo`, which converts between the traits of hyper and tokio.
    ///
    /// Use [`get_mut`](Self::get_mut) to send a last message, such as the close frame of a WebSocket. The drain waits until this wrapper is
    /// dropped. If you wait for the client after the signal, for example for its close frame, set a time limit.
    ///
    /// # Examples
    ///
    /// This function makes server-sent events end when the shutdown starts:
    ///
    /// ```
    /// use axum::response::sse::{Event, Sse};
    /// use background_tasks::{Registry, TokioSpawner};
    /// use background_tasks_host::UntilShutdown;
    /// use futures_lite::Stream;
    /// use std::convert::Infallible;
    ///
    /// type Item = Result<Event, Infallible>;
    ///
    /// fn events<S: Stream<Item = Item> + Send + 'static>(registry: &Registry<TokioSpawner>, events: S) -> Sse<UntilShutdown<S>> {
    ///     Sse::new(UntilShutdown::new(registry, events))
    /// }
    /// ```
    ///
    /// A WebSocket is a stream of messages. After the loop, the server sends its close frame:
    ///
    /// ```
    /// # use background_tasks::Registry;
    /// # use background_tasks_host::UntilShutdown;
    /// # use futures_lite::{Stream, StreamExt};
    /// # async fn serve<S>(registry: Registry<S>, socket: impl Stream<Item = Result<String, axum::Error>> + Unpin) {
    /// let mut socket = UntilShutdown::new(&registry, socket);
    /// while let Some(Ok(message)) = socket.next().await {
    ///     // Answer with `socket.get_mut().send(…)`.
    /// }
    /// // `socket.get_mut().send(Message::Close(None))`
    /// # }
    /// ```
    #[derive(Debug)]
    pub struct UntilShutdown<T> {
        #[pin]
        inner: T,
        signal: ShutdownSignal,
        // `None` if the registry has drained.
        guard: Option<Guard>,
    }
}

impl<T> UntilShutdown<T> {
    /// Wraps a stream, a body or an upgraded connection.
    ///
    /// A [guard](Registry::guard) counts the value as in flight. The guard has the name `stream` and takes no permit. Its call site is this
    /// call. If the registry has drained, the value ends immediately.
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>, inner: T) -> Self {
        let guard = registry.named("stream").location(Location::caller()).without_permit().guard();
        Self { inner, signal: registry.signal(), guard: guard.ok() }
    }

    /// Returns the inner value, for example to send a last message.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.inner
    }

    /// Returns the inner value. After this call, shutdown no longer ends the value, and the registry no longer counts it as in flight.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// Polls the inner value. After shutdown has started, returns `end` instead.
    fn poll_until_shutdown<P>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        end: P,
        poll: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<P>,
    ) -> Poll<P> {
        let this = self.project();
        // The signal is polled first. Otherwise an inner value that is always ready would never end.
        if Pin::new(this.signal).poll(cx).is_ready() { Poll::Ready(end) } else { poll(this.inner, cx) }
    }
}

impl<T: Stream> Stream for UntilShutdown<T> {
    type Item = T::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        self.poll_until_shutdown(cx, None, Stream::poll_next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.inner.size_hint().1)
    }
}

/// The length of the body is unknown, because the body can end early.
impl<T: Body> Body for UntilShutdown<T> {
    type Data = T::Data;
    type Error = T::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<T::Data>, T::Error>>> {
        self.poll_until_shutdown(cx, None, Body::poll_frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

#[cfg(feature = "http")]
mod io {
    use super::UntilShutdown;
    use hyper::rt::{Read, ReadBufCursor, Write};
    use std::io::{self, IoSlice};
    use std::pin::Pin;
    use std::task::{Context, Poll};

    impl<T: Read> Read for UntilShutdown<T> {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
            self.poll_until_shutdown(cx, Ok(()), |inner, cx| inner.poll_read(cx, buffer))
        }
    }

    impl<T: Write> Write for UntilShutdown<T> {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.project().inner.poll_write(cx, bytes)
        }

        fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
            self.project().inner.poll_write_vectored(cx, bytes)
        }

        fn is_write_vectored(&self) -> bool {
            self.inner.is_write_vectored()
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.project().inner.poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.project().inner.poll_shutdown(cx)
        }
    }
}
