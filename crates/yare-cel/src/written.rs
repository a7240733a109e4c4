//! Objects of a typed program, which have fields that nobody set.
//!
//! Upstream shows expressions what Go writes of its structs: `status: {}`, `restartCount: 0`. Such fields stand in no
//! JSON at rest. A [`Written`] declaration says which they are, and the object is read through it as it lies: nothing
//! is copied, and what no expression looks at costs nothing.

use std::fmt;

use serde_json::Value as Json;

use crate::Decl;

/// What a type of the program is, beyond its JSON.
pub trait Written: Send + Sync {
    /// What the items of a list, the values of a map, or a field of an object are.
    fn within(&'static self, name: &str) -> &'static Decl;
    /// The fields that every object has, by name in order, with what stands there when nobody set them.
    fn unset(&'static self) -> &'static [(Box<str>, Json)];
}

impl fmt::Debug for dyn Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written")
    }
}

impl PartialEq for dyn Written {
    /// There is one declaration of each type.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// The fields of `entries` that nobody set.
pub(crate) fn missing<'a>(
    written: &'static dyn Written,
    entries: &'a serde_json::Map<String, Json>,
) -> impl Iterator<Item = &'static (Box<str>, Json)> + 'a {
    written.unset().iter().filter(|(name, _)| !entries.contains_key(&**name))
}

/// What stands where nobody set a field.
pub(crate) fn unset(written: &'static dyn Written, name: &str) -> Option<&'static Json> {
    let fields = written.unset();
    fields.binary_search_by(|(field, _)| (**field).cmp(name)).ok().map(|place| &fields[place].1)
}

/// The value as the program writes it.
pub(crate) fn complete(json: &Json, decl: &Decl) -> Json {
    let crate::DeclKind::Written(written) = decl.kind else { return json.clone() };
    match json {
        Json::Array(items) => {
            let item = written.within("");
            Json::Array(items.iter().map(|i| complete(i, item)).collect())
        }
        Json::Object(entries) => Json::Object(complete_object(entries, written)),
        other => other.clone(),
    }
}

pub(crate) fn complete_object(
    entries: &serde_json::Map<String, Json>,
    written: &'static dyn Written,
) -> serde_json::Map<String, Json> {
    let set = entries.iter().map(|(name, value)| (name.clone(), complete(value, written.within(name))));
    let unset = missing(written, entries).map(|(name, value)| (name.to_string(), value.clone()));
    set.chain(unset).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use serde_json::json;

    use super::*;
    use crate::{Budget, Env, Vars};

    /// A pod with a list of containers: `spec` has `hostNetwork`, each container `resources`, and there is a status.
    struct Pod(u8);

    type Fields = Vec<(Box<str>, Json)>;

    static LEVELS: [Decl; 3] = [decl(&Pod(0)), decl(&Pod(1)), decl(&Pod(2))];

    const fn decl(of: &'static Pod) -> Decl {
        Decl::written(of)
    }

    impl Written for Pod {
        fn within(&'static self, name: &str) -> &'static Decl {
            match (self.0, name) {
                (0, "spec") => &LEVELS[1],
                (1, "containers") | (2, "") => &LEVELS[2],
                _ => &crate::json::DYN,
            }
        }

        fn unset(&'static self) -> &'static [(Box<str>, Json)] {
            static FIELDS: OnceLock<[Fields; 3]> = OnceLock::new();
            &FIELDS.get_or_init(|| {
                [
                    vec![("spec".into(), json!({"hostNetwork": false})), ("status".into(), json!({}))],
                    vec![("hostNetwork".into(), json!(false)), ("nothing".into(), Json::Null)],
                    vec![("resources".into(), json!({}))],
                ]
            })[usize::from(self.0)]
        }
    }

    fn env() -> Env {
        Env::kubernetes("1.36".parse().unwrap()).extend().declare("object", &LEVELS[0]).build()
    }

    #[test]
    fn fields_that_nobody_set_are_there() {
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}, {"name": "b"}]}});
        let env = env();
        for (source, want) in [
            ("has(object.status) && !has(object.kind) && object.status == {}", true),
            (
                "object.spec.hostNetwork == false && object.spec.nothing == null && has(object.spec.nothing)",
                true,
            ),
            ("object.spec.containers.map(c, c.resources.size()) == [1, 0]", true),
            ("object.spec.containers[1] == {'name': dyn('b'), 'resources': dyn({})}", true),
            ("object.size() == 2 && object.map(k, k) == ['spec', 'status']", true),
            ("object.spec.map(k, k) == ['containers', 'hostNetwork', 'nothing']", true),
            ("'status' in object && 'resources' in object.spec.containers[1] && !('x' in object)", true),
            ("object == {'spec': dyn(object.spec), 'status': dyn({})}", true),
            ("object.spec.containers.exists(c, has(c.resources.limits))", true),
        ] {
            let program = env.compile(source).unwrap().program().unwrap();
            let mut vars = Vars::new();
            vars.bind_json("object", &pod, &LEVELS[0]);
            let value = program.eval(&vars, &mut Budget::unlimited()).unwrap();
            assert_eq!(value.as_bool(), Some(want), "{source}");
        }
    }

    #[test]
    fn results_have_them_too() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        let env = env();
        for (source, want) in [
            (
                "object",
                json!({"spec": {"containers": [{"name": "a", "resources": {}}], "hostNetwork": false, "nothing": null}, "status": {}}),
            ),
            ("object.spec.containers", json!([{"name": "a", "resources": {}}])),
            ("[object.spec.containers[0]]", json!([{"name": "a", "resources": {}}])),
        ] {
            let program = env.compile(source).unwrap().program().unwrap();
            let mut vars = Vars::new();
            vars.bind_json("object", &pod, &LEVELS[0]);
            assert_eq!(
                program.eval(&vars, &mut Budget::unlimited()).unwrap().to_json().unwrap(),
                want,
                "{source}"
            );
        }
    }
}
