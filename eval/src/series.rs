//! The burst model on the Numenta Anomaly Benchmark, scored as NAB 1.1 does.
//!
//! Each labelled window earns by the earliest row in it that is at or above the threshold, more the earlier
//! it is; each such row outside costs, less shortly after a window. The first 15 % of a file, at most 750
//! rows, do not count. One threshold holds for all files that are scored together: the one that earns
//! most. 0 is to say nothing, 100 to find every window at its first row.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use panopticon_anomaly_detector::series::{THRESHOLD, score_csv};
use serde::Deserialize;

use crate::report::Line;

/// Measures.
pub fn measure(data: &Path) -> anyhow::Result<Vec<Line>> {
    let folder = data.join("nab");
    let profiles: BTreeMap<String, Profile> = read_json(&folder.join("profiles.json"))?;
    let files = files(&folder)?;
    let tweets: Vec<&Scored> = files.iter().filter(|file| file.name.starts_with("realTweets/")).collect();
    let all: Vec<&Scored> = files.iter().collect();
    let standard = profiles.get("standard").context("profiles.json: standard")?.cost;
    let on_tweets = best(&tweets, standard);
    let on_all = best(&all, standard);
    let mut lines = vec![
        line("series: NAB realTweets (five of ten files), standard", "81.8", 84.0, &on_tweets),
        Line {
            what: "series: NAB realTweets (five of ten files), false positives".to_owned(),
            best_known: String::new(),
            reach: "<= 10 (20 in ten files)".to_owned(),
            measured: on_tweets.false_positives.to_string(),
            reached: on_tweets.false_positives <= 10,
        },
        held_out_line(
            "series: NAB realTweets, threshold of each file from the others",
            84.0,
            &tweets,
            standard,
        ),
        line("series: NAB (33 files of four kinds), standard", "", 70.0, &on_all),
        held_out_line("series: NAB, threshold of each file from the others", 70.0, &all, standard),
        line("series: NAB, the same at the threshold of 0.5", "", 70.0, &at(&all, standard, THRESHOLD)),
    ];
    for (name, profile) in profiles.iter().filter(|(name, _)| *name != "standard") {
        lines.push(line(&format!("series: NAB, {name}"), "", 0.0, &best(&all, profile.cost)));
    }
    Ok(lines)
}

fn line(what: &str, best_known: &str, reach: f64, outcome: &Outcome) -> Line {
    Line {
        what: what.to_owned(),
        best_known: best_known.to_owned(),
        reach: if reach > 0.0 { format!(">= {reach}") } else { String::new() },
        measured: format!(
            "{:.1} ({} of {} windows, {} false positives, threshold {:.3})",
            outcome.score, outcome.found, outcome.windows, outcome.false_positives, outcome.threshold
        ),
        reached: outcome.score >= reach,
    }
}

/// Each file at the threshold that earns most on the others; the scores weigh as many windows as they stand for.
fn held_out_line(what: &str, reach: f64, files: &[&Scored], cost: Cost) -> Line {
    let (mut score, mut windows, mut false_positives) = (0.0, 0, 0);
    for file in files {
        let others: Vec<&Scored> = files.iter().copied().filter(|other| other.name != file.name).collect();
        let outcome = at(&[file], cost, best(&others, cost).threshold);
        if !file.windows.is_empty() {
            score += outcome.score * file.windows.len() as f64;
            windows += file.windows.len();
        }
        false_positives += outcome.false_positives;
    }
    let score = score / windows.max(1) as f64;
    Line {
        what: what.to_owned(),
        best_known: String::new(),
        reach: format!(">= {reach}"),
        measured: format!("{score:.1} ({false_positives} false positives)"),
        reached: score >= reach,
    }
}

/// What an error costs and a find earns.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Cost {
    #[serde(rename = "tpWeight")]
    found: f64,
    #[serde(rename = "fnWeight")]
    missed: f64,
    #[serde(rename = "fpWeight")]
    false_positive: f64,
}

#[derive(Debug, Deserialize)]
struct Profile {
    #[serde(rename = "CostMatrix")]
    cost: Cost,
}

/// A file with the model's scores and its labelled windows, as first and last row.
struct Scored {
    name: String,
    scores: Vec<f64>,
    windows: Vec<(usize, usize)>,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_reader(file).with_context(|| format!("{} has another form", path.display()))
}

fn files(folder: &Path) -> anyhow::Result<Vec<Scored>> {
    let windows: BTreeMap<String, Vec<(String, String)>> = read_json(&folder.join("windows.json"))?;
    let mut files = Vec::new();
    for (name, windows) in windows {
        let path: PathBuf = folder.join(format!("{name}.gz"));
        if path.exists() {
            files.push(scored(name, &path, &windows)?);
        }
    }
    Ok(files)
}

fn scored(name: String, path: &Path, windows: &[(String, String)]) -> anyhow::Result<Scored> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    flate2::read::GzDecoder::new(file).read_to_string(&mut text)?;
    let mut out = Vec::new();
    score_csv(text.as_bytes(), &mut out).with_context(|| name.clone())?;
    let (mut times, mut scores) = (Vec::new(), Vec::new());
    for record in csv::Reader::from_reader(&*out).deserialize() {
        let (time, _, score): (String, f64, f64) = record?;
        times.push(time);
        scores.push(score);
    }
    let row = |time: &str| {
        let time = time.split('.').next().unwrap_or_default();
        times.iter().position(|row| row == time).with_context(|| format!("{name}: no row at {time}"))
    };
    let windows =
        windows.iter().map(|(from, to)| Ok((row(from)?, row(to)?))).collect::<anyhow::Result<_>>()?;
    Ok(Scored { name, scores, windows })
}

