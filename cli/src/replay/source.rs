//! Reads lines, gzipped or not, without ever holding the file.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf as _, Bytes};
use flate2::bufread::MultiGzDecoder;
use panopticon_core::time::Time;
use serde::Deserialize;

use super::{ReplayError, ReplayOptions, Source, Span, on_own_thread};

/// The longest line that is read; a trace has at most some 13 KiB.
const MAX_LINE_BYTES: usize = 1024 * 1024;
const READ_BYTES: usize = 128 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What a source is called.
pub(super) fn name(source: &Source) -> String {
    match source {
        Source::File(path) => path.display().to_string(),
        Source::Stdin => "standard input".to_owned(),
        Source::Bytes(_) => "the traces in memory".to_owned(),
    }
}

/// A source that can be read from its start.
#[derive(Debug)]
pub(super) enum Opened {
    File(File, Option<u64>),
    Bytes(Bytes),
}

/// How much of the source has been read, in bytes as they are stored.
#[derive(Debug, Clone, Default)]
pub(super) struct ReadProgress {
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

impl ReadProgress {
    /// Bytes read, and of how many where that is known.
    pub(super) fn now(&self) -> (u64, Option<u64>) {
        (self.read.load(Ordering::Relaxed), self.total)
    }
}

/// Opens the source for reading. Where times are to be shifted, looks through it once first; what cannot be
/// read twice is spooled to a temporary file.
pub(super) async fn prepare(options: &ReplayOptions) -> Result<(Reading, Option<Span>), ReplayError> {
    let (source, shift) = (options.source.clone(), options.shift_to_now);
    let work = on_own_thread(move || {
        let opened = open(&source)?;
        if !shift {
            return Ok((Reading::new(opened)?, None));
        }
        let mut opened = repeatable(opened)?;
        let first_pass = match &opened {
            Opened::File(file, total) => Opened::File(file.try_clone()?, *total),
            Opened::Bytes(bytes) => Opened::Bytes(bytes.clone()),
        };
        let span = span_of(Reading::new(first_pass)?)?;
        // Both handles share their position.
        if let Opened::File(file, _) = &mut opened {
            file.rewind()?;
        }
        Ok((Reading::new(opened)?, Some(span)))
    });
    match work.await.map_err(|cause| ReplayError::Read { what: name(&options.source), cause })? {
        (_, Some(None)) => Err(ReplayError::NoTraces),
        (reading, span) => Ok((reading, span.flatten())),
    }
}

/// The same, from its start and as often as wanted.
fn repeatable(opened: Opened) -> io::Result<Opened> {
    let Opened::File(mut stream, None) = opened else { return Ok(opened) };
    let mut spool = tempfile::tempfile()?;
    let bytes = io::copy(&mut stream, &mut spool)?;
    spool.rewind()?;
    Ok(Opened::File(spool, Some(bytes)))
}

fn open(source: &Source) -> io::Result<Opened> {
    match source {
        Source::Bytes(bytes) => Ok(Opened::Bytes(bytes.clone())),
        Source::File(path) => sized(File::open(path)?),
        Source::Stdin => {
            use std::os::fd::AsFd as _;
            sized(File::from(io::stdin().as_fd().try_clone_to_owned()?))
        }
    }
}

/// Only a regular file that stands at its start has a known length and can be read twice.
fn sized(mut file: File) -> io::Result<Opened> {
    let about = file.metadata()?;
    if about.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let whole = about.is_file() && file.stream_position()? == 0;
    Ok(Opened::File(file, whole.then_some(about.len())))
}

fn span_of(mut reading: Reading) -> io::Result<Option<Span>> {
    #[derive(Deserialize)]
    struct Times {
        started_at: Time,
        duration_ms: u32,
    }
    let mut span: Option<Span> = None;
    while let Some(line) = reading.next_line()? {
        let Line::Text { text, .. } = line else { continue };
        // What is not a trace is told when it is its turn to be sent.
        let Ok(Times { started_at, duration_ms }) = serde_json::from_slice(&text) else { continue };
        let end = started_at.plus(std::time::Duration::from_millis(duration_ms.into()));
        span = Some(match span {
            None => Span { first_start: started_at, last_start: started_at, last_end: end },
            Some(span) => Span {
                // Pacing counts from the first line, whatever comes after it.
                first_start: span.first_start,
                last_start: span.last_start.max(started_at),
                last_end: span.last_end.max(end),
            },
        });
    }
    Ok(span)
}

/// One line of the source.
pub(super) enum Line {
    Text { number: u64, text: Bytes },
    TooLong { number: u64 },
}

/// A source being read.
pub(super) struct Reading {
    lines: Box<dyn BufRead + Send>,
    number: u64,
    progress: ReadProgress,
}

impl Reading {
    /// Starts to read, and finds out whether it is gzip.
    fn new(opened: Opened) -> io::Result<Self> {
        let total = match &opened {
            Opened::File(_, total) => *total,
            Opened::Bytes(bytes) => Some(bytes.len() as u64),
        };
        let progress = ReadProgress { read: Arc::default(), total };
        let bytes: Box<dyn Read + Send> = match opened {
            Opened::File(file, _) => Box::new(file),
            Opened::Bytes(bytes) => Box::new(bytes.reader()),
        };
        let mut plain =
            BufReader::with_capacity(READ_BYTES, Counted { bytes, read: Arc::clone(&progress.read) });
        let is_gzip = plain.fill_buf()?.starts_with(&GZIP_MAGIC);
        let lines: Box<dyn BufRead + Send> = if is_gzip {
            Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(plain)))
        } else {
            Box::new(plain)
        };
        Ok(Self { lines, number: 0, progress })
    }

    /// How far reading has come; stays up to date.
    pub(super) fn progress(&self) -> ReadProgress {
        self.progress.clone()
    }

    /// The next line without its end, numbered from 1.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line>> {
        let (mut text, mut too_long) = (Vec::new(), false);
        loop {
            let ready = self.lines.fill_buf()?;
            if ready.is_empty() {
                if text.is_empty() && !too_long {
                    return Ok(None);
                }
                break;
            }
            let end = ready.iter().position(|byte| *byte == b'\n');
            let part = &ready[..end.unwrap_or(ready.len())];
            too_long |= text.len() + part.len() > MAX_LINE_BYTES;
            if !too_long {
                text.extend_from_slice(part);
            }
            let taken = part.len() + usize::from(end.is_some());
            self.lines.consume(taken);
            if end.is_some() {
                break;
            }
        }
        self.number += 1;
        let number = self.number;
        Ok(Some(if too_long { Line::TooLong { number } } else { Line::Text { number, text: text.into() } }))
    }
}

