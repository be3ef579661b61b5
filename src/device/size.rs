//! Numbers of bytes as people write and read them.

use std::fmt;
use std::str::FromStr;

/// Bytes as people read them: `24 GiB`, `1.5 MiB`; and as they write them: `"24GiB"`, `"1.5 GB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = format!("{value:.1}");
        write!(f, "{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
    }
}

/// A text that is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a number of bytes: write '12GiB', '1.5GB', '512MiB' or a whole number")]
pub struct SizeError {
    given: String,
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(given: &str) -> Result<Self, SizeError> {
        parse(given).map(Self).ok_or_else(|| SizeError { given: given.to_owned() })
    }
}

fn parse(given: &str) -> Option<u64> {
    let text = given.trim();
    let digits =
        text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        "eb" => 1_000_000_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "pib" => 1 << 50,
        "eib" => 1 << 60,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a fraction of a unit is not exact anyway")]
    let bytes = (value * factor as f64).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit")]
    (bytes.is_finite() && bytes < 9.2e18).then_some(bytes as u64)
}
