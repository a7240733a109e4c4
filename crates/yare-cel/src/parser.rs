//! Tokens to a tree, with macros expanded on the way.

use std::sync::Arc;

use crate::{
    ast::{Call, Entry, Expr, FieldInit, Id, Kind, Literal, Name, Positions},
    error::{CompileError, Issue},
    escape::RESERVED,
    lexer::{self, Lexer, Tok, Token},
    macros::{self, MacroSet},
};

mod recovery;

use recovery::{STARTS, STARTS_OR_END, STARTS_OR_MARK};

/// The longest expression, in code points.
const MAX_CODE_POINTS: usize = 100_000;
/// How deep expressions nest.
const MAX_DEPTH: u32 = 250;
pub(crate) struct Options {
    pub macros: MacroSet,
    pub optional_syntax: bool,
    /// Whether fields may be written between backquotes.
    pub escaped_names: bool,
}

pub(crate) struct Parsed {
    pub root: Expr,
    pub positions: Positions,
}

/// Ends parsing; what is wrong has been noted.
pub(crate) struct Stop;
type Res<T> = Result<T, Stop>;

pub(crate) struct Parser<'s> {
    chars: &'s [char],
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
    pub(crate) positions: Positions,
    issues: Vec<Issue>,
    options: &'s Options,
}

pub(crate) fn parse(source: &str, options: &Options) -> Result<Parsed, CompileError> {
    let chars: Vec<char> = source.chars().collect();
    if chars.len() > MAX_CODE_POINTS {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_CODE_POINTS}",
            chars.len()
        );
        return Err(CompileError::new(vec![Issue { message, line: 0, column: 0 }], source));
    }
    let mut lexer = Lexer::new(&chars);
    let tokens = lexer.tokens();
    let mut parser = Parser {
        chars: &chars,
        tokens,
        at: 0,
        depth: 0,
        positions: Positions::new(source),
        issues: Vec::new(),
        options,
    };
    for (offset, message) in lexer.errors {
        parser.issue_at(offset, format!("Syntax error: {message}"));
    }
    let root = parser.start();
    match root {
        Ok(root) if parser.issues.is_empty() => Ok(Parsed { root, positions: parser.positions }),
        _ => Err(CompileError::new(parser.issues, source)),
    }
}

