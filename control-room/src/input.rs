//! What a request brings: query parameters, JSON bodies, cursors. Nothing unknown is passed over.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{civil::Date, tz::TimeZone};
use panopticon_core::{api::ListAnswer, time::Time};
use serde::de::DeserializeOwned;

use crate::answer::ApiError;

/// The largest body.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows of a page unless the request says otherwise.
pub const DEFAULT_LIMIT: u32 = 100;
/// The most rows of a page.
pub const MAX_LIMIT: u32 = 1_000;

/// A JSON body; none at all counts as `{}`.
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        if !is_json(&parts) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body must be JSON, sent with `Content-Type: application/json`",
            ));
        }
        parse(&bytes).map(Self)
    }
}

fn is_json(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

async fn read(body: Body) -> Result<bytes::Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let cause = std::error::Error::source(&error);
            if cause.is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>()) {
                let text = format!("the body is larger than {MAX_BODY_BYTES} bytes");
                return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", text));
            }
            Err(ApiError::invalid("", format!("the body broke off: {error}")))
        }
        Err(_) => {
            let text = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", text))
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A list would be read as the fields in their order.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(ApiError::invalid("", "the body must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let text = error.inner().to_string();
        if error.inner().is_syntax() || error.inner().is_eof() {
            return ApiError::invalid("", format!("malformed JSON: {text}"));
        }
        ApiError::invalid(&field_of(&path, &text), text)
    })?;
    json.end().map_err(|error| ApiError::invalid("", format!("malformed JSON: {error}")))?;
    Ok(value)
}

/// The field at fault: where reading stopped, or what the message is about at that place.
fn field_of(path: &str, text: &str) -> String {
    let inner = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| text.strip_prefix(start)?.split_once('`'))
        .map(|(name, _)| name);
    match (path, inner) {
        (".", Some(name)) => name.to_owned(),
        (".", None) => String::new(),
        (path, Some(name)) if path != name && !path.ends_with(&format!(".{name}")) => {
            format!("{path}.{name}")
        }
        (path, _) => path.to_owned(),
    }
}

/// The query parameters, each to be taken by its name.
pub struct Params(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut found = BTreeMap::new();
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        for (name, value) in pairs {
            if found.insert(name.to_string(), value.into_owned()).is_some() {
                return Err(ApiError::invalid(&name, "is given twice"));
            }
        }
        Ok(Self(found))
    }
}

impl Params {
    /// A parameter as text; empty counts as absent.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|text| !text.is_empty())
    }

    /// A parameter in a form of its own.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|why| ApiError::invalid(name, format!("`{}`: {why}", cut(&text))))
    }

    /// A date, `2026-06-30`.
    pub fn date(&mut self, name: &str) -> Result<Option<Date>, ApiError> {
        self.text(name).map(|text| parse_date(name, &text, "a date such as 2026-06-30")).transpose()
    }

    /// An RFC 3339 time, or a date that stands for its first or, with `end`, its last microsecond in UTC.
    pub fn time(&mut self, name: &str, end: bool) -> Result<Option<Time>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        if let Some(time) = Time::parse_rfc3339(&text) {
            return Ok(Some(time));
        }
        let date = parse_date(name, &text, "an RFC 3339 time such as 2026-06-30T12:00:00Z, or a date")?;
        let start_of =
            |date: Date| date.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp().as_microsecond());
        let micros =
            if end { date.tomorrow().and_then(start_of).map(|next| next - 1) } else { start_of(date) };
        micros
            .map(|micros| Some(Time::from_micros(micros)))
            .map_err(|why| ApiError::invalid(name, why.to_string()))
    }

    /// `limit` and `cursor`.
    pub fn page<C: Cursor>(&mut self) -> Result<(u32, Option<C>), ApiError> {
        let limit = self.parsed::<u32>("limit")?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::invalid("limit", format!("must be from 1 to {MAX_LIMIT}")));
        }
        let cursor = self.text("cursor").map(|text| {
            decode_cursor(&text).ok_or_else(|| {
                ApiError::invalid("cursor", "is not a `next_cursor` of this list; leave it out to begin anew")
            })
        });
        Ok((limit, cursor.transpose()?))
    }

    /// All parameters have been taken.
    pub fn done(self) -> Result<(), ApiError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::invalid(&cut(&name), "is no parameter of this request")),
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

