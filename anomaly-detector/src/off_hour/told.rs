//! What is told of a session at an unusual time.

use panopticon_core::time::Time;
use panopticon_proto::log::{Detection, Window};
use uuid::Uuid;

use super::{rhythm::Rhythm, surprise::Surprise};
use crate::{score::score, user::Call};

/// Detections are UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x3f7a_90c2_64de_5b18_8a41_d6c5_0e92_7b3f);

/// The detection that tells the beginning.
pub(super) fn started(call: &Call<'_>, rhythm: &Rhythm, surprise: &Surprise, monthly: f64) -> Detection {
    let name = format!("off_hour/{}/{}/{}", call.app, call.user, call.event_id);
    let at = call.at.micros();
    let (from, to) = rhythm.usual_hours();
    let explanation = format!(
        "{} called {} at {} UTC; on 100 active days, {:.1} sessions are to be expected within that hour; most \
         activity is between {} and {} UTC",
        call.user,
        call.tool,
        clock(call.at.secs()),
        surprise.rate * 100.0,
        clock(from),
        clock(to),
    );
    Detection {
        detection_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
        rule: "off_hour".to_owned(),
        kind: "unusual_hour".to_owned(),
        client_id: call.app.to_owned(),
        user_sub: call.user.to_owned(),
        source_ip: call.source_ip.to_owned(),
        tool: call.tool.to_owned(),
        severity: if monthly <= 1.0 { "high" } else { "medium" }.to_owned(),
        score: score(monthly),
        detected_at: at,
        deciding_event_id: call.event_id.to_string(),
        window: Some(Window { start: at, end: at }),
        observed: 1.0,
        expected: surprise.rate,
        explanation,
        phase: "started".to_owned(),
        ..Detection::default()
    }
}

/// The detection that tells the end.
pub(super) fn ended(started: Detection, ended_at: Time) -> Detection {
    let explanation = format!("{} has not been active for an hour", started.user_sub);
    Detection { phase: "ended".to_owned(), ended_at: ended_at.micros(), explanation, ..started }
}

/// The time of day of seconds since a midnight.
fn clock(secs: i64) -> String {
    let minutes = secs.rem_euclid(86_400) / 60;
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}
