//! Following a topic without a group.

use panopticon_core::{log::TailFrom, topic::Topic};

use crate::{
    EngineUnderTest,
    fixtures::{from_tail, nothing_from},
};

fn pairs(wanted: &[(u32, &str)]) -> Vec<(u32, String)> {
    wanted.iter().map(|(partition, text)| (*partition, (*text).to_owned())).collect()
}

/// What is there, then what comes.
pub async fn a_tail_from_the_start_brings_everything_and_goes_on<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    ports.append(Topic::Traces, 0, "a").await;
    ports.append(Topic::Traces, 1, "b").await;
    ports.append(Topic::Traces, 0, "c").await;
    let mut tail = ports.log.tail(Topic::Traces, TailFrom::Start).await.unwrap();
    assert_eq!(from_tail(&mut tail, 3).await, pairs(&[(0, "a"), (0, "c"), (1, "b")]));
    nothing_from(&mut tail).await;
    ports.append(Topic::Traces, 1, "d").await;
    assert_eq!(from_tail(&mut tail, 1).await, pairs(&[(1, "d")]));
}

/// Nothing that was there before, everything after.
pub async fn a_tail_from_the_end_brings_only_what_comes<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    ports.append(Topic::Traces, 0, "before").await;
    let mut tail = ports.log.tail(Topic::Traces, TailFrom::End).await.unwrap();
    ports.append(Topic::Traces, 0, "after").await;
    ports.append(Topic::Traces, 1, "too").await;
    assert_eq!(from_tail(&mut tail, 2).await, pairs(&[(0, "after"), (1, "too")]));
    nothing_from(&mut tail).await;
}

/// As a client resumes where it was.
pub async fn a_tail_from_offsets_brings_what_is_there_from_them_on<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let partitions = ports.log.topic(Topic::Traces).await.unwrap().partitions;
    ports.append(Topic::Traces, 0, "a").await;
    let second = ports.append(Topic::Traces, 0, "b").await;
    ports.append(Topic::Traces, 0, "c").await;
    ports.append(Topic::Traces, 1, "d").await;
    let mut offsets = vec![0; partitions as usize];
    offsets[0] = second;
    offsets[1] = ports.log.bounds(Topic::Traces, 1).await.unwrap().high;
    let mut tail = ports.log.tail(Topic::Traces, TailFrom::Offsets(offsets)).await.unwrap();
    assert_eq!(from_tail(&mut tail, 2).await, pairs(&[(0, "b"), (0, "c")]));
    nothing_from(&mut tail).await;
    ports.append(Topic::Traces, 1, "e").await;
    assert_eq!(from_tail(&mut tail, 1).await, pairs(&[(1, "e")]));
}
