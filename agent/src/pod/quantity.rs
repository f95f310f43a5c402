//! Kubernetes' quantities ("100m", "64Mi", "1.5e3") as numbers. The API has validated them.
#![forbid(unsafe_code)]

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths, rounded up: CPUs are counted so.
pub fn millis(quantity: &Quantity) -> Option<u64> {
    scaled(&quantity.0, 1000.0)
}

/// Rounded up: bytes are counted so.
pub fn units(quantity: &Quantity) -> Option<u64> {
    scaled(&quantity.0, 1.0)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked, and no machine has amounts that an f64 rounds"
)]
fn scaled(text: &str, factor: f64) -> Option<u64> {
    let suffixes = [
        ("Ki", 1024.0),
        ("Mi", 1024_f64.powi(2)),
        ("Gi", 1024_f64.powi(3)),
        ("Ti", 1024_f64.powi(4)),
        ("Pi", 1024_f64.powi(5)),
        ("Ei", 1024_f64.powi(6)),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let (number, scale) = match text.parse::<f64>() {
        Ok(number) => (number, 1.0),
        Err(_) => suffixes.iter().find_map(|(suffix, scale)| {
            Some((text.strip_suffix(suffix)?.parse::<f64>().ok()?, *scale))
        })?,
    };
    // What 0.1 can't say exactly must not round up to one more.
    let value = (number * scale * factor * 1e6).round() / 1e6;
    (0.0..=9e18).contains(&value).then(|| value.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_all_notations() {
        let units_of = |text: &str| units(&Quantity(text.into()));
        assert_eq!(units_of("64Mi"), Some(64 << 20));
        assert_eq!(units_of("1.5k"), Some(1500));
        assert_eq!(units_of("1e3"), Some(1000));
        assert_eq!(units_of("100m"), Some(1));
        assert_eq!(units_of("x"), None);
        let millis_of = |text: &str| millis(&Quantity(text.into()));
        assert_eq!(millis_of("100m"), Some(100));
        assert_eq!(millis_of("0.1"), Some(100));
        assert_eq!(millis_of("2"), Some(2000));
        assert_eq!(millis_of("1500u"), Some(2));
    }
}
