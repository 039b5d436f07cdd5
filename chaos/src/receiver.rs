//! A webhook receiver as an RP has one: it verifies, remembers, and sometimes fails.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sha2::Sha256;

/// How often a message is answered with 500, though it arrived.
const FAILURE_CHANCE: f64 = 0.15;
/// How often an answer takes its time.
const SLOW_CHANCE: f64 = 0.05;
const SLOW: Duration = Duration::from_millis(1_500);

/// What came with one `webhook-id`.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// The body, the same in every attempt.
    pub body: Bytes,
    /// How often it came.
    pub times: u32,
    /// How often it was answered with a 2xx.
    pub taken: u32,
}

#[derive(Default)]
struct Inbox {
    /// By app, the secret of its endpoint.
    secrets: BTreeMap<String, String>,
    messages: BTreeMap<(String, String), Received>,
    wrong: Vec<String>,
    rng: Option<StdRng>,
}

/// The receiver of all apps.
#[derive(Clone)]
pub struct Receiver {
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
}

impl Receiver {
    /// Listens on a loopback port.
    pub async fn start(seed: u64) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
        let address = listener.local_addr()?;
        let inbox =
            Arc::new(Mutex::new(Inbox { rng: Some(StdRng::seed_from_u64(seed)), ..Inbox::default() }));
        let router = Router::new().route("/{app}", post(take)).with_state(inbox.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, inbox })
    }

    /// The endpoint of an app.
    pub fn url(&self, app: &str) -> String {
        format!("http://{}/{app}", self.address)
    }

    /// What an app's messages are signed with.
    pub fn expect(&self, app: &str, secret: &str) {
        self.inbox.lock().secrets.insert(app.to_owned(), secret.to_owned());
    }

    /// Everything that came, by app and webhook-id.
    pub fn messages(&self) -> BTreeMap<(String, String), Received> {
        self.inbox.lock().messages.clone()
    }

    /// Messages that should not have come as they did.
    pub fn wrong(&self) -> Vec<String> {
        self.inbox.lock().wrong.clone()
    }
}

async fn take(
    State(inbox): State<Arc<Mutex<Inbox>>>,
    Path(app): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let (fails, slow) = {
        let mut inbox = inbox.lock();
        let Some(rng) = inbox.rng.as_mut() else { return StatusCode::INTERNAL_SERVER_ERROR };
        (rng.random_bool(FAILURE_CHANCE), rng.random_bool(SLOW_CHANCE))
    };
    if slow {
        tokio::time::sleep(SLOW).await;
    }
    let mut inbox = inbox.lock();
    let id = header(&headers, "webhook-id").to_owned();
    let secret = inbox.secrets.get(&app).cloned().unwrap_or_default();
    if let Err(why) = verify(&secret, &headers, &body) {
        inbox.wrong.push(format!("webhook {id} of {app}: {why:#}"));
    }
    let received = inbox.messages.entry((app.clone(), id.clone())).or_default();
    let changed = received.times > 0 && received.body != body;
    received.body = body;
    received.times += 1;
    received.taken += u32::from(!fails);
    if changed {
        inbox.wrong.push(format!("webhook {id} of {app} came again with another body"));
    }
    if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT }
}

/// Both signatures.
fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) -> anyhow::Result<()> {
    standardwebhooks::Webhook::new(secret)?.verify(body, headers)?;
    let key = STANDARD.decode(secret.trim_start_matches("whsec_"))?;
    let logi = header(headers, "x-logi-signature");
    let part = |name: &str| {
        let mut parts = logi.split(',').filter_map(|part| part.split_once('='));
        parts.find(|(found, _)| *found == name).map_or("", |(_, value)| value)
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).context("the secret is no key")?;
    mac.update(format!("{}.", part("t")).as_bytes());
    mac.update(body);
    anyhow::ensure!(part("v1") == hex::encode(mac.finalize().into_bytes()), "X-Logi-Signature is wrong");
    Ok(())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
