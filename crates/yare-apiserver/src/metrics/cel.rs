//! Time that validation rules of custom resources took.

use super::{
    text::Page,
    timing::{Timing, USUAL_S},
};

/// All of it.
#[derive(Default)]
pub struct Cel {
    /// Of all rules of a version of a definition.
    pub compilation: Timing<11>,
    /// Of all rules for one object.
    pub evaluation: Timing<11>,
}

impl Cel {
    pub(super) fn expose(&self, page: &mut Page) {
        for (name, help, timing) in [
            (
                "apiserver_cel_compilation_duration_seconds",
                "[BETA] CEL compilation time in seconds.",
                &self.compilation,
            ),
            (
                "apiserver_cel_evaluation_duration_seconds",
                "[BETA] CEL evaluation time in seconds.",
                &self.evaluation,
            ),
        ] {
            page.family(name, "histogram", help);
            timing.expose(page, name, &[], &USUAL_S);
        }
    }
}
