//! The table of what was measured.

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

/// One figure beside what is asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The part and what is measured.
    pub what: String,
    /// What the best known tool reaches on such data.
    pub best_known: String,
    /// What this project wants to reach.
    pub reach: String,
    /// What was measured.
    pub measured: String,
    /// Whether that reaches it.
    pub reached: bool,
}

/// The lines as a table.
pub fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(["what", "best known", "reach", "measured", ""]);
    for line in lines {
        let mark = if line.reached { "reached" } else { "not reached" };
        table.add_row([&line.what, &line.best_known, &line.reach, &line.measured, &mark.to_owned()]);
    }
    table
}
