//! A replay: what arrives at the gateway, whatever the gateway and the file are like.

#![allow(missing_docs, clippy::unwrap_used)]

mod stub;

use std::{
    collections::{HashMap, HashSet},
    io::Write as _,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use panopticon_cli::replay::{
    Event, Pace, Rejection, ReplayArgs, ReplayError, ReplayOptions, Source, Summary, replay, run,
};
use panopticon_core::time::{Clock as _, SystemClock, Time};
use serde_json::{Value, json as value};
use stub::{Stub, all_accepted, error, results};

fn trace(n: usize) -> Value {
    value!({"event_id": uuid::Uuid::from_u128(n as u128), "client_id": "app", "user_sub": format!("user-{}", n % 7),
        "tool": "t", "status": "ok", "started_at": format!("2026-06-30T12:{:02}:{:02}Z", n / 60 % 60, n % 60),
        "duration_ms": 500, "attributes": {"n": n.to_string()}})
}

fn lines(range: std::ops::Range<usize>) -> String {
    range.map(|n| format!("{}\n", trace(n))).collect()
}

fn options(url: &str, text: impl Into<String>) -> ReplayOptions {
    let source = Source::Bytes(text.into().into());
    ReplayOptions { pace: Pace::Max, ..ReplayOptions::new(source, url, "pano_pak_x") }
}

async fn quiet(options: &ReplayOptions) -> Result<Summary, ReplayError> {
    replay(options, |_| {}).await
}

fn counts(summary: &Summary) -> [u64; 4] {
    let counts = summary.counts;
    [counts.accepted, counts.duplicate, counts.rejected, counts.unavailable]
}

fn numbers(stub: &Stub) -> Vec<usize> {
    let traces = stub.asked().into_iter().flat_map(|asked| asked.traces());
    traces.map(|trace| trace["attributes"]["n"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn every_trace_is_sent_once_and_each_user_keeps_the_order() {
    let stub = Stub::start(|asked, _| all_accepted(asked)).await;
    let options = ReplayOptions { batch: 50, ..options(&stub.url, lines(0..2_000)) };
    let summary = quiet(&options).await.unwrap();
    assert_eq!(counts(&summary), [2_000, 0, 0, 0]);
    let sent = numbers(&stub);
    assert_eq!((sent.len(), sent.iter().collect::<HashSet<_>>().len()), (2_000, 2_000));
    let mut last: HashMap<usize, usize> = HashMap::new();
    for n in sent {
        assert!(last.insert(n % 7, n).is_none_or(|before| before < n), "user {} out of order at {n}", n % 7);
    }
    assert!(stub.asked().iter().all(|asked| asked.traces().len() <= 50));
}

#[tokio::test]
async fn what_is_not_confirmed_is_sent_again_as_it_was_and_not_before_it_may() {
    let stub = Stub::start(|asked, before| match before {
        0 => {
            let mut busy = error(503, "unavailable", "not confirmed");
            busy.headers_mut().insert("retry-after", "1".parse().unwrap());
            busy
        }
        // Every other one is not confirmed: only those come again.
        1 => results(asked, |trace| {
            match trace["attributes"]["n"].as_str().unwrap().parse::<u32>().unwrap() % 2 {
                0 => "unavailable",
                _ => "accepted",
            }
        }),
        _ => results(asked, |_| "duplicate"),
    })
    .await;
    let began = Instant::now();
    let mut told = Vec::new();
    let summary = replay(&ReplayOptions { in_flight: 1, ..options(&stub.url, lines(0..10)) }, |event| {
        if let Event::Retrying { why, .. } = event {
            told.push(why.to_owned());
        }
    })
    .await
    .unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(counts(&summary), [5, 5, 0, 0]);
    assert_eq!(summary.counts.retried, 15);
    assert_eq!(told, ["not confirmed", "some traces were not confirmed"]);
    let asked = stub.asked();
    assert_eq!(asked[0].body, asked[1].body);
    let again: Vec<_> = asked[2].traces().iter().map(|trace| trace["attributes"]["n"].clone()).collect();
    assert_eq!(again, ["0", "2", "4", "6", "8"]);
}

#[tokio::test]
async fn a_server_that_never_confirms_is_given_up_in_time() {
    let stub = Stub::start(|_, _| error(503, "unavailable", "the log is away")).await;
    let hurried = ReplayOptions { give_up_after: Duration::from_secs(1), ..options(&stub.url, lines(0..3)) };
    let gave_up = quiet(&hurried).await.unwrap_err();
    assert!(matches!(&gave_up, ReplayError::GaveUp { why, .. } if why == "the log is away"), "{gave_up}");
    assert!(gave_up.to_string().contains("duplicates"), "{gave_up}");

    let gone = ReplayOptions { url: "http://127.0.0.1:9".into(), ..hurried };
    for grpc in [false, true] {
        let gave_up = quiet(&ReplayOptions { grpc, ..gone.clone() }).await.unwrap_err().to_string();
        assert!(gave_up.contains("refused"), "{gave_up}");
    }
}

#[tokio::test]
async fn a_bad_pak_ends_it_at_once() {
    let stub = Stub::start(|_, _| error(401, "invalid_token", "unknown PAK")).await;
    let refused = quiet(&options(&stub.url, lines(0..3_000))).await.unwrap_err();
    assert!(matches!(&refused, ReplayError::Refused { code, .. } if code == "invalid_token"), "{refused}");
    assert!(stub.asked().len() <= 4, "{}", stub.asked().len());
}

#[tokio::test]
async fn bad_lines_are_told_by_number_and_the_rest_goes_on() {
    let stub = Stub::start(|asked, _| {
        results(asked, |trace| if trace.get("tool").is_some() { "accepted" } else { "rejected" })
    })
    .await;
    let text = format!("{}nonsense\n\n{{\"event_id\":\"{}\"}}\n{}", trace(1), uuid::Uuid::nil(), trace(2));
    let text = text.replacen("nonsense", "\nnonsense", 1);
    let mut told: Vec<Rejection> = Vec::new();
    let summary = replay(&options(&stub.url, text), |event| {
        if let Event::Rejected(rejection) = event {
            told.push(rejection.clone());
        }
    })
    .await
    .unwrap();
    assert_eq!(counts(&summary), [2, 0, 2, 0]);
    told.sort_by_key(|rejection| rejection.line);
    let told: Vec<_> = told.iter().map(|rejection| (rejection.line, rejection.field.as_str())).collect();
    assert_eq!(told, [(2, ""), (4, "tool")]);
    assert_eq!(summary.rejections.len(), 2);
}

#[tokio::test]
async fn what_is_too_much_at_once_is_sent_in_parts_in_order() {
    let stub = Stub::start(|asked, _| match asked.traces().len() {
        0..=10 => all_accepted(asked),
        _ => error(413, "request_too_large", "too much"),
    })
    .await;
    let options = ReplayOptions { in_flight: 1, ..options(&stub.url, lines(0..100)) };
    assert_eq!(counts(&quiet(&options).await.unwrap()), [100, 0, 0, 0]);
    let taken: Vec<_> = stub.asked().into_iter().filter(|asked| asked.traces().len() <= 10).collect();
    let order: Vec<_> =
        taken.iter().flat_map(|asked| asked.traces()).map(|t| t["event_id"].clone()).collect();
    assert_eq!(order, (0..100).map(|n| trace(n)["event_id"].clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn shifted_to_now_the_last_trace_ends_now_and_gaps_stay() {
    let stub = Stub::start(|asked, _| all_accepted(asked)).await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines(0..100).as_bytes()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&gzip.finish().unwrap()).unwrap();
    let options = ReplayOptions {
        source: Source::File(file.path().into()),
        shift_to_now: true,
        fresh_ids: true,
        client_id: Some("mine".into()),
        in_flight: 1,
        ..options(&stub.url, "")
    };
    let mut last = None;
    let summary = replay(&options, |event| {
        if let Event::Progress(counts) = event {
            last = Some(*counts);
        }
    })
    .await
    .unwrap();
    let now = SystemClock.now();
    assert_eq!(counts(&summary), [100, 0, 0, 0]);
    let progress = last.unwrap();
    assert_eq!(Some(progress.bytes_read), progress.bytes_total);
    let sent: Vec<Value> = stub.asked().iter().flat_map(stub::Asked::traces).collect();
    let starts: Vec<Time> = sent.iter().map(|t| t["started_at"].as_str().unwrap().parse().unwrap()).collect();
    assert!(starts.windows(2).all(|pair| pair[1].since(pair[0]) == Duration::from_secs(1)));
    let since_end = now.since(starts[99].plus(Duration::from_millis(500)));
    assert!(since_end < Duration::from_secs(5), "{since_end:?}");
    assert!(sent.iter().all(|trace| trace["client_id"] == "mine"));
    let ids: HashSet<_> = sent.iter().map(|trace| trace["event_id"].as_str().unwrap()).collect();
    assert!(ids.len() == 100 && !ids.contains(trace(5)["event_id"].as_str().unwrap()));
}

#[tokio::test]
async fn with_a_speed_traces_come_when_they_are_due() {
    let arrivals: Arc<Mutex<Vec<(Instant, usize)>>> = Arc::default();
    let seen = Arc::clone(&arrivals);
    let stub = Stub::start(move |asked, _| {
        seen.lock().unwrap().push((Instant::now(), asked.traces().len()));
        all_accepted(asked)
    })
    .await;
    // A second apart in the file, 50 ms apart when they are sent.
    let options = ReplayOptions { pace: Pace::Times(20.0), ..options(&stub.url, lines(0..10)) };
    assert_eq!(counts(&quiet(&options).await.unwrap()), [10, 0, 0, 0]);
    assert_eq!(numbers(&stub), (0..10).collect::<Vec<_>>());
    let arrivals = arrivals.lock().unwrap().clone();
    let took = arrivals.last().unwrap().0 - arrivals[0].0;
    assert!((Duration::from_millis(400)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert_eq!(arrivals[0].1, 1, "the first must not wait for the second");
}

#[tokio::test]
async fn an_app_in_hmac_mode_gets_signed_requests_and_the_guard_is_told() {
    let stub = Stub::start(|asked, _| {
        let mut answer = all_accepted(asked);
        answer.headers_mut().insert("x-panopticon-guard", "killed".parse().unwrap());
        answer
    })
    .await;
    let options = ReplayOptions { pak_secret: Some("pano_sec_x".into()), ..options(&stub.url, lines(0..3)) };
    let summary = quiet(&options).await.unwrap();
    assert_eq!(summary.guard.as_deref(), Some("killed"));
    use hmac::{KeyInit as _, Mac as _};
    for asked in stub.asked() {
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"pano_sec_x").unwrap();
        mac.update(format!("{}.", asked.header("x-panopticon-timestamp")).as_bytes());
        mac.update(&asked.body);
        assert_eq!(asked.header("x-panopticon-signature"), hex::encode(mac.finalize().into_bytes()));
    }
}

#[tokio::test]
async fn the_command_exits_with_1_only_when_something_was_refused() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: ReplayArgs,
    }
    let stub = Stub::start(|asked, _| all_accepted(asked)).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for expected in [std::process::ExitCode::SUCCESS, std::process::ExitCode::FAILURE] {
        file.write_all(lines(0..5).as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let words = ["replay", path, "--url", &stub.url, "--pak", "pano_pak_x", "--max", "--json"];
        let command = <Command as clap::Parser>::parse_from(words);
        assert_eq!(format!("{:?}", run(command.args).await), format!("{expected:?}"));
        file.write_all(b"nonsense\n").unwrap();
    }
}

mod grpc {
    use panopticon_proto::v1::{
        IngestBatchRequest, IngestBatchResponse, IngestRequest, IngestResponse, Outcome, SignedBatch,
        TraceResult,
        trace_service_server::{TraceService, TraceServiceServer},
    };
    use prost::Message as _;
    use tonic::{Request, Response, Status, Streaming};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Gateway(Arc<Mutex<Vec<IngestBatchRequest>>>);

    impl Gateway {
        fn take(&self, batch: IngestBatchRequest) -> Result<Response<IngestBatchResponse>, Status> {
            let mut all = self.0.lock().unwrap();
            all.push(batch);
            if all.len() == 1 {
                let wait = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
                let text = "unavailable: not confirmed";
                return Err(Status::with_error_details(tonic::Code::Unavailable, text, wait));
            }
            let traces = &all[all.len() - 1].traces;
            let results = traces.iter().map(|trace| TraceResult {
                event_id: trace.event_id.clone(),
                outcome: Outcome::Accepted.into(),
                guard: "killed; scope=user".into(),
                ..TraceResult::default()
            });
            Ok(Response::new(IngestBatchResponse { results: results.collect() }))
        }
    }

    #[tonic::async_trait]
    impl TraceService for Gateway {
        async fn ingest(&self, _: Request<IngestRequest>) -> Result<Response<IngestResponse>, Status> {
            Err(Status::unimplemented("not here"))
        }

        async fn ingest_batch(
            &self,
            request: Request<IngestBatchRequest>,
        ) -> Result<Response<IngestBatchResponse>, Status> {
            if request.metadata().get("authorization").unwrap() != "Bearer pano_pak_x" {
                return Err(Status::unauthenticated("invalid_token: unknown PAK"));
            }
            self.take(request.into_inner())
        }

        type IngestStreamStream =
            std::pin::Pin<Box<dyn futures::Stream<Item = Result<IngestBatchResponse, Status>> + Send>>;

        async fn ingest_stream(
            &self,
            _: Request<Streaming<IngestBatchRequest>>,
        ) -> Result<Response<Self::IngestStreamStream>, Status> {
            Err(Status::unimplemented("not here"))
        }

        async fn ingest_signed(
            &self,
            request: Request<SignedBatch>,
        ) -> Result<Response<IngestBatchResponse>, Status> {
            use hmac::{KeyInit as _, Mac as _};
            let signed = request.into_inner();
            let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"pano_sec_x").unwrap();
            mac.update(format!("{}.", signed.timestamp).as_bytes());
            mac.update(&signed.payload);
            if signed.signature != hex::encode(mac.finalize().into_bytes()) {
                return Err(Status::unauthenticated("invalid_signature: wrong"));
            }
            self.take(IngestBatchRequest::decode(signed.payload).unwrap())
        }
    }

    async fn start() -> (String, Gateway) {
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = probe.local_addr().unwrap();
        drop(probe);
        let gateway = Gateway::default();
        let service = TraceServiceServer::new(gateway.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve(address));
        (format!("http://{address}"), gateway)
    }

    #[tokio::test]
    async fn by_grpc_traces_travel_signed_or_not_and_retries_wait_as_told() {
        for secret in [None, Some("pano_sec_x".to_owned())] {
            let (url, gateway) = start().await;
            let began = Instant::now();
            let options =
                ReplayOptions { grpc: true, pak_secret: secret, in_flight: 1, ..options(&url, lines(0..20)) };
            let summary = quiet(&options).await.unwrap();
            assert_eq!(counts(&summary), [20, 0, 0, 0]);
            assert!(began.elapsed() >= Duration::from_secs(1));
            assert_eq!(summary.guard.as_deref(), Some("killed; scope=user"));
            let asked = gateway.0.lock().unwrap();
            assert_eq!(asked[0], asked[1]);
            assert_eq!(asked[1].traces[7].attributes["n"], "7");
        }
    }

    #[tokio::test]
    async fn a_bad_pak_is_the_same_error_by_grpc() {
        let (url, _) = start().await;
        let options = ReplayOptions { grpc: true, pak: "other".into(), ..options(&url, lines(0..20)) };
        let refused = quiet(&options).await.unwrap_err();
        assert!(
            matches!(&refused, ReplayError::Refused { code, .. } if code == "invalid_token"),
            "{refused}"
        );
    }
}