impl Parser<'_> {
    fn issue_at(&mut self, offset: u32, message: String) {
        let (line, column) = self.positions.locate(offset);
        self.issues.push(Issue { message, line, column });
    }

    /// Notes a mistake and goes on with a node that stands for it.
    pub(crate) fn mistake(&mut self, offset: u32, message: impl Into<String>) -> Expr {
        self.issue_at(offset, message.into());
        Expr { id: self.positions.next_id(offset), kind: Kind::Unspecified }
    }

    fn limit(&mut self, message: String) -> Stop {
        self.issues.push(Issue { message, line: 0, column: 0 });
        Stop
    }

    fn token(&self) -> Token {
        // The last token is the end, and nothing steps over it.
        self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn text(&self, token: Token) -> String {
        if token.tok == Tok::Eof {
            return "<EOF>".into();
        }
        self.chars[token.start as usize..token.end as usize].iter().collect()
    }

    fn bump(&mut self) -> Token {
        let token = self.token();
        self.at += 1;
        token
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.token().tok, Tok::Sym(found) if found == symbol)
    }

    fn eat(&mut self, symbol: &str) -> Option<Token> {
        self.is(symbol).then(|| self.bump())
    }

    pub(crate) fn id(&mut self, offset: u32) -> Id {
        self.positions.next_id(offset)
    }

    fn start(&mut self) -> Res<Expr> {
        let root = self.expr()?;
        let token = self.token();
        if token.tok != Tok::Eof {
            let text = self.text(token);
            let kind = if self.tokens[self.at + 1].tok == Tok::Eof { "extraneous" } else { "mismatched" };
            self.issue_at(token.start, format!("Syntax error: {kind} input '{text}' expecting <EOF>"));
            return Err(Stop);
        }
        Ok(root)
    }

    fn expr(&mut self) -> Res<Expr> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.limit(format!("expression recursion limit exceeded: {MAX_DEPTH}")));
        }
        let condition = self.logical(false)?;
        let result = match self.eat("?") {
            None => condition,
            Some(op) => {
                let id = self.id(op.start);
                let then = self.logical(false)?;
                self.expect(":")?;
                let otherwise = self.expr()?;
                Expr::call(id, "_?_:_", vec![condition, then, otherwise])
            }
        };
        self.depth -= 1;
        Ok(result)
    }

    /// `||` over `&&` over relations. Long chains become balanced trees, so that they are not deep.
    fn logical(&mut self, and: bool) -> Res<Expr> {
        let (symbol, function) = if and { ("&&", "_&&_") } else { ("||", "_||_") };
        let next = |parser: &mut Self| if and { parser.binary(0) } else { parser.logical(true) };
        let first = next(self)?;
        if !self.is(symbol) {
            return Ok(first);
        }
        let mut terms = vec![Some(first)];
        let mut ops = Vec::new();
        while let Some(op) = self.eat(symbol) {
            let term = next(self)?;
            terms.push(Some(term));
            ops.push(self.id(op.start));
        }
        Ok(balanced(function, &mut terms, &ops, 0, ops.len() - 1))
    }

    /// Relations (level 0), sums (1) and products (2), each to the left.
    fn binary(&mut self, level: u8) -> Res<Expr> {
        let mut left = self.unary()?;
        let mut chain = 0;
        loop {
            let (of, function) = match self.token().tok {
                Tok::In => (0, "@in"),
                Tok::Sym("==") => (0, "_==_"),
                Tok::Sym("!=") => (0, "_!=_"),
                Tok::Sym("<") => (0, "_<_"),
                Tok::Sym("<=") => (0, "_<=_"),
                Tok::Sym(">") => (0, "_>_"),
                Tok::Sym(">=") => (0, "_>=_"),
                Tok::Sym("+") => (1, "_+_"),
                Tok::Sym("-") => (1, "_-_"),
                Tok::Sym("*") => (2, "_*_"),
                Tok::Sym("/") => (2, "_/_"),
                Tok::Sym("%") => (2, "_%_"),
                _ => return Ok(left),
            };
            if of < level {
                return Ok(left);
            }
            chain += 1;
            if self.depth + chain > MAX_DEPTH {
                return Err(self.limit("max recursion depth exceeded".into()));
            }
            let op = self.bump();
            let id = self.id(op.start);
            let right = self.binary(of + 1)?;
            left = Expr::call(id, function, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Res<Expr> {
        for (symbol, function) in [("!", "!_"), ("-", "-_")] {
            if !self.is(symbol) {
                continue;
            }
            // `-1` is a literal, so that the least int can be written.
            if symbol == "-" && matches!(self.tokens[self.at + 1].tok, Tok::Int | Tok::Float) {
                break;
            }
            let op = self.token();
            let mut count = 0;
            let mut last = op;
            while let Some(sign) = self.eat(symbol) {
                (count, last) = (count + 1, sign);
            }
            if self.token().tok == Tok::Eof {
                if symbol == "!" {
                    self.odd("extraneous", STARTS);
                    return Err(Stop);
                }
                self.dangling(last);
            }
            if count % 2 == 0 {
                return self.member();
            }
            let id = self.id(op.start);
            let operand = self.member()?;
            return Ok(Expr::call(id, function, vec![operand]));
        }
        self.member()
    }

    fn member(&mut self) -> Res<Expr> {
        let mut operand = self.primary()?;
        let mut chain = 0;
        loop {
            if !self.is(".") && !self.is("[") {
                return Ok(operand);
            }
            chain += 1;
            if self.depth + chain > MAX_DEPTH {
                return Err(self.limit("max recursion depth exceeded".into()));
            }
            if let Some(op) = self.eat("[") {
                operand = self.index(operand, op)?;
                continue;
            }
            let op = self.bump();
            let optional = self.eat("?").is_some();
            let token = self.token();
            if !matches!(token.tok, Tok::Ident | Tok::EscapedIdent) {
                if !optional {
                    return Err(match token.tok {
                        Tok::True | Tok::False | Tok::Null => self.unexpected("IDENTIFIER"),
                        _ => self.dangling(op),
                    });
                }
                self.odd("mismatched", "{IDENTIFIER, ESC_IDENTIFIER}");
                self.issue_at(token.start, "unsupported ident kind".into());
                return Err(Stop);
            }
            self.bump();
            let name: Name = self.field_name(token).into();
            if !optional && token.tok == Tok::Ident && self.is("(") {
                let open = self.bump();
                let id = self.id(open.start);
                let args = self.args()?;
                operand = self.call_or_macro(id, &name, Some(operand), args);
                continue;
            }
            if optional {
                if !self.options.optional_syntax {
                    operand = self.mistake(op.start, "unsupported syntax '.?'");
                    continue;
                }
                let id = self.id(op.start);
                let field_id = self.id(token.start);
                let field = Expr::literal(field_id, Literal::String(name));
                operand = Expr::call(id, "_?._", vec![operand, field]);
                continue;
            }
            let id = self.id(op.start);
            operand =
                Expr { id, kind: Kind::Select { operand: Box::new(operand), field: name, test_only: false } };
        }
    }

    /// The name that a token stands for.
    fn field_name(&mut self, token: Token) -> String {
        let text = self.text(token);
        if token.tok != Tok::EscapedIdent {
            return text;
        }
        if !self.options.escaped_names {
            self.mistake(token.start, "unsupported syntax: '`'");
        }
        text[1..text.len() - 1].to_owned()
    }

    fn index(&mut self, operand: Expr, op: Token) -> Res<Expr> {
        let optional = self.eat("?").is_some();
        let id = self.id(op.start);
        if !optional {
            self.begins(STARTS_OR_MARK)?;
        }
        let index = self.expr()?;
        self.expect("]")?;
        if optional && !self.options.optional_syntax {
            return Ok(self.mistake(op.start, "unsupported syntax '[?'"));
        }
        Ok(Expr::call(id, if optional { "_[?_]" } else { "_[_]" }, vec![operand, index]))
    }

    fn args(&mut self) -> Res<Vec<Expr>> {
        let mut args = Vec::new();
        if self.eat(")").is_some() {
            return Ok(args);
        }
        if self.begins(STARTS_OR_END)? && self.eat(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.eat(",").is_none() {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn call_or_macro(&mut self, id: Id, function: &str, target: Option<Expr>, args: Vec<Expr>) -> Expr {
        let Some(expander) = self.options.macros.find(function, args.len(), target.is_some()) else {
            return Expr { id, kind: Kind::Call(Box::new(Call { function: function.into(), target, args })) };
        };
        let offset = self.positions.offsets[id as usize];
        macros::expand(self, expander, id, offset, function, target, args)
    }

    fn primary(&mut self) -> Res<Expr> {
        let token = self.token();
        match token.tok {
            Tok::Int
            | Tok::Uint
            | Tok::Float
            | Tok::String
            | Tok::Bytes
            | Tok::True
            | Tok::False
            | Tok::Null => {
                self.bump();
                Ok(self.literal(token, false))
            }
            Tok::Sym("-") if matches!(self.tokens[self.at + 1].tok, Tok::Int | Tok::Float) => {
                self.bump();
                let number = self.bump();
                Ok(self.literal(Token { start: token.start, ..number }, true))
            }
            Tok::Sym("(") => {
                self.bump();
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Tok::Sym("[") => self.list(),
            Tok::Sym("{") => self.map(),
            Tok::Sym(".") => {
                self.bump();
                if self.token().tok == Tok::Ident {
                    self.name(token.start, ".")
                } else {
                    Err(self.dangling(token))
                }
            }
            Tok::Ident => self.name(token.start, ""),
            Tok::Sym("-") if self.behind() == Tok::Eof => {
                self.bump();
                self.dangling(token);
                Err(self.unexpected(STARTS))
            }
            // A sign behind another one begins nothing here.
            _ if self.begins(STARTS)? => self.unary(),
            _ => Err(self.unexpected(STARTS)),
        }
    }

    /// An identifier, a call, or the name of a type before `{`.
    fn name(&mut self, start: u32, dot: &str) -> Res<Expr> {
        // The words of a type's name are told from fields by the brace behind them.
        let mut ahead = self.at + 1;
        while matches!(self.tokens[ahead].tok, Tok::Sym(".")) && self.tokens[ahead + 1].tok == Tok::Ident {
            ahead += 2;
        }
        if matches!(self.tokens[ahead].tok, Tok::Sym("{")) {
            return self.message(ahead, dot);
        }
        let token = self.bump();
        let word = self.text(token);
        if let Some(open) = self.eat("(") {
            if RESERVED.contains(&word.as_str()) {
                self.args()?;
                return Ok(self.mistake(start, format!("reserved identifier: {word}")));
            }
            let id = self.id(open.start);
            let args = self.args()?;
            return Ok(self.call_or_macro(id, &format!("{dot}{word}"), None, args));
        }
        if RESERVED.contains(&word.as_str()) {
            return Ok(self.mistake(start, format!("reserved identifier: {word}")));
        }
        let id = self.id(token.start);
        Ok(Expr::ident(id, &format!("{dot}{word}")))
    }

    fn message(&mut self, brace: usize, dot: &str) -> Res<Expr> {
        let mut name = dot.to_owned();
        while self.at < brace {
            let token = self.bump();
            name.push_str(&self.text(token));
        }
        let open = self.bump();
        let id = self.id(open.start);
        let mut fields = Vec::new();
        loop {
            if self.eat("}").is_some() {
                break;
            }
            let optional = self.eat("?");
            let token = self.token();
            if !matches!(token.tok, Tok::Ident | Tok::EscapedIdent) {
                return Err(self.unexpected(if fields.is_empty() && optional.is_none() {
                    "{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"
                } else {
                    "{IDENTIFIER, ESC_IDENTIFIER}"
                }));
            }
            self.bump();
            let colon = self.expect(":")?;
            let field_id = self.id(colon.start);
            let value = self.expr()?;
            if let Some(mark) = optional
                && !self.options.optional_syntax
            {
                self.mistake(mark.start, "unsupported syntax '?'");
            }
            let name = self.field_name(token).into();
            fields.push(FieldInit { id: field_id, name, value, optional: optional.is_some() });
            if self.closes("}")? {
                break;
            }
        }
        Ok(Expr { id, kind: Kind::Struct { name: name.into(), fields } })
    }

    fn list(&mut self) -> Res<Expr> {
        let open = self.bump();
        let id = self.id(open.start);
        let mut items = Vec::new();
        let mut optional = Vec::new();
        loop {
            if self.eat("]").is_some() {
                break;
            }
            if items.is_empty() && self.eat(",").is_some() {
                self.expect("]")?;
                break;
            }
            if let Some(mark) = self.eat("?") {
                if self.options.optional_syntax {
                    optional.push(items.len());
                } else {
                    self.mistake(mark.start, "unsupported syntax '?'");
                }
            }
            items.push(self.expr()?);
            if self.closes("]")? {
                break;
            }
        }
        Ok(Expr { id, kind: Kind::List { items, optional } })
    }

    fn map(&mut self) -> Res<Expr> {
        let open = self.bump();
        let id = self.id(open.start);
        let mut entries = Vec::new();
        loop {
            if self.eat("}").is_some() {
                break;
            }
            if entries.is_empty() && self.eat(",").is_some() {
                self.expect("}")?;
                break;
            }
            let mark = self.eat("?");
            let key = self.expr()?;
            self.expect(":")?;
            let value = self.expr()?;
            if let Some(mark) = mark
                && !self.options.optional_syntax
            {
                self.mistake(mark.start, "unsupported syntax '?'");
            }
            entries.push(Entry { key, value, optional: mark.is_some() });
            if self.closes("}")? {
                break;
            }
        }
        Ok(Expr { id, kind: Kind::Map(entries) })
    }

    fn literal(&mut self, token: Token, negative: bool) -> Expr {
        let from = token.start as usize;
        let mut text: String = self.chars[from..token.end as usize].iter().collect();
        if negative {
            // Blanks may stand between the sign and the number.
            text = format!("-{}", text[1..].trim_start());
        }
        let literal = match token.tok {
            Tok::True => Ok(Literal::Bool(true)),
            Tok::False => Ok(Literal::Bool(false)),
            Tok::Int => parse_int(&text).map(Literal::Int).ok_or("invalid int literal"),
            Tok::Uint => parse_uint(&text).map(Literal::Uint).ok_or("invalid uint literal"),
            Tok::Float => match text.parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(Literal::Double(value)),
                _ => Err("invalid double literal"),
            },
            Tok::String => lexer::unescape(&text, false)
                .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "unable to unescape string"))
                .map(|text| Literal::String(text.into())),
            Tok::Bytes => lexer::unescape(&text[1..], true).map(|bytes| Literal::Bytes(Arc::from(bytes))),
            _ => Ok(Literal::Null),
        };
        match literal {
            Ok(literal) => {
                let id = self.id(token.start);
                Expr::literal(id, literal)
            }
            Err(message) => self.mistake(token.start, message),
        }
    }
}

fn parse_int(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    match digits.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_uint(text: &str) -> Option<u64> {
    let text = &text[..text.len() - 1];
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn balanced(function: &str, terms: &mut [Option<Expr>], ops: &[Id], low: usize, high: usize) -> Expr {
    let mid = (low + high).div_ceil(2);
    let mut take = |index: usize| terms[index].take().unwrap_or(Expr { id: 0, kind: Kind::Unspecified });
    let (left, right);
    if mid == low {
        left = take(mid);
    } else {
        left = balanced(function, terms, ops, low, mid - 1);
    }
    let mut take = |index: usize| terms[index].take().unwrap_or(Expr { id: 0, kind: Kind::Unspecified });
    if mid == high {
        right = take(mid + 1);
    } else {
        right = balanced(function, terms, ops, mid + 1, high);
    }
    Expr::call(ops[mid], function, vec![left, right])
}
