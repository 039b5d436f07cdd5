//! What is told of refused calls: kinds, severities, how often to be expected, and the sentences.

use std::time::Duration;

use panopticon_core::{ids::EventId, time::Time};
use panopticon_proto::log::{Detection, Window};
use uuid::Uuid;

use super::{
    evidence::ENOUGH,
    trail::{KEPT, WINDOW},
};
use crate::score::score;

/// Detections are UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x5e0c_47a9_1b8d_5f62_9c3e_2ad4_80f7_b519);

/// So many refused calls in ten minutes are an alarm whoever they are of; what a detection gives as
/// `expected`.
pub const THRESHOLD: u32 = 5;

/// How often, in 30 days, an app has to expect just enough evidence without an attack.
const JUST_ENOUGH: f64 = 2.1125;
/// The evidence that makes that half as often: about one refused call.
const HALVES: f64 = 4.0;
/// How often to expect that, of all, somebody succeeds then.
const SUCCEEDS: f64 = 1.0 / 24.0;
/// How often a credential expires unnoticed.
const EXPIRES: f64 = 4.0;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Refused calls of one user.
    ByUser,
    /// Refused calls of several users, or of nobody, from one address.
    BySource,
    /// The same, hours apart.
    Slow,
    /// Few refused calls each of many users from one address.
    Spraying,
    /// Refused calls of an app from many addresses with few each; with the most there were before.
    ByApp {
        /// In as long a time.
        most: u32,
    },
    /// A success right after such refused calls.
    Success,
    /// The same call refused over and over for a credential that used to be accepted.
    Expired,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ByUser => "by_user",
            Self::BySource => "by_source",
            Self::ByApp { .. } => "by_app",
            Self::Slow => "slow",
            Self::Spraying => "spraying",
            Self::Success => "success_after_failures",
            Self::Expired => "expired_credential",
        }
    }

    const fn severity(self) -> &'static str {
        match self {
            Self::Success => "critical",
            Self::Expired => "low",
            _ => "high",
        }
    }

    /// How often, in 30 days, an app has to expect it with so much evidence.
    pub(super) fn monthly(self, points: u32) -> f64 {
        let more = f64::from(points.saturating_sub(ENOUGH)) / HALVES;
        match self {
            Self::Expired => EXPIRES,
            Self::Success => JUST_ENOUGH * SUCCEEDS * (-more).exp2(),
            _ => JUST_ENOUGH * (-more).exp2(),
        }
    }
}

/// What a detection says.
#[derive(Debug, Clone)]
pub(super) struct Case<'a> {
    pub(super) kind: Kind,
    pub(super) app: &'a str,
    /// Empty: none, or several.
    pub(super) user: &'a str,
    /// Empty: none, or several.
    pub(super) source_ip: &'a str,
    pub(super) tool: &'a str,
    pub(super) error_code: &'a str,
    /// The deciding trace.
    pub(super) event_id: EventId,
    pub(super) at: Time,
    /// Exclusive.
    pub(super) start: Time,
    pub(super) end: Time,
    /// How many calls were refused, of how many users (by user: from how many addresses).
    pub(super) calls: u32,
    pub(super) among: u32,
    pub(super) points: u32,
}

