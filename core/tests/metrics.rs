//! `docs/operations.md` says what metrics there are; the dashboard and the alarms show no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

const PREFIX: &str = "panopticon_";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text_of(name: impl AsRef<Path>) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of metrics that occur in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices(PREFIX).map(|(at, _)| {
        let name = &text[at..];
        let end = name.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
        &name[..end.unwrap_or(name.len())]
    })
}

/// What the page's tables name, and of which kind they say it is.
fn documented() -> BTreeMap<String, &'static str> {
    let page = text_of("docs/operations.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Metrics")).expect("a section");
    let mut all = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `panopticon_")) {
        let cell = row.split('|').nth(1).expect("a first cell");
        let kind =
            ["gauge", "histogram", "summary"].into_iter().find(|kind| cell.contains(&format!("({kind})")));
        all.extend(names(cell).map(|name| (name.to_owned(), kind.unwrap_or("counter"))));
    }
    all
}

/// What the code measures, by the macro's name.
fn measured() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut all: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root())
        .expect("the root")
        .chain(std::fs::read_dir(root().join("engines")).expect("the engines"))
        .filter_map(|entry| Some(entry.ok()?.path().join("src")))
        .filter(|path| path.is_dir())
        .collect();
    assert!(folders.len() > 10, "the crates are not where they were: {folders:?}");
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = text_of(&path);
                for kind in ["counter", "gauge", "histogram"] {
                    for (at, call) in code.match_indices(&format!("metrics::{kind}!(")) {
                        let name = code[at + call.len()..]
                            .trim_start()
                            .strip_prefix('"')
                            .and_then(|rest| Some(&rest[..rest.find('"')?]));
                        let name =
                            name.unwrap_or_else(|| panic!("{}: a metric without a name", path.display()));
                        all.entry(name.to_owned()).or_default().insert(kind);
                    }
                }
            }
        }
    }
    all
}

#[test]
fn every_documented_metric_is_measured_and_every_measured_one_documented_with_its_kind() {
    let (documented, measured) = (documented(), measured());
    for (name, kind) in &documented {
        let kinds = measured.get(name).unwrap_or_else(|| panic!("`{name}` is documented and never measured"));
        // Without buckets of its own, the exporter shows a histogram as a summary.
        let macro_of_kind = if *kind == "summary" { "histogram" } else { *kind };
        assert_eq!(kinds.iter().copied().collect::<Vec<_>>(), [macro_of_kind], "the kind of `{name}`");
    }
    for name in measured.keys() {
        assert!(documented.contains_key(name), "docs/operations.md lacks `{name}`");
    }
}

#[test]
fn the_dashboard_and_the_alarms_ask_for_nothing_that_is_not_documented() {
    let documented = documented();
    for file in ["infra/grafana/panopticon.json", "infra/prometheus/alerts.yml"] {
        let text = text_of(file);
        assert!(names(&text).count() > 10, "{file} asks for hardly anything");
        for asked in names(&text) {
            let series = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| {
                let name = asked.strip_suffix(end)?;
                matches!(documented.get(name), Some(&("histogram" | "summary"))).then_some(name)
            });
            match series {
                Some(_) => {}
                None => assert!(
                    matches!(documented.get(asked), Some(&("counter" | "gauge"))),
                    "{file} asks for `{asked}`, which docs/operations.md does not have in this form"
                ),
            }
        }
    }
}
