//! From words to [`Cli`], or to one line that says what is wrong with them.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::args::Cli;
use super::resolve::UsageError;

impl Cli {
    /// Reads a command line, program name first.
    pub fn read<I, T>(arguments: I) -> Result<Self, ReadError>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        Self::try_parse_from(arguments).map_err(|error| ReadError::new(&error))
    }
}

/// Why there are no arguments to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Help or version were asked for: print this on stdout and end with success.
    Answer(String),
    Usage(UsageError),
}

impl ReadError {
    fn new(error: &clap::Error) -> Self {
        let text = error.render().to_string();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Answer(text),
            ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => {
                let message = stray_word(error).unwrap_or_else(|| first_sentence(&text));
                Self::Usage(UsageError::Syntax { message })
            }
            _ => Self::Usage(UsageError::Syntax {
                message: first_sentence(&text),
            }),
        }
    }
}

/// A word where none belongs: most likely a command, or what should follow an option.
fn stray_word(error: &clap::Error) -> Option<String> {
    let found = error
        .get(ContextKind::InvalidArg)
        .or_else(|| error.get(ContextKind::InvalidSubcommand))?;
    let ContextValue::String(word) = found else {
        return None;
    };
    let commands: Vec<String> = Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    if word.starts_with('-') {
        None
    } else if commands.contains(word) {
        Some(format!(
            "the command `{word}` must be the first word, before all options"
        ))
    } else if word.bytes().all(|byte| byte.is_ascii_digit()) {
        Some(format!(
            "`{word}` is not expected here; a process is given as --pid {word}"
        ))
    } else {
        let known = commands.join(", ");
        Some(format!(
            "`{word}` is not a command of this version ({known}) and follows no option"
        ))
    }
}

/// clap explains over several lines; what was wrong and its tips make one.
fn first_sentence(text: &str) -> String {
    let end = ["\nUsage:", "\nFor more information"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min();
    let text = &text[..end.unwrap_or(text.len())];
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let mut sentence = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix("tip: ") {
            // Nobody means a file name by a mistyped option here.
            Some(tip) if tip.starts_with("to pass ") => {}
            Some(tip) => sentence.extend(["; ", tip]),
            None if sentence.is_empty() => sentence.push_str(line),
            None => sentence.extend([" ", line]),
        }
    }
    sentence
}
