//! Source text to tokens.

/// What a token is. Its text is the source between its offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tok {
    Int,
    Uint,
    Float,
    String,
    Bytes,
    Ident,
    /// An identifier between backquotes.
    EscapedIdent,
    True,
    False,
    Null,
    In,
    /// An operator or bracket.
    Sym(&'static str),
    Eof,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub tok: Tok,
    /// Offsets in code points.
    pub start: u32,
    pub end: u32,
}

/// Longest first.
const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];

pub(crate) struct Lexer<'s> {
    chars: &'s [char],
    at: usize,
    /// Offset and text of what is no token.
    pub errors: Vec<(u32, String)>,
}

impl<'s> Lexer<'s> {
    pub(crate) fn new(chars: &'s [char]) -> Lexer<'s> {
        Lexer { chars, at: 0, errors: Vec::new() }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip_blank(&mut self) {
        while let Some(c) = self.peek(0) {
            match c {
                '\t' | ' ' | '\r' | '\n' | '\u{c}' => self.at += 1,
                '/' if self.peek(1) == Some('/') => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => break,
            }
        }
    }

    pub(crate) fn tokens(&mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        loop {
            self.skip_blank();
            let start = self.at;
            if start == self.chars.len() {
                tokens.push(Token { tok: Tok::Eof, start: start as u32, end: start as u32 });
                return tokens;
            }
            match self.token() {
                Some(tok) => tokens.push(Token { tok, start: start as u32, end: self.at as u32 }),
                None => {
                    // What was consumed is no token; at least one character is, or this would not end. Of what may
                    // be the first half of a symbol, the other half is gone with it.
                    let half = usize::from(self.at == start && matches!(self.chars[start], '=' | '&' | '|'));
                    self.at = self.at.max(start + 1 + half).min(self.chars.len());
                    let text: String = self.chars[start..self.at].iter().collect();
                    self.errors.push((start as u32, format!("token recognition error at: '{text}'")));
                }
            }
        }
    }

    fn token(&mut self) -> Option<Tok> {
        let c = self.peek(0)?;
        let next = self.peek(1);
        match c {
            '"' | '\'' => return self.string(false).then_some(Tok::String),
            'r' | 'R' if matches!(next, Some('"' | '\'')) => {
                self.at += 1;
                return self.string(true).then_some(Tok::String);
            }
            'b' | 'B' if matches!(next, Some('"' | '\'')) => {
                self.at += 1;
                return self.string(false).then_some(Tok::Bytes);
            }
            'b' | 'B' if matches!(next, Some('r' | 'R')) && matches!(self.peek(2), Some('"' | '\'')) => {
                self.at += 2;
                return self.string(true).then_some(Tok::Bytes);
            }
            '`' => return self.escaped_ident(),
            '0'..='9' => return Some(self.number()),
            '.' if next.is_some_and(|c| c.is_ascii_digit()) => return Some(self.number()),
            'a'..='z' | 'A'..='Z' | '_' => {
                let start = self.at;
                while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                    self.at += 1;
                }
                let word: String = self.chars[start..self.at].iter().collect();
                return Some(match word.as_str() {
                    "true" => Tok::True,
                    "false" => Tok::False,
                    "null" => Tok::Null,
                    "in" => Tok::In,
                    _ => Tok::Ident,
                });
            }
            _ => {}
        }
        for symbol in SYMBOLS {
            if symbol.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c)) {
                self.at += symbol.len();
                return Some(Tok::Sym(symbol));
            }
        }
        None
    }

    fn digits(&mut self) {
        while self.peek(0).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Tok {
        if self.peek(0) == Some('0')
            && self.peek(1) == Some('x')
            && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit())
        {
            self.at += 2;
            while self.peek(0).is_some_and(|c| c.is_ascii_hexdigit()) {
                self.at += 1;
            }
            return self.maybe_uint();
        }
        self.digits();
        let mut float = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            float = true;
            self.at += 1;
            self.digits();
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                float = true;
                self.at += 1 + sign;
                self.digits();
            }
        }
        if float { Tok::Float } else { self.maybe_uint() }
    }

    fn maybe_uint(&mut self) -> Tok {
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Tok::Uint;
        }
        Tok::Int
    }

    /// From the opening quote. Escapes are only stepped over here; the parser reads them.
    fn string(&mut self, raw: bool) -> bool {
        let Some(quote) = self.peek(0) else { return false };
        let long = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if long { 3 } else { 1 };
        self.at += width;
        loop {
            match self.peek(0) {
                None => return false,
                Some('\\') if !raw => {
                    self.at += 1;
                    if !self.escape() {
                        return false;
                    }
                }
                Some('\n' | '\r') if !long => {
                    self.at += 1;
                    return false;
                }
                Some(c) if c == quote && (0..width).all(|i| self.peek(i) == Some(quote)) => {
                    self.at += width;
                    return true;
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// Behind a backslash. What is wrong is stepped over, too.
    fn escape(&mut self) -> bool {
        let Some(c) = self.peek(0) else { return false };
        self.at += 1;
        let (more, radix) = match c {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`' => return true,
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => (2, 8),
            _ => return false,
        };
        for _ in 0..more {
            let Some(digit) = self.peek(0) else { return false };
            self.at += 1;
            if !digit.is_digit(radix) {
                return false;
            }
        }
        true
    }

    fn escaped_ident(&mut self) -> Option<Tok> {
        self.at += 1;
        while let Some(c) = self.peek(0) {
            match c {
                '`' => {
                    self.at += 1;
                    return Some(Tok::EscapedIdent);
                }
                'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | '-' | '/' | ' ' => self.at += 1,
                _ => return None,
            }
        }
        None
    }
}

/// The characters or bytes that a string or bytes token stands for.
pub(crate) fn unescape(token: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "unable to unescape string";
    let text = token.replace("\r\n", "\n").replace('\r', "\n");
    let (raw, body) = match text.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    let quote = body.chars().next().ok_or(BAD)?;
    let width = if body.len() >= 6 && body.bytes().take(3).all(|b| b as char == quote) { 3 } else { 1 };
    let body = body.get(width..body.len() - width).ok_or(BAD)?;
    if raw || !body.contains('\\') {
        return Ok(body.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    let push = |code: u32, as_byte: bool, out: &mut Vec<u8>| -> Result<(), &'static str> {
        if as_byte {
            out.push(code as u8);
        } else {
            let c = char::from_u32(code).ok_or("invalid unicode code point")?;
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    };
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = chars.next().ok_or("unable to unescape string, found '\\' as last character")?;
        let simple = match escape {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '\'' | '"' | '`' | '?' => escape as u8,
            'x' | 'X' | 'u' | 'U' => {
                let length = match escape {
                    'u' if !bytes => 4,
                    'U' if !bytes => 8,
                    'x' | 'X' => 2,
                    _ => return Err(BAD),
                };
                let digits: String = chars.by_ref().take(length).collect();
                if digits.len() < length || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(BAD);
                }
                push(u32::from_str_radix(&digits, 16).map_err(|_| BAD)?, bytes, &mut out)?;
                continue;
            }
            '0'..='3' => {
                const OCTAL: &str = "unable to unescape octal sequence in string";
                let mut code = escape as u32 - '0' as u32;
                for _ in 0..2 {
                    let digit = chars.next().and_then(|c| c.to_digit(8)).ok_or(OCTAL)?;
                    code = code * 8 + digit;
                }
                push(code, bytes, &mut out)?;
                continue;
            }
            _ => return Err(BAD),
        };
        out.push(simple);
    }
    Ok(out)
}
