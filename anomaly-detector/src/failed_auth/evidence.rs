//! How much a refused call says about an attack.
//!
//! Evidence is counted in points, roughly logarithms of how much more often an attacker does this than an
//! ordinary user who mistypes. [`ENOUGH`] points are an alarm. An ordinary refusal has a fifth of that: the
//! fifth in ten minutes is an alarm whoever it is. Where nobody has ever succeeded from an address, more is
//! known: a name that machines are delivered with, or no name at all, weighs more, and each further name
//! that has never succeeded in this app makes a mistake less likely.

use std::time::Duration;

use panopticon_core::time::Time;
use xxhash_rust::xxh3::xxh3_64;

/// So many points are an alarm.
pub(super) const ENOUGH: u32 = 20;
/// A refused call, whatever else is known of it.
pub(super) const ORDINARY: u32 = 4;
/// One without a user, or with a name that machines are delivered with.
const TELLING: u32 = 5;
/// A second, and each later, name that never succeeded.
const SECOND_NAME: u32 = 3;
const LATER_NAME: u32 = 5;
/// The same, when it is not the first name that machines are delivered with: guessing these is all that
/// such an address does.
const FURTHER_DEFAULT_NAME: u32 = 10;

/// The names of accounts that operating systems, appliances, databases and their tutorials make.
const DEFAULT_NAMES: &str = "admin administrator adm alpine anonymous ansible apache backup bin centos cisco cloud cubrid daemon \
    debian default demo deploy dev docker elastic ftp ftpuser games git guest hadoop info jenkins kafka \
    linux lp mail manager minecraft monitor mysql nagios nginx nobody operator oracle pi postgres public \
    redis root sa server service ssh sshd steam student super support sys sysadmin system teamspeak tech \
    temp test test1 testuser tomcat ts3 ubnt ubuntu user user1 username uucp vagrant webadmin webmaster \
    www www-data zabbix";

/// What a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Nobody is named.
    None,
    /// One that machines are delivered with.
    Default,
    /// Any other.
    Own,
}

impl Name {
    pub(super) fn of(user: &str) -> Self {
        if is_nobody(user) {
            return Self::None;
        }
        let default = DEFAULT_NAMES.split(' ').any(|name| name.eq_ignore_ascii_case(user));
        if default { Self::Default } else { Self::Own }
    }
}

/// Whether no user is named: `?` and `-` stand for nobody in many logs.
pub(super) fn is_nobody(user: &str) -> bool {
    !user.chars().any(char::is_alphanumeric)
}

/// Tells one text from another in a trail; 0 stands for none.
pub(super) fn mark(text: &str) -> u32 {
    // The lower half of a good hash is one.
    if text.is_empty() { 0 } else { (xxh3_64(text.as_bytes()) as u32).max(1) }
}

/// What a refused call says of the credential it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential {
    /// It was accepted once, and its time is over.
    Expired,
    /// It is not, or no longer, accepted.
    Refused,
    /// It is fine, and something else is missing.
    Other,
}

const EXPIRED: &[&str] = &["credentials_expired", "expired", "expired_token", "token_expired"];
const REFUSED: &[&str] = &[
    "",
    "401",
    "authentication_required",
    "http_401",
    "invalid_client",
    "invalid_grant",
    "invalid_token",
    "login_required",
    "not_authenticated",
    "token_revoked",
    "unauthenticated",
    "unauthorized",
];

impl Credential {
    pub(super) fn of(error_code: &str) -> Self {
        let is_in = |codes: &[&str]| codes.iter().any(|code| code.eq_ignore_ascii_case(error_code));
        if is_in(EXPIRED) {
            Self::Expired
        } else if is_in(REFUSED) {
            Self::Refused
        } else {
            Self::Other
        }
    }
}

/// One that comes again, much later, after no success: who mistypes succeeds soon, or gives up.
const COMES_AGAIN: u32 = 3;
/// That much later.
const LATER: Duration = Duration::from_secs(600);

/// What is known of a refused call where nobody has ever succeeded from its address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stranger {
    pub(super) at: Time,
    /// Whose name it bore.
    pub(super) who: u32,
    /// What the name says.
    pub(super) name: Name,
    /// That user has succeeded in this app before.
    pub(super) known: bool,
}

/// The points of refused calls, in order, from an address from which nobody has ever succeeded.
pub(super) fn of_strangers(calls: impl IntoIterator<Item = Stranger>) -> u32 {
    let (mut points, mut defaults) = (0, 0_u32);
    let (mut names, mut before): (Vec<u32>, Option<Time>) = (Vec::new(), None);
    for call in calls {
        points += weight(call.name, call.known);
        let again = before.replace(call.at).is_some_and(|before| call.at.since(before) >= LATER);
        points += if again && !call.known { COMES_AGAIN } else { 0 };
        if call.known || call.name == Name::None || names.contains(&call.who) {
            continue;
        }
        names.push(call.who);
        defaults += u32::from(call.name == Name::Default);
        points += match names.len() {
            1 => 0,
            _ if call.name == Name::Default && defaults > 1 => FURTHER_DEFAULT_NAME,
            2 => SECOND_NAME,
            _ => LATER_NAME,
        };
    }
    points
}

/// The points of one refused call from such an address.
pub(super) fn weight(name: Name, known: bool) -> u32 {
    match name {
        Name::None => TELLING,
        Name::Default if !known => TELLING,
        _ => ORDINARY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points_every(seconds: i64, known: bool, users: &[&str]) -> u32 {
        let call = |(n, user): (i64, &&str)| Stranger {
            at: Time::from_secs(n * seconds),
            who: mark(user),
            name: Name::of(user),
            known,
        };
        of_strangers((0..).zip(users).map(call))
    }

    fn points(users: &[&str]) -> u32 {
        points_every(1, false, users)
    }

    #[test]
    fn a_name_that_nobody_made_up_takes_five_refusals_and_a_delivered_one_four() {
        assert!(points(&["alice"; 4]) < ENOUGH && points(&["alice"; 5]) >= ENOUGH);
        assert!(points(&["root"; 3]) < ENOUGH && points(&["root"; 4]) >= ENOUGH);
        assert!(points(&["?"; 3]) < ENOUGH && points(&["?"; 4]) >= ENOUGH);
    }

    #[test]
    fn strangers_names_in_turn_take_fewer_than_one_name_over_and_over() {
        assert!(points(&["alice", "alice", "bob", "bob"]) < ENOUGH);
        assert!(points(&["alice", "bob"]) < ENOUGH && points(&["alice", "bob", "carol"]) >= ENOUGH);
        assert!(points(&["admin", "pi"]) >= ENOUGH);
    }

    #[test]
    fn users_who_have_succeeded_elsewhere_weigh_no_more_than_any_refusal() {
        assert_eq!(points_every(1, true, &["root", "admin", "carol", "dave"]), 4 * ORDINARY);
        assert_eq!(points_every(5_000, true, &["carol"; 4]), 4 * ORDINARY);
    }

    #[test]
    fn who_comes_again_much_later_and_fails_again_needs_fewer_tries() {
        let every =
            |seconds, tries| points_every(seconds, false, &["alice", "alice", "alice", "alice"][..tries]);
        assert!(every(599, 4) < ENOUGH);
        assert!(every(600, 3) < ENOUGH && every(600, 4) >= ENOUGH);
        assert!(points_every(600, false, &["alice", "bob", "bob"]) >= ENOUGH);
    }
}
