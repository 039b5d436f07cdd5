# All programs of Panopticon in one image; the command chooses.
#   docker build -t panopticon .
#   docker run --rm -p 7420:7420 -v panopticon-data:/data panopticon
FROM rust:1.95-bookworm AS build
# For Kafka over TLS, with SCRAM or OAUTHBEARER.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libssl-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bins --workspace --exclude xtask --exclude panopticon-bench \
      --features panopticon-process/kafka-tls \
 && mkdir /out \
 && cp target/release/panopticon target/release/ingest-gateway target/release/stream-workers \
       target/release/anomaly-detector target/release/guard-enforcer target/release/webhook-dispatcher \
       target/release/control-room target/release/logi /out/

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --create-home --home-dir /data panopticon
COPY --from=build /out/ /usr/local/bin/
USER panopticon
WORKDIR /data
ENV PANOPTICON_LISTEN=0.0.0.0:7420 \
    PANOPTICON_METRICS_LISTEN=0.0.0.0:7421 \
    PANOPTICON_DATA_DIR=/data \
    PANOPTICON_LOG_FORMAT=json
EXPOSE 7420 7421
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD curl -fsS http://127.0.0.1:7421/readyz >/dev/null || exit 1
CMD ["panopticon", "serve"]
