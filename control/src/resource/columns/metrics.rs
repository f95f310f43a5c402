//! The table of what nodes and pods use.

use serde_json::{Value, json};

use super::{Column, NAME, column, name};
use crate::api::meta;

/// The columns of both kinds.
pub const MEASUREMENTS: &[Column] = &[
    NAME,
    column("cpu", "", ""),
    column("memory", "", ""),
    column("Window", "", ""),
];

/// The cells of a node, or of a pod: what its containers use together.
pub fn measurement(object: &Value) -> Vec<Value> {
    let of = |resource: &str| {
        let own = std::iter::once(meta::text(object, &["usage", resource]));
        let parts = meta::list(object, &["containers"]).iter();
        let parts = parts.map(|part| meta::text(part, &["usage", resource]));
        let number = |text: &str| {
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            digits.parse::<u64>().unwrap_or(0)
        };
        own.chain(parts).map(number).sum::<u64>()
    };
    vec![
        name(object),
        json!(format!("{}n", of("cpu"))),
        json!(format!("{}Ki", of("memory"))),
        json!(meta::text(object, &["window"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_containers_count_together() {
        let object = json!({
            "metadata": {"name": "p"},
            "window": "1.5s",
            "containers": [
                {"usage": {"cpu": "100n", "memory": "4Ki"}},
                {"usage": {"cpu": "250n", "memory": "8Ki"}},
            ],
        });
        assert_eq!(measurement(&object), ["p", "350n", "12Ki", "1.5s"]);
    }
}
