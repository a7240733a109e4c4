//! The words in which `yare.io/local-path` volumes are spoken of: by the controller that makes them, by the
//! node that has their files, and by the authorizers that keep a node to its own.

/// The provisioner of the StorageClass, and `pv.kubernetes.io/provisioned-by` of its volumes.
pub const DRIVER: &str = "yare.io/local-path";

/// The name of the StorageClass that a new cluster has.
pub const CLASS: &str = "local-path";

/// Label of a volume: the name of the node that has its files. A node sees and changes only volumes with its own.
pub const NODE_LABEL: &str = "local-path.yare.io/node";

/// Annotation of a volume whose directory is still to be made: the directory on the node that its content comes
/// from, empty for none. The node takes it away when all is there; from then on a missing directory is a loss, and
/// is not made again.
pub const PENDING: &str = "local-path.yare.io/pending";

/// Finalizer of a volume whose files are to go with it (KEP-2644); the node takes it away when they are gone.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// Annotation that says who made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
