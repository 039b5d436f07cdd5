//! Why a command did not do what was asked: one clear line for people.

use std::{fmt, io};

use crate::{called::command, output::plain};

/// Ends a command with status 1 and one line on stderr.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failure {
    message: String,
    /// The stable error code, where a server answered one.
    pub(crate) code: String,
    hint: String,
    request_id: String,
    /// Nobody reads our output any more: nothing to say, and nothing failed.
    pub(crate) output_closed: bool,
}

/// What commands answer.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with nothing but a message.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// What a server answered.
    pub(crate) fn answered(error: panopticon_core::api::ErrorBody) -> Self {
        let message =
            if error.error_description.is_empty() { "refused".into() } else { error.error_description };
        Self { message, code: error.error, request_id: error.request_id, ..Self::default() }
    }

    /// The same with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The same, saying how to enable the app when it is the app that does not exist.
    pub(crate) fn about_app(self, client_id: &str) -> Self {
        if self.code == "not_found" && self.hint.is_empty() && self.message.contains("app") {
            let enable = command(format_args!("enable {}", shell_word(client_id)));
            return self.hint(format!("enable it with: {enable}"));
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(self.message.trim_end_matches(['.', '\n'])))?;
        if !self.code.is_empty() {
            write!(f, " ({})", plain(&self.code))?;
        }
        if !self.hint.is_empty() {
            write!(f, "; {}", plain(&self.hint))?;
        }
        if !self.request_id.is_empty() {
            write!(f, " [request {}]", plain(&self.request_id))?;
        }
        Ok(())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { output_closed: error.kind() == io::ErrorKind::BrokenPipe, ..Self::new(error.to_string()) }
    }
}

/// `text` as one word of a POSIX shell, for commands that people paste.
pub(crate) fn shell_word(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(harmless) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use panopticon_core::api::ErrorBody;

    use super::*;

    #[test]
    fn a_missing_app_is_one_line_with_code_way_out_and_request() {
        let failure = Failure::answered(ErrorBody {
            error: "not_found".into(),
            error_description: "app `x` does not exist.".into(),
            error_uri: String::new(),
            request_id: "0190".into(),
            field: None,
        })
        .about_app("x");
        assert_eq!(
            failure.to_string(),
            "app `x` does not exist (not_found); enable it with: logi panopticon enable x [request 0190]"
        );
    }

    #[test]
    fn a_word_survives_the_shell() {
        assert_eq!(shell_word("https://rp.example/c"), "https://rp.example/c");
        assert_eq!(shell_word("it's $HOME"), r"'it'\''s $HOME'");
    }
}
