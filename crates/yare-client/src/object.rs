//! Cached objects: JSON at rest with the few fields that everyone asks for.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// Namespace (empty for cluster-scoped objects) and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct ObjectKey {
    /// Empty for cluster-scoped objects.
    pub namespace: Box<str>,
    /// `metadata.name`
    pub name: Box<str>,
}

impl ObjectKey {
    /// A key; `namespace` is empty for cluster-scoped objects.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: &str) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerRef {
    /// `apps/v1`
    pub api_version: Box<str>,
    /// `ReplicaSet`
    pub kind: Box<str>,
    /// Name of the owner, in the same namespace or cluster-scoped.
    pub name: Box<str>,
    /// Uid of the owner.
    pub uid: Box<str>,
    /// Whether this owner manages the object.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// A cached object does not look like what the caller asked for.
#[derive(Debug, thiserror::Error)]
#[error("object {key}: {source}")]
pub struct ViewError {
    /// Which object.
    pub key: ObjectKey,
    /// Where its JSON and the view disagree.
    pub source: serde_json::Error,
}

/// An object as bytes with its few hot fields extracted. Cheap to clone.
#[derive(Clone)]
pub struct Cached(Arc<Hot>);

struct Hot {
    key: ObjectKey,
    uid: Box<str>,
    resource_version: u64,
    labels: Box<[(Box<str>, Box<str>)]>,
    owners: Box<[OwnerRef]>,
    finalizers: Box<[Box<str>]>,
    deletion_timestamp: Option<Box<str>>,
    node_name: Option<Box<str>>,
    bytes: Bytes,
}

/// What is read when an object arrives; everything else is skipped over.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, default)]
    deletion_timestamp: Option<Cow<'a, str>>,
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
    #[serde(default)]
    owner_references: Option<Vec<OwnerRef>>,
    #[serde(default)]
    finalizers: Option<Vec<Box<str>>>,
}

/// `spec` may be anything in a custom resource, so only an object's string `nodeName` counts.
#[derive(Default)]
struct Spec<'a>(Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Spec<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> serde::de::Visitor<'de> for Visitor<'a> {
            type Value = Spec<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if key.0.as_deref() == Some("nodeName") {
                        found = map.next_value::<Text<'de>>()?.0;
                    } else {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    }
                }
                Ok(Spec(found))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(Spec(None))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Spec(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Spec(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Spec(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Spec(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Spec(None))
            }
            fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Spec(None))
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

/// A string, borrowed where it has no escapes; `None` for any other JSON value.
struct Text<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Borrowed(v))))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Text(Some(Cow::Owned(v.to_owned()))))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Text(None))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Text(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Text(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Text(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Text(None))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Cached {
    /// Reads the hot fields of an object and keeps `bytes` as they are.
    pub fn new(bytes: Bytes) -> Result<Self, serde_json::Error> {
        let document: Document<'_> = serde_json::from_slice(&bytes)?;
        let meta = document.metadata;
        let hot = Hot {
            key: ObjectKey::new(&meta.namespace, &meta.name),
            uid: meta.uid.as_ref().into(),
            // Only equality and, since 1.35, order as a decimal number are defined; all servers count up.
            resource_version: meta.resource_version.parse().unwrap_or(0),
            labels: meta.labels.unwrap_or_default().into_iter().collect(),
            owners: meta.owner_references.unwrap_or_default().into_boxed_slice(),
            finalizers: meta.finalizers.unwrap_or_default().into_boxed_slice(),
            deletion_timestamp: meta.deletion_timestamp.map(|t| t.as_ref().into()),
            node_name: document.spec.0.filter(|n| !n.is_empty()).map(|n| n.as_ref().into()),
            bytes: bytes.clone(),
        };
        Ok(Self(Arc::new(hot)))
    }

    /// Namespace and name.
    pub fn key(&self) -> &ObjectKey {
        &self.0.key
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        &self.0.key.namespace
    }

    /// `metadata.name`
    pub fn name(&self) -> &str {
        &self.0.key.name
    }

    /// `metadata.uid`
    pub fn uid(&self) -> &str {
        &self.0.uid
    }

    /// `metadata.resourceVersion` as a number.
    pub fn resource_version(&self) -> u64 {
        self.0.resource_version
    }

    /// `metadata.labels`, sorted by name.
    pub fn labels(&self) -> &[(Box<str>, Box<str>)] {
        &self.0.labels
    }

    /// One label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let labels = &self.0.labels;
        labels.binary_search_by(|(k, _)| (**k).cmp(name)).ok().map(|i| &*labels[i].1)
    }

    /// `metadata.ownerReferences`
    pub fn owners(&self) -> &[OwnerRef] {
        &self.0.owners
    }

    /// The owner that manages this object.
    pub fn controller(&self) -> Option<&OwnerRef> {
        self.0.owners.iter().find(|o| o.controller)
    }

    /// `metadata.finalizers`
    pub fn finalizers(&self) -> &[Box<str>] {
        &self.0.finalizers
    }

    /// Whether it has this one.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.0.finalizers.iter().any(|finalizer| **finalizer == *name)
    }

    /// `metadata.deletionTimestamp`
    pub fn deletion_timestamp(&self) -> Option<&str> {
        self.0.deletion_timestamp.as_deref()
    }

    /// `spec.nodeName` of a pod that is bound (and of whatever else has such a field).
    pub fn node_name(&self) -> Option<&str> {
        self.0.node_name.as_deref()
    }

    /// The JSON, as the API server sent it.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// Decodes what `V` has fields for: small structs with `#[serde(default)]` fields, or a `k8s-openapi`
    /// type for kinds that are rarely read.
    pub fn view<V: DeserializeOwned>(&self) -> Result<V, ViewError> {
        serde_json::from_slice(&self.0.bytes).map_err(|source| ViewError { key: self.0.key.clone(), source })
    }

    /// Whether both are the same allocation, hence the same object at the same version.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cached({} uid {} at {})", self.0.key, self.0.uid, self.0.resource_version)
    }
}

