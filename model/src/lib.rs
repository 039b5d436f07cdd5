//! The protocol of exactly once as two models, small enough to try every interleaving of their steps with
//! crashes, zombies and losses (by Stateright). It says nothing about the code: whoever changes the protocol
//! in the code changes it here too, and sees whether it still holds.
//!
//! [`places`] is the road from a request to `traces`: `ingest-gateway/src/appender.rs`,
//! `stream-workers/src/dedupe.rs` and the scripts in `engines/distributed/src/redis`. [`intent`] is the road
//! from `traces` to rows and counts: `stream-workers/src/store.rs` and
//! `engines/distributed/src/clickhouse/{insert,settle}.rs`.
//!
//! Each model has its parts ([`places::Part`], [`intent::Part`]) that a test can take away; for every one
//! there is an interleaving in which a promise breaks without it.
//!
//! # What is modelled
//!
//! **Places.** Requests that bring the same ids through gateways of their own; a gateway that appends, dies,
//! answers without the seen set, or marks arbitrarily late. Owners of the partition that take batches of any
//! size, mark them, and commit rows and position together, or hold a position back while there is nothing to
//! keep; a kill at any point, a new owner while the old one lives on as a zombie whose calls of the seen set
//! still count. The seen set emptied, or back to a snapshot, at any point: in the midst of a rebuild or between
//! two calls of a batch as well.
//!
//! **Intent.** Owners whose batches end anywhere; the intent in the commit before; statements that arrive
//! arbitrarily late and are torn by a kill of the trace store after their token is written down, in the table
//! or in its view; answers that are not waited for; zombies that go on sending; the settlement's stopping,
//! looking, sending again and repairing; a worker that begins anew after an error.
//!
//! # What is left out
//!
//! - One partition, two or three records, each with one trace. An id that arrives in two partitions (one event
//!   id with two users) shares its mark but not its partition's progress; what a loss does to it is not shown.
//! - Kafka: a commit is one step that a newer owner's fence lets through or not; the log loses nothing.
//! - The window: no mark expires; the look-up of old traces in the trace store.
//! - A token and its part are torn apart by a kill of the server only, never by other statements or by being
//!   stopped. Tokens are not forgotten. A batch is one block: no row is refused.
//! - That work is done at last: only that what is done is right, and that it can be done.
//!
//! # Where the model and the code differ
//!
//! The code lacks no part that the model has. But:
//!
//! - Owners and works are told apart by random numbers; the model takes ones that nobody has.
//! - Tokens may be forgotten. A settlement sends a batch of which rows are there under its own token only
//!   where the numbers of the parts say that few were inserted since; otherwise it repairs at once, and what
//!   [`intent::Part::OwnTokenFirst`] prevents could happen then.
//! - After an error dedupe begins anew under the same lease, as an owner of its own: a kill and a takeover here.

pub mod intent;
pub mod places;
mod seen;
mod trace_store;
