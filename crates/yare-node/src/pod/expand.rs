//! `$(NAME)` in environment values, commands, arguments and sub-paths.
//!
//! `$$` stands for `$`; a name that is not known stays as it was written.

/// Expands `input` with `lookup`.
pub(crate) fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|body| body.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Like [`expand`], but an unknown name is an error (`subPathExpr`).
pub(crate) fn expand_strict(input: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let out = expand(input, |name| {
        let found = lookup(name);
        if found.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        found
    });
    match missing.into_inner().first() {
        Some(name) => Err(format!("missing value for {name:?}")),
        None => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands() {
        let vars = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            "B_C.D" => Some("x$(A)".to_owned()),
            _ => None,
        };
        for (input, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("a$(A)b$(A)c", "a1b1c"),
            ("$(EMPTY)", ""),
            ("$(NOPE)", "$(NOPE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$(B_C.D)", "x$(A)"),
            ("100$", "100$"),
        ] {
            assert_eq!(expand(input, vars), want, "{input}");
        }
        assert!(expand_strict("$(NOPE)", vars).is_err());
        assert_eq!(expand_strict("x/$(A)", vars).unwrap(), "x/1");
    }
}
