//! A single trace as protobuf: refused with a reason, or its bytes travel on and read the same at the end.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use panopticon_core::{
    admission::admit_proto,
    time::Time,
    trace::{EnvelopeWriter, decode_envelope},
};

fuzz_target!(|sent: &[u8]| {
    let now = Time::from_secs(1_800_000_000);
    let sent = Bytes::copy_from_slice(sent);
    let looked = admit_proto(&sent, now, |seen| {
        let trace = seen.trace;
        [trace.client_id, trace.user_sub, trace.tool, trace.error_code].map(str::to_owned)
    });
    match looked {
        Ok((admitted, texts)) => {
            let mut envelope = EnvelopeWriter::default();
            envelope.take_in(&admitted.bytes, now, admitted.is_late(now));
            let read = decode_envelope(&envelope.finish()).expect("an envelope of our own").remove(0);
            let trace = read.trace;
            assert_eq!((trace.event_id, read.received_at), (admitted.event_id, now));
            let client_id = trace.client_id.as_str().to_owned();
            assert_eq!([client_id, trace.user_sub, trace.tool, trace.error_code], texts);
        }
        Err(refusal) => assert!(!refusal.description.is_empty()),
    }
});
