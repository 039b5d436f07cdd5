//! Waiting for what a system does by itself: by looking again, never by a fixed pause.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Long enough for the slowest machine; what is promised to be faster is measured by its test.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(40);

/// Looks until it is there; panics with the last sight when it does not come.
pub async fn eventually<T, E: Debug>(what: &str, look: impl AsyncFnMut() -> Result<T, E>) -> T {
    within(DEADLINE, what, look).await
}

/// The same with a deadline that belongs to the promise.
pub async fn within<T, E: Debug>(
    deadline: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    loop {
        let seen = match look().await {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        assert!(begun.elapsed() < deadline, "{what}: not within {deadline:?}; last seen: {seen:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// `Ok` where it holds, else what was seen.
pub fn if_so<T>(holds: bool, seen: T) -> Result<T, T> {
    if holds { Ok(seen) } else { Err(seen) }
}