struct Counted {
    bytes: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(into)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn lines(bytes: Vec<u8>) -> Vec<(u64, Option<String>)> {
        let mut reading = Reading::new(Opened::Bytes(bytes.into())).unwrap();
        let mut found = Vec::new();
        while let Some(line) = reading.next_line().unwrap() {
            found.push(match line {
                Line::Text { number, text } => (number, Some(String::from_utf8(text.to_vec()).unwrap())),
                Line::TooLong { number } => (number, None),
            });
        }
        found
    }

    #[test]
    fn gzip_is_recognised_and_its_members_follow_each_other() {
        let member = |text: &str| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(text.as_bytes()).unwrap();
            gzip.finish().unwrap()
        };
        let expected: Vec<_> = [(1, "a"), (2, ""), (3, "b")].map(|(n, t)| (n, Some(t.to_owned()))).into();
        assert_eq!(lines(b"a\n\nb".to_vec()), expected);
        assert_eq!(lines([member("a\n\n"), member("b\n")].concat()), expected);
    }

    #[test]
    fn an_endless_line_is_left_out_and_reading_goes_on() {
        let text = [vec![b'x'; MAX_LINE_BYTES + 1], b"\nb\n".to_vec()].concat();
        assert_eq!(lines(text), [(1, None), (2, Some("b".to_owned()))]);
    }

    #[test]
    fn a_file_that_ends_in_the_middle_is_an_error_not_an_end() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&b"abc\n".repeat(1_000)).unwrap();
        let mut cut = gzip.finish().unwrap();
        cut.truncate(cut.len() - 12);
        let mut reading = Reading::new(Opened::Bytes(cut.into())).unwrap();
        let error = loop {
            match reading.next_line() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the cut went unnoticed"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
