//! The body of a batch: unpacked within its limit, cut into texts, each a trace or refused with a reason.

#![no_main]

use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use panopticon_core::{admission::trace_from_json, time::Time};
use panopticon_ingest_gateway::body::{Format, cut, decompress};

const MAX_BYTES: usize = 1 << 20;
const MAX_TRACES: usize = 100;

fuzz_target!(|input: (u8, &[u8])| {
    let (choice, body) = input;
    let encoding = ["identity", "gzip", "zstd"][usize::from(choice % 3)];
    let format = if choice & 0x80 == 0 { Format::Json } else { Format::Ndjson };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    let plain = match decompress(&headers, body.to_vec().into(), MAX_BYTES) {
        Ok(plain) => plain,
        Err(error) => return assert!(!error.description.is_empty()),
    };
    assert!(plain.len() <= MAX_BYTES || encoding == "identity");
    let texts = match cut(format, &plain, MAX_TRACES) {
        Ok(texts) => texts,
        Err(error) => return assert!(!error.description.is_empty()),
    };
    assert!(texts.len() <= MAX_TRACES);
    for text in texts {
        if let Err(refusal) = trace_from_json(text, Time::from_secs(1_800_000_000)) {
            assert!(!refusal.description.is_empty());
        }
    }
});