/// A row that counts: its score, and what it earns in which window or costs outside.
struct Row {
    score: f64,
    worth: f64,
    window: Option<usize>,
}

/// 1 long before the end of a window, 0 at its end, −1 long after it.
fn sigmoid(position: f64) -> f64 {
    if position > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * position).exp()) - 1.0 }
}

/// The rows of a file that count; its windows are numbered from `first_window`.
fn rows(file: &Scored, cost: Cost, first_window: usize) -> Vec<Row> {
    let all = file.scores.len();
    let ignored = (all * 15 / 100).min(750);
    (ignored..all)
        .map(|row| {
            let within = file.windows.iter().position(|(first, last)| (*first..=*last).contains(&row));
            let worth = match within {
                Some(window) => {
                    let (first, last) = file.windows[window];
                    let width = (last - first + 1) as f64;
                    let position = -((last - row + 1) as f64) / width;
                    sigmoid(position) / sigmoid(-1.0) * cost.found
                }
                None => match file.windows.iter().rfind(|(_, last)| *last < row) {
                    Some((first, last)) => {
                        sigmoid((row - last) as f64 / (last - first) as f64) * cost.false_positive
                    }
                    None => -cost.false_positive,
                },
            };
            Row { score: file.scores[row], worth, window: within.map(|window| first_window + window) }
        })
        .collect()
}

/// What a threshold gives.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    score: f64,
    threshold: f64,
    windows: usize,
    found: usize,
    false_positives: usize,
}

/// The outcomes at all thresholds that make a difference, from high to low.
fn outcomes(files: &[&Scored], cost: Cost) -> Vec<Outcome> {
    let (mut all, mut windows) = (Vec::new(), 0);
    for file in files {
        all.extend(rows(file, cost, windows));
        windows += file.windows.len();
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut earned = vec![-cost.missed; windows];
    let (mut lost, mut false_positives) = (0.0, 0);
    let nothing = -cost.missed * windows as f64;
    let everything = cost.found * windows as f64;
    let mut outcomes = Vec::new();
    for (n, row) in all.iter().enumerate() {
        match row.window {
            Some(window) => earned[window] = row.worth.max(earned[window]),
            None => (lost, false_positives) = (lost + row.worth, false_positives + 1),
        }
        if all.get(n + 1).is_none_or(|next| next.score != row.score) {
            let total = earned.iter().sum::<f64>() + lost;
            outcomes.push(Outcome {
                score: 100.0 * (total - nothing) / (everything - nothing),
                threshold: row.score,
                windows,
                found: earned.iter().filter(|earned| **earned != -cost.missed).count(),
                false_positives,
            });
        }
    }
    outcomes
}

/// The outcome at the threshold that earns most.
fn best(files: &[&Scored], cost: Cost) -> Outcome {
    let nothing = Outcome { score: 0.0, threshold: 1.1, windows: 0, found: 0, false_positives: 0 };
    outcomes(files, cost)
        .into_iter()
        .fold(nothing, |best, one| if one.score > best.score { one } else { best })
}

/// The outcome at a given threshold.
fn at(files: &[&Scored], cost: Cost, threshold: f64) -> Outcome {
    let nothing = Outcome { score: 0.0, threshold, windows: 0, found: 0, false_positives: 0 };
    let reached =
        outcomes(files, cost).into_iter().take_while(|outcome| outcome.threshold >= threshold).last();
    Outcome { threshold, ..reached.unwrap_or(nothing) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDARD: Cost = Cost { found: 1.0, missed: 1.0, false_positive: 0.11 };

    fn file(high: &[usize]) -> Scored {
        let mut scores = vec![0.0; 1_000];
        for row in high {
            scores[*row] = 1.0;
        }
        Scored { name: String::new(), scores, windows: vec![(500, 599)] }
    }

    fn outcome(high: &[usize]) -> f64 {
        best(&[&file(high)], STANDARD).score
    }

    #[test]
    fn the_first_row_of_a_window_is_worth_everything_and_the_middle_most_of_it() {
        assert!((outcome(&[500]) - 100.0).abs() < 1e-9);
        // 2 / (1 + e^−2.5) − 1 of 2 / (1 + e^−5) − 1.
        assert!((outcome(&[550]) - 50.0 * (1.0 + 0.848_283_6 / 0.986_614_3)).abs() < 1e-4);
        assert!((outcome(&[500, 550, 599]) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_false_positive_costs_a_ninth_of_a_find_and_less_right_after_a_window() {
        assert!((outcome(&[400, 500]) - (100.0 - 5.5)).abs() < 1e-9);
        assert!(outcome(&[500, 603]) > outcome(&[400, 500]));
        assert!((outcome(&[100, 500]) - 100.0).abs() < 1e-9, "the first rows do not count");
        assert_eq!(outcome(&[400]), 0.0, "nothing said is better");
    }
}
