//! The question that each server answers only when it is ready, in its own protocol.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// How long a server may take to accept and answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer longer than this is no answer to these questions.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Asks a Kafka broker for the versions of its API. A broker in KRaft mode answers only after the controller
/// has let it in. Returns the number of request kinds that it knows.
pub fn kafka(port: u16) -> Result<String> {
    // ApiVersions (18), version 0, correlation id 1, no client id; all big-endian, behind a length.
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let mut stream = connect(port)?;
    stream.write_all(&REQUEST)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).context("no answer")?;
    let length = u32::from_be_bytes(length) as usize;
    ensure!((10..=MAX_ANSWER_BYTES).contains(&length), "an answer of {length} bytes is not Kafka's");
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).context("half an answer")?;
    ensure!(answer[..4] == [0, 0, 0, 1], "an answer to another question");
    let error = i16::from_be_bytes([answer[4], answer[5]]);
    ensure!(error == 0, "Kafka answers with error {error}");
    let kinds = i32::from_be_bytes([answer[6], answer[7], answer[8], answer[9]]);
    Ok(format!("{kinds} request kinds"))
}

/// Pings a Redis server. While it loads its data it answers with an error, which is not ready.
pub fn redis(port: u16) -> Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer).context("no answer")?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    match answer.trim_end() {
        "+PONG" => Ok("PONG".to_owned()),
        other => bail!("Redis answers {other:?}"),
    }
}

/// Asks ClickHouse for its version.
pub fn clickhouse(port: u16) -> Result<String> {
    clickhouse_query(port, "SELECT version()")
}

/// Runs one statement over ClickHouse's HTTP interface and returns what it answers, without the last newline.
/// Made for questions with short answers.
pub fn clickhouse_query(port: u16, sql: &str) -> Result<String> {
    let mut stream = connect(port)?;
    // HTTP/1.0, so that the answer comes in one piece and ends with the connection. Written at once, not a piece
    // a system call.
    let question =
        format!("POST / HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{sql}", sql.len());
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES as u64).read_to_end(&mut answer).context("no answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "ClickHouse answers {status}: {}", body.trim_end());
    Ok(body.trim_end().to_owned())
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};
    use std::thread;

    use super::*;

    /// A server that gives one connection a fixed answer, and reads all that the other side writes: to close with
    /// something unread would be a reset, which may overtake the answer.
    fn answering(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut question = [0; 1024];
            let _ = stream.read(&mut question).unwrap();
            stream.write_all(answer).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            while stream.read(&mut question).is_ok_and(|length| length > 0) {}
        });
        port
    }

    #[test]
    fn redis_is_not_ready_while_it_loads() {
        assert!(redis(answering(b"+PONG\r\n")).is_ok());
        let error = redis(answering(b"-LOADING Redis is loading the dataset in memory\r\n")).unwrap_err();
        assert!(error.to_string().contains("LOADING"), "{error}");
    }

    #[test]
    fn kafka_must_answer_this_question_without_an_error() {
        assert!(kafka(answering(&[0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 7])).is_ok());
        assert!(kafka(answering(&[0, 0, 0, 10, 0, 0, 0, 1, 0, 35, 0, 0, 0, 0])).is_err());
        assert!(kafka(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")).is_err());
    }

    #[test]
    fn clickhouse_must_answer_with_200() {
        let port = answering(b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n26.7.2.1\n");
        assert_eq!(clickhouse(port).unwrap(), "26.7.2.1");
        assert!(clickhouse(answering(b"HTTP/1.0 500 No\r\n\r\nCode: 1.\n")).is_err());
    }
}
