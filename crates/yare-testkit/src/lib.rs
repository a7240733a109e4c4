//! Clusters, images and clients for tests
