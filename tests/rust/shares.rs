//! Splitting a whole number of things in proportion to speeds.

use coresident::worker::{SharesError, shares};

use super::helpers::{Random, refusal};

#[test]
fn what_is_left_goes_to_the_largest_fractions_the_earlier_first() {
    assert_eq!(shares(10, &[1.0, 1.0, 1.0]), Ok(vec![4, 3, 3]));
    assert_eq!(shares(7, &[2.0, 1.0]), Ok(vec![5, 2]));
    assert_eq!(shares(5, &[0.0, 1.5, 1.0]), Ok(vec![0, 3, 2]));
    assert_eq!(shares(1, &[1.0, 1.0]), Ok(vec![1, 0]));
    assert_eq!(shares(0, &[1.0, 2.0]), Ok(vec![0, 0]));
    assert_eq!(shares(9, &[0.25]), Ok(vec![9]));
}

/// Speeds as whole numbers, of which some are 0 and one is not.
fn speeds(random: &mut Random, largest: u64) -> Vec<u32> {
    let count = 1 + random.below(12);
    let speed = |random: &mut Random| {
        let quiet = random.below(4) == 0;
        if quiet { 0 } else { u32::try_from(random.below(largest)).unwrap() }
    };
    let mut speeds: Vec<u32> = (0..count).map(|_| speed(random)).collect();
    let at = usize::try_from(random.below(count)).unwrap();
    speeds[at] = 1 + u32::try_from(random.below(largest)).unwrap();
    speeds
}

/// Splits and checks all that holds for every split: the sum, and nothing for a speed of 0.
fn split(total: u64, speeds: &[u32]) -> Vec<u64> {
    let floats: Vec<f64> = speeds.iter().map(|&speed| f64::from(speed)).collect();
    let shares = shares(total, &floats).unwrap();
    assert_eq!(shares.len(), speeds.len());
    assert_eq!(shares.iter().sum::<u64>(), total, "{total} by {speeds:?}");
    for (&share, &speed) in shares.iter().zip(speeds) {
        assert!(speed > 0 || share == 0, "{total} by {speeds:?} gave {shares:?}");
    }
    shares
}

#[test]
fn shares_add_up_and_are_less_than_one_off() {
    let mut random = Random(2026);
    for _ in 0..20_000 {
        let speeds = speeds(&mut random, 1 << 20);
        let total = random.below(1 << 30);
        let sum: u128 = speeds.iter().copied().map(u128::from).sum();
        for (&share, &speed) in split(total, &speeds).iter().zip(&speeds) {
            let exact = u128::from(total) * u128::from(speed);
            let off = (u128::from(share) * sum).abs_diff(exact);
            assert!(off < sum, "{total} by {speeds:?}: {share} is {off}/{sum} off");
        }
    }
}

#[test]
fn the_largest_totals_add_up_too() {
    let mut random = Random(53);
    for _ in 0..20_000 {
        let speeds = speeds(&mut random, 1 << 32);
        split((1 << 51) - random.below(1 << 10), &speeds);
    }
}

#[test]
fn the_faster_never_gets_less() {
    let mut random = Random(11);
    for _ in 0..20_000 {
        let speeds = speeds(&mut random, 16);
        let total = random.below(100);
        let shares = split(total, &speeds);
        let ranked = speeds.iter().zip(&shares);
        for (speed, share) in ranked.clone() {
            let slower = ranked.clone().filter(|(other, _)| *other < speed);
            assert!(slower.max_by_key(|(_, less)| **less).is_none_or(|(_, less)| less <= share));
        }
    }
}

#[test]
fn speeds_of_any_size_are_only_compared() {
    assert_eq!(shares(6, &[f64::MAX, f64::MAX]), Ok(vec![3, 3]));
    assert_eq!(shares(6, &[f64::MAX, f64::MAX / 2.0]), Ok(vec![4, 2]));
    let tiniest = f64::from_bits(1);
    assert_eq!(shares(6, &[tiniest, tiniest]), Ok(vec![3, 3]));
    assert_eq!(shares(6, &[f64::MAX, tiniest, -0.0]), Ok(vec![6, 0, 0]));
}

#[test]
fn what_cannot_be_shared_is_refused() {
    assert_eq!(shares(1, &[]), Err(SharesError::Nobody));
    assert_eq!(shares(1, &[0.0, -0.0]), Err(SharesError::AllZero));
    assert_eq!(shares(1, &[1.0, -1.0]), Err(SharesError::BadSpeed(-1.0)));
    assert_eq!(shares(1, &[f64::INFINITY]), Err(SharesError::BadSpeed(f64::INFINITY)));
    assert_eq!(
        refusal(shares(1, &[f64::NAN])),
        "a speed must be a finite number, 0 or more, not NaN"
    );
    assert_eq!(
        refusal(shares((1 << 51) + 1, &[1.0])),
        "cannot split 2251799813685249 fairly: the most is 2251799813685248"
    );
}
