//! What goes wrong, in upstream's words.

use std::{fmt, sync::Arc};

use thiserror::Error;

/// One mistake in an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// What is wrong.
    pub message: String,
    /// From 1; 0 when the mistake has no place.
    pub line: u32,
    /// From 0, in code points.
    pub column: u32,
}

/// An expression that does not compile. Displays as upstream does: one block per mistake, with the source
/// line and a caret below the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// In the order of the source.
    pub issues: Vec<Issue>,
    source: Arc<str>,
    /// What is wrong with an expression that is well-formed: of it, upstream names no place.
    planning: Option<Box<str>>,
}

/// So many mistakes are told; the rest is counted.
const MAX_ISSUES: usize = 100;
/// A longer source line is not shown.
const MAX_SNIPPET_BYTES: usize = 16_384;

impl CompileError {
    pub(crate) fn new(mut issues: Vec<Issue>, source: &str) -> CompileError {
        issues.sort_by_key(|issue| (issue.line, issue.column));
        CompileError { issues, source: source.into(), planning: None }
    }

    /// Of an expression that is well-formed and never has a value.
    pub(crate) fn of_plan(message: impl Into<Box<str>>) -> CompileError {
        CompileError { issues: Vec::new(), source: "".into(), planning: Some(message.into()) }
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(message) = &self.planning {
            return f.write_str(message);
        }
        for (i, issue) in self.issues.iter().take(MAX_ISSUES).enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            // Without a place upstream prints -1 for the line and, one added, 0 for the column.
            match issue.line {
                0 => write!(f, "ERROR: <input>:-1:0: {}", issue.message)?,
                line => write!(f, "ERROR: <input>:{line}:{}: {}", issue.column + 1, issue.message)?,
            }
            let Some(line) =
                (issue.line as usize).checked_sub(1).and_then(|n| self.source.split('\n').nth(n))
            else {
                continue;
            };
            if line.len() > MAX_SNIPPET_BYTES {
                continue;
            }
            write!(f, "\n | {}\n | ", line.replace('\t', " "))?;
            let mut chars = line.chars();
            for c in chars.by_ref().take(issue.column as usize) {
                f.write_str(if c.len_utf8() > 1 { "\u{ff0e}" } else { "." })?;
            }
            f.write_str(if chars.next().is_some_and(|c| c.len_utf8() > 1) { "\u{ff3e}" } else { "^" })?;
        }
        if self.issues.len() > MAX_ISSUES {
            write!(f, "\n{} more errors were truncated", self.issues.len() - MAX_ISSUES)?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileError {}

/// An evaluation that gave no value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EvalError {
    /// The expression itself failed: `no such key: x`, `divide by zero`, …
    #[error("{0}")]
    Failed(Box<str>),
    /// The types of a call's values are those of no overload. Who calls says of which function:
    /// `library/mismatch.rs`.
    #[error("no such overload")]
    NoSuchOverload,
    /// This one evaluation went over [`crate::Budget::per_call`].
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
    /// All evaluations together went over [`crate::Budget::remaining`].
    #[error("validation failed due to running out of cost budget, no further validation rules will be run")]
    OutOfBudget,
    /// The caller's [`crate::Vars::cancel_when`] said so.
    #[error("operation interrupted")]
    Interrupted,
}

impl EvalError {
    pub(crate) fn failed(message: impl Into<Box<str>>) -> EvalError {
        EvalError::Failed(message.into())
    }

    /// For what upstream refuses without a word of function or types.
    pub(crate) fn no_such_overload() -> EvalError {
        EvalError::failed("no such overload")
    }

    /// Whether `&&`, `||` and macros may go on as if it had not happened.
    pub(crate) fn absorbable(&self) -> bool {
        matches!(self, EvalError::Failed(_) | EvalError::NoSuchOverload)
    }
}
