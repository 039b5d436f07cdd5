//! The tokens of OAUTHBEARER: got by the client credentials grant (RFC 6749, 4.4), one for all clients.
//!
//! The driver asks for a token on the thread that takes its events, among them the outcomes of appends, which must
//! not wait for a token endpoint. So a thread of its own gets the next token when half of the last one's life is
//! over; only the first is waited for.

use std::{
    ffi::{CStr, CString, c_char},
    ptr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use panopticon_core::time::{Clock as _, SystemClock};
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    ClientContext,
    bindings::rd_kafka_oauthbearer_set_token,
    client::{Client, OAuthToken},
    types::RDKafkaRespErr,
};

use super::token_endpoint::{Endpoint, Token, TokenError};

/// How long the first token is waited for: somewhat longer than the endpoint may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(6);
/// Pause after a token could not be had.
const RETRY: Duration = Duration::from_secs(2);
/// Shortest pause after one was had, however short its life is.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// What the driver may say of a token that it does not take.
const COMPLAINT_BYTES: usize = 512;

/// What has come of asking so far.
#[derive(Default)]
struct State {
    /// The latest there was.
    token: Option<Token>,
    /// Why there is none later.
    error: Option<TokenError>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    asked: Condvar,
}

impl Shared {
    /// Takes note of an outcome; how long to wait before the next.
    fn put(&self, outcome: Result<Token, TokenError>) -> Duration {
        let mut state = self.state.lock();
        let pause = match outcome {
            Ok(token) => {
                let pause = (token.life() / 2).max(SHORTEST_PAUSE);
                *state = State { token: Some(token), error: None };
                pause
            }
            Err(error) => {
                tracing::warn!(%error, "no token for Kafka");
                metrics::counter!("panopticon_kafka_token_failures_total").increment(1);
                state.error = Some(error);
                RETRY
            }
        };
        self.asked.notify_all();
        pause
    }
}

/// Tokens for all clients of a process; the thread that gets them ends with this value.
pub(super) struct Tokens {
    shared: Arc<Shared>,
    /// The first word on it starts the asking; dropping it ends the thread.
    wanted: Sender<()>,
}

impl Tokens {
    /// Asks nobody before a token is wanted.
    pub(super) fn new(endpoint: Endpoint) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (wanted, wishes) = channel();
        let found = Arc::clone(&shared);
        thread::Builder::new()
            .name("kafka-token".to_owned())
            .spawn(move || ask_on(&endpoint, &found, &wishes))?;
        Ok(Self { shared, wanted })
    }

    /// The token of now. Blocks until it is known for the first time whether there is one.
    pub(super) fn take(&self) -> Result<OAuthToken, TokenError> {
        // The thread ends after its senders only.
        let _ = self.wanted.send(());
        let deadline = Instant::now() + FIRST_TIMEOUT;
        let mut state = self.shared.state.lock();
        while state.token.is_none() && state.error.is_none() {
            if self.shared.asked.wait_until(&mut state, deadline).timed_out() {
                return Err(TokenError::Late);
            }
        }
        match (&state.token, &state.error) {
            (Some(token), _) if token.expires_at > SystemClock.now() => Ok(OAuthToken {
                token: token.text.clone(),
                principal_name: token.principal.clone(),
                lifetime_ms: token.expires_at.micros() / 1_000,
            }),
            (_, Some(error)) => Err(error.clone()),
            _ => Err(TokenError::Late),
        }
    }

    /// Gives a client its token whose events nobody takes, as the driver's admin client is; for good, so it must not
    /// be used for longer than a token lives. Blocks as [`Tokens::take`] does.
    #[allow(unsafe_code)]
    pub(super) fn give<C: ClientContext>(&self, client: &Client<C>) -> Result<(), TokenError> {
        let given = self.take()?;
        let unusable = |_| TokenError::Unusable("it has a NUL".to_owned());
        let token = CString::new(given.token).map_err(unusable)?;
        let principal = CString::new(given.principal_name).map_err(unusable)?;
        let mut complaint: [c_char; COMPLAINT_BYTES] = [0; COMPLAINT_BYTES];
        // SAFETY: the client is borrowed for the call, the texts and the buffer outlive it and end in NUL, the driver
        // copies what it keeps, and there are no extensions.
        let code = unsafe {
            rd_kafka_oauthbearer_set_token(
                client.native_ptr(),
                token.as_ptr(),
                given.lifetime_ms,
                principal.as_ptr(),
                ptr::null_mut(),
                0,
                complaint.as_mut_ptr(),
                complaint.len(),
            )
        };
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        let complaint = complaint.map(|c| c.to_ne_bytes()[0]);
        let said = CStr::from_bytes_until_nul(&complaint).map(CStr::to_string_lossy).unwrap_or_default();
        Err(TokenError::Unusable(said.into_owned()))
    }
}

/// Gets one token after the other, until nobody can want one any more.
fn ask_on(endpoint: &Endpoint, shared: &Shared, wishes: &Receiver<()>) {
    if wishes.recv().is_err() {
        return;
    }
    loop {
        let next = Instant::now() + shared.put(endpoint.ask());
        loop {
            match wishes.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
