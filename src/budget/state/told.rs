//! What is told of a ledger: in errors, in the graph of waits, and at a glance.

use std::time::Instant;

use super::super::wish::Wish;
use super::super::{BudgetStatus, BudgetUser, Figures};
use super::{Entry, State};
use crate::device::ByteSize;
use crate::wait::Description;

impl State {
    pub(in crate::budget) fn figures(&self, asked: u64) -> Figures {
        Figures {
            budget: self.name.clone(),
            asked,
            free: self.room(),
            limit: self.limit,
            held: self.held(),
        }
    }

    pub(in crate::budget) fn describe(&self, ticket: u64) -> Description {
        let bytes = self.place(ticket).map_or(0, |at| self.line[at].wish.missing());
        Description { wants: self.wanted(bytes), held: self.held() }
    }

    pub(super) fn wanted(&self, bytes: u64) -> String {
        format!("{} of {}", ByteSize(bytes), self.name)
    }

    /// Who has the most, as the end of a sentence; empty when nobody has anything.
    fn held(&self) -> String {
        const NAMED: usize = 4;
        let mut entries: Vec<&Entry> = self.reservations.iter().map(|(_, entry)| entry).collect();
        entries.retain(|entry| entry.wish.bytes > 0);
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.wish.bytes));
        let named = entries
            .iter()
            .take(NAMED)
            .map(|entry| format!("{} has {}", entry.wish.holder(), ByteSize(entry.wish.bytes)));
        let mut named: Vec<String> = named.collect();
        let rest: u64 = entries.iter().skip(NAMED).map(|entry| entry.wish.bytes).sum();
        if rest > 0 {
            named.push(format!("{} others have {}", entries.len() - NAMED, ByteSize(rest)));
        }
        let outside = self.outside();
        if outside > 0 {
            named.push(format!("others outside this budget have {}", ByteSize(outside)));
        }
        if named.is_empty() { String::new() } else { format!("; {}", named.join(", ")) }
    }

    pub(in crate::budget) fn status(&self) -> BudgetStatus {
        let now = Instant::now();
        let user = |wish: &Wish, since: Instant| BudgetUser {
            holder: wish.holder(),
            bytes: wish.missing(),
            lasted: now - since,
        };
        let holders = self.reservations.iter();
        let mut holders: Vec<_> =
            holders.map(|(_, entry)| user(&entry.wish, entry.since)).collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        let waiting = self.line.iter().map(|waiter| user(&waiter.wish, waiter.since)).collect();
        BudgetStatus {
            name: self.name.clone(),
            limit: self.limit,
            headroom: self.headroom,
            used: self.used,
            peak: self.peak,
            free: self.room(),
            outside: self.outside(),
            holders,
            waiting,
        }
    }
}
