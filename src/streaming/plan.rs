//! How many pages of each block are kept, and how many come anew at each visit.

use std::collections::VecDeque;

/// What is known of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Its pages.
    pub pages: usize,
    /// Seconds from the beginning of a visit to the beginning of the next block's, without waiting for
    /// copies; 0 if that is not known.
    pub seconds: f64,
}

/// What stays and what comes anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How many pages of each block stay, the first ones.
    pub kept: Vec<usize>,
    /// How many pages those take that come and go.
    pub ring: usize,
}

/// By how much another distribution must be faster than the one that moves the fewest bytes.
const WORTH_IT: f64 = 0.97;
/// Rounds that are imagined, of which the last counts.
const ROUNDS: usize = 4;

/// The fastest way to visit blocks in their order again and again with room for so many pages: what
/// comes anew is spread over all blocks, by their bytes or by the time that there is for the copy, or
/// else whole blocks at the end come anew. Without knowing times and rate it is spread by bytes, which
/// moves the least: then two neighbours need the smallest ring together. `None` if a block does not fit.
#[must_use]
pub fn plan(blocks: &[Cost], pages_per_second: Option<f64>, room: usize) -> Option<Plan> {
    let pages: Vec<usize> = blocks.iter().map(|block| block.pages).collect();
    if pages.iter().any(|pages| *pages > room) {
        return None;
    }
    let largest = pages.iter().copied().max().unwrap_or(0);
    let even = fit(largest, &pages, room, |level, at| pages[at].min(level))
        .unwrap_or_else(|| Plan { kept: vec![0; pages.len()], ring: room });
    let known = blocks.iter().all(|block| block.seconds > 0.0);
    let Some(rate) = pages_per_second.filter(|rate| known && *rate > 0.0) else {
        return Some(even);
    };
    let seconds: Vec<f64> = blocks.iter().map(|block| block.seconds).collect();
    let mut shortest = round(&pages, &seconds, rate, &even) * WORTH_IT;
    let mut best = even;
    for other in [by_time(&pages, &seconds, room), last_whole(&pages, room)].into_iter().flatten() {
        let takes = round(&pages, &seconds, rate, &other);
        if takes < shortest {
            (best, shortest) = (other, takes);
        }
    }
    Some(best)
}

/// As much of each block as there is time for while the one before it computes.
fn by_time(pages: &[usize], seconds: &[f64], room: usize) -> Option<Plan> {
    let whole: f64 = seconds.iter().sum();
    let blocks = pages.len();
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let shares: Vec<f64> =
        (0..blocks).map(|at| seconds[(at + blocks - 1) % blocks] / whole * blocks as f64).collect();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some pages"
    )]
    fit(2 * blocks * pages.iter().copied().max()?, pages, room, |level, at| {
        pages[at].min((level as f64 * shares[at]).round() as usize)
    })
}

/// All of the last blocks, as few as can be.
fn last_whole(pages: &[usize], room: usize) -> Option<Plan> {
    let all: usize = pages.iter().sum();
    let before: Vec<usize> = pages
        .iter()
        .scan(0, |sum, pages| {
            *sum += pages;
            Some(*sum - pages)
        })
        .collect();
    fit(all, pages, room, |level, at| {
        let end = all.saturating_sub(level);
        pages[at].min((before[at] + pages[at]).saturating_sub(end))
    })
}

/// The lowest level with which everything fits, up to the one at which everything is streamed. What room
/// is left is used to keep more.
fn fit(
    most: usize,
    pages: &[usize],
    room: usize,
    streamed: impl Fn(usize, usize) -> usize,
) -> Option<Plan> {
    let at_level =
        |level: usize| -> Vec<usize> { (0..pages.len()).map(|at| streamed(level, at)).collect() };
    let all: usize = pages.iter().sum();
    let takes = |streamed: &[usize]| all - streamed.iter().sum::<usize>() + ring(streamed);
    // What it takes falls with the level until the last blocks, and then may rise.
    let mut level = 0_usize;
    let (mut streamed, mut step) = (at_level(0), (most / 4096).max(1));
    loop {
        if takes(&streamed) <= room {
            if level == 0 || step == 1 {
                break;
            }
            level = level.saturating_sub(step);
            step = (step / 8).max(1);
        } else if level > most {
            return None;
        }
        level += step;
        streamed = at_level(level);
    }
    let (ring, mut spare) = (ring(&streamed), room - takes(&streamed));
    // One page more of some blocks, as evenly as they lie.
    let partly = streamed.iter().filter(|streamed| **streamed > 0).count();
    let (more, mut sum) = (spare.min(partly), 0);
    for streamed in streamed.iter_mut().filter(|streamed| **streamed > 0) {
        sum += more;
        if sum >= partly && spare > 0 {
            sum -= partly;
            *streamed -= 1;
            spare -= 1;
        }
    }
    let kept = pages.iter().zip(&streamed).map(|(pages, streamed)| pages - streamed).collect();
    Some(Plan { kept, ring: ring + spare })
}

/// What two neighbours take together: one is used while the other comes.
fn ring(streamed: &[usize]) -> usize {
    let next = streamed.iter().cycle().skip(1);
    match streamed {
        [only] => *only,
        _ => streamed.iter().zip(next).map(|(one, other)| one + other).max().unwrap_or(0),
    }
}

/// Seconds that a round takes.
#[expect(clippy::cast_precision_loss, reason = "pages and seconds")]
fn round(pages: &[usize], seconds: &[f64], rate: f64, plan: &Plan) -> f64 {
    // Of the blocks that are in the ring: until when, and how many pages.
    let mut inside: VecDeque<(f64, usize)> = VecDeque::new();
    let (mut free, mut copied, mut computed) = (plan.ring, 0.0_f64, 0.0_f64);
    let mut ends = Vec::new();
    for _ in 0..ROUNDS {
        for (at, pages) in pages.iter().enumerate() {
            let streamed = pages - plan.kept[at];
            let mut missing = streamed;
            while missing > 0 {
                if free == 0 {
                    let Some((until, pages)) = inside.pop_front() else { return f64::INFINITY };
                    copied = copied.max(until);
                    free += pages;
                }
                let now = missing.min(free);
                copied += now as f64 / rate;
                (missing, free) = (missing - now, free - now);
            }
            let begin = if streamed > 0 { computed.max(copied) } else { computed };
            computed = begin + seconds[at];
            inside.push_back((computed, streamed));
        }
        ends.push(computed);
    }
    ends[ROUNDS - 1] - ends[ROUNDS - 2]
}
