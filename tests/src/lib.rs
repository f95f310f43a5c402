//! End-to-end tests of Portolan live in this package's tests/ folder.
