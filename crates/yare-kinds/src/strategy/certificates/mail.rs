//! E-mail addresses as certificates may have them: what Go's `net/mail` takes for one address (RFC 5322, 3.4),
//! without comments and obsolete forms.

/// Whether `text` is one address, bare or behind a name in angle brackets.
pub fn is_address(text: &str) -> bool {
    let text = text.trim_matches([' ', '\t']);
    match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
        Some((name, address)) => is_phrase(name) && is_bare(address),
        None => is_bare(text),
    }
}

fn is_atom_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii()
}

/// Atoms with single dots between them.
fn is_dot_atom(text: &str) -> bool {
    text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom_char))
}

/// A string in quotes, where a backslash stands before quotes and backslashes.
fn is_quoted(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) else { return false };
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        let is_good = match c {
            '"' => false,
            '\\' => chars.next().is_some_and(|c| !c.is_control()),
            c => c == '\t' || !c.is_control(),
        };
        if !is_good {
            return false;
        }
    }
    true
}

fn is_phrase(text: &str) -> bool {
    let text = text.trim();
    text.is_empty()
        || is_quoted(text)
        || text.split([' ', '\t']).all(|word| word.is_empty() || is_dot_atom(word))
}

fn is_bare(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let is_literal = || {
        let inner = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']'));
        inner.is_some_and(|ip| {
            let ip = ip.strip_prefix("IPv6:").unwrap_or(ip);
            ip.parse::<std::net::IpAddr>().is_ok()
        })
    };
    (is_dot_atom(local) || is_quoted(local) && local.len() > 2) && (is_dot_atom(domain) || is_literal())
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn addresses() {
        for good in
            ["a@b", "a.b+c@example.com", "\"a b\"@c", "Jane Doe <jane@example.com>", "a@[10.0.0.1]", "ä@b"]
        {
            assert!(is_address(good), "{good}");
        }
        for bad in
            ["", "a", "@b", "a@", "a b@c", ".a@b", "a..b@c", "a@b.", "\"a@b", "a@[x]", "<a@b", "a@b, c@d"]
        {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
