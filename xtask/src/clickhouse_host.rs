//! The process that ClickHouse lives in: it loads `libchdb.so`, which carries the whole engine, and hands
//! over to it. The engine then owns the process until it is killed.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What the library runs: open the listeners, then stay. There is no statement for "serve forever", so the
/// last one sleeps, a second a row, for thirty years.
const SERVE_SQL: &str = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; \
     SELECT sleepEachRow(1) FROM numbers(1000000000) \
     SETTINGS max_block_size = 1, function_sleep_max_microseconds_per_block = 0 FORMAT Null";

/// Where the engine keeps its data and where it listens (always on loopback).
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The `libchdb.so` to load.
    pub library: PathBuf,
    /// The data directory, made if absent.
    pub data_dir: PathBuf,
    /// Port of the HTTP interface.
    pub http_port: u16,
    /// Port of the native protocol.
    pub tcp_port: u16,
}

/// Runs ClickHouse in this process. Returns only if it could not start, or was told to end.
#[allow(unsafe_code)]
pub fn run(options: &HostOptions) -> Result<()> {
    /// `chdb_query_cmdline` of chdb's C interface: a `main` that also returns the result of its last query.
    type QueryCmdline = unsafe extern "C" fn(argc: c_int, argv: *mut *mut c_char) -> *mut c_void;

    let arguments = command_line(options)?;
    let mut argv: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
    let argc = c_int::try_from(argv.len()).context("too many arguments")?;
    argv.push(std::ptr::null_mut());

    // SAFETY: the library is chdb, installed by us in a checked version; its initialisers need nothing of
    // the program that loads it, and this process does nothing else beside it.
    let library = unsafe { libloading::Library::new(&options.library) }
        .with_context(|| format!("cannot load {}", options.library.display()))?;
    // SAFETY: the signature is the one of chdb.h.
    let query_cmdline = unsafe { library.get::<QueryCmdline>("chdb_query_cmdline") }
        .context("chdb_query_cmdline is not in the library")?;
    // SAFETY: argv holds argc pointers to NUL-terminated strings and a closing null, as for `main`; the
    // strings live in `arguments` until after the call, and the function does not write to them.
    let result = unsafe { query_cmdline(argc, argv.as_mut_ptr()) };
    // What is returned is not freed: the process ends here. Nor is the library unloaded, whose threads may
    // still run.
    std::mem::forget(library);
    if result.is_null() {
        bail!("ClickHouse ended with an error");
    }
    Ok(())
}

fn command_line(options: &HostOptions) -> Result<Vec<CString>> {
    let path =
        |p: &Path| p.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", p.display()));
    [
        "clickhouse".to_owned(),
        format!("--path={}", path(&options.data_dir)?),
        "--listen_host=127.0.0.1".to_owned(),
        format!("--http_port={}", options.http_port),
        format!("--tcp_port={}", options.tcp_port),
        format!("--query={SERVE_SQL}"),
    ]
    .into_iter()
    .map(|argument| CString::new(argument).context("an argument contains a NUL"))
    .collect()
}
