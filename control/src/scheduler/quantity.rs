//! Kubernetes quantities as whole numbers: "500m" CPU is 500 thousandths, "128Mi" memory is 134217728 bytes.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In thousandths, rounded up; 0 for what is no quantity, as validation lets none through.
pub fn thousandths(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1000)
}

/// In whole units, rounded up; 0 for what is no quantity, as validation lets none through.
pub fn units(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1)
}

fn scaled(text: &str, factor: i128) -> i64 {
    let text = text.trim();
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let Some((numerator, denominator)) = suffix_factor(suffix) else {
        return 0;
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = &fraction[..fraction.len().min(12)];
    let is_negative = whole.starts_with('-');
    let joined = format!("{}{fraction}", whole.trim_start_matches(['+', '-']));
    let Ok(value) = joined.parse::<i128>() else {
        return 0;
    };
    let decimals = 10_i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let dividend = value.saturating_mul(numerator).saturating_mul(factor);
    let divisor = denominator.saturating_mul(decimals);
    let rounded = dividend.div_euclid(divisor) + i128::from(dividend.rem_euclid(divisor) != 0);
    let rounded = i64::try_from(rounded).unwrap_or(i64::MAX);
    if is_negative { -rounded } else { rounded }
}

fn suffix_factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1024_i128.pow(power), 1));
    let decimal = |power: u32| Some((10_i128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.pow(power.unsigned_abs().min(18));
            Some(if power < 0 { (1, factor) } else { (factor, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_quantity() {
        for (text, milli, unit) in [
            ("500m", 500, 1),
            ("1", 1000, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("128Mi", 134_217_728_000, 134_217_728),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("1G", 1_000_000_000_000, 1_000_000_000),
            ("1e3", 1_000_000, 1000),
            ("2E", i64::MAX, 2_000_000_000_000_000_000),
            ("100u", 1, 1),
            ("nonsense", 0, 0),
            ("", 0, 0),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!(thousandths(&quantity), milli, "{text}");
            assert_eq!(units(&quantity), unit, "{text}");
        }
    }
}
