//! Statuses in the words that Go programs print them with, for they end in events that people search for.

use tonic::{Code, Status};

/// The names of the codes, by number.
const NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A code's name as Go has it: `DeadlineExceeded`.
pub fn code_name(code: Code) -> &'static str {
    NAMES.get(code as usize).copied().unwrap_or(NAMES[2])
}

/// A status as Go prints it: `rpc error: code = NotFound desc = no such volume`.
pub fn describe(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

/// What the system says, in the words of others: without Rust's number of the error.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_go() {
        for (code, name) in
            [(0, "OK"), (1, "Canceled"), (5, "NotFound"), (16, "Unauthenticated"), (99, "Unknown")]
        {
            assert_eq!(code_name(Code::from_i32(code)), name);
        }
        assert_eq!(
            describe(&Status::not_found("no key \"a\"")),
            "rpc error: code = NotFound desc = no key \"a\""
        );
    }
}
