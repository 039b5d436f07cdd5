//! `docs/configuration.md` and `panopticon.example.toml` say what the configuration is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use panopticon_core::config::Config;
use serde_json::Value;

fn at_the_root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn text_of(name: &str) -> String {
    std::fs::read_to_string(at_the_root(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every setting with its value, by its dotted name; lists and empty tables are values.
fn settings(config: &Config) -> BTreeMap<String, Value> {
    fn walk(name: &str, value: Value, into: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (field, value) in fields {
                    walk(&if name.is_empty() { field } else { format!("{name}.{field}") }, value, into);
                }
            }
            value => {
                into.insert(name.to_owned(), value);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk("", serde_json::to_value(config).expect("a configuration can be serialized"), &mut all);
    // Secrets are serialized as such; this one has a default that is none.
    all.insert("redis.url".to_owned(), config.redis.url.expose().into());
    all
}

/// How the page writes a default.
fn as_documented(value: &Value) -> String {
    match value {
        Value::Null => "unset".to_owned(),
        Value::String(text) if text.is_empty() => "empty".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(items) if items.is_empty() => "empty".to_owned(),
        Value::Object(fields) if fields.is_empty() => "empty".to_owned(),
        other => format!("`{other}`"),
    }
}

/// The rows of the page's tables of settings, as their cells: key, unit, default, meaning, environment.
fn documented(page: &str) -> BTreeMap<String, Vec<String>> {
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<String> = line
            .strip_prefix('|')?
            .strip_suffix('|')?
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect();
        let key = cells[0].strip_prefix('`')?.strip_suffix('`')?.to_owned();
        (cells.len() == 5).then_some((key, cells))
    });
    rows.collect()
}

#[test]
fn every_setting_is_documented_with_its_unit_default_meaning_and_variable() {
    let rows = documented(&text_of("docs/configuration.md"));
    for (key, value) in settings(&Config::default()) {
        let cells = rows.get(&key).unwrap_or_else(|| panic!("docs/configuration.md lacks `{key}`"));
        assert!(!cells[1].is_empty() && !cells[3].is_empty(), "`{key}` has no unit or no meaning");
        assert_eq!(cells[2], as_documented(&value), "the default of `{key}`");
        let variable = format!("PANOPTICON_{}", key.to_uppercase().replace('.', "__"));
        assert_eq!(cells[4], format!("`{variable}`"), "the variable of `{key}`");
    }
}

#[test]
fn no_setting_is_documented_that_does_not_exist() {
    let settings = settings(&Config::default());
    for key in documented(&text_of("docs/configuration.md")).keys() {
        assert!(settings.contains_key(key), "docs/configuration.md documents `{key}`, which is no setting");
    }
}

#[test]
fn the_example_changes_nothing_as_it_is() {
    let example = Config::load(Some(&at_the_root("panopticon.example.toml"))).unwrap();
    assert_eq!(settings(&example), settings(&Config::default()));
}

#[test]
fn the_example_shows_valid_settings_with_their_defaults_unless_it_says_otherwise() {
    let example = text_of("panopticon.example.toml");
    // A setting that is commented out has no blank after its `#`; text has.
    let is_setting =
        |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| c == '[' || c.is_lowercase());
    let lines = |wanted: fn(&str) -> bool| -> Config {
        let text: Vec<&str> =
            example.lines().filter(|line| is_setting(line) && wanted(line)).map(|line| &line[1..]).collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("panopticon.toml");
        std::fs::write(&file, text.join("\n")).unwrap();
        Config::load(Some(&file)).unwrap()
    };
    let all = lines(|_| true);
    assert_eq!(all.apps.len(), 1, "the example shows an app");
    let defaults = lines(|line| !line.ends_with("# for example") && line != "#[[apps]]");
    assert_eq!(settings(&defaults), settings(&Config::default()));
}
