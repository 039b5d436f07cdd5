//! What the tests stand on: a running system, an app of it, a webhook receiver, and waiting.

pub mod answer;
pub mod app;
pub mod leftovers;
pub mod live;
pub mod log;
pub mod logi;
pub mod process;
pub mod receiver;
pub mod sign;
pub mod system;
pub mod waiting;

use std::{
    io::Write as _,
    net::IpAddr,
    sync::{Once, OnceLock},
};

pub use self::{
    answer::{Answer, refused},
    app::App,
    logi::logi,
    receiver::Receiver,
    system::{Engine, System},
    waiting::{eventually, within},
};

/// Makes a test of each function for each engine, on the system that all tests of the engine share.
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $name() { $crate::support::run($crate::support::Engine::Embedded, super::$name); })+
        }
        mod distributed {
            $(#[test] fn $name() { $crate::support::run($crate::support::Engine::Distributed, super::$name); })+
        }
    };
}

/// The same for functions that are given the engine, and start a system of their own.
macro_rules! alone_on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod alone_embedded {
            $(#[test] fn $name() { $crate::support::run_alone($crate::support::Engine::Embedded, super::$name); })+
        }
        mod alone_distributed {
            $(#[test] fn $name() { $crate::support::run_alone($crate::support::Engine::Distributed, super::$name); })+
        }
    };
}

pub(crate) use {alone_on_both_engines, on_both_engines};

/// Runs a test on the shared system of an engine.
pub fn run(engine: Engine, body: impl AsyncFnOnce(&'static System)) {
    run_alone(engine, async |engine| body(System::shared(engine).await).await);
}

/// Runs a test that starts what it needs.
pub fn run_alone(engine: Engine, body: impl AsyncFnOnce(Engine)) {
    if engine.is_there() {
        runtime().block_on(body(engine));
    } else {
        static NOTICE: Once = Once::new();
        // Not by println, which is only shown for tests that fail.
        NOTICE.call_once(|| {
            let _ = std::io::stderr().write_all(
                b"\nskipped: tests on the distributed engine (`cargo xtask stack up`, then `. target/stack/test.env`)\n",
            );
        });
    }
}

/// One for all tests, so that what a shared system needs outlives the test that started it.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap())
}

/// A client that asks no proxy and follows no redirect, from an address of its own where one is given.
pub fn http_client(address: Option<IpAddr>) -> reqwest::Client {
    // The client wants a TLS provider, even for requests without TLS; that there is one already is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    builder.local_address(address).build().unwrap()
}
