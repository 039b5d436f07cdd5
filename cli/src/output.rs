//! What commands print: lines, tables and JSON, none of which can play with the terminal.
//!
//! Times are shown in UTC, RFC 3339 to the second; JSON carries them in full.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ColumnConstraint, ContentArrangement, presets};
use panopticon_core::time::Time;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::failure::{Failure, Outcome};

/// The widest table; a wider terminal makes lines hard to follow.
const MAX_WIDTH: u16 = 160;
/// The narrowest table; below it every word would be broken.
const MIN_WIDTH: u16 = 60;
/// A column that is narrower breaks words all the time.
const READABLE_WIDTH: u16 = 12;

/// How the user wants to read the answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// JSON instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// One line on stdout. The caller has made what came from outside plain.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Outcome {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.as_ref())?;
        out.flush()?;
        Ok(())
    }

    /// An aside on stderr, which must not disturb what is read by programs.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        // Where stderr is closed there is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "logi: {}", text.as_ref());
    }

    /// A value as one line of JSON.
    pub(crate) fn json<T: Serialize + ?Sized>(self, value: &T) -> Outcome {
        let text = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
        self.line(plain_json(&text))
    }

    /// A list as a JSON array, a row a line.
    pub(crate) fn json_list(self, rows: &[Box<RawValue>]) -> Outcome {
        if rows.is_empty() {
            return self.line("[]");
        }
        for (i, row) in rows.iter().enumerate() {
            let (open, close) = (if i == 0 { "[" } else { " " }, if i + 1 == rows.len() { "]" } else { "," });
            self.line(format!("{open}{}{close}", plain_json(row.get())))?;
        }
        Ok(())
    }

    /// A table with a heading; `nothing` where it has no rows.
    pub(crate) fn table<const N: usize>(
        self,
        heading: [&str; N],
        rows: Vec<[String; N]>,
        nothing: &str,
    ) -> Outcome {
        if rows.is_empty() {
            return self.line(nothing);
        }
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_header(heading);
        for row in rows {
            table.add_row(row.map(|cell| plain(&cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        if io::stdout().is_terminal() {
            let width = terminal_size::terminal_size().map_or(80, |(width, _)| width.0);
            fit(&mut table, &heading, width.clamp(MIN_WIDTH, MAX_WIDTH));
        } else {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }
}

/// Makes a table as wide as the terminal. Times are not broken; ids only where the rest would have no room.
fn fit(table: &mut comfy_table::Table, heading: &[&str], width: u16) {
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width);
    let widths = table.column_max_content_widths();
    let (is_time, is_id) =
        (|name: &str| name.ends_with(" AT") || name == "AT", |name: &str| name.ends_with("ID"));
    let needed: u16 = heading
        .iter()
        .zip(&widths)
        .map(|(name, &full)| 1 + if is_time(name) || is_id(name) { full } else { full.min(READABLE_WIDTH) })
        .sum();
    for (i, name) in heading.iter().enumerate() {
        if (is_time(name) || (is_id(name) && needed <= width))
            && let Some(column) = table.column_mut(i)
        {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

/// `text` with everything that a terminal could take for a command, or that could make it look like
/// something else, written out as `\u{…}`.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if plays_tricks(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// The same for JSON text, in its own notation; such characters occur in its strings only.
pub(crate) fn plain_json(text: &str) -> String {
    if !text.contains(plays_tricks) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Between tokens; inside a string JSON does not allow them.
            '\n' | '\r' | '\t' => shown.push(' '),
            _ if plays_tricks(c) => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => shown.push(c),
        }
    }
    shown
}

/// Controls (C0, DEL, C1), line separators, and what reorders or hides text.
fn plays_tricks(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A time as people read it.
pub fn shown(time: Time) -> String {
    format!("{:.0}", time.to_jiff())
}

/// The same, `-` where there is none.
pub(crate) fn shown_or_dash(time: Option<Time>) -> String {
    time.map_or_else(|| "-".to_owned(), shown)
}

/// `text`, `-` where it is empty.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `1 trace`, `2 traces`.
pub(crate) fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_can_play_with_the_terminal() {
        let shown = plain("rm\x1b[2J\u{9b}31m\u{202e}txt\r\nok");
        assert_eq!(shown, r"rm\u{1b}[2J\u{9b}31m\u{202e}txt\u{d}\u{a}ok");
    }

    #[test]
    fn json_stays_the_same_value_when_it_is_made_plain() {
        let raw = "{\"tool\":\"a\u{9b}b\u{202e}\u{7f}\",\n\"n\":1}";
        let safe = plain_json(raw);
        assert!(!safe.contains(plays_tricks), "{safe}");
        let (a, b): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(raw).unwrap(), serde_json::from_str(&safe).unwrap());
        assert_eq!(a, b);
    }

    #[test]
    fn times_are_utc_to_the_second() {
        assert_eq!(shown("2026-06-30T12:00:00.999+02:00".parse().unwrap()), "2026-06-30T10:00:00Z");
    }
}
