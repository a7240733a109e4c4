//! What the parser says of a token that cannot stand where it does, and how it goes on: as upstream's parser, which was
//! made by ANTLR, does.

use super::{Parser, Res, Stop};
use crate::lexer::{Tok, Token};

/// What can begin an expression, as messages list it.
pub(super) const STARTS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, \
                      BYTES, IDENTIFIER}";
/// The same, where there may be no argument at all.
pub(super) const STARTS_OR_END: &str = "{'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                             STRING, BYTES, IDENTIFIER}";
/// The same, where an index may be optional.
pub(super) const STARTS_OR_MARK: &str = "{'[', '{', '(', '.', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                              STRING, BYTES, IDENTIFIER}";

impl Parser<'_> {
    pub(super) fn unexpected(&mut self, expected: &str) -> Stop {
        self.odd("mismatched", expected);
        Stop
    }

    /// Notes that the token at hand is not one of the expected. How upstream's parser calls it depends on what it
    /// makes of it: where the token behind would do, it goes on with that one.
    pub(super) fn odd(&mut self, how: &str, expected: &str) {
        let token = self.token();
        let text = self.text(token);
        self.issue_at(token.start, format!("Syntax error: {how} input '{text}' expecting {expected}"));
    }

    /// The token behind the one at hand.
    pub(super) fn behind(&self) -> Tok {
        self.tokens[(self.at + 1).min(self.tokens.len() - 1)].tok
    }

    /// A symbol without which nothing goes on. That it is missing is noted.
    pub(super) fn expect(&mut self, symbol: &str) -> Res<Token> {
        if let Some(token) = self.eat(symbol) {
            return Ok(token);
        }
        let token = self.token();
        if matches!(self.behind(), Tok::Sym(found) if found == symbol) {
            self.odd("extraneous", &format!("'{symbol}'"));
            self.bump();
            return Ok(self.bump());
        }
        // Behind a colon an expression begins; behind what closes, one may end.
        let fits = if symbol == ":" { starts(token.tok) } else { token.tok == Tok::Eof };
        if !fits {
            return Err(self.unexpected(&format!("'{symbol}'")));
        }
        let text = self.text(token);
        self.issue_at(token.start, format!("Syntax error: missing '{symbol}' at '{text}'"));
        if symbol == ":" { Ok(token) } else { Err(Stop) }
    }

    /// What closes a list that may end in a comma, behind an entry: `true`. `false` behind a comma that another
    /// entry follows.
    pub(super) fn closes(&mut self, symbol: &str) -> Res<bool> {
        if self.eat(symbol).is_some() {
            return Ok(true);
        }
        if self.eat(",").is_some() {
            let token = self.token().tok;
            if starts(token) || token == Tok::Sym("?") || token == Tok::EscapedIdent {
                return Ok(false);
            }
            return self.expect(symbol).map(|_| true);
        }
        let expected = format!("{{'{symbol}', ','}}");
        if !matches!(self.behind(), Tok::Sym(found) if found == symbol || found == ",") {
            return Err(self.unexpected(&expected));
        }
        self.odd("extraneous", &expected);
        self.bump();
        self.closes(symbol)
    }

    /// A point that no name follows.
    pub(super) fn dangling(&mut self, point: Token) -> Stop {
        let token = self.token();
        let end = if token.tok == Tok::Eof { point.end } else { token.end };
        let text: String = self.chars[point.start as usize..end as usize].iter().collect();
        self.issue_at(token.start, format!("Syntax error: no viable alternative at input '{text}'"));
        Stop
    }

    /// Steps over a token that begins no expression, where the one behind it does (or is what `expected` has
    /// beside those): `true`.
    pub(super) fn begins(&mut self, expected: &str) -> Res<bool> {
        if starts(self.token().tok) {
            return Ok(false);
        }
        let behind = self.behind();
        let fits = starts(behind) || (expected == STARTS_OR_END && behind == Tok::Sym(")"));
        if !fits || self.token().tok == Tok::Eof {
            return Err(self.unexpected(expected));
        }
        self.odd("extraneous", expected);
        self.bump();
        Ok(true)
    }
}

/// Whether an expression can begin with the token.
fn starts(token: Tok) -> bool {
    matches!(
        token,
        Tok::Int
            | Tok::Uint
            | Tok::Float
            | Tok::String
            | Tok::Bytes
            | Tok::True
            | Tok::False
            | Tok::Null
            | Tok::Ident
            | Tok::Sym("[" | "{" | "(" | "." | "-" | "!")
    )
}
