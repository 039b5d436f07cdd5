//! SIGTERM and SIGINT end the process in order; a second one ends it at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Exit status after a second signal: 128 + SIGINT, as shells count.
const INTERRUPTED: i32 = 130;

/// Cancels `shutdown` at the first signal.
pub fn cancel_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("told to end: finishing what is under way");
        shutdown.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}