impl Case<'_> {
    pub(super) fn monthly(&self) -> f64 {
        self.kind.monthly(self.points)
    }

    pub(super) fn detection(&self) -> Detection {
        let kind = self.kind.name();
        let subject = if self.source_ip.is_empty() { self.user } else { self.source_ip };
        let name = format!("failed_auth/{kind}/{}/{subject}/{}", self.app, self.event_id);
        let tool = if self.kind == Kind::Expired { self.tool } else { "" };
        Detection {
            detection_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
            rule: "failed_auth".to_owned(),
            kind: kind.to_owned(),
            client_id: self.app.to_owned(),
            user_sub: self.user.to_owned(),
            source_ip: self.source_ip.to_owned(),
            tool: tool.to_owned(),
            severity: self.kind.severity().to_owned(),
            // Two digits are more than is known.
            score: (score(self.monthly()) * 10.0).round() / 10.0,
            detected_at: self.at.micros(),
            deciding_event_id: self.event_id.to_string(),
            window: Some(Window { start: self.start.micros(), end: self.end.micros() }),
            observed: f64::from(self.calls),
            expected: f64::from(if let Kind::ByApp { most } = self.kind { most } else { THRESHOLD }),
            explanation: self.explanation(),
            ..Detection::default()
        }
    }

    fn explanation(&self) -> String {
        let counts_on = matches!(self.kind, Kind::ByApp { .. });
        let at_least = if self.calls as usize >= KEPT && !counts_on { "at least " } else { "" };
        let calls = format!("{at_least}{}", self.calls);
        let from = match (self.source_ip, self.among) {
            ("", 0 | 1) => String::new(),
            ("", sources) => format!(" from {sources} addresses"),
            (source, _) => format!(" from {source}"),
        };
        let within = format!("within {}", span(self.end.since(self.start)));
        let lack = "for lack of authentication or authorization";
        let (user, source) = (self.user, self.source_ip);
        match self.kind {
            Kind::ByUser if user.is_empty() => {
                format!("{calls} calls without a user were refused {within} {lack}")
            }
            Kind::ByUser => format!("{user} was refused {calls} times{from} {within} {lack}"),
            Kind::BySource => {
                let whose = if self.among == 0 { "without a user".to_owned() } else { of_users(self.among) };
                format!("{calls} calls {whose}{from} were refused {within} {lack}")
            }
            Kind::ByApp { most } => format!(
                "{calls} calls from addresses with one or two each were refused {within} {lack}; the most \
                 there were before is {most}"
            ),
            Kind::Slow => {
                let whose = match (user, self.among) {
                    ("", 0) => "calls without a user".to_owned(),
                    ("", users) => format!("calls {}", of_users(users)),
                    (user, _) => format!("calls of {user}"),
                };
                format!("{calls} {whose}{from} were refused {within}, slowly, and none succeeded in between")
            }
            Kind::Spraying => {
                format!("{source} tried {} users {within}, and was refused {calls} times", self.among)
            }
            Kind::Success => {
                let who = if user.is_empty() { "a call without a user" } else { user };
                format!("{who} succeeded{from} right after {calls} calls had been refused {within}")
            }
            Kind::Expired => {
                let whose = if user.is_empty() { "a caller" } else { user };
                let code = if self.error_code.is_empty() { "denied" } else { self.error_code };
                let tool = self.tool;
                format!(
                    "{whose} makes the same call of {tool}{from} over and over with a credential that has \
                     expired: {calls} times {within} it was refused as {code}"
                )
            }
        }
    }
}

fn of_users(users: u32) -> String {
    if users == 1 { "of one user".to_owned() } else { format!("of {users} users") }
}

/// A time in words, no more exact than it need be.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        _ if time == WINDOW => (10, "minute"),
        0..120 => (seconds.max(1), "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// What is told at an end.
pub(super) fn calm(started: &Detection, time: &str) -> String {
    let whose = match (started.user_sub.as_str(), started.source_ip.as_str()) {
        ("", "") => "call without a user".to_owned(),
        ("", source) => format!("call from {source}"),
        (user, "") => format!("call of {user}"),
        (user, source) => format!("call of {user} from {source}"),
    };
    format!("no {whose} has been refused for {time}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn just_enough_evidence_is_to_be_expected_twice_a_month_and_a_success_after_it_once_a_year() {
        assert_eq!((score(Kind::ByUser.monthly(ENOUGH)) * 10.0).round(), 800.0);
        assert!(score(Kind::Success.monthly(ENOUGH)) >= 98.9);
        assert!(Kind::BySource.monthly(24) < Kind::BySource.monthly(20));
        assert!(Kind::Expired.monthly(90) > Kind::ByUser.monthly(20));
    }

    #[test]
    fn a_time_is_told_in_the_unit_that_fits() {
        for (seconds, told) in
            [(1, "1 second"), (600, "10 minutes"), (50_000, "13 hours"), (200_000, "2 days")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), told);
        }
    }
}
