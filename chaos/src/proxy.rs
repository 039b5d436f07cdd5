//! A TCP proxy between the workers and a server, which can be slow, silent, or cut connections.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use rand::RngExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

const CHUNK_BYTES: usize = 16 << 10;
/// How often a chunk is the last one of its connection while connections are cut.
const CUT_CHANCE: f64 = 0.2;

/// What the proxy does with what passes through it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Nothing.
    Pass,
    /// Each chunk of an answer waits for so long.
    Slow(Duration),
    /// Answers wait until this ends.
    Hold,
    /// Connections end in the middle of questions and answers.
    Cut,
}

/// A running proxy.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    question: Arc<Notify>,
}

/// Which questions [`Proxy::next_question`] waits for.
pub type Marker = &'static [u8];

impl Proxy {
    /// Listens on a loopback port and passes on to `upstream`; questions that hold `marker` are told.
    pub async fn start(upstream: String, marker: Marker) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
        let address = listener.local_addr()?;
        let (mode, seen) = watch::channel(Mode::Pass);
        let question = Arc::new(Notify::new());
        let told = question.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (upstream, mode, told) = (upstream.clone(), seen.clone(), told.clone());
                tokio::spawn(async move { pass(client, &upstream, mode, marker, &told).await });
            }
        });
        Ok(Self { address, mode, question })
    }

    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Until the next marked question passes.
    pub async fn next_question(&self) {
        self.question.notified().await;
    }
}

async fn pass(client: TcpStream, upstream: &str, mode: watch::Receiver<Mode>, marker: Marker, told: &Notify) {
    // A server that is away is a connection that ends at once.
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // Whichever side ends first ends both.
    tokio::select! {
        () = questions(client_read, server_write, mode.clone(), marker, told) => {}
        () = answers(server_read, client_write, mode) => {}
    }
}

async fn questions(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mode: watch::Receiver<Mode>,
    marker: Marker,
    told: &Notify,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let chunk = &buffer[..length];
        let cut = *mode.borrow() == Mode::Cut && rand::rng().random_bool(CUT_CHANCE);
        let passed = if cut { &chunk[..rand::rng().random_range(0..length)] } else { chunk };
        if to.write_all(passed).await.is_err() || cut {
            return;
        }
        if chunk.windows(marker.len()).any(|window| window == marker) {
            told.notify_waiters();
        }
    }
}

async fn answers(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Pass => {}
            Mode::Slow(pause) => tokio::time::sleep(pause).await,
            Mode::Hold => {
                if mode.wait_for(|mode| *mode != Mode::Hold).await.is_err() {
                    return;
                }
            }
            Mode::Cut if rand::rng().random_bool(CUT_CHANCE) => {
                let part = rand::rng().random_range(0..length);
                let _ = to.write_all(&buffer[..part]).await;
                return;
            }
            Mode::Cut => {}
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
