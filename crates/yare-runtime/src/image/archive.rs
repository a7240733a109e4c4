//! Images from files: OCI layouts and docker archives.