fn parse_date(name: &str, text: &str, expected: &str) -> Result<Date, ApiError> {
    // The calendar library also reads other forms.
    let is_plain = text.len() == 10 && text.bytes().all(|c| c.is_ascii_digit() || c == b'-');
    let date = is_plain.then(|| text.parse().ok()).flatten();
    date.ok_or_else(|| ApiError::invalid(name, format!("`{}` is not {expected}", cut(text))))
}

/// Where the next page of a list begins; opaque outside. `KIND` keeps cursors of different lists apart.
pub trait Cursor: Sized {
    /// Of which list.
    const KIND: &'static str;
    /// As text.
    fn write(&self) -> String;
    /// From what [`Cursor::write`] made.
    fn read(text: &str) -> Option<Self>;
}

/// Makes a cursor opaque.
pub fn encode_cursor<C: Cursor>(cursor: &C) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}:{}", C::KIND, cursor.write()))
}

fn decode_cursor<C: Cursor>(text: &str) -> Option<C> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    C::read(text.strip_prefix(C::KIND)?.strip_prefix(':')?)
}

/// After a name in alphabetical order.
pub struct AfterName(pub String);

impl Cursor for AfterName {
    const KIND: &'static str = "name";
    fn write(&self) -> String {
        self.0.clone()
    }
    fn read(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
}

/// After a time and an id, whichever way the list goes.
pub struct AfterTime(pub Time, pub String);

impl Cursor for AfterTime {
    const KIND: &'static str = "time";
    fn write(&self) -> String {
        format!("{}:{}", self.0.micros(), self.1)
    }
    fn read(text: &str) -> Option<Self> {
        let (micros, id) = text.split_once(':')?;
        Some(Self(Time::from_micros(micros.parse().ok()?), id.to_owned()))
    }
}

/// One page of what lies in memory, in the order given; `key` says where in the order a row is.
pub fn page_of<T, C: Cursor, K: Ord>(
    rows: Vec<T>,
    limit: u32,
    after: Option<K>,
    key: impl Fn(&T) -> K,
    cursor: impl Fn(&T) -> C,
) -> ListAnswer<T> {
    let after = after.as_ref();
    let mut rows = rows.into_iter().filter(|row| after.is_none_or(|after| key(row) > *after));
    let items: Vec<T> = rows.by_ref().take(limit as usize).collect();
    let more = rows.next().is_some();
    let next_cursor = items.last().filter(|_| more).map(|last| encode_cursor(&cursor(last)));
    ListAnswer { items, next_cursor }
}

#[cfg(test)]
mod tests {
    use panopticon_core::api::{RateLimitBody, TokenRequest};

    use super::*;

    fn field<T: DeserializeOwned>(body: &str) -> String {
        let Err(error) = parse::<T>(body.as_bytes()) else { panic!("{body} was read") };
        format!("{error:?}")
    }

    #[test]
    fn a_body_that_cannot_be_read_names_its_field() {
        for (body, wanted) in [
            (r#"{"name":1,"role":"read"}"#, "Some(\"name\")"),
            (r#"{"name":"x"}"#, "Some(\"role\")"),
            (r#"{"name":"x","role":"read","colour":1}"#, "Some(\"colour\")"),
            (r#"{"name":"x","role":"read","apps":["a",2]}"#, "Some(\"apps[1]\")"),
            (r#"{"name":"x""#, "field: None"),
            ("[]", "field: None"),
            (r#"{"name":"x","role":"read"} x"#, "field: None"),
        ] {
            let shown = field::<TokenRequest>(body);
            assert!(shown.contains(wanted), "{body} gave {shown}");
        }
        assert!(field::<RateLimitBody>(r#"{"per_minute":-1}"#).contains("per_minute"));
    }

    #[test]
    fn a_cursor_comes_back_as_it_went_and_only_to_its_own_list() {
        let cursor = encode_cursor(&AfterTime(Time::from_micros(-7), "a:b".to_owned()));
        let AfterTime(at, id) = decode_cursor(&cursor).unwrap();
        assert_eq!((at.micros(), id.as_str()), (-7, "a:b"));
        assert!(decode_cursor::<AfterName>(&cursor).is_none());
        assert!(decode_cursor::<AfterTime>("!").is_none());
    }
}
