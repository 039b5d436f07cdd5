//! The control API of two control rooms: whichever answers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

/// Longer than a control room goes on trying: what is given up earlier could still be done later.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
const PAUSE: Duration = Duration::from_millis(250);

/// A client with the role admin.
#[derive(Clone)]
pub struct Control {
    rooms: Vec<SocketAddr>,
    token: String,
    http: reqwest::Client,
}

impl Control {
    /// A client of these rooms.
    pub fn new(rooms: Vec<SocketAddr>, token: String) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(CALL_TIMEOUT).build()?;
        Ok(Self { rooms, token, http })
    }

    /// Calls one room after the other until one agrees; what cannot be confirmed is asked for again, so only
    /// for what may be done twice.
    pub async fn insist(
        &self,
        method: Method,
        path: &str,
        body: Value,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + limit;
        let mut last = anyhow::anyhow!("never tried");
        for room in self.rooms.iter().cycle() {
            if Instant::now() >= deadline {
                break;
            }
            match self.call(*room, method.clone(), path, &body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(last).with_context(|| format!("{method} {path}: not within {limit:?}"))
    }

    /// Lifts a kill, which may have been lifted already by a call whose answer was lost.
    pub async fn lift(&self, path: &str, whom: &Value, limit: Duration) -> anyhow::Result<()> {
        match self.insist(Method::DELETE, path, whom.clone(), limit).await {
            Err(error) if !error.to_string().contains("is not under a kill") => Err(error),
            _ => Ok(()),
        }
    }

    async fn call(
        &self,
        room: SocketAddr,
        method: Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<Value> {
        let url = format!("http://{room}/api/v1/panopticon{path}");
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}
