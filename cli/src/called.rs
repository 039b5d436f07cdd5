//! How the user calls this command line, so that the commands that are printed can be pasted.

use std::{fmt::Display, path::Path};

use crate::failure::shell_word;

/// The command `panopticon …` of this command line, as it is to be typed here: under `panopticon`, as a part of
/// which it may run, or by itself, and by the path that was typed.
pub(crate) fn command(words: impl Display) -> String {
    let mut typed = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let (program, first) = (typed.next().unwrap_or_default(), typed.next());
    format!("{} panopticon {words}", name(&program, first.as_deref()))
}

fn name(program: &str, first: Option<&str>) -> String {
    let is_logi = Path::new(program).file_stem().is_some_and(|name| name == "logi");
    match first {
        _ if is_logi => shell_word(program),
        Some("logi" | "replay") => format!("{} logi", shell_word(program)),
        _ => "logi".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_named_as_it_was_called() {
        assert_eq!(name("logi", Some("panopticon")), "logi");
        assert_eq!(name("./target/debug/logi", Some("panopticon")), "./target/debug/logi");
        assert_eq!(name("panopticon", Some("logi")), "panopticon logi");
        assert_eq!(name("/opt/my tools/panopticon", Some("replay")), "'/opt/my tools/panopticon' logi");
        assert_eq!(name("", None), "logi");
    }
}
