//! Traces as an RP's agents make them, many users of one app.

use panopticon_proto::v1::{Status, Trace};
use tonic::metadata::MetadataValue;
use uuid::Uuid;

use crate::server::{CLIENT_ID, PAK};

/// An agent makes so many calls for a user, one after the other among those of other users, and comes back
/// when all users had their turn: no limit is exceeded at the rates that are measured here.
const CALLS_IN_A_ROW: u64 = 10;
/// Users who are served at the same time.
const ACTIVE_USERS: u64 = 100;
const USERS: u64 = 200_000;
const TOOLS: [&str; 8] = [
    "calendar.read",
    "calendar.write",
    "mail.search",
    "mail.send",
    "files.read",
    "files.write",
    "crm.lookup",
    "web.search",
];

/// The `n`th trace, with an id of its own.
pub fn trace(n: u64, now: jiff::Timestamp) -> Trace {
    let (user, call) = whose(n);
    of_user(format!("user_{user}"), user + call / 2, now)
}

/// A trace of this user.
pub fn of_user(user_sub: String, n: u64, now: jiff::Timestamp) -> Trace {
    Trace {
        event_id: Uuid::now_v7().to_string(),
        client_id: CLIENT_ID.to_owned(),
        session_id: format!("session of {user_sub}"),
        user_sub,
        tool: tool(n).to_owned(),
        scope_used: "calendar:read".to_owned(),
        status: Status::Ok.into(),
        started_at: Some(prost_types::Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond() }),
        duration_ms: Some(100 + (n % 400) as u32),
        agent: "bench-agent".to_owned(),
        ..Trace::default()
    }
}

/// The `n`th trace as JSON.
pub fn json(n: u64) -> String {
    let (user, call) = whose(n);
    format!(
        r#"{{"event_id":"{}","client_id":"{CLIENT_ID}","user_sub":"user_{user}","tool":"{}","scope_used":"calendar:read","status":"ok","started_at":"{:.3}","duration_ms":{},"session_id":"session of user_{user}","agent":"bench-agent"}}"#,
        Uuid::now_v7(),
        tool(user + call / 2),
        jiff::Timestamp::now(),
        100 + n % 400,
    )
}

/// The user of the `n`th trace, and which of the calls in a row it is.
fn whose(n: u64) -> (u64, u64) {
    let block = ACTIVE_USERS * CALLS_IN_A_ROW;
    let user = n / block * ACTIVE_USERS + n % ACTIVE_USERS;
    (user % USERS, n % block / ACTIVE_USERS)
}

fn tool(n: u64) -> &'static str {
    TOOLS[(n % TOOLS.len() as u64) as usize]
}

/// A gRPC request of the app.
pub fn request<T>(message: T) -> anyhow::Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    let bearer: MetadataValue<_> = format!("Bearer {PAK}").parse()?;
    request.metadata_mut().insert("authorization", bearer);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_exceeds_a_limit_within_a_minute_at_a_hundred_thousand_a_second() {
        let calls: Vec<_> = (0..100_000 * 60).map(whose).filter(|(user, _)| *user == 7).collect();
        let of_tool = |name: &str| calls.iter().filter(|(user, call)| tool(user + call / 2) == name).count();
        assert!((10..=60).contains(&calls.len()), "{}", calls.len());
        assert!(TOOLS.into_iter().all(|name| of_tool(name) <= 20));
    }
}
