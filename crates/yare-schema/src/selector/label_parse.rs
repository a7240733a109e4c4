//! The string form of label selectors.
//!
//! ```text
//! selector    = requirement *("," requirement) | ""
//! requirement = "!" key | key | key ("=" | "==" | "!=" | ">" | "<") value | key ("in" | "notin") "(" values ")"
//! ```

use super::label::{Operator, Requirement, SelectorError, aggregate, check_key};
use crate::field::Path;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    End,
    /// An operator or bracket of one or two characters.
    Symbol(&'a str),
    /// A name, a value, or one of the words `in` and `notin`.
    Word(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::End => "",
            Self::Symbol(s) | Self::Word(s) => s,
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

fn is_symbol(byte: u8) -> bool {
    matches!(byte, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

impl<'a> Lexer<'a> {
    /// Reads one token. Every byte that ends one is ASCII, so slices stay on character boundaries.
    fn next(&mut self) -> Token<'a> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(|&b| is_space(b)) {
            self.at += 1;
        }
        let start = self.at;
        match bytes.get(start) {
            None | Some(0) => {
                self.at = bytes.len();
                Token::End
            }
            Some(&b) if is_symbol(b) => {
                let two = matches!((b, bytes.get(start + 1)), (b'=' | b'!', Some(b'=')));
                self.at += if two { 2 } else { 1 };
                Token::Symbol(&self.text[start..self.at])
            }
            Some(_) => {
                while bytes.get(self.at).is_some_and(|&b| b != 0 && !is_symbol(b) && !is_space(b)) {
                    self.at += 1;
                }
                Token::Word(&self.text[start..self.at])
            }
        }
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    ahead: Token<'a>,
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut lexer = Lexer { text, at: 0 };
    let ahead = lexer.next();
    let mut parser = Parser { lexer, ahead };
    let mut requirements = Vec::new();
    loop {
        match parser.ahead {
            Token::Word(_) | Token::Symbol("!") => {
                requirements.push(parser.requirement().map_err(SelectorError::Requirement)?);
                match parser.take() {
                    Token::End => return Ok(requirements),
                    Token::Symbol(",") => {
                        if !matches!(parser.ahead, Token::Word(_) | Token::Symbol("!")) {
                            let found = parser.ahead.text();
                            return Err(SelectorError::Syntax(format!(
                                "found '{found}', expected: identifier after ','"
                            )));
                        }
                    }
                    other => {
                        let found = other.text();
                        return Err(SelectorError::Syntax(format!(
                            "found '{found}', expected: ',' or 'end of string'"
                        )));
                    }
                }
            }
            Token::End => return Ok(requirements),
            other => {
                let found = other.text();
                return Err(SelectorError::Syntax(format!(
                    "found '{found}', expected: !, identifier, or 'end of string'"
                )));
            }
        }
    }
}

impl<'a> Parser<'a> {
    fn take(&mut self) -> Token<'a> {
        let next = self.lexer.next();
        std::mem::replace(&mut self.ahead, next)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.ahead == Token::Symbol("!");
        if negated {
            self.take();
        }
        let key = match self.take() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let mut errors = Vec::new();
        check_key(key, &Path::ROOT, &mut errors);
        if !errors.is_empty() {
            return Err(aggregate(&errors));
        }
        let build =
            |operator, values: Vec<&str>| Requirement::new(key, operator, values).map_err(|e| aggregate(&e));
        if negated {
            return build(Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.ahead, Token::End | Token::Symbol(",")) {
            return build(Operator::Exists, Vec::new());
        }
        let operator = match self.take() {
            Token::Word("in") => Operator::In,
            Token::Word("notin") => Operator::NotIn,
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.value()?],
        };
        build(operator, values)
    }

    /// One value; nothing at all stands for the empty string.
    fn value(&mut self) -> Result<&'a str, String> {
        if matches!(self.ahead, Token::End | Token::Symbol(",")) {
            return Ok("");
        }
        match self.take() {
            Token::Word(value) => Ok(value),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// Values in brackets; nothing between two commas, or a comma and a bracket, is the empty string.
    fn values(&mut self) -> Result<Vec<&'a str>, String> {
        match self.take() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        match self.ahead {
            Token::Word(_) | Token::Symbol(",") => {}
            Token::Symbol(")") => {
                self.take();
                return Ok(vec![""]);
            }
            other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
        }
        let mut values: Vec<&str> = Vec::new();
        loop {
            match self.take() {
                Token::Word(value) => {
                    values.push(value);
                    match self.ahead {
                        Token::Symbol(",") => {}
                        Token::Symbol(")") => break,
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(",") => {
                    if values.is_empty() || self.ahead == Token::Symbol(",") {
                        values.push("");
                    }
                    if self.ahead == Token::Symbol(")") {
                        values.push("");
                        break;
                    }
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
        self.take();
        // Upstream reads them into a set, whose order its messages count by.
        values.sort_unstable();
        values.dedup();
        Ok(values)
    }
}
