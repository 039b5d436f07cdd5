//! Queries put together from conditions that are wanted or not. Values are always parameters, never text.

use clickhouse::query::Query;
use panopticon_core::time::Time;
use serde::Serialize;

use super::server::Server;

/// A value on its way into a query.
enum Value {
    Text(String),
    Number(i64),
}

/// Conditions and the parameters that they name.
#[derive(Default)]
pub(super) struct Filter {
    conditions: Vec<&'static str>,
    values: Vec<(&'static str, Value)>,
}

impl Filter {
    /// Adds a condition that names `{name:String}`.
    pub(super) fn text(&mut self, condition: &'static str, name: &'static str, value: impl ToString) {
        self.conditions.push(condition);
        self.values.push((name, Value::Text(value.to_string())));
    }

    /// Adds a condition that names `{name:Int64}`, in microseconds.
    pub(super) fn time(&mut self, condition: &'static str, name: &'static str, value: Time) {
        self.conditions.push(condition);
        self.values.push((name, Value::Number(value.micros())));
    }

    /// Adds a value for a condition that is there.
    pub(super) fn value(&mut self, name: &'static str, value: impl ToString) {
        self.values.push((name, Value::Text(value.to_string())));
    }

    /// The conditions as they stand behind WHERE.
    pub(super) fn sql(&self) -> String {
        match self.conditions.is_empty() {
            true => "true".to_owned(),
            false => self.conditions.join(" AND "),
        }
    }

    /// Binds the values to a statement that holds the conditions.
    pub(super) fn bind(&self, query: Query) -> Query {
        self.values.iter().fold(query, |query, (name, value)| match value {
            Value::Text(text) => query.param(name, text),
            Value::Number(number) => query.param(name, number),
        })
    }

    /// A statement with these conditions and the parameter `limit`.
    pub(super) fn query(&self, server: &Server, sql: &str, limit: impl Serialize) -> Query {
        self.bind(server.query(sql)).param("limit", limit)
    }
}
