//! How what is known of refused calls is written down.

use panopticon_core::{ids::EventId, stage::Course, time::Time, trace::WireError};
use panopticon_proto::log::Detection;
use uuid::Uuid;

use super::{
    evidence::{Credential, Name},
    source::{Source, Success},
    trail::{Calm, Refusal, Trail},
};

/// A [`Trail`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TrailState {
    #[prost(message, repeated, tag = "1")]
    refusals: Vec<RefusalState>,
    #[prost(message, optional, tag = "2")]
    attack: Option<Course>,
    #[prost(uint32, tag = "3")]
    calm: u32,
    #[prost(sfixed64, tag = "4")]
    since: i64,
    #[prost(message, repeated, tag = "5")]
    further: Vec<Detection>,
    #[prost(message, optional, tag = "6")]
    expired: Option<Course>,
    #[prost(fixed32, tag = "7")]
    expired_who: u32,
    #[prost(fixed32, tag = "8")]
    expired_call: u32,
    #[prost(sfixed64, tag = "9")]
    from: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RefusalState {
    #[prost(sfixed64, tag = "1")]
    at: i64,
    #[prost(fixed32, tag = "2")]
    who: u32,
    #[prost(fixed32, tag = "3")]
    call: u32,
    #[prost(uint32, tag = "4")]
    name: u32,
    #[prost(bool, tag = "5")]
    known: bool,
    #[prost(uint32, tag = "6")]
    credential: u32,
    #[prost(sfixed64, optional, tag = "7")]
    pardoned_at: Option<i64>,
    #[prost(bool, tag = "8")]
    expired: bool,
}

/// A [`Source`].
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SourceState {
    #[prost(sfixed64, tag = "1")]
    newest: i64,
    #[prost(sfixed64, optional, tag = "2")]
    first_success: Option<i64>,
    #[prost(sfixed64, tag = "3")]
    last_success: i64,
    #[prost(fixed32, tag = "4")]
    last_who: u32,
    /// Empty: there was no success.
    #[prost(bytes = "vec", tag = "5")]
    last_event_id: Vec<u8>,
    #[prost(bool, tag = "6")]
    notable: bool,
    #[prost(message, optional, tag = "7")]
    trail: Option<TrailState>,
}

const NAMES: [Name; 3] = [Name::None, Name::Default, Name::Own];
const CREDENTIALS: [Credential; 3] = [Credential::Expired, Credential::Refused, Credential::Other];
const CALMS: [Calm; 3] = [Calm::Minutes, Calm::Hour, Calm::Day];

fn number<T: PartialEq>(all: &[T], one: &T) -> u32 {
    all.iter().position(|other| other == one).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn numbered<T: Copy>(all: &[T], number: u32, field: &'static str) -> Result<T, WireError> {
    usize::try_from(number).ok().and_then(|n| all.get(n)).copied().ok_or(WireError::Field(field))
}

impl From<&Trail> for TrailState {
    fn from(trail: &Trail) -> Self {
        let refusals = trail.refusals.iter().map(|one| RefusalState {
            at: one.at.micros(),
            who: one.who,
            call: one.call,
            name: number(&NAMES, &one.name),
            known: one.known,
            credential: number(&CREDENTIALS, &one.credential),
            pardoned_at: one.pardoned_at.map(Time::micros),
            expired: one.expired,
        });
        Self {
            refusals: refusals.collect(),
            attack: Some(trail.attack.clone()),
            calm: number(&CALMS, &trail.calm),
            since: trail.since.micros(),
            from: trail.from.micros(),
            further: trail.further.clone(),
            expired: Some(trail.expired.clone()),
            expired_who: trail.expired_of.0,
            expired_call: trail.expired_of.1,
        }
    }
}

impl TryFrom<TrailState> for Trail {
    type Error = WireError;

    fn try_from(state: TrailState) -> Result<Self, WireError> {
        let refusals = state.refusals.into_iter().map(|one| {
            Ok(Refusal {
                at: Time::from_micros(one.at),
                who: one.who,
                call: one.call,
                name: numbered(&NAMES, one.name, "name")?,
                known: one.known,
                credential: numbered(&CREDENTIALS, one.credential, "credential")?,
                pardoned_at: one.pardoned_at.map(Time::from_micros),
                expired: one.expired,
            })
        });
        let mut refusals = refusals.collect::<Result<Vec<_>, WireError>>()?;
        // Whatever was written down, they are in order.
        refusals.sort_by_key(|one| one.at);
        Ok(Self {
            refusals,
            attack: state.attack.unwrap_or_default(),
            calm: numbered(&CALMS, state.calm, "calm")?,
            since: Time::from_micros(state.since),
            from: Time::from_micros(state.from),
            further: state.further,
            expired: state.expired.unwrap_or_default(),
            expired_of: (state.expired_who, state.expired_call),
        })
    }
}

impl From<&Source> for SourceState {
    fn from(source: &Source) -> Self {
        let last = source.last_success;
        Self {
            newest: source.newest.micros(),
            first_success: source.first_success.map(Time::micros),
            last_success: last.map_or(0, |last| last.at.micros()),
            last_who: last.map_or(0, |last| last.who),
            last_event_id: last.map_or_else(Vec::new, |last| last.event_id.0.as_bytes().to_vec()),
            notable: source.notable,
            trail: source.trail.as_deref().map(TrailState::from),
        }
    }
}

impl TryFrom<SourceState> for Source {
    type Error = WireError;

    fn try_from(state: SourceState) -> Result<Self, WireError> {
        let last_success = match &*state.last_event_id {
            [] => None,
            bytes => Some(Success {
                at: Time::from_micros(state.last_success),
                who: state.last_who,
                event_id: EventId(Uuid::from_slice(bytes).map_err(|_| WireError::Field("last_event_id"))?),
            }),
        };
        Ok(Self {
            newest: Time::from_micros(state.newest),
            first_success: state.first_success.map(Time::from_micros),
            last_success,
            notable: state.notable,
            trail: state.trail.map(|trail| Trail::try_from(trail).map(Box::new)).transpose()?,
        })
    }
}
