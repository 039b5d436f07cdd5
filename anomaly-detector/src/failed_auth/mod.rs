//! The rule `failed_auth`: calls refused for lack of authentication or authorization
//! ([`panopticon_core::trace::is_denied`]), by user, by source address and by app.
//!
//! Evidence is gathered per address, over a month where nobody has ever succeeded from there and over ten
//! minutes elsewhere; what no single address did is gathered per user and, from many
//! addresses with a try or two each, per app. Enough of it begins an episode, and
//! a success within that is told on its own trace. Up to a minute of disorder changes none of this.

mod apps;
mod evidence;
mod expired;
mod source;
mod sources;
mod state;
mod told;
mod trail;
mod user;

pub use apps::FailedAuthByApp;
pub use sources::FailedAuthBySource;
pub use told::THRESHOLD;
pub use trail::WINDOW;
pub use user::{Standing, UserFailedAuth};
