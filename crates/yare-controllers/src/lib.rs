//! The controllers, one file each, and the table of them
