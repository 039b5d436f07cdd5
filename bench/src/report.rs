//! The figures of a run.

use serde::Serialize;

/// One figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Traces (or requests) a second.
    pub per_second: f64,
    /// CPU seconds of the measured processes per million traces.
    pub cpu_s_per_million: f64,
    /// Largest resident memory, in MiB.
    pub peak_mib: f64,
    /// The same figure of the bare engine, where there is one.
    pub bare_per_second: Option<f64>,
    /// Anything worth saying.
    pub note: String,
}

/// All figures.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order in which they were measured.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure and prints it.
    pub fn add(&mut self, figure: Figure) {
        eprintln!("{}: {:.0}/s {}", figure.what, figure.per_second, figure.note);
        self.figures.push(figure);
    }

    /// The figures as a table.
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["what", "per second", "bare", "ratio", "CPU s / million", "peak MiB", "note"]);
        for figure in &self.figures {
            let bare = figure.bare_per_second;
            table.add_row([
                figure.what.clone(),
                format!("{:.0}", figure.per_second),
                bare.map_or(String::new(), |bare| format!("{bare:.0}")),
                bare.map_or(String::new(), |bare| format!("{:.2}", figure.per_second / bare)),
                format!("{:.2}", figure.cpu_s_per_million),
                format!("{:.0}", figure.peak_mib),
                figure.note.clone(),
            ]);
        }
        table.to_string()
    }
}
