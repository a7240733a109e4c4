//! Text as Go writes it, where clients see it: quoted strings, lists of them, several errors in one line.

/// A string in double quotes, as `%q` writes it.
pub fn quote(text: &str) -> String {
    format!("{text:?}")
}

/// A list of strings, as `%q` writes it: `["a" "b"]`.
pub fn list<S: AsRef<str>>(items: &[S]) -> String {
    let quoted: Vec<String> = items.iter().map(|i| quote(i.as_ref())).collect();
    format!("[{}]", quoted.join(" "))
}

/// Several errors in one line, as Go's aggregates write them: each once.
pub fn aggregate<S: AsRef<str>>(errors: &[S]) -> String {
    let mut seen: Vec<&str> = Vec::with_capacity(errors.len());
    for error in errors {
        if !seen.contains(&error.as_ref()) {
            seen.push(error.as_ref());
        }
    }
    match seen.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_has_it() {
        assert_eq!(list(&["a", "b\"c"]), r#"["a" "b\"c"]"#);
        assert_eq!(list::<&str>(&[]), "[]");
        assert_eq!(aggregate(&["a"]), "a");
        assert_eq!(aggregate(&["a", "b", "a"]), "[a, b]");
    }
}
