//! The test suites that use the conformance cases, as one program.

#[path = "../../fuzz/src/checks.rs"]
mod checks;
mod conformance;
mod guide;
mod mutation;
mod properties;
mod support;
