//! Request bodies: read to a limit, decompressed to a limit, cut into traces.

use std::{fmt::Display, io::Read};

use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ruzstd::decoding::{
    FrameDecoder, StreamingDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

use crate::error::{GatewayError, Kind};

/// The largest window of a zstd frame that is unpacked: what RFC 9659 allows in a Content-Encoding.
const MAX_ZSTD_WINDOW_BYTES: u64 = 8 << 20;

/// Reads the body as sent, at most `limit` bytes and for at most `patience`.
pub async fn read(body: Body, limit: usize, patience: Duration) -> Result<Bytes, GatewayError> {
    let Ok(read) = tokio::time::timeout(patience, Limited::new(body, limit).collect()).await else {
        let description = format!("the body did not come within {} s", patience.as_secs());
        return Err(GatewayError::new(Kind::RequestTimeout, description));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Err(error) => Err(GatewayError::new(
            Kind::InvalidRequest,
            format!("the body could not be read to its end: {error}"),
        )),
    }
}

fn too_large(limit: usize) -> GatewayError {
    GatewayError::new(Kind::TooLarge, format!("the body is larger than {limit} bytes"))
}

/// Undoes the Content-Encoding; the result has at most `limit` bytes.
pub fn decompress(headers: &HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, GatewayError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?").trim());
    match encoding {
        None | Some("" | "identity") => Ok(body),
        Some("gzip" | "x-gzip") => read_limited(flate2::read::MultiGzDecoder::new(&*body), limit, "gzip"),
        Some("zstd") => unpack_zstd(&body, limit),
        Some(other) => Err(GatewayError::new(
            Kind::UnsupportedMediaType,
            format!("Content-Encoding `{other}` is not supported; use gzip, zstd or identity"),
        )),
    }
}

fn read_limited(decoder: impl Read, limit: usize, name: &str) -> Result<Bytes, GatewayError> {
    let mut plain = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(|error| is_not(name, &error))?;
    if plain.len() > limit {
        return Err(too_large(limit));
    }
    Ok(plain.into())
}

fn is_not(name: &str, why: &dyn Display) -> GatewayError {
    GatewayError::new(Kind::InvalidRequest, format!("the body is not {name}: {why}"))
}

/// Unpacks all frames, and checks those that carry a checksum: the decoder by itself ends after the first
/// frame and checks nothing.
fn unpack_zstd(body: &[u8], limit: usize) -> Result<Bytes, GatewayError> {
    if body.is_empty() {
        return Err(is_not("zstd", &"it is empty"));
    }
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(MAX_ZSTD_WINDOW_BYTES);
    let (mut rest, mut plain) = (body, Vec::new());
    while !rest.is_empty() {
        let frame = match StreamingDecoder::new_with_decoder(&mut rest, &mut decoder) {
            Ok(frame) => frame,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let after = rest.get(length as usize..);
                rest = after.ok_or_else(|| is_not("zstd", &"a skippable frame is cut off"))?;
                continue;
            }
            Err(error) => return Err(is_not("zstd", &error)),
        };
        let room = (limit - plain.len()) as u64 + 1;
        frame.take(room).read_to_end(&mut plain).map_err(|error| is_not("zstd", &error))?;
        if plain.len() > limit {
            return Err(too_large(limit));
        }
        let claimed = decoder.get_checksum_from_data();
        if claimed.is_some() && claimed != decoder.get_calculated_checksum() {
            return Err(is_not("zstd", &"a frame's checksum is wrong"));
        }
    }
    Ok(plain.into())
}

/// How a body says what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/x-ndjson`: a trace a line.
    Ndjson,
}

/// Reads the Content-Type; without one the body is taken as JSON.
pub fn format(headers: &HeaderMap) -> Result<Format, GatewayError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Format::Json) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(Format::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
            Ok(Format::Ndjson)
        }
        _ => Err(GatewayError::new(
            Kind::UnsupportedMediaType,
            format!(
                "Content-Type `{text}` is not supported; use application/json, or application/x-ndjson for batches"
            ),
        )),
    }
}

