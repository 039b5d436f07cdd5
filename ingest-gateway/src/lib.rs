//! The ingest gateway: checks traces, appends them to `traces.raw`, answers.
//!
//! It is thin. [`intake`] is what HTTP ([`http`]) and gRPC ([`grpc`]) have in common: traces in, verdicts
//! out, where a verdict `Accepted` is given only for what the log has made durable. It knows no rule, no
//! aggregate and no engine.

mod appender;
pub mod auth;
pub mod body;
pub mod counts;
pub mod error;
pub mod grpc;
pub mod http;
pub mod intake;
mod marker;
mod parcel;
mod rounds;
mod signature;
pub mod verdict;

use std::sync::Arc;

use axum::{Router, extract::Request};
use panopticon_core::{config::Config, control::ControlView, secrets::Sealer, time::SharedClock};

use self::{auth::Gate, intake::Intake};

/// What both interfaces need.
#[derive(Clone)]
pub struct Gateway {
    /// Traces in, verdicts out.
    pub intake: Arc<Intake>,
    /// Who may send.
    pub gate: Arc<Gate>,
    /// Limits.
    pub config: Arc<Config>,
    /// The clock.
    pub clock: SharedClock,
}

impl Gateway {
    /// A gateway in front of `intake` for the apps of `view`.
    pub fn new(
        intake: Arc<Intake>,
        view: ControlView,
        sealer: Option<Sealer>,
        config: Arc<Config>,
        clock: SharedClock,
    ) -> Self {
        let gate = Arc::new(Gate::new(view, sealer, &config.gateway, clock.clone()));
        Self { intake, gate, config, clock }
    }

    /// Both interfaces on one router, which also answers for paths that are on neither.
    pub fn router(&self) -> Router {
        let gateway = self.clone();
        http::router(self.clone())
            .merge(grpc::router(self.clone()))
            .fallback(move |request: Request| http::nothing_there(gateway.clone(), request))
    }
}
