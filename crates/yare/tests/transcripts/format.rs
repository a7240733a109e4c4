//! The format of a transcript: prose and steps, read and written back.

use std::fmt::Write as _;

/// What a line, or a few, of a transcript are.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Whatever is not indented.
    Prose(String),
    /// A command and what it prints.
    Step(Step),
}

/// A command and what it prints.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// For the shell; several lines where it has input.
    pub command: String,
    /// Played until it prints what it must.
    pub is_soon: bool,
    /// Only played with a kubectl that is at least this minor version of 1.
    pub since: Option<u32>,
    /// Every line of it ends with a newline.
    pub output: String,
}

/// Reads a transcript.
pub fn parse(text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for line in text.lines() {
        let Some(inside) = line.strip_prefix("  ") else {
            lines.push(Line::Prose(line.to_owned()));
            continue;
        };
        if let Some(command) = inside.strip_prefix("$ ") {
            let soon = command.strip_prefix("soon ");
            let command = soon.unwrap_or(command);
            let since = command.strip_prefix("since 1.").and_then(|rest| rest.split_once(' '));
            let (since, command) = match since.and_then(|(minor, rest)| Some((minor.parse().ok()?, rest))) {
                Some((minor, rest)) => (Some(minor), rest),
                None => (None, command),
            };
            let step =
                Step { command: command.to_owned(), is_soon: soon.is_some(), since, output: String::new() };
            lines.push(Line::Step(step));
            continue;
        }
        let Some(Line::Step(step)) = lines.last_mut() else {
            panic!("no command stands before {line:?}");
        };
        match inside.strip_prefix('>') {
            Some(more) if step.output.is_empty() => {
                step.command.push('\n');
                step.command.push_str(more.strip_prefix(' ').unwrap_or(more));
            }
            _ => {
                step.output.push_str(inside);
                step.output.push('\n');
            }
        }
    }
    lines
}

/// Writes it back.
pub fn render(lines: &[Line]) -> String {
    let mut out = String::new();
    for line in lines {
        match line {
            Line::Prose(text) => {
                let _ = writeln!(out, "{text}");
            }
            Line::Step(step) => {
                let mut command = step.command.lines();
                let soon = if step.is_soon { "soon " } else { "" };
                let since = step.since.map(|minor| format!("since 1.{minor} ")).unwrap_or_default();
                let _ = writeln!(out, "  $ {soon}{since}{}", command.next().unwrap_or_default());
                for more in command {
                    let _ = writeln!(out, "{}", format!("  > {more}").trim_end());
                }
                for printed in step.output.lines() {
                    let _ = writeln!(out, "  {printed}");
                }
            }
        }
    }
    out
}

#[test]
fn round_trip() {
    let text = "Prose.\n\n  $ soon a <<E\n  > b\n  >   c\n  > E\n  printed\n  \n  > too\n  [1]\n\n  $ since 1.36 d\n";
    let lines = parse(text);
    assert_eq!(render(&lines), text);
    let step = Step {
        command: "a <<E\nb\n  c\nE".to_owned(),
        is_soon: true,
        since: None,
        output: "printed\n\n> too\n[1]\n".to_owned(),
    };
    assert_eq!(lines[2], Line::Step(step));
    assert_eq!(lines[4], Line::Step(Step { command: "d".to_owned(), since: Some(36), ..Step::default() }));
}
