//! The node agent: pod lifecycle, probes, volumes, logs, its HTTP API
