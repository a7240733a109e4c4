//! Options of requests (`ListOptions`, `CreateOptions`, `PatchOptions`, `DeleteOptions`, …) read from the
//! query, with upstream's validation and messages.

use serde_json::Value;
use yare_kinds::{meta, view::View};
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use crate::{
    path::Query,
    status::{ApiError, ApiResult, GroupResource, quote},
};

const META_GROUP: &str = "meta.k8s.io";

fn invalid(kind: &'static str, errors: &[FieldError]) -> ApiResult<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(GroupResource { group: META_GROUP, resource: kind }, "", errors))
}

/// Which state a list shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum VersionMatch {
    /// Not said.
    #[default]
    Unset,
    /// This revision.
    Exact,
    /// This revision or any newer one.
    NotOlderThan,
}

/// Options of lists and watches.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `a=b,c in (d,e)`
    pub label_selector: String,
    /// `spec.nodeName=x`
    pub field_selector: String,
    /// `shardRange(…)`, where shards are switched on.
    pub shard_selector: String,
    /// Objects a page holds; 0 for all.
    pub limit: usize,
    /// Token of the next page.
    pub continue_token: String,
    /// As sent; empty where not.
    pub resource_version: String,
    /// How `resource_version` is meant.
    pub version_match: VersionMatch,
    /// Ends a watch; zero (as negative numbers come out) at once.
    pub timeout_s: Option<u64>,
    /// The watcher understands BOOKMARK events.
    pub bookmarks: bool,
    /// Start with the state as ADDED events.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Reads and checks the options of a list or (`watch`) of a watch.
    pub fn parse(query: &Query, watch: bool, gates: &Gates) -> ApiResult<Self> {
        let text = |key: &str| query.get(key).unwrap_or_default().to_owned();
        let raw_match = text("resourceVersionMatch");
        let mut options = Self {
            label_selector: text("labelSelector"),
            field_selector: text("fieldSelector"),
            shard_selector: text("shardSelector"),
            continue_token: text("continue"),
            resource_version: text("resourceVersion"),
            version_match: match raw_match.as_str() {
                "Exact" => VersionMatch::Exact,
                "NotOlderThan" => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            timeout_s: integer(query, "timeoutSeconds")?
                .filter(|s| *s != 0)
                .map(|s| u64::try_from(s).unwrap_or(0)),
            limit: integer(query, "limit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents")),
        };
        if !options.shard_selector.is_empty() && !gates.is_on("ShardedListAndWatch") {
            options.shard_selector.clear();
        }
        let errors = if watch {
            let watch_list = gates.is_on("WatchList");
            if watch_list
                && options.send_initial_events.is_none()
                && raw_match.is_empty()
                && matches!(options.resource_version.as_str(), "" | "0")
            {
                // Without a revision a watch starts with the present state, as it always has.
                options.send_initial_events = Some(true);
                options.version_match = VersionMatch::NotOlderThan;
                options.check_watch("NotOlderThan", watch_list)
            } else {
                options.check_watch(&raw_match, watch_list)
            }
        } else {
            options.check_list(&raw_match)
        };
        invalid("ListOptions", &errors)?;
        Ok(options)
    }

    fn check_list(&self, raw_match: &str) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("resourceVersionMatch");
        if !raw_match.is_empty() {
            if self.resource_version.is_empty() {
                errors.push(FieldError::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(FieldError::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if self.version_match == VersionMatch::Unset {
                errors.push(FieldError::not_listed(&path, raw_match, &["Exact", "NotOlderThan", ""]));
            }
            if self.version_match == VersionMatch::Exact && self.resource_version == "0" {
                errors.push(FieldError::forbidden(
                    &path,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            errors.push(FieldError::forbidden(
                &Path::new("sendInitialEvents"),
                "sendInitialEvents is forbidden for list",
            ));
        }
        errors
    }

    fn check_watch(&self, raw_match: &str, watch_list: bool) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("resourceVersionMatch");
        if self.send_initial_events.is_some() {
            if self.version_match != VersionMatch::NotOlderThan {
                errors.push(FieldError::forbidden(
                    &path,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if !watch_list {
                errors.push(FieldError::forbidden(
                    &Path::new("sendInitialEvents"),
                    "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
                ));
            }
        }
        if !raw_match.is_empty() {
            if self.send_initial_events.is_none() {
                errors.push(FieldError::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if self.version_match != VersionMatch::NotOlderThan {
                errors.push(FieldError::not_supported(&path, raw_match, &["NotOlderThan"]));
            }
            if !self.continue_token.is_empty() {
                errors.push(FieldError::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
        }
        errors
    }

    /// The revision asked for: `None` where none was.
    pub fn revision(&self) -> Result<Option<u64>, FieldError> {
        revision(&self.resource_version)
    }
}

/// A `resourceVersion` parameter; `None` where it is empty.
pub fn revision(text: &str) -> Result<Option<u64>, FieldError> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(revision) if digits => Ok(Some(revision)),
        _ => {
            let why = if digits { "value out of range" } else { "invalid syntax" };
            let why = format!("strconv.ParseUint: parsing {}: {why}", quote(text));
            Err(FieldError::invalid(&Path::new("resourceVersion"), text, why))
        }
    }
}

/// A number among the parameters, with Go's message where it is none.
fn integer(query: &Query, key: &str) -> ApiResult<Option<i64>> {
    // Other than elsewhere, an empty value is a wrong one.
    let Some(text) = query.all(key).next() else { return Ok(None) };
    text.parse().map(Some).map_err(|e: std::num::ParseIntError| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let why = match e.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        ApiError::bad_request(format!("strconv.ParseInt: parsing {}: {why}", quote(text)))
    })
}

/// What becomes of unknown and duplicate fields in a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a `Warning` header each.
    Warn,
    /// Refused.
    Strict,
}

/// Options of creates, updates and patches.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Nothing is stored.
    pub dry_run: bool,
    /// Who owns the fields that change.
    pub field_manager: String,
    /// Unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Apply takes fields over from their owners.
    pub force: bool,
}

impl WriteOptions {
    /// Reads and checks the options of a write. `kind`: what messages call them. `user_agent`: the default
    /// field manager.
    pub fn parse(
        query: &Query,
        kind: &'static str,
        patch_type: Option<&str>,
        user_agent: &str,
    ) -> ApiResult<Self> {
        let mut errors = Vec::new();
        let field_manager = query.get("fieldManager").unwrap_or_default();
        errors.extend(meta::validate_field_manager(field_manager, &Path::new("fieldManager")));
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.push(FieldError::not_supported(
                    &Path::new("fieldValidation"),
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        match patch_type {
            Some(media) if is_apply(media) && field_manager.is_empty() => {
                errors.push(FieldError::required(&Path::new("fieldManager"), "is required for apply patch"));
            }
            None => {}
            Some(media) if !is_apply(media) && query.has("force") => {
                errors.push(FieldError::forbidden(
                    &Path::new("force"),
                    "may not be specified for non-apply patch",
                ));
            }
            Some(_) => {}
        }
        invalid(kind, &errors)?;
        let field_manager =
            if field_manager.is_empty() { default_manager(user_agent) } else { field_manager.into() };
        Ok(Self { dry_run, field_manager, field_validation, force: query.flag("force") })
    }
}

/// Content type of server-side apply.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// Content type of server-side apply in CBOR.
pub const APPLY_CBOR_PATCH: &str = "application/apply-patch+cbor";

/// Whether a patch of this content type is server-side apply.
pub fn is_apply(media: &str) -> bool {
    matches!(media, APPLY_PATCH | APPLY_CBOR_PATCH)
}

/// The first part of the user agent, as upstream names managers that name themselves not.
fn default_manager(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let mut end = name.len().min(meta::FIELD_MANAGER_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let name: String = name[..end].chars().filter(|c| !c.is_control()).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let values: Vec<&str> = values.collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError::not_supported(&Path::new("dryRun"), values.clone(), &["All"]));
    }
    !values.is_empty()
}

/// What becomes of dependents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Propagation {
    /// They lose their owner.
    Orphan,
    /// The garbage collector deletes them afterwards.
    Background,
    /// The garbage collector deletes them before.
    Foreground,
}

/// Options of deletions.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Nothing is deleted.
    pub dry_run: bool,
    /// How long the object may take to end.
    pub grace_period_s: Option<i64>,
    /// Only this object.
    pub uid: Option<String>,
    /// Only this state of the object.
    pub resource_version: Option<String>,
    /// What becomes of dependents.
    pub propagation: Option<Propagation>,
    /// The object is deleted although it cannot be read.
    pub ignore_read_error: bool,
    /// Options that are set and do not go with that.
    pub beside: Vec<&'static str>,
}

const IGNORE: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";

impl DeleteOptions {
    /// Reads and checks the options of a deletion from a decoded body (it wins) or the query.
    pub fn parse(query: &Query, body: Option<&Value>) -> ApiResult<Self> {
        let mut errors = Vec::new();
        let mut out = Self::default();
        let (mut policy, mut orphan);
        match body {
            Some(body) => {
                if !body.is_object() {
                    return Err(ApiError::bad_request(
                        "json: cannot unmarshal value into Go value of type v1.DeleteOptions",
                    ));
                }
                let kind = body.str_at("kind");
                if !kind.is_empty() && kind != "DeleteOptions" {
                    return Err(ApiError::bad_request(format!(
                        "decoded object cannot be converted to DeleteOptions: kind is {kind:?}"
                    )));
                }
                for (path, ok) in [
                    (
                        "gracePeriodSeconds",
                        body.at("gracePeriodSeconds").is_i64() || !body.has("gracePeriodSeconds"),
                    ),
                    (
                        "propagationPolicy",
                        body.at("propagationPolicy").is_string() || !body.has("propagationPolicy"),
                    ),
                    ("preconditions", body.at("preconditions").is_object() || !body.has("preconditions")),
                    (
                        "orphanDependents",
                        body.at("orphanDependents").is_boolean() || !body.has("orphanDependents"),
                    ),
                    ("dryRun", body.at("dryRun").is_array() || !body.has("dryRun")),
                ] {
                    if !ok {
                        return Err(ApiError::bad_request(format!(
                            "json: cannot unmarshal value into Go struct field DeleteOptions.{path}"
                        )));
                    }
                }
                out.grace_period_s = body.int_opt("gracePeriodSeconds");
                out.uid = body.str_opt("preconditions.uid").map(str::to_owned);
                out.resource_version = body.str_opt("preconditions.resourceVersion").map(str::to_owned);
                policy = body.str_opt("propagationPolicy").map(str::to_owned);
                orphan = body.bool_opt("orphanDependents");
                out.dry_run = dry_run(body.strings("dryRun").into_iter(), &mut errors);
            }
            None => {
                out.grace_period_s = integer(query, "gracePeriodSeconds")?;
                policy = query.get("propagationPolicy").map(str::to_owned);
                orphan = query.has("orphanDependents").then(|| query.flag("orphanDependents"));
                out.dry_run = dry_run(query.all("dryRun"), &mut errors);
            }
        }
        if policy.as_deref() == Some("") {
            policy = None;
        }
        let path = Path::new("propagationPolicy");
        if policy.is_some() && orphan.is_some() {
            errors.push(FieldError::invalid(
                &path,
                policy.clone().unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
            orphan = None;
        }
        out.propagation = match policy.as_deref() {
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_listed(&path, other, &known));
                None
            }
            None => orphan.map(|o| if o { Propagation::Orphan } else { Propagation::Background }),
        };
        out.ignore_read_error = match body {
            Some(body) => body.bool_opt(IGNORE) == Some(true),
            None => query.flag(IGNORE),
        };
        if out.ignore_read_error {
            let has = |name: &str| match body {
                Some(body) => body.has(name),
                None => query.has(name),
            };
            let others =
                ["dryRun", "propagationPolicy", "orphanDependents", "gracePeriodSeconds", "preconditions"];
            out.beside = others.into_iter().filter(|name| has(name)).collect();
        }
        invalid("DeleteOptions", &errors)?;
        // A negative grace period means the shortest one.
        out.grace_period_s = out.grace_period_s.map(|s| if s < 0 { 1 } else { s });
        Ok(out)
    }

    /// Checks `ignoreStoreReadErrorWithClusterBreakingPotential`, which says nothing where its feature is off.
    pub fn settle_ignore_read_error(&mut self, is_on: bool) -> ApiResult<()> {
        self.ignore_read_error &= is_on;
        if !self.ignore_read_error {
            return Ok(());
        }
        let path = Path::new(IGNORE);
        let error = |name| FieldError::invalid(&path, true, format!("cannot be set together with .{name}"));
        let errors: Vec<FieldError> = self.beside.iter().map(error).collect();
        invalid("DeleteOptions", &errors)
    }

    /// Refuses the option.
    pub fn refuse_ignore_read_error(&self, why: &str) -> ApiResult<()> {
        let error = FieldError::invalid(&Path::new(IGNORE), true, why);
        if self.ignore_read_error { invalid("DeleteOptions", &[error]) } else { Ok(()) }
    }
}
