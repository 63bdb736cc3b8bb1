//! Decimals from their text, digit by digit.

/// Digits that every `i128` has room for.
const MAX_DIGITS: u32 = 38;

/// The unscaled value of a decimal with `precision` and `scale`: `1.50` and `15e-1` are both 150 at
/// scale 2. `None` when `text` is no number, or one that does not fit exactly. Zeros at either end
/// count for nothing, however many.
pub(crate) fn decimal_from_text(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (is_negative, unsigned) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut unscaled: u128 = 0;
    // Zeros that are only written down once another digit follows.
    let mut zeros: i64 = 0;
    let mut has_digits = false;
    let mut in_fraction = false;
    let mut exponent: i64 = 0;
    for (index, byte) in unsigned.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                has_digits = true;
                exponent -= i64::from(in_fraction);
                if *byte != b'0' {
                    unscaled = shifted(unscaled, zeros + 1)? + u128::from(byte - b'0');
                    zeros = 0;
                } else if unscaled > 0 {
                    zeros += 1;
                }
            }
            b'.' if !in_fraction => in_fraction = true,
            b'e' | b'E' if has_digits => {
                exponent = exponent.saturating_add(exponent_from(&unsigned[index + 1..])?);
                break;
            }
            _ => return None,
        }
    }
    if !has_digits {
        return None;
    }
    if unscaled == 0 {
        return Some(0);
    }
    let unscaled = shifted(unscaled, exponent.saturating_add(zeros + i64::from(scale)))?;
    let limit = 10_u128.pow(u32::from(precision).min(MAX_DIGITS));
    let unscaled = i128::try_from(unscaled).ok().filter(|_| unscaled < limit)?;
    Some(if is_negative { -unscaled } else { unscaled })
}

/// `value` with so many zeros more; `None` beyond 38 digits, or when digits would have to go.
fn shifted(value: u128, zeros: i64) -> Option<u128> {
    let zeros = u32::try_from(zeros).ok().filter(|zeros| *zeros <= MAX_DIGITS)?;
    let shifted = value.checked_mul(10_u128.pow(zeros))?;
    (shifted < 10_u128.pow(MAX_DIGITS)).then_some(shifted)
}

/// A number of any length, held within the range of `i64`.
fn exponent_from(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let magnitude = digits.iter().fold(0_i64, |value, digit| {
        value.saturating_mul(10).saturating_add(i64::from(digit - b'0'))
    });
    Some(if is_negative { -magnitude } else { magnitude })
}

/// Whether two texts are one number: `10.5`, `10.50` and `105e-1`.
pub fn same_number(a: &str, b: &str) -> bool {
    matches!((normal(a), normal(b)), (Some(a), Some(b)) if a == b)
}

/// Whether it is negative, its digits without zeros at either end, and the exponent of the last.
fn normal(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent_from(exponent.as_bytes())?),
        None => (text, 0),
    };
    let unsigned = mantissa.strip_prefix(['-', '+']).unwrap_or(mantissa);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some((false, String::new(), 0));
    }
    let zeros = i64::try_from(digits.len() - significant.len()).ok()?;
    let exponent = exponent.saturating_add(zeros - i64::try_from(fraction.len()).ok()?);
    let significant = significant.trim_start_matches('0').to_owned();
    Some((mantissa.starts_with('-'), significant, exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn value_fits_exactly_or_not_at_all() {
        let read = |text: &str| decimal_from_text(text, 5, 2);
        for (text, unscaled) in [
            ("1.5", 150),
            ("1.50000", 150),
            ("-999.99", -99_999),
            ("+15e-1", 150),
            ("0.0015E3", 150),
            ("000001.5", 150),
            (".5", 50),
            ("5.", 500),
            ("0e999999999999999999999", 0),
            ("-0", 0),
        ] {
            assert_eq!(read(text), Some(unscaled), "{text}");
        }
        for text in [
            "1.505",
            "1000",
            "1e3",
            "1e-3",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "",
            "-",
            ".",
            "e1",
            "1e",
            "1e+",
            "1.2.3",
            " 1",
            "1 ",
            "0x1",
            "1_0",
            "NaN",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn any_number_of_digits_is_read() {
        assert_eq!(
            decimal_from_text(&format!("{}.{}", "1", "0".repeat(300)), 38, 10),
            Some(10_i128.pow(10))
        );
        assert_eq!(decimal_from_text(&format!("{}7", "0".repeat(300)), 5, 2), Some(700));
        assert_eq!(decimal_from_text(&"9".repeat(256), 38, 0), None);
        assert_eq!(decimal_from_text(&"9".repeat(38), 38, 0), Some(10_i128.pow(38) - 1));
        assert_eq!(decimal_from_text(&format!("1{}", "0".repeat(38)), 38, 0), None);
        assert_eq!(decimal_from_text(&format!("1{}e-300", "0".repeat(300)), 38, 38), None);
        assert_eq!(
            decimal_from_text(&format!("1{}e-300", "0".repeat(300)), 38, 37),
            Some(10_i128.pow(37))
        );
    }

    #[test]
    fn numbers_are_compared_by_value() {
        assert!(same_number("10.5", "105e-1") && same_number("-0", "0.00"));
        assert!(same_number("100", "1e2") && same_number("0010", "10"));
        assert!(!same_number("1", "-1") && !same_number("1", "10") && !same_number("x", "x"));
        assert!(!same_number("0.1234567890123456789", "0.12345678901234567891"));
    }

    proptest! {
        #[test]
        fn written_decimals_are_read_as_they_were(unscaled in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_i8..=38) {
            let digits = format!("{:0>40}", unscaled.unsigned_abs());
            let point = digits.len() - usize::try_from(scale).expect("not negative");
            let sign = if unscaled < 0 { "-" } else { "" };
            let text = format!("{sign}{}.{}", &digits[..point], &digits[point..]);
            prop_assert_eq!(decimal_from_text(&text, 38, scale), Some(unscaled));
        }
    }
}
