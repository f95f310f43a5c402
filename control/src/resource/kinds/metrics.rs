//! What nodes and pods use: only shown, so there are only columns.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Behaviour, Column, columns};

/// Of nodes and of pods.
pub struct Measurements;

impl Behaviour for Measurements {
    fn columns(&self) -> &'static [Column] {
        columns::metrics::MEASUREMENTS
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        columns::metrics::measurement(object)
    }
}
