//! Request bodies: read to a limit, decompressed to a limit, cut into traces.

use std::io::Read;

use axum::body::{Body, Bytes};
use http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::error::{GatewayError, Kind};

/// Reads the body as sent, at most `limit` bytes.
pub async fn read(body: Body, limit: usize) -> Result<Bytes, GatewayError> {
    match Limited::new(body, limit).collect().await {
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
        Some("zstd") => match ruzstd::decoding::StreamingDecoder::new(&*body) {
            Ok(decoder) => read_limited(decoder, limit, "zstd"),
            Err(error) => {
                Err(GatewayError::new(Kind::InvalidRequest, format!("the body is not zstd: {error}")))
            }
        },
        Some(other) => Err(GatewayError::new(
            Kind::UnsupportedMediaType,
            format!("Content-Encoding `{other}` is not supported; use gzip, zstd or identity"),
        )),
    }
}

fn read_limited(decoder: impl Read, limit: usize, name: &str) -> Result<Bytes, GatewayError> {
    let mut plain = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut plain).map_err(|error| {
        GatewayError::new(Kind::InvalidRequest, format!("the body is not {name}: {error}"))
    })?;
    if plain.len() > limit {
        return Err(too_large(limit));
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

    #[test]
    fn a_deeply_nested_neighbour_does_not_hurt_the_batch() {
        let nested = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        let body = format!(r#"[{{"a":1}},{nested},{{"b":2}}]"#);
        let texts = cut(Format::Json, body.as_bytes(), 10).unwrap();
        assert_eq!((texts.len(), texts[2]), (3, &br#"{"b":2}"#[..]));
    }
}
