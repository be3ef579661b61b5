//! What is worth keeping that can be brought back.

/// Greedy-Dual-Size-Frequency: what is worth the least leaves first, and a thing is worth what a byte of it costs
/// to bring back, once for each use of it. What is used later begins with what the last thing to leave was
/// worth, so that what was used often, but long ago, leaves in the end. Cherkasova, "Improving WWW Proxies
/// Performance with Greedy-Dual-Size-Frequency Caching Policy" (HP Labs, 1998).
#[derive(Debug, Default)]
pub(crate) struct GreedyDual {
    /// What the last thing to leave was worth.
    inflation: f64,
}

/// The uses of a thing since it came.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uses {
    count: u32,
    /// What a use was worth when the last one was.
    base: f64,
}

impl GreedyDual {
    /// A thing is used once more.
    pub(crate) fn used(&self, uses: &mut Uses) {
        *uses = Uses { count: uses.count.saturating_add(1), base: self.inflation };
    }

    /// A thing leaves that was worth so much.
    pub(crate) fn left(&mut self, worth: f64) {
        self.inflation = self.inflation.max(worth);
    }
}

impl Uses {
    /// What a thing is worth of which a byte costs so much to bring back.
    pub(crate) fn worth(self, cost_per_byte: f64) -> f64 {
        self.base + f64::from(self.count) * cost_per_byte
    }
}
