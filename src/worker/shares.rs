//! Splitting a whole number of things unevenly.

/// Why nothing can be shared.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SharesError {
    /// There is nobody to share with.
    #[error("shares needs at least one speed")]
    Nobody,
    /// A speed that is no speed.
    #[error("a speed must be a finite number, 0 or more, not {0}")]
    BadSpeed(f64),
    /// Nobody moves.
    #[error("at least one speed must be more than 0")]
    AllZero,
    /// Too many to be split to the last one.
    #[error("cannot split {0} fairly: the most is {MOST}")]
    TooMany(u64),
}

/// The largest total of which the fractions below still tell a quarter.
const MOST: u64 = 1 << 51;

/// Splits `total` in proportion to `speeds` into whole numbers that add up to `total`.
///
/// The largest-remainder method (Hamilton's): everyone gets the whole part of an exact share, and
/// what is left goes, one each, to the largest fractions, the earlier first. A speed of 0 gets 0.
///
/// # Errors
/// [`SharesError`].
pub fn shares(total: u64, speeds: &[f64]) -> Result<Vec<u64>, SharesError> {
    if speeds.is_empty() {
        return Err(SharesError::Nobody);
    }
    if let Some(&bad) = speeds.iter().find(|speed| !speed.is_finite() || **speed < 0.0) {
        return Err(SharesError::BadSpeed(bad));
    }
    if total > MOST {
        return Err(SharesError::TooMany(total));
    }
    // Scaled by the fastest, so that no sum overflows.
    let fastest = speeds.iter().copied().fold(0.0, f64::max);
    if fastest <= 0.0 {
        return Err(SharesError::AllZero);
    }
    let scaled: Vec<f64> = speeds.iter().map(|speed| speed / fastest).collect();
    let sum: f64 = scaled.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "at most 2^51")]
    let exact: Vec<f64> = scaled.iter().map(|speed| total as f64 * (speed / sum)).collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^51")]
    let mut shares: Vec<u64> = exact.iter().map(|share| share.floor() as u64).collect();
    let mut order: Vec<usize> = (0..speeds.len()).filter(|&at| speeds[at] > 0.0).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    // Rounding can leave a few too many or too few; the fractions decide either way.
    let mut given: u64 = shares.iter().sum();
    for &at in order.iter().cycle() {
        if given >= total {
            break;
        }
        shares[at] += 1;
        given += 1;
    }
    for &at in order.iter().rev().cycle() {
        if given <= total {
            break;
        }
        let taken = u64::from(shares[at] > 0);
        shares[at] -= taken;
        given -= taken;
    }
    Ok(shares)
}