/// Orders cached objects by key, so that sets of them need no keys of their own.
#[derive(Clone)]
pub(crate) struct ByKey(pub(crate) Cached);

impl std::borrow::Borrow<ObjectKey> for ByKey {
    fn borrow(&self) -> &ObjectKey {
        self.0.key()
    }
}
impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}
impl Eq for ByKey {}
impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key().cmp(other.0.key())
    }
}

/// For fields of views: `null` is the default, as in Go. What upstream always writes (a role's `rules`, a slice's
/// `ports`) is `null` where it is empty.
///
/// # Errors
/// What is there is not of the type.
pub fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_fields_are_read_and_the_bytes_kept() {
        let json = Bytes::from_static(
            br#"{"kind":"Pod","metadata":{"name":"a\u002d1","namespace":"n","uid":"u","resourceVersion":"42",
            "labels":{"z":"1","app":"w\n"},"deletionTimestamp":"2026-01-01T00:00:00Z","managedFields":[{}],
            "finalizers":["x/y","z"],"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","uid":"o","controller":true}]},
            "spec":{"containers":[{"nodeName":3}],"nodeName":"n1"},"status":{"x":[1,2,{"y":null}]}}"#,
        );
        let c = Cached::new(json.clone()).unwrap();
        assert_eq!(c.key(), &ObjectKey::new("n", "a-1"));
        assert_eq!((c.uid(), c.resource_version()), ("u", 42));
        assert_eq!((c.label("app"), c.label("z"), c.label("no")), (Some("w\n"), Some("1"), None));
        assert_eq!(c.controller().map(|o| &*o.uid), Some("o"));
        assert_eq!(c.deletion_timestamp(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(c.node_name(), Some("n1"));
        assert!(c.has_finalizer("z") && !c.has_finalizer("y"));
        assert_eq!(c.bytes().as_ptr(), json.as_ptr());
    }

    #[test]
    fn odd_shapes_of_custom_resources_are_no_error() {
        for spec in ["null", "3", "-3", "1.5", "true", "\"s\"", "[1,{}]", "{\"nodeName\":{\"a\":[]}}", "{}"] {
            let json = format!(
                r#"{{"metadata":{{"name":"x","labels":null,"ownerReferences":null}},"spec":{spec}}}"#
            );
            let c = Cached::new(Bytes::from(json)).unwrap();
            assert_eq!(c.node_name(), None);
        }
    }
}
