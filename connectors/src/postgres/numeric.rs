//! The binary form of `numeric`: base-10000 digits with a weight, a sign and a display scale.
//!
//! ```text
//! int16 digit count │ int16 weight │ uint16 sign │ uint16 display scale │ int16 digits …
//! ```
//! The value is `sign × Σ digit[i] × 10000^(weight − i)`. Source: `numeric_send` in
//! `src/backend/utils/adt/numeric.c` of PostgreSQL.

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NOT_A_NUMBER: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// Decimal128 holds absolute values below this.
const DECIMAL_LIMIT: u128 = 10_u128.pow(38);

const POWERS: [u32; 5] = [1, 10, 100, 1_000, 10_000];

/// The unscaled value of a `numeric` at `scale`; never rounds.
pub(super) fn decode(bytes: &[u8], scale: i8) -> Result<i128, String> {
    let Some((header, digits)) = bytes.split_at_checked(8) else {
        return Err("a numeric value is cut short".to_owned());
    };
    let word = |index: usize| u16::from_be_bytes([header[index * 2], header[index * 2 + 1]]);
    let weight = i32::from(word(1).cast_signed());
    let sign = word(2);
    let negative = match sign {
        POSITIVE => false,
        NEGATIVE => true,
        NOT_A_NUMBER => return Err(not_finite("NaN")),
        INFINITY => return Err(not_finite("Infinity")),
        NEGATIVE_INFINITY => return Err(not_finite("-Infinity")),
        other => return Err(format!("a numeric value has the unknown sign {other:#06x}")),
    };
    if digits.len() != usize::from(word(0)) * 2 {
        return Err("a numeric value is cut short".to_owned());
    }
    let scale = i32::from(scale);
    let mut value: u128 = 0;
    // The power of ten of the last digit taken, relative to the target's unit.
    let mut exponent = 4 * (weight + 1) + scale;
    for digit in digits.chunks_exact(2) {
        let digit = u32::from(u16::from_be_bytes([digit[0], digit[1]]));
        exponent -= 4;
        let (factor, digit) = if exponent >= 0 {
            (10_000, digit)
        } else if exponent > -4 {
            let kept = usize::try_from(exponent + 4).expect("between 1 and 3");
            let divisor = POWERS[4 - kept];
            if digit % divisor != 0 {
                return Err(too_fine(scale));
            }
            (POWERS[kept], digit / divisor)
        } else if digit == 0 {
            continue;
        } else {
            return Err(too_fine(scale));
        };
        value = value
            .checked_mul(u128::from(factor))
            .and_then(|value| value.checked_add(u128::from(digit)))
            .ok_or_else(too_large)?;
    }
    if exponent > 0 && value != 0 {
        let power = u32::try_from(exponent).ok().and_then(|power| 10_u128.checked_pow(power));
        value = power.and_then(|power| value.checked_mul(power)).ok_or_else(too_large)?;
    }
    if value >= DECIMAL_LIMIT {
        return Err(too_large());
    }
    let value = value.cast_signed();
    Ok(if negative { -value } else { value })
}

fn not_finite(what: &str) -> String {
    format!("{what} has no decimal value")
}
fn too_fine(scale: i32) -> String {
    format!("a numeric value has more than {scale} digits behind the point")
}
fn too_large() -> String {
    "a numeric value does not fit into 38 digits".to_owned()
}

/// Appends length and value of `unscaled × 10^-scale`.
pub(super) fn encode(unscaled: i128, scale: i8, out: &mut Vec<u8>) {
    // A negative scale multiplies; the display scale is then 0.
    let display_scale = u16::try_from(scale).unwrap_or(0);
    let mut rest = unscaled.unsigned_abs();
    // Groups of four digits, least significant first, aligned to the point: 38 digits and up to
    // three zeros of alignment on either side, and 128 for the most negative scale.
    let mut groups = [0_u16; 44];
    let mut count = 0;
    // How many decimal digits the lowest group must be shifted left so that groups align.
    let shift = (4 - i32::from(scale).rem_euclid(4)) % 4;
    // Power of ten thousand of the lowest group.
    let lowest = -(i32::from(scale) + shift) / 4;
    if rest != 0 && shift > 0 {
        // The lowest group takes 4 - shift digits of the value.
        let taken = usize::try_from(4 - shift).expect("between 1 and 3");
        let divisor = u128::from(POWERS[taken]);
        let group = u32::try_from(rest % divisor).expect("below 10000")
            * POWERS[usize::try_from(shift).expect("between 1 and 3")];
        groups[0] = u16::try_from(group).expect("below 10000");
        count = 1;
        rest /= divisor;
    }
    while rest != 0 {
        if let Ok(mut small) = u64::try_from(rest) {
            while small != 0 {
                groups[count] = u16::try_from(small % 10_000).expect("below 10000");
                count += 1;
                small /= 10_000;
            }
            break;
        }
        groups[count] = u16::try_from(rest % 10_000).expect("below 10000");
        count += 1;
        rest /= 10_000;
    }
    // The server strips zeros itself, but fewer digits are fewer bytes.
    let leading = groups[..count].iter().rev().take_while(|group| **group == 0).count();
    count -= leading;
    let trailing = groups[..count].iter().take_while(|group| **group == 0).count();
    let digits = &groups[trailing..count];
    let weight =
        if digits.is_empty() { 0 } else { lowest + i32::try_from(count).expect("at most 44") - 1 };
    let length = u32::try_from(8 + digits.len() * 2).expect("at most 96");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&u16::try_from(digits.len()).expect("at most 44").to_be_bytes());
    out.extend_from_slice(&i16::try_from(weight).expect("scale has 8 bits").to_be_bytes());
    let sign = if unscaled < 0 && !digits.is_empty() { NEGATIVE } else { POSITIVE };
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&display_scale.to_be_bytes());
    for digit in digits.iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(unscaled: i128, scale: i8) -> Result<i128, String> {
        let mut bytes = Vec::new();
        encode(unscaled, scale, &mut bytes);
        let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        assert_eq!(usize::try_from(length).expect("small"), bytes.len() - 4);
        decode(&bytes[4..], scale)
    }

    #[test]
    fn extreme_values_survive_at_every_scale() {
        let largest = 10_i128.pow(38) - 1;
        for scale in -4..=38 {
            for value in [0, 1, -1, 9, 10, 9_999, 10_000, 10_001, 123_456_789, largest, -largest] {
                // A negative scale multiplies beyond 38 digits only on the wire.
                assert_eq!(round_trip(value, scale), Ok(value), "{value} scale {scale}");
            }
        }
    }

    #[test]
    fn values_are_refused_rather_than_rounded() {
        let mut bytes = Vec::new();
        encode(12_345, 3, &mut bytes);
        assert_eq!(decode(&bytes[4..], 3), Ok(12_345));
        assert_eq!(decode(&bytes[4..], 5), Ok(1_234_500));
        assert!(decode(&bytes[4..], 2).is_err());
        assert!(decode(&bytes[4..], 38).is_err(), "12.345 at scale 38 has 40 digits");
        assert!(decode(&[0, 0, 0, 0, 0xC0, 0, 0, 0], 2).is_err());
    }

    proptest! {
        #[test]
        fn every_decimal_survives(value in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_i8..=38) {
            prop_assert_eq!(round_trip(value, scale), Ok(value));
        }
    }
}
