//! A caller whose credential has expired and who does not notice: no attack, and told apart from one by
//! what it repeats and how fast.

use super::{evidence::Credential, trail::Refusal};

/// A retry may come so many times as often as the calls before it, and still be no attack.
const HASTE: u128 = 16;

/// Whether refused calls are one caller's that repeats one call with a credential that used to be accepted:
/// `history` is the usual gap between the user's successes, in milliseconds.
pub(super) fn is_expired<'r>(
    counted: impl Iterator<Item = &'r Refusal> + Clone,
    history: Option<u32>,
) -> bool {
    let mut calls = counted.clone();
    let Some(first) = calls.next() else { return false };
    let (mut last, mut gaps) = (first, 0_u32);
    for one in calls {
        if (one.who, one.call) != (first.who, first.call) {
            return false;
        }
        (last, gaps) = (one, gaps + 1);
    }
    let gap_ms = last.at.since(first.at).as_millis() / u128::from(gaps.max(1));
    match first.credential {
        Credential::Expired => true,
        // As often as it used to be accepted, or not much more often.
        Credential::Refused => history.is_some_and(|usual| gap_ms * HASTE >= u128::from(usual)),
        Credential::Other => false,
    }
}
