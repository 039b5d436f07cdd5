//! A server that cannot be connected to for a while, in each of the ways in which that fails, is used again.

use std::sync::Arc;

use panopticon_core::{config::Secret, seen::SeenSet as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{config, eventually, mark, seen, variable};

/// How a way to a server fails.
#[derive(Debug, Clone, Copy)]
enum Way {
    Works,
    /// What is asked first is answered with this, and the connection ends.
    Answers(&'static str),
    /// Nothing is answered, and connections stay.
    Silent,
}

/// A way to `server` that fails as it is told; connections made before fail with it.
async fn way_to(server: String) -> (u16, watch::Sender<Way>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, way) = watch::channel(Way::Works);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(pass(stream, server.clone(), way.clone()));
        }
    });
    (port, told)
}

async fn pass(mut client: TcpStream, server: String, mut way: watch::Receiver<Way>) {
    let mut server = TcpStream::connect(server).await.unwrap();
    if matches!(*way.borrow_and_update(), Way::Works) {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = way.changed() => {}
        }
    }
    let failure = *way.borrow();
    match failure {
        Way::Works => {}
        Way::Answers(text) => {
            let _ = client.read_u8().await;
            let _ = client.write_all(text.as_bytes()).await;
        }
        // A connection that has gone silent does not come back.
        Way::Silent => {
            let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_used_again_however_connecting_failed_meanwhile() {
    let Some(url) = variable("REDIS_URL") else { return };
    let server = url.strip_prefix("redis://").unwrap().trim_end_matches('/').to_owned();
    let (port, way) = way_to(server).await;
    let mut config = config();
    config.redis.url = Secret::new(format!("redis://127.0.0.1:{port}"));
    config.redis.timeout_ms = 500;
    let set = Arc::new(seen(&config).await.unwrap());
    let failures = [
        // Cut in the middle of an answer.
        Way::Answers("+O"),
        Way::Answers("-ERR max number of clients reached\r\n"),
        Way::Answers("-LOADING Redis is loading the dataset in memory\r\n"),
        Way::Silent,
    ];
    for (n, failure) in (1..).zip(failures) {
        way.send_replace(failure);
        // Long enough for the driver to have given up connecting.
        for _ in 0..6 {
            set.mark(mark(n), None).await.expect_err("the way fails");
        }
        way.send_replace(Way::Works);
        eventually(&format!("a mark after {failure:?}"), async || {
            set.mark(mark(n), None).await.map_err(|error| error.to_string())
        })
        .await;
    }
}
