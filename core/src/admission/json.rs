//! Reading a trace from JSON: one pass, texts borrowed where they have no escapes.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{Refusal, refuse};
use crate::{
    time::Time,
    trace::{Moment, Status, TraceRef},
};

/// The most characters of an unknown name that are repeated in the answer.
const SHOWN_CHARS: usize = 64;

/// A trace as its JSON object has it, each field of whatever kind.
#[derive(Default)]
pub(super) struct Sent<'a> {
    event_id: Option<Field<'a>>,
    client_id: Option<Field<'a>>,
    tool: Option<Field<'a>>,
    status: Option<Field<'a>>,
    started_at: Option<Field<'a>>,
    duration_ms: Option<Field<'a>>,
    scope_used: Option<Field<'a>>,
    user_sub: Option<Field<'a>>,
    session_id: Option<Field<'a>>,
    agent: Option<Field<'a>>,
    source_ip: Option<Field<'a>>,
    error_code: Option<Field<'a>>,
    attributes: Option<Field<'a>>,
    /// The first name that is none of a trace's.
    unknown: Option<String>,
}

impl Sent<'_> {
    /// What was sent as the event_id, where it is a text.
    pub(super) fn event_id(&self) -> &str {
        match &self.event_id {
            Some(Field::Text(text)) => text,
            _ => "",
        }
    }

    /// The trace, if every field is of its kind. Whether it holds what it may is checked elsewhere.
    pub(super) fn trace(&self) -> Result<TraceRef<'_>, Refusal> {
        if let Some(name) = &self.unknown {
            return refuse(name, "unknown field; the RP's own data goes into `attributes`");
        }
        Ok(TraceRef {
            event_id: required("event_id", self.event_id.as_ref())?,
            client_id: required("client_id", self.client_id.as_ref())?,
            tool: required("tool", self.tool.as_ref())?,
            status: status(required("status", self.status.as_ref())?)?,
            started_at: started_at(required("started_at", self.started_at.as_ref())?)?,
            duration_ms: match &self.duration_ms {
                None => None,
                Some(Field::Number(ms)) => Some(*ms),
                Some(_) => return refuse("duration_ms", "must be a whole number from 0 to 86400000"),
            },
            scope_used: optional("scope_used", self.scope_used.as_ref())?,
            user_sub: optional("user_sub", self.user_sub.as_ref())?,
            session_id: optional("session_id", self.session_id.as_ref())?,
            agent: optional("agent", self.agent.as_ref())?,
            source_ip: optional("source_ip", self.source_ip.as_ref())?,
            error_code: optional("error_code", self.error_code.as_ref())?,
            attributes: attributes(self.attributes.as_ref())?,
        })
    }
}

/// The text of a required field; empty where it was not sent, which is refused later, in the order of the
/// documentation.
fn required<'a>(name: &str, field: Option<&'a Field<'_>>) -> Result<&'a str, Refusal> {
    match field {
        None => Ok(""),
        Some(Field::Text(text)) => Ok(text),
        Some(Field::Null) => refuse(name, "is required"),
        Some(_) => refuse(name, "must be a string"),
    }
}

fn optional<'a>(name: &str, field: Option<&'a Field<'_>>) -> Result<&'a str, Refusal> {
    match field {
        None | Some(Field::Null) => Ok(""),
        Some(Field::Text(text)) => Ok(text),
        Some(_) => refuse(name, "must be a string or null"),
    }
}

fn status(text: &str) -> Result<u64, Refusal> {
    match Status::parse(text) {
        Some(status) => Ok(status.code().into()),
        None if text.is_empty() => Ok(0),
        None => refuse("status", "must be `ok`, `error` or `denied`"),
    }
}

fn started_at(text: &str) -> Result<Option<Moment>, Refusal> {
    match Time::parse_rfc3339(text) {
        Some(time) => Ok(Some(time.into())),
        None if text.is_empty() => Ok(None),
        None => refuse("started_at", "must be an RFC 3339 time with an offset, such as 2026-06-30T12:00:00Z"),
    }
}

fn attributes<'a>(field: Option<&'a Field<'_>>) -> Result<Vec<(&'a str, &'a str)>, Refusal> {
    match field {
        None | Some(Field::Null) => Ok(Vec::new()),
        Some(Field::Object(entries)) => entries
            .iter()
            .map(|(name, value)| match value {
                Field::Text(text) => Ok((&**name, &**text)),
                _ => {
                    let shown: String = name.chars().take(SHOWN_CHARS).collect();
                    refuse("attributes", format!("the value of `{shown}` must be a string"))
                }
            })
            .collect(),
        Some(_) => refuse("attributes", "must be an object whose values are strings"),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Sent<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Sent<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a trace")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Sent<'de>, A::Error> {
                let mut sent = Sent::default();
                while let Some(Text(name)) = object.next_key()? {
                    let field = match &*name {
                        "event_id" => &mut sent.event_id,
                        "client_id" => &mut sent.client_id,
                        "tool" => &mut sent.tool,
                        "status" => &mut sent.status,
                        "started_at" => &mut sent.started_at,
                        "duration_ms" => &mut sent.duration_ms,
                        "scope_used" => &mut sent.scope_used,
                        "user_sub" => &mut sent.user_sub,
                        "session_id" => &mut sent.session_id,
                        "agent" => &mut sent.agent,
                        "source_ip" => &mut sent.source_ip,
                        "error_code" => &mut sent.error_code,
                        "attributes" => &mut sent.attributes,
                        unknown => {
                            object.next_value::<IgnoredAny>()?;
                            sent.unknown.get_or_insert_with(|| unknown.chars().take(SHOWN_CHARS).collect());
                            continue;
                        }
                    };
                    *field = Some(object.next_value()?);
                }
                Ok(sent)
            }
        }
        input.deserialize_map(Object)
    }
}

/// Text that is borrowed where it can be.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Borrowing;
        impl<'de> Visitor<'de> for Borrowing {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        input.deserialize_str(Borrowing)
    }
}

/// A value, as far as a trace can use it.
enum Field<'a> {
    Null,
    Text(Cow<'a, str>),
    /// A whole number that is not negative.
    Number(u64),
    Object(Vec<(Cow<'a, str>, Field<'a>)>),
    Other,
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(AnyKind)
    }
}

struct AnyKind;

impl<'de> Visitor<'de> for AnyKind {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field<'de>, E> {
        Ok(Field::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_unit<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Field<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(Text(name)) = object.next_key()? {
            entries.push((name, object.next_value()?));
        }
        Ok(Field::Object(entries))
    }
}
