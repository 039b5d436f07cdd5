//! A single trace as JSON: it is taken, and then survives the log, or it is refused with a reason.

#![no_main]

use libfuzzer_sys::fuzz_target;
use panopticon_core::{
    admission::trace_from_json,
    time::Time,
    trace::{AcceptedTrace, decode_envelope, encode_envelope},
};

fuzz_target!(|text: &[u8]| {
    let now = Time::from_secs(1_800_000_000);
    match trace_from_json(text, now) {
        Ok(trace) => {
            let accepted = AcceptedTrace::new(trace, now);
            let envelope = encode_envelope([accepted.clone()]);
            let read = decode_envelope(&envelope).expect("an envelope of our own");
            assert_eq!(read, [accepted]);
        }
        Err(refusal) => assert!(!refusal.description.is_empty()),
    }
});
