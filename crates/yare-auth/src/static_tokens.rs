//! Bearer tokens from a file (`--token-auth-file`): lines of comma-separated values, as RFC 4180 quotes them:
//! token, user, UID and, optionally, groups (themselves separated by commas).

use std::sync::Arc;

use crate::{
    token::secrets_equal,
    user::{AUTHENTICATED, User},
};

/// Why a file holds no tokens.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenFileError {
    /// A line has too few columns.
    #[error("line {line}: must have at least 3 columns (token, user name, user uid), found {found}")]
    Columns {
        /// Which line, from 1.
        line: usize,
        /// Columns there are.
        found: usize,
    },
    /// Quotes are not in order.
    #[error("line {0}: a quote is out of place")]
    Quote(usize),
}

/// Known tokens and whose they are.
#[derive(Default)]
pub struct StaticTokens(Vec<(String, Arc<User>)>);

impl StaticTokens {
    /// No tokens.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, TokenFileError> {
        let mut tokens = Self::new();
        for (line, record) in records(text)? {
            let [token, name, uid, more @ ..] = record.as_slice() else {
                return Err(TokenFileError::Columns { line, found: record.len() });
            };
            if token.is_empty() {
                continue;
            }
            let groups = more.first().map_or_else(Vec::new, |g| g.split(',').map(str::to_owned).collect());
            let user = User { name: name.clone(), uid: uid.clone(), groups, ..User::default() };
            tokens.add(token, user);
        }
        Ok(tokens)
    }

    /// Adds a token; a later one replaces an earlier one.
    pub fn add(&mut self, token: &str, mut user: User) {
        if !user.in_group(AUTHENTICATED) {
            user.groups.push(AUTHENTICATED.into());
        }
        self.0.retain(|(known, _)| known != token);
        self.0.push((token.to_owned(), Arc::new(user)));
    }

    /// Whose the token is. All are compared, in constant time each.
    pub fn find(&self, token: &str) -> Option<&Arc<User>> {
        let mut found = None;
        for (known, user) in &self.0 {
            if secrets_equal(known.as_bytes(), token.as_bytes()) {
                found = Some(user);
            }
        }
        found
    }
}

/// The records of a CSV text and the line that each starts on.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, TokenFileError> {
    let mut out = Vec::new();
    let mut record: Vec<String> = Vec::new();
    let mut field = String::new();
    let (mut quoted, mut was_quoted) = (false, false);
    let (mut line, mut start) = (1, 1);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            '"' => return Err(TokenFileError::Quote(line)),
            ',' if !quoted => {
                record.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                line += 1;
                if !record.is_empty() || !field.is_empty() || was_quoted {
                    record.push(std::mem::take(&mut field));
                    out.push((start, std::mem::take(&mut record)));
                }
                (start, was_quoted) = (line, false);
            }
            _ if was_quoted && !quoted => return Err(TokenFileError::Quote(line)),
            _ => {
                line += usize::from(c == '\n');
                field.push(c);
            }
        }
    }
    if quoted {
        return Err(TokenFileError::Quote(line));
    }
    if !record.is_empty() || !field.is_empty() || was_quoted {
        record.push(field);
        out.push((start, record));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let text = "t1,alice,u1,\"dev,ops\"\r\n\n,nobody,x\nt2,\"bob \"\"b\"\"\",u2\nt1,carol,u3";
        let tokens = StaticTokens::parse(text).unwrap();
        let carol = tokens.find("t1").unwrap();
        assert_eq!((carol.name.as_str(), carol.uid.as_str()), ("carol", "u3"));
        assert_eq!(tokens.find("t2").unwrap().name, "bob \"b\"");
        assert!(tokens.find("").is_none() && tokens.find("t").is_none());
        let one = StaticTokens::parse("t1,alice,u1,\"dev,ops\"").unwrap();
        assert_eq!(one.find("t1").unwrap().groups, ["dev", "ops", AUTHENTICATED]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, error) in [
            ("a,b,c\nd,e", TokenFileError::Columns { line: 2, found: 2 }),
            ("a,\"b,c", TokenFileError::Quote(1)),
            ("a,b\"c,d", TokenFileError::Quote(1)),
            ("a,b,c\n\"d\"e,f,g", TokenFileError::Quote(2)),
        ] {
            assert_eq!(StaticTokens::parse(text).err(), Some(error), "{text}");
        }
    }
}
