//! Resource quantities ("500m", "1.5Gi", "1e3"): exact values, and the canonical text in which they are stored.

use std::cmp::Ordering;

/// Units of a quantity: one is 10^-9.
const NANO: i128 = 1_000_000_000;

/// The suffixes of 10^3, 10^6, ...
const DECIMAL: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
/// The suffixes of 2^10, 2^20, ...
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// The suffixes of 10^-3, 10^-6, 10^-9.
const SMALL: [&str; 3] = ["m", "u", "n"];

/// What a text that is no quantity gets as an answer.
pub const MALFORMED: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// A parsed quantity.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

/// The text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MALFORMED}")]
pub struct Malformed;

impl std::str::FromStr for Quantity {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (form, numerator, denominator) = scale(suffix)?;
        let nanos = magnitude(number, numerator, denominator)?;
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            form,
        })
    }
}

/// The factor of a suffix as a fraction.
fn scale(suffix: &str) -> Result<(Form, i128, i128), Malformed> {
    if suffix.is_empty() {
        return Ok((Form::Decimal, 1, 1));
    }
    let power = |names: &[&str]| names.iter().position(|name| *name == suffix);
    if let Some(at) = power(&BINARY) {
        return Ok((Form::Binary, 1 << (10 * (at + 1)), 1));
    }
    let thousand = |at: usize| 1000_i128.pow(u32::try_from(at + 1).unwrap_or(u32::MAX));
    if let Some(at) = power(&DECIMAL) {
        return Ok((Form::Decimal, thousand(at), 1));
    }
    if let Some(at) = power(&SMALL) {
        return Ok((Form::Decimal, 1, thousand(at)));
    }
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(Malformed)?;
    let exponent: i32 = digits.parse().map_err(|_| Malformed)?;
    let factor = 10_i128
        .checked_pow(exponent.unsigned_abs())
        .filter(|_| exponent.abs() <= 18)
        .ok_or(Malformed)?;
    Ok(if exponent < 0 {
        (Form::Exponent, 1, factor)
    } else {
        (Form::Exponent, factor, 1)
    })
}

/// A decimal number times a fraction, in nanos, rounded away from zero and capped at 2^63-1 whole units.
fn magnitude(number: &str, numerator: i128, denominator: i128) -> Result<i128, Malformed> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(Malformed);
    }
    let cap = i128::from(i64::MAX) * NANO;
    let mut value: i128 = 0;
    for digit in whole.bytes() {
        value = (value * 10 + i128::from(digit - b'0')).min(cap);
    }
    let mut nanos = value.min(i128::from(i64::MAX)) * NANO;
    let mut unit = NANO;
    let mut beyond = false;
    for digit in fraction.bytes() {
        unit /= 10;
        nanos += unit * i128::from(digit - b'0');
        beyond |= unit == 0 && digit != b'0';
    }
    let scaled = nanos.checked_mul(numerator).unwrap_or(cap * denominator);
    let rounded = scaled / denominator + i128::from(scaled % denominator != 0 || beyond);
    Ok(rounded.min(cap))
}

impl Quantity {
    /// In thousandths, rounded up: CPU's unit.
    pub fn milli(&self) -> i64 {
        self.rounded_up(NANO / 1000)
    }

    /// In whole units, rounded up: memory's unit.
    pub fn whole(&self) -> i64 {
        self.rounded_up(NANO)
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    fn rounded_up(&self, unit: i128) -> i64 {
        let up = self.nanos.div_euclid(unit) + i128::from(self.nanos.rem_euclid(unit) != 0);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }

    /// The text in which Kubernetes would store it.
    pub fn canonical(&self) -> String {
        if self.nanos == 0 {
            return "0".to_owned();
        }
        let below_binary = self.nanos.abs() < 1024 * NANO;
        match self.form {
            Form::Binary if !below_binary && self.nanos % NANO == 0 => {
                self.in_powers(1024, &BINARY)
            }
            Form::Exponent => self.in_exponents(),
            Form::Binary | Form::Decimal => self.in_decimal(),
        }
    }

    fn in_powers(&self, base: i128, names: &[&str]) -> String {
        let mut value = self.nanos / NANO;
        let mut power = 0;
        while value % base == 0 && power < names.len() {
            value /= base;
            power += 1;
        }
        let suffix = power.checked_sub(1).map_or("", |at| names[at]);
        format!("{value}{suffix}")
    }

    fn in_decimal(&self) -> String {
        if self.nanos % NANO == 0 {
            return self.in_powers(1000, &DECIMAL);
        }
        let mut unit = NANO;
        for suffix in SMALL {
            unit /= 1000;
            if self.nanos % unit == 0 {
                return format!("{}{suffix}", self.nanos / unit);
            }
        }
        format!("{}n", self.nanos)
    }

    fn in_exponents(&self) -> String {
        let mut value = self.nanos;
        let mut exponent = -9;
        while value % 1000 == 0 {
            value /= 1000;
            exponent += 3;
        }
        if exponent == 0 {
            value.to_string()
        } else {
            format!("{value}e{exponent}")
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_text_is_kubernetes() {
        for (given, canonical) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("64Mi", "64Mi"),
            ("1000000", "1M"),
            ("1024", "1024"),
            ("1e3", "1e3"),
            ("0", "0"),
            ("0Mi", "0"),
            ("-1", "-1"),
            ("0.1m", "100u"),
            ("1Ki", "1Ki"),
            ("1.25", "1250m"),
            ("2.", "2"),
            (".5", "500m"),
        ] {
            let parsed: Quantity = given.parse().expect(given);
            assert_eq!(parsed.canonical(), canonical, "{given}");
        }
    }

    #[test]
    fn values_are_exact() {
        let of = |text: &str| text.parse::<Quantity>().expect(text);
        assert_eq!(of("1500m").milli(), 1500);
        assert_eq!(of("1Gi").whole(), 1 << 30);
        assert_eq!(of("1500m").whole(), 2);
        assert_eq!(of("1"), of("1000m"));
        assert!(of("1Gi") > of("1G"));
        assert_eq!(of("99999999999999999999").whole(), i64::MAX);
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "m", "1.2.3", "1x", "abc", "1 Mi", "--1", "1e", "1e99", ".",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
