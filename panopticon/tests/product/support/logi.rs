//! The command line, as people and scripts run it.

use std::process::Output;

use serde_json::Value;

use super::{System, process::Program};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What it printed; it must have succeeded.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!(self.status, 0, "{self:?}");
        self.out
    }

    /// The same, of a command with `--json`.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.done();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// It must have failed with one clear line.
    #[track_caller]
    pub fn failed(self) -> String {
        assert_eq!((self.status, self.out.as_str()), (1, ""), "{self:?}");
        assert_eq!(self.err.trim_end().lines().count(), 1, "{self:?}");
        self.err
    }
}

/// A program of the product that knows the system by its environment alone.
pub fn program(s: &System, words: &[&str]) -> Program {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Program {
        name: "logi".to_owned(),
        path: env!("CARGO_BIN_EXE_panopticon").into(),
        arguments: words.iter().map(ToString::to_string).collect(),
        settings: vec![
            setting("LOGI_URL", &s.control),
            setting("LOGI_TOKEN", &s.token()),
            setting("LOGI_GATEWAY_URL", &s.ingest),
        ],
        folder: s.folder.clone(),
    }
}

/// Runs a program to its end.
pub async fn run(program: Program) -> Ran {
    let ran = tokio::task::spawn_blocking(move || program.command().output().unwrap());
    Ran::of(ran.await.unwrap())
}

/// Runs `logi panopticon …`.
pub async fn logi(s: &System, words: &[&str]) -> Ran {
    run(program(s, &[&["logi", "panopticon"], words].concat())).await
}
