//! Who may send: PAKs, disabled apps, signatures, and patience with bad credentials.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use panopticon_core::{
    config::{GatewayConfig, Secret},
    control::{ControlView, Guard},
    proto::control::App,
    secrets::Sealer,
    time::SharedClock,
};

use crate::{
    error::{GatewayError, Kind},
    signature,
};

/// Addresses that are remembered for bad credentials before old ones are forgotten.
const REMEMBERED_ADDRESSES: usize = 100_000;

/// Decides who may send.
pub struct Gate {
    view: ControlView,
    sealer: Option<Sealer>,
    clock: SharedClock,
    hmac_tolerance_secs: u64,
    bad_credentials: DefaultKeyedRateLimiter<IpAddr>,
}

/// An app that has shown a valid PAK.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The app.
    pub app: Arc<App>,
    sealed_secret: Vec<u8>,
}

/// What a signature says, where the request carries one.
#[derive(Debug, Clone, Copy)]
pub struct Signature<'a> {
    /// Unix seconds.
    pub timestamp: Option<&'a str>,
    /// Lower-case hex.
    pub signature: Option<&'a str>,
}

impl Gate {
    /// A gate for the apps of `view`; without a sealer, apps in HMAC mode cannot be served.
    pub fn new(
        view: ControlView,
        sealer: Option<Sealer>,
        limits: &GatewayConfig,
        clock: SharedClock,
    ) -> Self {
        let per_minute = NonZeroU32::new(limits.bad_credentials_per_minute).unwrap_or(NonZeroU32::MIN);
        Self {
            view,
            sealer,
            clock,
            hmac_tolerance_secs: limits.hmac_tolerance_secs,
            bad_credentials: RateLimiter::keyed(Quota::per_minute(per_minute)),
        }
    }

    /// The app whose PAK the Authorization header carries.
    pub fn admit(&self, authorization: Option<&str>, from: Option<IpAddr>) -> Result<Sender, GatewayError> {
        let Some(authorization) = authorization else {
            return Err(self.bad_credential(
                from,
                GatewayError::new(
                    Kind::InvalidToken,
                    "send the app's PAK as `Authorization: Bearer pano_pak_…`",
                ),
            ));
        };
        let pak = match authorization.split_once(' ') {
            Some((scheme, pak)) if scheme.eq_ignore_ascii_case("bearer") => pak.trim(),
            _ => {
                return Err(self.bad_credential(
                    from,
                    GatewayError::new(
                        Kind::InvalidToken,
                        "the Authorization header must be `Bearer pano_pak_…`",
                    ),
                ));
            }
        };
        let entry = self.view.state().pak(pak, self.clock.now()).cloned();
        let Some(entry) = entry else {
            return Err(self.bad_credential(
                from,
                GatewayError::new(
                    Kind::InvalidToken,
                    "the PAK is unknown or has expired; `logi panopticon rotate` makes a new one",
                ),
            ));
        };
        if entry.app.disabled {
            return Err(GatewayError::new(
                Kind::AppDisabled,
                "the app is disabled; `logi panopticon enable` enables it again",
            ));
        }
        Ok(Sender { app: entry.app, sealed_secret: entry.sealed_secret })
    }

    /// Checks the signature of an app in HMAC mode over the bytes as sent; other apps need none.
    pub fn check_signature(
        &self,
        sender: &Sender,
        claim: Signature<'_>,
        body: &[u8],
        from: Option<IpAddr>,
    ) -> Result<(), GatewayError> {
        if !sender.app.hmac {
            return Ok(());
        }
        let (Some(timestamp), Some(signature)) = (claim.timestamp, claim.signature) else {
            return Err(GatewayError::new(
                Kind::InvalidSignature,
                "the app is in HMAC mode: send X-Panopticon-Timestamp and X-Panopticon-Signature",
            ));
        };
        let secret = self.secret_of(sender)?;
        signature::verify(&secret, timestamp, signature, body, self.clock.now(), self.hmac_tolerance_secs)
            .map_err(|error| self.bad_credential(from, error))
    }

    fn secret_of(&self, sender: &Sender) -> Result<Secret, GatewayError> {
        let about = format!("app/{}", sender.app.client_id);
        self.sealer.as_ref().and_then(|sealer| sealer.open(&about, &sender.sealed_secret).ok()).ok_or_else(|| {
            GatewayError::new(
                Kind::InvalidSignature,
                "the app's secret cannot be opened here; rotate its PAK, or give every process the same secrets.key",
            )
        })
    }

    /// What AI Guard says about the app or this user of it.
    pub fn guard(&self, client_id: &str, user_sub: &str) -> Option<Guard> {
        self.view.state().guard(client_id, user_sub)
    }

    fn bad_credential(&self, from: Option<IpAddr>, error: GatewayError) -> GatewayError {
        let Some(address) = from else { return error };
        if self.bad_credentials.len() > REMEMBERED_ADDRESSES {
            self.bad_credentials.retain_recent();
        }
        match self.bad_credentials.check_key(&address) {
            Ok(()) => error,
            Err(_) => {
                metrics::counter!("panopticon_gateway_bad_credential_limit_total").increment(1);
                GatewayError::new(
                    Kind::TooManyRequests,
                    "too many requests with bad credentials from this address; mend the PAK and wait a minute",
                )
            }
        }
    }
}