/// Cuts a batch into the texts of its traces; at most `limit` of them.
pub fn cut(format: Format, body: &[u8], limit: usize) -> Result<Vec<&[u8]>, GatewayError> {
    let texts: Vec<&[u8]> = match format {
        Format::Json => {
            let raw: Vec<&serde_json::value::RawValue> = serde_json::from_slice(body).map_err(|error| {
                GatewayError::new(Kind::InvalidRequest, format!("a batch is a JSON array of traces: {error}"))
            })?;
            raw.into_iter().map(|value| value.get().as_bytes()).collect()
        }
        Format::Ndjson => body
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .filter(|line| !line.is_empty())
            .collect(),
    };
    if texts.len() > limit {
        return Err(GatewayError::new(
            Kind::TooLarge,
            format!("the batch has {} traces; at most {limit}", texts.len()),
        ));
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    #[test]
    fn a_small_body_that_unpacks_beyond_the_limit_is_too_large() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, &vec![b' '; 1 << 20]).unwrap();
        let bomb = Bytes::from(encoder.finish().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(decompress(&headers, bomb.clone(), 1 << 19).unwrap_err().kind, Kind::TooLarge);
        assert_eq!(decompress(&headers, bomb, 1 << 20).unwrap().len(), 1 << 20);
    }

    #[test]
    fn garbage_in_an_encoding_is_a_bad_request() {
        for encoding in ["gzip", "zstd"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
            let error = decompress(&headers, Bytes::from_static(b"no such thing"), 100).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidRequest, "{encoding}");
        }
    }

    fn unpack(encoding: &'static str, body: Vec<u8>, limit: usize) -> Result<Bytes, GatewayError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        decompress(&headers, body.into(), limit)
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn every_frame_of_a_zstd_body_is_read() {
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let frames = [&zstd(b"[1,")[..], &skippable, &zstd(b"2]")].concat();
        assert_eq!(unpack("zstd", frames.clone(), 100).unwrap(), &b"[1,2]"[..]);
        assert_eq!(unpack("zstd", frames.clone(), 4).unwrap_err().kind, Kind::TooLarge, "all frames count");
        let trailing = [&frames[..], b"rest"].concat();
        assert_eq!(unpack("zstd", trailing, 100).unwrap_err().kind, Kind::InvalidRequest);
        let cut = [&zstd(b"[]")[..], &skippable[..9]].concat();
        assert_eq!(unpack("zstd", cut, 100).unwrap_err().kind, Kind::InvalidRequest);
    }

    #[test]
    fn a_zstd_frame_whose_bytes_were_changed_is_refused() {
        let mut frame = zstd(b"a body that is long enough to be kept as it is, and then changed on its way");
        let middle = frame.len() / 2;
        frame[middle] ^= 0x20;
        assert_eq!(unpack("zstd", frame, 1_000).unwrap_err().kind, Kind::InvalidRequest);
    }

    proptest! {
        #[test]
        fn no_bytes_make_unpacking_panic_or_exceed_its_limit(bytes in vec(any::<u8>(), 0..600), limit in 0_usize..2_000) {
            for encoding in ["gzip", "zstd", "identity", "br"] {
                match unpack(encoding, bytes.clone(), limit) {
                    Ok(plain) => prop_assert!(encoding == "identity" || plain.len() <= limit),
                    Err(error) => prop_assert!(!error.description.is_empty()),
                }
            }
        }

        #[test]
        fn what_was_packed_comes_out_or_is_refused(text in vec(any::<u8>(), 0..2_000), at in any::<Index>(), flip in 1_u8..) {
            let mut packed = zstd(&text);
            prop_assert_eq!(&unpack("zstd", packed.clone(), text.len()).unwrap()[..], &text[..]);
            // A changed byte may be one that means nothing, such as a reserved bit, but never another text.
            let at = at.index(packed.len());
            packed[at] ^= flip;
            if let Ok(plain) = unpack("zstd", packed, text.len()) {
                prop_assert_eq!(&plain[..], &text[..]);
            }
        }

        #[test]
        fn any_bytes_are_cut_into_texts_or_refused(bytes in vec(any::<u8>(), 0..600), limit in 0_usize..20) {
            for format in [Format::Json, Format::Ndjson] {
                match cut(format, &bytes, limit) {
                    Ok(texts) => {
                        prop_assert!(texts.len() <= limit);
                        prop_assert!(texts.iter().all(|text| !text.is_empty()));
                    }
                    Err(error) => prop_assert!(!error.description.is_empty()),
                }
            }
        }

        #[test]
        fn a_batch_is_cut_where_its_traces_are(traces in vec("[ -~\u{e4}]{0,20}", 0..20), spaces in "[ \r\n]{0,3}") {
            let texts: Vec<String> = traces.iter().map(|tool| serde_json::json!({"tool": tool}).to_string()).collect();
            let array = format!("{spaces}[{spaces}{}{spaces}]", texts.join(&format!("{spaces},{spaces}")));
            let lines = texts.join(&format!("{spaces}\n{spaces}"));
            for (format, body) in [(Format::Json, array), (Format::Ndjson, lines)] {
                let found = cut(format, body.as_bytes(), 20).unwrap();
                prop_assert_eq!(found, texts.iter().map(String::as_bytes).collect::<Vec<_>>());
            }
        }

        #[test]
        fn a_text_is_a_trace_or_a_refusal_that_says_why(bytes in vec(any::<u8>(), 0..200), field in "[a-z_]{0,12}", text in ".{0,40}") {
            let now = panopticon_core::time::Time::from_secs(1_800_000_000);
            let named = serde_json::json!({field.clone(): text}).to_string().into_bytes();
            for body in [bytes, named] {
                if let Err(refusal) = panopticon_core::admission::trace_from_json(&body, now) {
                    let error = GatewayError::from(refusal);
                    prop_assert_eq!(error.kind, Kind::InvalidRequest);
                    prop_assert!(!error.description.is_empty());
                }
            }
        }
    }

    #[test]
    fn a_deeply_nested_neighbour_does_not_hurt_the_batch() {
        let nested = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        let body = format!(r#"[{{"a":1}},{nested},{{"b":2}}]"#);
        let texts = cut(Format::Json, body.as_bytes(), 10).unwrap();
        assert_eq!((texts.len(), texts[2]), (3, &br#"{"b":2}"#[..]));
    }
}
