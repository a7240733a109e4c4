//! Spans: what took how long, and the one that a task works in.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
};

use http::HeaderMap;
use parking_lot::Mutex;
use pin_project_lite::pin_project;

use crate::{Context, Tracer, wire};

/// Texts of attributes are cut off behind so many bytes.
const TEXT_MAX_BYTES: usize = 2048;

/// A span tells of so many of the events in it, the last ones, as OpenTelemetry has it.
const EVENTS_MAX: usize = 128;

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

pub(crate) fn attribute(key: &str, value: Value) -> wire::KeyValue {
    wire::KeyValue { key: key.to_owned(), value: Some(wire::AnyValue { value: Some(value.0) }) }
}

/// Something that takes time. It ends when it is dropped.
pub struct Span {
    active: Active,
    /// Absent where the trace is not recorded.
    recorded: Option<Box<wire::Span>>,
}

impl Span {
    pub(crate) fn new(tracer: Tracer, context: Context, recorded: Option<Box<wire::Span>>) -> Self {
        let events = Mutex::new(recorded.is_some().then(Events::default));
        Self { active: Active(Arc::new(Place { context, tracer: Some(tracer), events })), recorded }
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

    /// Says that something happened just now.
    pub fn event(&self, name: &str, said: &[(&'static str, Value)]) {
        self.active.event(name, said);
    }

    /// It came to nothing.
    pub fn failed(&mut self, why: &str) {
        if let Some(recorded) = &mut self.recorded {
            recorded.status = Some(wire::Status { message: why.to_owned(), code: wire::FAILED });
        }
    }

    /// What tasks need to work in it.
    pub fn active(&self) -> Active {
        self.active.clone()
    }

    /// Says in a request that goes out which span it belongs to.
    pub fn inject(&self, headers: &mut HeaderMap) {
        self.active.context().write(headers);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let place = &self.active.0;
        let events = place.events.lock().take();
        if let (Some(mut recorded), Some(tracer)) = (self.recorded.take(), &place.tracer) {
            let events = events.unwrap_or_default();
            recorded.events = events.kept;
            recorded.dropped_events_count = events.dropped;
            recorded.end_time_unix_nano = tracer.now_ns();
            tracer.keep(*recorded);
        }
    }
}

/// The span that something is done in.
#[derive(Clone)]
pub struct Active(Arc<Place>);

struct Place {
    context: Context,
    /// Absent: the span is somebody else's, and only handed on.
    tracer: Option<Tracer>,
    /// What happened in it; `None`: nobody writes that down, or it has ended.
    events: Mutex<Option<Events>>,
}

#[derive(Default)]
struct Events {
    kept: Vec<wire::Event>,
    dropped: u32,
}

impl Active {
    /// A span elsewhere that is handed on to others, while nothing is recorded here.
    pub fn passing(context: Context) -> Self {
        Self(Arc::new(Place { context, tracer: None, events: Mutex::new(None) }))
    }

    /// A span in this one; `None`: nothing is recorded here.
    pub fn child(&self, name: &str, kind: Kind) -> Option<Span> {
        Some(self.0.tracer.as_ref()?.child(name, kind, &self.0.context))
    }

    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    /// Says that something happened just now.
    pub fn event(&self, name: &str, said: &[(&'static str, Value)]) {
        let (Some(events), Some(tracer)) = (&mut *self.0.events.lock(), &self.0.tracer) else { return };
        if events.kept.len() == EVENTS_MAX {
            events.kept.remove(0);
            events.dropped = events.dropped.saturating_add(1);
        }
        events.kept.push(wire::Event {
            time_unix_nano: tracer.now_ns(),
            name: name.to_owned(),
            attributes: said.iter().map(|(key, value)| attribute(key, value.clone())).collect(),
        });
    }
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
    ACTIVE.try_with(|active| active.child(name, kind)).ok()?
}

/// Says of the span that this task works in that something happened just now.
pub fn event(name: &str, said: &[(&'static str, Value)]) {
    // No span, nothing to say.
    let _ = ACTIVE.try_with(|active| active.event(name, said));
}

/// The span that this task works in.
pub fn current() -> Option<Active> {
    ACTIVE.try_with(Active::clone).ok()
}

/// A span in the one that this task works in, described where it is recorded; `None`: it works in none.
pub fn described(name: &str, kind: Kind, describe: impl FnOnce(&mut Span)) -> Option<Span> {
    let mut span = child(name, kind)?;
    if span.is_recorded() {
        describe(&mut span);
    }
    Some(span)
}

/// Does something in a span of its own, where this task works in one. `describe` says what it is.
pub async fn within<F: Future>(name: &str, describe: impl FnOnce(&mut Span), work: F) -> F::Output {
    let span = described(name, Kind::Internal, describe);
    scoped(span.as_ref().map(Span::active), work).await
}

/// [`scoped`] for work that does not wait.
pub fn inside<T>(active: Option<Active>, work: impl FnOnce() -> T) -> T {
    match active {
        None => work(),
        Some(active) => ACTIVE.sync_scope(active, work),
    }
}

/// [`within`] for work that does not wait.
pub fn during<T>(name: &str, describe: impl FnOnce(&mut Span), work: impl FnOnce() -> T) -> T {
    let span = described(name, Kind::Internal, describe);
    inside(span.as_ref().map(Span::active), work)
}

/// Says in a request which span it belongs to, where this task works in one.
pub fn inject(headers: &mut HeaderMap) {
    // No span, nothing to say.
    let _ = ACTIVE.try_with(|active| active.context().write(headers));
}
