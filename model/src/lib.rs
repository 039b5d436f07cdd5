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
//! size, mark them, and commit rows and position together; a kill at any point, a new owner while the old one
//! lives on as a zombie whose calls of the seen set still count. The seen set emptied, or back to a snapshot,
//! at any point, in the midst of a rebuild as well.
//!
//! **Intent.** Owners whose batches end anywhere; the intent in the commit before; statements that arrive
//! arbitrarily late and are torn by a kill of the trace store after their token is written down, in the table
//! or in its view; answers that are not waited for; zombies that go on sending; the settlement's stopping,
//! looking, sending again and repairing.
//!
//! # What is left out
//!
//! - One partition, two or three records, each with one trace. An id that arrives in two partitions (one event
//!   id with two users) shares its mark but not its partition's progress; what a loss does to it is not shown.
//! - Kafka: a commit is one step that a newer owner's fence lets through or not; the log loses nothing.
//! - The window: no mark expires; the look-up of old traces in the trace store.
//! - A batch of marks is one script. (More than 20,000 marks are several, of which the last moves the progress.)
//! - A token and its part are torn apart by a kill of the server only, never by other statements or by being
//!   stopped. Tokens are not forgotten. A batch is one block: no row is refused.
//! - That work is done at last: only that what is done is right, and that it can be done.
//!
//! # Where the model is ahead of the code
//!
//! Four parts are in the model because it found a promise broken without them; the code lacks them so far.
//! Each needs several rare things at once.
//!
//! - [`places::Part::Floor`]: a rebuild overwrites marks and leaves others alone. One that a slow gateway
//!   sets after the loss, or that comes back with a snapshot, may name a record that was dropped in favour of a
//!   later one; then that one is dropped too, and the trace is lost.
//! - [`places::Part::Owner`]: progress says how far, not who. A zombie may rebuild from an older reading of
//!   `traces`, or begin at offset 0, and hide from the owner that marks were lost.
//! - [`places::Part::Unbroken`]: marks that are lost again while they are being rebuilt are not missed.
//! - [`intent::Part::OwnTokenFirst`]: counts that are missing are repaired at once, though the batch's own
//!   statement, sent late by a zombie, may be about to bring them.

pub mod intent;
pub mod places;
mod seen;
mod trace_store;
