//! A text with headings, tables and lists, as plain text or as Markdown.

use std::fmt::Write;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Title(String),
    Heading(String),
    Subheading(String),
    Text(String),
    List(Vec<String>),
    Table {
        head: Vec<&'static str>,
        rows: Vec<Vec<String>>,
    },
    /// Lines that keep their form.
    Lines(Vec<String>),
}

pub fn plain(parts: &[Part]) -> String {
    let mut out = String::new();
    for part in parts {
        if !out.is_empty() {
            out.push('\n');
        }
        match part {
            Part::Title(text) => underlined(&mut out, text, '='),
            Part::Heading(text) => underlined(&mut out, text, '-'),
            Part::Subheading(text) | Part::Text(text) => {
                let _ = writeln!(out, "{text}");
            }
            Part::List(items) => items.iter().for_each(|item| {
                let _ = writeln!(out, "* {item}");
            }),
            Part::Table { head, rows } => plain_table(&mut out, head, rows),
            Part::Lines(lines) => lines.iter().for_each(|line| {
                let _ = writeln!(out, "    {line}");
            }),
        }
    }
    out
}

fn underlined(out: &mut String, text: &str, line: char) {
    let _ = writeln!(out, "{text}");
    out.extend(std::iter::repeat_n(line, text.chars().count()));
    out.push('\n');
}

fn plain_table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        longest.max(head[column].chars().count())
    };
    // Numbers stand under each other, and their head above them.
    let is_of_numbers = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column));
        !rows.is_empty() && cells.all(|cell| is_number(cell) || cell == "not known")
    };
    let columns: Vec<(usize, bool)> = (0..head.len())
        .map(|column| (width(column), is_of_numbers(column)))
        .collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, (width, right)) in cells.zip(&columns) {
            let _ = if *right {
                write!(text, "{cell:>width$}  ")
            } else {
                write!(text, "{cell:<width$}  ")
            };
        }
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'))
}

pub fn markdown(parts: &[Part]) -> String {
    let mut out = String::new();
    for part in parts {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = match part {
            Part::Title(text) => writeln!(out, "# {}", escaped(text)),
            Part::Heading(text) => writeln!(out, "## {}", escaped(text)),
            Part::Subheading(text) => writeln!(out, "### {}", escaped(text)),
            Part::Text(text) => writeln!(out, "{}", escaped(text)),
            Part::List(items) => {
                for item in items {
                    let _ = writeln!(out, "- {}", escaped(item));
                }
                Ok(())
            }
            Part::Table { head, rows } => {
                let _ = writeln!(out, "| {} |", head.join(" | "));
                let _ = writeln!(out, "|{}", " --- |".repeat(head.len()));
                for row in rows {
                    let cells: Vec<String> = row.iter().map(|cell| escaped(cell)).collect();
                    let _ = writeln!(out, "| {} |", cells.join(" | "));
                }
                Ok(())
            }
            Part::Lines(lines) => writeln!(out, "{}", fenced(lines)),
        };
    }
    out
}

/// A fence longer than any in the lines.
fn fenced(lines: &[String]) -> String {
    let longest = lines
        .iter()
        .flat_map(|line| line.split(|c| c != '`'))
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}", lines.join("\n"))
}

/// Names come from watched programs; none of them is to be a link, a tag or a new cell.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\n' | '\r' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Part> {
        vec![
            Part::Title("Leaks of a*b".to_owned()),
            Part::Text("One <found>.".to_owned()),
            Part::Heading("Where".to_owned()),
            Part::Table {
                head: vec!["place", "bytes"],
                rows: vec![
                    vec!["a|b".to_owned(), "12 B".to_owned()],
                    vec!["long name".to_owned(), "1200 B".to_owned()],
                ],
            },
            Part::List(vec!["one".to_owned(), "two".to_owned()]),
            Part::Lines(vec!["grow ```` (a.c:1)".to_owned(), "main".to_owned()]),
        ]
    }

    #[test]
    fn as_plain_text() {
        insta::assert_snapshot!(plain(&sample()));
    }

    #[test]
    fn as_markdown() {
        insta::assert_snapshot!(markdown(&sample()));
    }
}
