//! The figures of a run.

use serde::Serialize;

use crate::samples::Spread;

/// What a figure should come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Reach {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The bare engine that did the same in the same run; empty where there is none.
    pub against: String,
    /// In which unit, such as `traces/s`.
    pub unit: &'static str,
    /// What the product came to.
    pub ours: Spread,
    /// What the bare engine came to.
    pub bare: Option<Spread>,
    /// The product's figure by the bare engine's, pair by pair.
    pub ratio: Option<Spread>,
    /// What the ratio should come to, or the figure where there is no bare engine.
    pub reach: Option<Reach>,
    /// CPU seconds a million traces, by process, the median of each.
    pub cpu_s_per_million: Vec<(String, f64)>,
    /// Largest resident memory of the measured process, in MiB.
    pub peak_mib: Option<f64>,
    /// Anything worth saying.
    pub note: String,
}

impl Row {
    /// A figure that stands by itself.
    pub fn alone(what: impl Into<String>, unit: &'static str, ours: impl IntoIterator<Item = f64>) -> Self {
        Self {
            what: what.into(),
            against: String::new(),
            unit,
            ours: Spread::of(ours),
            bare: None,
            ratio: None,
            reach: None,
            cpu_s_per_million: Vec::new(),
            peak_mib: None,
            note: String::new(),
        }
    }

    /// Pairs of the product's figure and the bare engine's.
    pub fn pairs(
        what: impl Into<String>,
        against: impl Into<String>,
        unit: &'static str,
        pairs: &[(f64, f64)],
    ) -> Self {
        Self {
            against: against.into(),
            bare: Some(Spread::of(pairs.iter().map(|(_, bare)| *bare))),
            ratio: Some(Spread::of(pairs.iter().map(|(ours, bare)| ours / bare))),
            ..Self::alone(what, unit, pairs.iter().map(|(ours, _)| *ours))
        }
    }

    /// With what it should come to.
    pub fn reach(self, reach: Reach) -> Self {
        Self { reach: Some(reach), ..self }
    }

    /// With the CPU seconds a million traces of processes.
    pub fn cpu(self, cpu_s_per_million: Vec<(String, f64)>) -> Self {
        Self { cpu_s_per_million, ..self }
    }

    /// With the largest memory of the measured process.
    pub fn peak(self, mib: f64) -> Self {
        Self { peak_mib: Some(mib), ..self }
    }

    /// With a remark.
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }

    /// Whether the figure is what it should be; none if nothing is asked of it.
    pub fn holds(&self) -> Option<bool> {
        let judged = self.ratio.unwrap_or(self.ours).median;
        self.reach.map(|reach| reach.is_met_by(judged))
    }
}

/// All figures, in the order in which they were measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Judged>,
}

#[derive(Debug, Serialize)]
struct Judged {
    holds: Option<bool>,
    #[serde(flatten)]
    row: Row,
}

impl Report {
    /// Adds a row and prints it.
    pub fn add(&mut self, row: Row) {
        let holds = row.holds();
        eprintln!("  {}: {} {} {}", row.what, figure(&row.ours), row.unit, row.note);
        self.rows.push(Judged { holds, row });
    }

    /// The figures as a table.
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "what",
            "against",
            "unit",
            "ours",
            "bare",
            "ratio",
            "reach",
            "holds",
            "CPU s / million",
            "peak MiB",
            "note",
        ]);
        for Judged { holds, row } in &self.rows {
            let optional = |spread: &Option<Spread>| spread.as_ref().map_or(String::new(), figure);
            let cpu: Vec<String> =
                row.cpu_s_per_million.iter().map(|(name, cpu)| format!("{name} {cpu:.2}")).collect();
            table.add_row([
                row.what.clone(),
                row.against.clone(),
                row.unit.to_owned(),
                figure(&row.ours),
                optional(&row.bare),
                optional(&row.ratio),
                row.reach.map_or(String::new(), |reach| match reach {
                    Reach::AtMost(limit) => format!("≤ {limit}"),
                    Reach::AtLeast(limit) => format!("≥ {limit}"),
                }),
                holds.map_or("", |holds| if holds { "yes" } else { "NO" }).to_owned(),
                cpu.join(", "),
                row.peak_mib.map_or(String::new(), |mib| format!("{mib:.0}")),
                row.note.clone(),
            ]);
        }
        table.to_string()
    }
}

/// The median, and the spread where there is one.
fn figure(spread: &Spread) -> String {
    let digits = match spread.median.abs() {
        large if large >= 100.0 => 0,
        small if small < 10.0 => 2,
        _ => 1,
    };
    let number = |value: f64| format!("{value:.digits$}");
    if spread.samples < 2 {
        return number(spread.median);
    }
    format!("{} ({}–{})", number(spread.median), number(spread.least), number(spread.most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_judged_where_there_is_a_bare_engine() {
        let pairs = [(60.0, 100.0), (70.0, 100.0), (50.0, 100.0)];
        let row = Row::pairs("a", "b", "traces/s", &pairs);
        assert_eq!(row.clone().reach(Reach::AtLeast(0.6)).holds(), Some(true));
        assert_eq!(row.clone().reach(Reach::AtLeast(0.61)).holds(), Some(false));
        assert_eq!(row.holds(), None);
        let alone = Row::alone("a", "ms", [150.0]);
        assert_eq!(alone.clone().reach(Reach::AtMost(150.0)).holds(), Some(true));
        assert_eq!(alone.reach(Reach::AtMost(149.0)).holds(), Some(false));
    }

    #[test]
    fn a_figure_that_is_missing_does_not_hold() {
        let none = Row::alone("a", "ms", []).reach(Reach::AtMost(150.0));
        assert_eq!(none.holds(), Some(false));
    }
}
