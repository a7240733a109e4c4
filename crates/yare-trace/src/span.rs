//! Spans: what took how long, and the one that a task works in.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
};

use http::HeaderMap;
use pin_project_lite::pin_project;

use crate::{Context, Tracer, wire};

/// Texts of attributes are cut off behind so many bytes.
const TEXT_MAX_BYTES: usize = 2048;

/// Whose work a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The server's own.
    Internal = 1,
    /// A request that came in.
    Server = 2,
    /// A request that went out.
    Client = 3,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Value(wire::Any);

/// Where a text is cut off: between characters.
fn end(text: &str) -> usize {
    if text.len() <= TEXT_MAX_BYTES {
        return text.len();
    }
    (0..=TEXT_MAX_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl From<String> for Value {
    fn from(mut text: String) -> Self {
        text.truncate(end(&text));
        Value(wire::Any::Text(text))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value(wire::Any::Text(text[..end(text)].to_owned()))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value(wire::Any::Number(number))
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value(wire::Any::Truth(truth))
    }
}

pub(crate) fn attribute(key: &str, value: Value) -> wire::KeyValue {
    wire::KeyValue { key: key.to_owned(), value: Some(wire::AnyValue { value: Some(value.0) }) }
}

/// Something that takes time. It ends when it is dropped.
pub struct Span {
    context: Context,
    tracer: Tracer,
    /// Absent where the trace is not recorded.
    recorded: Option<Box<wire::Span>>,
}

impl Span {
    pub(crate) fn new(tracer: Tracer, context: Context, recorded: Option<Box<wire::Span>>) -> Self {
        Self { context, tracer, recorded }
    }

    /// Whether anybody will see what is said of it.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// Says something of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(recorded) = &mut self.recorded {
            recorded.attributes.push(attribute(key, value.into()));
        }
    }

    /// It came to nothing.
    pub fn failed(&mut self, why: &str) {
        if let Some(recorded) = &mut self.recorded {
            recorded.status = Some(wire::Status { message: why.to_owned(), code: wire::FAILED });
        }
    }

    /// What tasks need to work in it.
    pub fn active(&self) -> Active {
        Active(Arc::new(Place { context: self.context.clone(), tracer: self.tracer.clone() }))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut recorded) = self.recorded.take() {
            recorded.end_time_unix_nano = self.tracer.now_ns();
            self.tracer.keep(*recorded);
        }
    }
}

/// The span that something is done in.
#[derive(Clone)]
pub struct Active(Arc<Place>);

struct Place {
    context: Context,
    tracer: Tracer,
}

tokio::task_local! {
    static ACTIVE: Active;
}

pin_project! {
    /// Work that may be done in a span: those that begin there are its children.
    pub struct Scoped<F> {
        active: Option<Active>,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.active {
            None => this.work.poll(context),
            Some(active) => ACTIVE.sync_scope(active.clone(), || this.work.poll(context)),
        }
    }
}

/// Does something in a span, if there is one. It is no larger than the work itself.
pub fn scoped<F: Future>(active: Option<Active>, work: F) -> Scoped<F> {
    Scoped { active, work }
}

/// A span in the one that this task works in; `None`: it works in none.
pub fn child(name: &str, kind: Kind) -> Option<Span> {
    let active = ACTIVE.try_with(Active::clone).ok()?;
    Some(active.0.tracer.child(name, kind, &active.0.context))
}

/// Does something in a span of its own, where this task works in one. `describe` says what it is.
pub async fn within<F: Future>(name: &str, describe: impl FnOnce(&mut Span), work: F) -> F::Output {
    let mut span = child(name, Kind::Internal);
    if let Some(span) = &mut span {
        describe(span);
    }
    scoped(span.as_ref().map(Span::active), work).await
}

/// Says in a request which span it belongs to, where this task works in one.
pub fn inject(headers: &mut HeaderMap) {
    // No span, nothing to say.
    let _ = ACTIVE.try_with(|active| active.0.context.write(headers));
}
