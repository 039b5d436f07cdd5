//! Generates the message types with protox, so that no protoc has to be installed.

use std::{env, path::PathBuf};

/// Times are microseconds in the messages and RFC 3339 strings in JSON.
const TIME_FIELDS: &[&str] = &[
    "detected_at",
    "emitted_at",
    "ended_at",
    "created_at",
    "updated_at",
    "next_attempt_at",
    "scheduled_at",
    "first_failed_at",
    "killed_at",
    "expires_at",
    "migrated_at",
    "received_at",
    "replayed_at",
    "event_time",
    "at",
    "start",
    "end",
];

/// Never leaves the process as JSON.
const SECRET_FIELDS: &[&str] = &["sha256", "sealed", "sealed_secret"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["panopticon/v1/trace.proto", "panopticon/v1/log.proto", "panopticon/v1/control.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;

    let mut config = prost_build::Config::new();
    config.bytes([
        ".panopticon.v1.SignedBatch.payload",
        ".panopticon.log.v1.AcceptedTrace.event_id",
        ".panopticon.log.v1.DeadLetter",
        ".panopticon.log.v1.Delivery.body",
    ]);
    let mut builder = tonic_prost_build::configure().compile_well_known_types(false);
    for package in [".panopticon.log.v1", ".panopticon.control.v1"] {
        builder = builder
            .type_attribute(package, "#[derive(serde::Serialize, serde::Deserialize)]")
            .type_attribute(package, "#[serde(default)]");
    }
    for (message, fields) in messages(&descriptors) {
        for (field, is_time) in fields {
            let path = format!("{message}.{field}");
            let attribute = if SECRET_FIELDS.contains(&field.as_str()) {
                "#[serde(skip)]"
            } else if is_time && TIME_FIELDS.contains(&field.as_str()) {
                "#[serde(with = \"crate::rfc3339\")]"
            } else {
                continue;
            };
            builder = builder.field_attribute(path, attribute);
        }
    }
    builder.compile_fds_with_config(descriptors, config)?;
    raw_service();
    Ok(())
}

/// The server of `panopticon.v1.TraceService` over the messages of `raw`.
fn raw_service() {
    use tonic_prost_build::manual::{Builder, Method, MethodBuilder, Service};
    let method = |name: &str, route: &str, input: &str, output: &str| -> MethodBuilder {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::raw::{input}"))
            .output_type(format!("crate::raw::{output}"))
            .codec_path("tonic_prost::ProstCodec")
    };
    let (one, many) = (("IngestRequest", "IngestResponse"), ("IngestBatchRequest", "IngestBatchResponse"));
    let service = Service::builder()
        .name("TraceService")
        .package("panopticon.v1")
        .method(method("ingest", "Ingest", one.0, one.1).build())
        .method(method("ingest_batch", "IngestBatch", many.0, many.1).build())
        .method(
            method("ingest_stream", "IngestStream", many.0, many.1)
                .client_streaming()
                .server_streaming()
                .build(),
        )
        .method(method("ingest_signed", "IngestSigned", "SignedBatch", many.1).build())
        .build();
    Builder::new().build_client(false).compile(&[service]);
}

/// The fields of the stages' own messages, each with whether it is a 64-bit time.
fn messages(descriptors: &prost_types::FileDescriptorSet) -> Vec<(String, Vec<(String, bool)>)> {
    use prost_types::field_descriptor_proto::Type;
    let mut found = Vec::new();
    for file in &descriptors.file {
        if file.package() == "panopticon.v1" || !file.package().starts_with("panopticon.") {
            continue;
        }
        for message in &file.message_type {
            let fields =
                message.field.iter().map(|f| (f.name().to_owned(), f.r#type() == Type::Sfixed64)).collect();
            found.push((format!(".{}.{}", file.package(), message.name()), fields));
        }
    }
    found
}
