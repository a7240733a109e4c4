//! The revisioned store: transactions, snapshots, watches and a log that survives kill -9
