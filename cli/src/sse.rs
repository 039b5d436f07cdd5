//! Server-Sent Events (WHATWG HTML, 9.2), followed across broken connections.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};

use crate::{
    control::Control,
    failure::{Failure, Outcome},
};

/// The most bytes of one event; a trace has at most some 13 KiB.
const MAX_EVENT_BYTES: usize = 1024 * 1024;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its type; `message` where it has none.
    pub(crate) name: String,
    /// Its data, lines joined by line feeds.
    pub(crate) data: String,
}

/// Turns bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    name: String,
    data: Option<String>,
    /// The last id seen.
    pub(crate) last_id: Option<String>,
    pending_id: Option<String>,
}

impl Parser {
    /// Takes bytes in and adds the events that they complete to `events`.
    pub(crate) fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), &'static str> {
        for &byte in bytes {
            let was_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if was_cr => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    self.take_line(&String::from_utf8_lossy(&line), events);
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MAX_EVENT_BYTES {
                return Err("an event of more than 1 MiB");
            }
        }
        Ok(())
    }

    fn take_line(&mut self, line: &str, events: &mut Vec<Event>) {
        if line.is_empty() {
            // Only a whole event moves the position to go on from.
            if let Some(id) = self.pending_id.take() {
                self.last_id = Some(id);
            }
            let name = std::mem::take(&mut self.name);
            if let Some(data) = self.data.take() {
                events.push(Event { name: if name.is_empty() { "message".into() } else { name }, data });
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" if !value.contains('\0') => self.pending_id = Some(value.to_owned()),
            // A comment, or a field of a later standard.
            _ => {}
        }
    }
}

/// A stream of events that connects again, after the last event it has seen, when it breaks.
pub(crate) struct Live<'a> {
    control: &'a Control,
    path: String,
    body: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
    parser: Parser,
    ready: std::collections::VecDeque<Event>,
    waits: ExponentialBackoff,
    /// Told why a connection ended, once for each break.
    on_break: fn(&str),
}

fn waits() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_WAIT)
        .with_max_delay(LONGEST_WAIT)
        .with_jitter()
        .without_max_times()
        .build()
}

impl<'a> Live<'a> {
    /// Opens the stream at `path`; fails where the server refuses it or is not there.
    pub(crate) async fn open(control: &'a Control, path: String, on_break: fn(&str)) -> Outcome<Self> {
        let body = control.stream(&path, None).await?.bytes_stream().boxed();
        Ok(Self {
            control,
            path,
            body: Some(body),
            parser: Parser::default(),
            ready: std::collections::VecDeque::new(),
            waits: waits(),
            on_break,
        })
    }

    /// The next event, however long that takes. Fails only where the server refuses the stream.
    pub(crate) async fn next(&mut self) -> Outcome<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match &mut self.body {
                Some(body) => match body.next().await {
                    Some(Ok(bytes)) => self.take_in(&bytes)?,
                    Some(Err(error)) => self.broken(&crate::connection::cause(&error)),
                    None => self.broken("the server ended the stream"),
                },
                None => self.connect_again().await?,
            }
        }
    }

    fn take_in(&mut self, bytes: &[u8]) -> Outcome {
        let mut events = Vec::new();
        self.parser.push(bytes, &mut events).map_err(|why| Failure::new(format!("the server sent {why}")))?;
        if !events.is_empty() {
            self.waits = waits();
        }
        self.ready.extend(events);
        Ok(())
    }

    fn broken(&mut self, why: &str) {
        (self.on_break)(why);
        self.body = None;
        // What was begun comes again as a whole.
        self.parser = Parser { last_id: self.parser.last_id.take(), ..Parser::default() };
    }

    async fn connect_again(&mut self) -> Outcome {
        tokio::time::sleep(self.waits.next().unwrap_or(LONGEST_WAIT)).await;
        match self.control.stream(&self.path, self.parser.last_id.as_deref()).await {
            Ok(answer) => self.body = Some(answer.bytes_stream().boxed()),
            // Without a code nobody was there, or someone else; `unavailable` passes by itself.
            Err(failure) if failure.code.is_empty() || failure.code == "unavailable" => {}
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&str]) -> (Vec<Event>, Parser) {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.push(chunk.as_bytes(), &mut events).unwrap();
        }
        (events, parser)
    }

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn events_are_the_same_however_they_are_cut_and_ended() {
        let text =
            ":hello\r\nid: 7\r\nevent: trace\r\ndata: {\"a\":1}\r\n\r\ndata: x\ndata: y\n\nevent: ping\n\n";
        let expected = vec![event("trace", "{\"a\":1}"), event("message", "x\ny")];
        assert_eq!(parse(&[text]).0, expected);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(parse(&letters).0, expected);
    }

    #[test]
    fn only_a_whole_event_moves_the_position() {
        let (_, parser) = parse(&["id: 1\ndata: a\n\nid: 2\ndata: b\n"]);
        assert_eq!(parser.last_id.as_deref(), Some("1"));
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        assert!(parser.push(&vec![b'x'; MAX_EVENT_BYTES + 1], &mut Vec::new()).is_err());
    }
}
