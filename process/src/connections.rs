//! The connections of a server: HTTP/1.1 and HTTP/2 on one port, answers in few writes.
//!
//! What a small answer costs is above all its writes. An answer of gRPC is three frames (headers, message, trailers),
//! and the HTTP/2 library writes a message of more than 256 bytes from where it lies, and what comes after it by
//! itself: two writes for one answer. Where the connection takes no lists of buffers, it copies whatever is shorter
//! than 1,024 bytes into the buffer of the frames around it; so [`Plain`] takes none, and longer messages go in
//! [`Pieces`].

use std::{
    convert::Infallible,
    fmt::Display,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Request},
    http::Version,
    response::Response,
    serve::Listener,
};
use futures::FutureExt as _;
use http_body::{Frame, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto::Builder,
        graceful::{GracefulConnection, GracefulShutdown},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt as _, service_fn};
use tracing::{debug, warn};

use crate::requests::traced;

/// The longest frame that clients may send, in bytes: a batch of some hundred traces in one, not in fives.
const MAX_FRAME_BYTES: u32 = 256 << 10;
/// The longest piece of an answer, in bytes: what the HTTP/2 library still copies.
const PIECE_BYTES: usize = 1_000;
/// Above this, in bytes, a message is worth a write of its own.
const CUT_BELOW_BYTES: usize = 32 << 10;

/// Serves whoever connects until `shutdown`, then lets requests under way finish within `drain`.
pub async fn serve(mut listener: TcpListener, router: Router, shutdown: CancellationToken, drain: Duration) {
    let (builder, router) = (builder(), traced(router));
    let open = GracefulShutdown::new();
    while let Some((stream, peer)) = shutdown.run_until_cancelled(Listener::accept(&mut listener)).await {
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "cannot set TCP_NODELAY");
        }
        tokio::spawn(open.watch(connection(&builder, stream, router.clone(), peer)).map(move |ended| {
            if let Err(error) = ended {
                debug!(%peer, %error, "a connection ended");
            }
        }));
    }
    // Nobody is let in any more, and told so at once.
    drop(listener);
    if tokio::time::timeout(drain, open.shutdown()).await.is_err() {
        warn!("the drain deadline passed with connections still open");
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().max_frame_size(MAX_FRAME_BYTES);
    builder
}

/// Serves one connection; it is polled for as long as that is open.
fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    builder: &Builder<TokioExecutor>,
    stream: S,
    router: Router,
    peer: SocketAddr,
) -> impl GracefulConnection<Error: Display + Send> + Send + use<S> {
    let service = TowerToHyperService::new(answers(router, peer));
    builder.serve_connection(TokioIo::new(Plain(stream)), service).into_owned()
}

/// `router` as `peer` sees it.
fn answers(
    router: Router,
    peer: SocketAddr,
) -> impl tower::Service<
    hyper::Request<hyper::body::Incoming>,
    Response = hyper::Response<Pieces>,
    Error = Infallible,
    Future: Send,
> + Clone {
    service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let is_cut = request.version() == Version::HTTP_2;
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        answer.map(move |answer| answer.map(|answer: Response| answer.map(|body| Pieces::new(body, is_cut))))
    })
}

/// A stream that is written from one buffer at a time: lists of buffers are not offered.
struct Plain<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Plain<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

/// A body whose data comes in pieces that are worth no write of their own.
struct Pieces {
    body: Body,
    is_cut: bool,
    /// What is left of the data that came last.
    rest: Bytes,
}

impl Pieces {
    fn new(body: Body, is_cut: bool) -> Self {
        Self { body, is_cut, rest: Bytes::new() }
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) if self.is_cut => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) if (PIECE_BYTES + 1..CUT_BELOW_BYTES).contains(&data.len()) => self.rest = data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{
        http::{HeaderMap, HeaderValue},
        routing::get,
    };
    use http_body_util::{BodyExt as _, Empty, Full};
    use hyper::client::conn::http2;
    use tokio::io::DuplexStream;

    use super::*;

    /// Counts writes, and takes lists of buffers as a socket does.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            lists: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write_vectored(cx, lists)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// An answer as gRPC has it: a message, then trailers.
    fn answer(bytes: usize) -> Body {
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        Body::new(Full::new(Bytes::from(vec![b'x'; bytes])).with_trailers(async { Some(Ok(trailers)) }))
    }

    /// How many writes an answer of so many bytes takes on a connection that has answered before.
    async fn writes_of(bytes: usize) -> usize {
        let writes = Arc::<AtomicUsize>::default();
        let (near, far) = tokio::io::duplex(1 << 20);
        let router = Router::new().route("/", get(move || async move { answer(bytes) }));
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        tokio::spawn(connection(&builder(), Counted(far, writes.clone()), router, peer));
        let (mut sender, client) =
            http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(near)).await.unwrap();
        tokio::spawn(client);
        let mut before = 0;
        for _ in 0..2 {
            before = writes.load(Ordering::Relaxed);
            let request = Request::get("http://localhost/").body(Empty::new()).unwrap();
            let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(answer.to_bytes().len(), bytes, "all pieces arrive");
        }
        writes.load(Ordering::Relaxed) - before
    }

    #[tokio::test]
    async fn an_answer_to_a_batch_goes_out_in_one_write_with_its_trailers() {
        for bytes in [40, 420, PIECE_BYTES, PIECE_BYTES + 1, 4_200] {
            assert_eq!(writes_of(bytes).await, 1, "{bytes} bytes");
        }
    }

    #[tokio::test]
    async fn an_answer_of_any_length_arrives_whole() {
        for bytes in [0, CUT_BELOW_BYTES - 1, CUT_BELOW_BYTES, 500_000] {
            writes_of(bytes).await;
        }
    }
}
